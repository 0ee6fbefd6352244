"""What a set of predictions got right: accuracy, UAR, macro F1, per class, confusion, an interval.

Clips are N pairs of class indices 0 .. K-1: what was shown, what was predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix, f1_score


@dataclass(frozen=True)
class Metrics:
    """Results on one set of clips; every ratio in 0 .. 1.

    Attributes:
        accuracy: Share of clips predicted right.
        uar: Unweighted average recall (balanced accuracy): mean recall of the classes present in the labels.
        macro_f1: Mean F1 of the classes present in the labels or the predictions, 0 for one that is never
            right. A class in neither says nothing and does not count.
        per_class: Recall by class name, in the order of the labels; None for a class without a clip.
        confusion: int64 [K, K], rows what was shown, columns what was predicted.
        num_clips: N.
    """

    accuracy: float
    uar: float
    macro_f1: float
    per_class: dict[str, float | None]
    confusion: NDArray[np.int64]
    num_clips: int

    def to_json(self) -> dict[str, Any]:
        """The fields as plain numbers, dicts and lists."""
        return {**asdict(self), "confusion": self.confusion.tolist()}


def confusion(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count clips by shown (row) and predicted (column) class: int64 [num_classes, num_classes].

    Raises:
        ValueError: No clips, unequal numbers of labels and predictions, or an index outside the classes.
    """
    shown, predicted = np.asarray(labels), np.asarray(predictions)
    if shown.ndim != 1 or shown.shape != predicted.shape:
        raise ValueError(f"labels {shown.shape} and predictions {predicted.shape} must be one number a clip")
    if not shown.size:
        raise ValueError("there are no clips to measure")
    for name, values in (("labels", shown), ("predictions", predicted)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} are {values.dtype}, must be integers")
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name} range {values.min()} .. {values.max()}, must be 0 .. {num_classes - 1}")
    return confusion_matrix(shown, predicted, labels=np.arange(num_classes)).astype(np.int64)


def compute_metrics(labels: ArrayLike, predictions: ArrayLike, class_names: Sequence[str]) -> Metrics:
    """Measure predictions against labels, both integer [N], N > 0; class k is called `class_names[k]`.

    Raises:
        ValueError: As for `confusion`.
    """
    counts = confusion(labels, predictions, len(class_names))
    clips, right = counts.sum(axis=1), counts.diagonal()
    shown = clips > 0
    met = shown | (counts.sum(axis=0) > 0)
    f1 = f1_score(labels, predictions, labels=np.flatnonzero(met), average="macro", zero_division=0.0)
    return Metrics(
        accuracy=float(right.sum() / counts.sum()),
        uar=float(np.mean(right[shown] / clips[shown])),
        macro_f1=float(f1),
        per_class={
            name: int(hits) / int(total) if total else None
            for name, hits, total in zip(class_names, right, clips, strict=True)
        },
        confusion=counts,
        num_clips=int(counts.sum()),
    )


def accuracy_interval(
    correct: ArrayLike,
    groups: Sequence[str],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap percentile interval of the accuracy, whole groups drawn with replacement.

    With takes as groups, the two files of one take are drawn together and do not pass for two witnesses.
    The interval tells how much the choice of takes matters, not that of the actors. Source: Efron &
    Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3.

    Args:
        correct: Boolean [N], whether each clip was predicted right.
        groups: The group of each clip.
        level: Coverage, between 0 and 1.
        num_resamples: Samples drawn.
        seed: Of the draws; the same arguments give the same interval.

    Raises:
        ValueError: No clips, unequal lengths, a level outside 0 .. 1 or no resamples.
    """
    right = np.asarray(correct, dtype=bool)
    if right.shape != (len(groups),):
        raise ValueError(f"correct is {right.shape} for {len(groups)} groups, must be one a clip")
    if not right.size:
        raise ValueError("there are no clips to measure")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, must be between 0 and 1")
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}, must be at least 1")
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(member)
    hits = np.bincount(member[right], minlength=len(names))
    # How often each group is drawn is all that a resample is.
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_resamples)
    accuracies = (draws @ hits) / (draws @ sizes)
    tail = (1 - level) / 2
    low, high = np.quantile(accuracies, [tail, 1 - tail])
    return float(low), float(high)
