"""A model's prediction for one clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fastemo.video.config import Box, area

Faces = Literal["largest", "all"]
UNSURE = "unsure"
NO_FACE = "no face"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's prediction for one clip: a file, or a window of a longer video.

    Attributes:
        path: The file or URL; empty for frames in memory.
        start, end: Of the clip in the video, in seconds, as a player counts them.
        label: The most probable class; `unsure` if its probability is below the minimum; `None` if it failed.
        probabilities: Class -> calibrated probability; they sum to 1. Empty if it failed.
        times: Of the T frames that the model saw, in seconds; empty where frames have no times (pictures, arrays).
        embedding: float32 [features], what the classifier saw; `None` if it failed.
        error: Why it failed; `None` if it did not. Of a run that crops faces `no face`, where there is none.
        face: Number of the face in the video, from 1; 0 where the run does not crop faces.
        box: Where it is, left, top, width and height in pixels of the displayed picture: its median over the T frames.
    """

    path: str = ""
    start: float = 0.0
    end: float = 0.0
    label: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    times: tuple[float, ...] = ()
    embedding: np.ndarray | None = field(default=None, repr=False, compare=False)
    error: str | None = None
    face: int = 0
    box: Box | None = None

    @property
    def confidence(self) -> float:
        """The highest probability; 0 if it failed."""
        return max(self.probabilities.values(), default=0.0)


def of_largest_face(predictions: Sequence[Prediction]) -> Prediction:
    """Of the faces of one clip, or the only prediction."""
    return max(predictions, key=lambda it: area(it.box) if it.box else 0)


def label_of(probabilities: Sequence[float] | np.ndarray, class_names: Sequence[str], min_confidence: float) -> str:
    """The most probable class, the first in case of a tie; `unsure` if its probability is below `min_confidence`."""
    best = int(np.argmax(probabilities))
    return class_names[best] if probabilities[best] >= min_confidence else UNSURE
