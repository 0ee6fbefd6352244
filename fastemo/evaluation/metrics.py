"""Metrics of a set of predictions: accuracy, UAR, macro F1, recall per class, confusion matrix.

N clips are N pairs of class indices 0 .. K-1: true label and predicted label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix


@dataclass(frozen=True)
class Metrics:
    """Results on one set of clips; every ratio in 0 .. 1.

    Attributes:
        accuracy: Share of clips classified correctly.
        uar: Unweighted average recall (balanced accuracy): mean recall of the classes present in the labels.
        macro_f1: Mean F1 of the classes present in the labels or the predictions, 0 for one never predicted
            correctly. A class in neither does not count.
        per_class: Recall by class name, in the order of the labels; None for a class without a clip.
        confusion: int64 [K, K], rows true labels, columns predicted labels.
        num_clips: N.
        chance: Accuracy of guessing among the classes present in the labels: 1 / their number.
    """

    accuracy: float
    uar: float
    macro_f1: float
    per_class: dict[str, float | None]
    confusion: NDArray[np.int64]
    num_clips: int
    chance: float

    def to_json(self) -> dict[str, Any]:
        """The fields as plain numbers, dicts and lists."""
        return {**asdict(self), "confusion": self.confusion.tolist()}


def confusion(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count clips by true (row) and predicted (column) class: int64 [num_classes, num_classes].

    Raises:
        ValueError: No clips, unequal numbers of labels and predictions, or an index outside the classes.
    """
    shown, predicted = np.asarray(labels), np.asarray(predictions)
    if shown.ndim != 1 or shown.shape != predicted.shape:
        raise ValueError(f"labels {shown.shape} and predictions {predicted.shape} must be one number per clip")
    if not shown.size:
        raise ValueError("there are no clips to evaluate")
    for name, values in (("labels", shown), ("predictions", predicted)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} are {values.dtype}, must be integers")
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name} range {values.min()} .. {values.max()}, must be 0 .. {num_classes - 1}")
    return confusion_matrix(shown, predicted, labels=np.arange(num_classes)).astype(np.int64)


class Scores(NamedTuple):
    """Accuracy, UAR and macro F1 as defined in `Metrics`, float64 [...]: one of each per confusion matrix."""

    accuracy: NDArray[np.float64]
    uar: NDArray[np.float64]
    macro_f1: NDArray[np.float64]


def scores(counts: ArrayLike) -> Scores:
    """Scores of confusion matrices [..., K, K], rows true labels, none of them empty; integers of any dtype."""
    counts = np.asarray(counts, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    shown, predicted = counts.sum(-1), counts.sum(-2)
    # F1 = 2 TP / (true + predicted); a class in neither has no F1, one without true clips has no recall.
    met = shown + predicted
    return Scores(
        accuracy=right.sum(-1) / shown.sum(-1),
        uar=(right / np.maximum(shown, 1)).sum(-1) / (shown > 0).sum(-1),
        macro_f1=(2 * right / np.maximum(met, 1)).sum(-1) / (met > 0).sum(-1),
    )


def compute_metrics(labels: ArrayLike, predictions: ArrayLike, class_names: Sequence[str]) -> Metrics:
    """Metrics of predictions against labels, both integer [N], N > 0; class k is called `class_names[k]`.

    Raises:
        ValueError: As for `confusion`.
    """
    counts = confusion(labels, predictions, len(class_names))
    measured = scores(counts)
    return Metrics(
        **{name: float(value) for name, value in measured._asdict().items()},
        per_class={
            name: int(hits) / int(total) if total else None
            for name, hits, total in zip(class_names, counts.diagonal(), counts.sum(axis=1), strict=True)
        },
        confusion=counts,
        num_clips=int(counts.sum()),
        chance=1 / int(counts.any(axis=1).sum()),
    )
