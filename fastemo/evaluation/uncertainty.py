"""Confidence intervals by bootstrap over groups of clips that are not independent.

A group is a take (its audio-video and video-only copies are one performance encoded twice) or a person. Whole groups
are drawn with replacement, so a resample is a sum over groups, weighted by how often each was drawn. Source:
Efron & Tibshirani (1993), "An Introduction to the Bootstrap", sections 8.5 and 13.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemo.evaluation.metrics import Scores, scores

LEVEL = 0.95
NUM_RESAMPLES = 2000
_DRAWS_AT_ONCE = 2**22  # numbers in memory per block of resamples


def group_members(groups: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Number the groups in sorted order: the number of each clip's group, int64 [N], and the count of groups."""
    numbers = {name: number for number, name in enumerate(sorted(set(groups)))}
    return np.array([numbers[name] for name in groups], dtype=np.int64), len(numbers)


def group_sums(member: NDArray[np.int64], num_groups: int, values: ArrayLike) -> NDArray[np.float64]:
    """Sum per-clip values [N, ...] over the clips of each group: float64 [num_groups, ...]."""
    values = np.asarray(values, dtype=np.float64)
    sums = np.zeros((num_groups, *values.shape[1:]))
    np.add.at(sums, member, values)
    return sums


def resample(sums: ArrayLike, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Bootstrap: draw G of the G groups with replacement, R times, and sum their values.

    Args:
        sums: [G, ...], the sums of each group: `group_sums`.
        num_resamples: Number of resamples, R.
        seed: Seed of the draws; the same arguments give the same resamples.

    Returns:
        float64 [R, ...]; exact if `sums` are integers.

    Raises:
        ValueError: No groups or no resamples.
    """
    sums = np.asarray(sums, dtype=np.float64)
    if not len(sums):
        raise ValueError("there are no clips to evaluate")
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}, must be at least 1")
    num_groups, flat = len(sums), sums.reshape(len(sums), -1)
    rng = np.random.default_rng(seed)
    shares = np.full(num_groups, 1 / num_groups)
    block = max(1, _DRAWS_AT_ONCE // num_groups)
    drawn = [
        rng.multinomial(num_groups, shares, size=min(block, num_resamples - start)).astype(np.float64) @ flat
        for start in range(0, num_resamples, block)
    ]
    return np.concatenate(drawn).reshape(num_resamples, *sums.shape[1:])


def percentile_interval(values: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of resampled values [R].

    Raises:
        ValueError: A level outside 0 .. 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, must be between 0 and 1")
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def interval_of_mean(
    values: ArrayLike,
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap percentile interval of a mean over clips, whole groups drawn with replacement.

    With takes as groups, both files of one take are drawn together and do not count as two independent clips.
    The interval covers the choice of takes, not that of actors.

    Args:
        values: One number per clip, [N], such as whether it was classified correctly.
        groups: The group of each clip.
        level: Coverage, between 0 and 1.
        num_resamples: Number of resamples.
        seed: Seed of the draws; the same arguments give the same interval.

    Raises:
        ValueError: No clips, unequal lengths, a level outside 0 .. 1 or no resamples.
    """
    values = np.asarray(values)
    if values.shape != (len(groups),):
        raise ValueError(f"the values are {values.shape} for {len(groups)} groups, must be one per clip")
    member, num_groups = group_members(groups)
    sums = group_sums(member, num_groups, np.stack([values, np.ones(len(values))], axis=1))
    totals, clips = resample(sums, num_resamples=num_resamples, seed=seed).T
    return percentile_interval(totals / clips, level)


def score_intervals(
    labels: ArrayLike,
    predicted: ArrayLike,
    groups: Sequence[str],
    num_classes: int,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Bootstrap percentile intervals of accuracy, UAR and macro F1, by name; other arguments as of `interval_of_mean`.

    UAR and macro F1 of a resample are over the classes in it.

    Args:
        labels: Integer [N].
        predicted: Integer [N], or [S, N] of a model's S seeds, whose mean score is meant.

    Raises:
        ValueError: As `interval_of_mean`.
    """
    shown, said = np.asarray(labels), np.atleast_2d(predicted)
    if not shown.shape == said.shape[1:] == (len(groups),):
        raise ValueError(f"labels {shown.shape} and predictions {said.shape} must be one for each of {len(groups)}")
    member, num_groups = group_members(groups)
    cells = np.zeros((num_groups, len(said), num_classes, num_classes))
    np.add.at(cells, (member, np.arange(len(said))[:, None], shown, said), 1)
    measured: Scores = scores(resample(cells, num_resamples=num_resamples, seed=seed))
    return {name: percentile_interval(values.mean(-1), level) for name, values in measured._asdict().items()}


def intervals(
    labels: ArrayLike,
    predicted: ArrayLike,
    takes: Sequence[str],
    people: Sequence[str],
    num_classes: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """The `intervals` of `test.json`: `score_intervals` over takes and, as `actors`, over people.

    Args:
        people: N, empty where unknown. Without everybody's, or with one person alone, `actors` is None.
    """

    def over(groups: Sequence[str]) -> dict[str, Any]:
        found = score_intervals(labels, predicted, groups, num_classes, num_resamples=num_resamples)
        return {"num_groups": len(set(groups)), **{name: list(interval) for name, interval in found.items()}}

    by_take = over(takes)
    return {
        "level": LEVEL,
        "accuracy": by_take["accuracy"],
        "resampled": "takes",
        "takes": by_take,
        "actors": over(people) if all(people) and len(set(people)) > 1 else None,
    }


def first_file_per_take(takes: Sequence[str], modalities: Sequence[int]) -> NDArray[np.int64]:
    """The positions of one file per take, ascending, as in protocol `speech`: of twins the video-only file."""
    best: dict[str, int] = {}
    for position, (take, modality) in enumerate(zip(takes, modalities, strict=True)):
        if take not in best or modality > modalities[best[take]]:
            best[take] = position
    return np.array(sorted(best.values()), dtype=np.int64)
