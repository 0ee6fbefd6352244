"""How a prediction is put into words, and when it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from fastemo.inference.prediction import NO_FACE, UNSURE, Prediction


def valid(text: str) -> str:
    """Text that every format can hold: bytes of a file name that are not UTF-8 are escaped, as in `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """The same without line breaks or repeated spaces."""
    return " ".join(valid(text).split())


def caption(prediction: Prediction) -> str:
    """Such as `happy 87 %`, `unsure (happy 43 %)`, `no face` or `failed: it is damaged`."""
    if prediction.error == NO_FACE:
        return NO_FACE
    if prediction.label is None:
        return one_line(f"failed: {prediction.error}" if prediction.error else "failed")
    if prediction.label != UNSURE:
        return one_line(f"{prediction.label} {100 * prediction.confidence:.0f} %")
    best = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    return one_line(f"{UNSURE} ({best} {100 * prediction.confidence:.0f} %)")


def captions(window: Sequence[Prediction]) -> list[str]:
    """A line for each face of a window; the number of a face only where there are several."""
    return [f"{it.face}: {caption(it)}" for it in window] if len(window) > 1 else [caption(it) for it in window]


def by_window(predictions: Iterable[Prediction]) -> list[list[Prediction]]:
    """Consecutive predictions of one window of a video together: those of its faces."""
    return [[*group] for _, group in groupby(predictions, window_of)]


def window_of(prediction: Prediction) -> tuple[str, float, float]:
    """What the predictions of a window's faces share."""
    return prediction.path, prediction.start, prediction.end


def handover(before: Prediction, after: Prediction) -> tuple[float, float]:
    """When a window stops being shown and when the next one starts, in seconds.

    A window is shown around its centre: the change is halfway between the two centres, or, if there is a gap between
    the windows, the gap shows neither.
    """
    if before.end < after.start:
        return before.end, after.start
    middle = (before.start + before.end + after.start + after.end) / 4
    return middle, middle
