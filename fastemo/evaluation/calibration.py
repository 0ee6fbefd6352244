"""Calibration: whether predictions made with 80 % confidence are right 80 % of the time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

NUM_BINS = 10


def calibration(correct: ArrayLike, confidence: ArrayLike, *, num_bins: int = NUM_BINS) -> dict[str, Any]:
    """Expected calibration error and the reliability curve, by the probability of the predicted class.

    Bins are equally wide and include their upper edge. The error is the mean |accuracy - confidence| over the
    bins, weighted by their clips. Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", section 2.

    Args:
        correct: Boolean [N], whether each clip was classified correctly.
        confidence: [N], the probability of the predicted class, 0 to 1.

    Returns:
        `ece`, `num_bins` and `bins`: for each its edges `low` and `high`, `num_clips`, and the mean `confidence` and
        the `accuracy` of its clips, both None in an empty bin.

    Raises:
        ValueError: No clips, unequal lengths, or no bins.
    """
    right, sure = np.asarray(correct, dtype=bool), np.asarray(confidence, dtype=np.float64)
    if right.ndim != 1 or right.shape != sure.shape:
        raise ValueError(f"correct {right.shape} and confidence {sure.shape} must be one number per clip")
    if not len(right):
        raise ValueError("there are no clips to evaluate")
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}, must be at least 1")
    edges = np.arange(num_bins + 1) / num_bins
    # A probability rounded to slightly above 1 belongs to the last bin.
    member = np.searchsorted(edges[1:-1], sure, side="left")
    clips, confidences, hits = (np.bincount(member, weights, num_bins) for weights in (None, sure, right))
    return {
        "ece": float(np.abs(hits - confidences).sum() / len(right)),
        "num_bins": num_bins,
        "bins": [
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "num_clips": int(clips[i]),
                "confidence": float(confidences[i] / clips[i]) if clips[i] else None,
                "accuracy": float(hits[i] / clips[i]) if clips[i] else None,
            }
            for i in range(num_bins)
        ],
    }
