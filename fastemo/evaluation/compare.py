"""Models compared on the same clips: tests paired by take, corrected for the number of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, chi2

from fastemo.evaluation.metrics import confusion, scores
from fastemo.evaluation.tables import PredictionTable, read_predictions
from fastemo.evaluation.uncertainty import (
    first_file_per_take,
    group_members,
    group_sums,
    interval_of_mean,
    intervals,
    percentile_interval,
    resample,
)

__all__ = [
    "PredictionTable",
    "compare",
    "holm",
    "mcnemar",
    "order_accuracy",
    "order_counts",
    "pooled",
    "read_predictions",
]

# Enough for the smallest p, 2 / (R + 1), to survive the correction in a table of ten models.
NUM_RESAMPLES = 10_000
_EXACT_BELOW = 25
# With fewer people no exact test of their signs reaches p = 0.05, and a bootstrap of them would claim more than it can.
_MIN_PEOPLE = 6


def compare(tables: Mapping[str, Sequence[PredictionTable]], reference: str | None = None) -> list[dict[str, Any]]:
    """Compare every two models on the same clips, or each with a reference.

    McNemar's test uses the first seed of each model and one file per take, since it assumes independent rows. The
    bootstrap uses all seeds and all clips: it resamples takes, twins together, and measures how the difference of the
    two mean accuracies over the seeds varies. Its interval and p account for the choice of takes, not of seeds; a
    second bootstrap resamples people, where six or more are tested and all are known. Each kind of p is corrected by
    Holm's method over all pairs.

    Args:
        tables: By the model's name, a table (`read_predictions`) for each of its seeds.
        reference: Name of the model that each other one is compared with, as `b`; `None`: all pairs.

    Returns:
        A row for each pair, in the order of the names: `a`, `b`, `num_clips`, `num_takes`; `only_a` and `only_b`, the
        takes that only one of them got right, with `p_mcnemar` and `p_mcnemar_holm`; `difference`, the accuracy of
        `a` minus that of `b`, with its 95 % `interval`, `p_bootstrap` and `p_bootstrap_holm` (two-sided); over people,
        if there are at least six, `interval_people`, `p_people` and `p_people_holm`.

    Raises:
        ValueError: A model without tables, or tables of different clips, labels or classes; the message names one.
    """
    everything = [(name, table) for name, of_model in tables.items() for table in of_model]
    for name, of_model in tables.items():
        if not of_model:
            raise ValueError(f"model {name} has no predictions to compare")
    for _, table in everything[1:]:
        _check_same(everything[0][1], table)
    if len(tables) < 2:
        return []
    first = everything[0][1]
    rows = first_file_per_take(first.takes, first.modalities.tolist())
    resampled = {"": _resampled(tables, first.takes)}
    if all(first.people) and len(set(first.people)) >= _MIN_PEOPLE:
        resampled["people"] = _resampled(tables, first.people)
    pairs = combinations(tables, 2) if reference is None else ((it, reference) for it in tables if it != reference)
    found = [
        {
            "a": a,
            "b": b,
            "num_clips": len(first.keys),
            "num_takes": len(rows),
            **_only_one_right(tables[a][0].correct[rows], tables[b][0].correct[rows]),
            **{k: v for over, its in resampled.items() for k, v in _difference(tables, a, b, *its, over=over).items()},
        }
        for a, b in pairs
    ]
    for kind in ("p_mcnemar", "p_bootstrap", *["p_people"] * (len(resampled) - 1)):
        for row, corrected in zip(found, holm([row[kind] for row in found]), strict=True):
            row[f"{kind}_holm"] = corrected
    return found


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p that two models which differ on `only_a + only_b` takes are right equally often.

    Exact below 25 such takes, else chi-square with continuity correction. Sources: McNemar (1947), "Note on the
    sampling error of the difference between correlated proportions or percentages"; Edwards (1948).
    """
    differing = only_a + only_b
    if differing == 0:
        return 1.0
    if differing < _EXACT_BELOW:
        return float(binomtest(only_a, differing, 0.5).pvalue)
    return float(chi2.sf(max(abs(only_a - only_b) - 1, 0) ** 2 / differing, 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, corrected for their number, in the given order.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


def pooled(tables: Sequence[PredictionTable]) -> dict[str, Any]:
    """A model's scores over all of its test clips, each computed once from one confusion matrix per seed.

    Args:
        tables: A table for each seed: the predictions of all folds, joined.

    Returns:
        `accuracy` (WAR), `uar` and `macro_f1`, the means over the seeds, and the `intervals` of these means;
        `num_clips` and `num_people` of a seed, the latter None if somebody is unknown.

    Raises:
        ValueError: No tables, or tables of different clips, labels or classes.
    """
    if not tables:
        raise ValueError("there are no predictions to evaluate")
    for table in tables[1:]:
        _check_same(tables[0], table)
    first, num_classes = tables[0], len(tables[0].class_names)
    predicted = np.stack([table.predicted for table in tables])
    found = scores([confusion(first.labels, of_seed, num_classes) for of_seed in predicted])
    return {
        **{name: float(of_seeds.mean()) for name, of_seeds in found._asdict().items()},
        "intervals": intervals(
            first.labels, predicted, first.takes, first.people, num_classes, num_resamples=NUM_RESAMPLES
        ),
        "num_clips": len(first.keys),
        "num_people": len(set(first.people)) if all(first.people) else None,
    }


def order_counts(counts: ArrayLike, class_names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """How many clips of paired classes were predicted correctly, as the other class of the pair, and as anything else.

    Args:
        counts: Integer [K, K], rows true labels, columns predicted labels.
        pairs: Classes that show the same frames in opposite order; a pair not among the classes is ignored.
    """
    counts = np.asarray(counts)
    right = swapped = elsewhere = 0
    for i, j in _positions(class_names, pairs):
        right += int(counts[i, i] + counts[j, j])
        swapped += int(counts[i, j] + counts[j, i])
        elsewhere += int(counts[[i, j]].sum() - counts[np.ix_([i, j], [i, j])].sum())
    return right, swapped, elsewhere


def order_accuracy(table: PredictionTable, pairs: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """How well a model separates classes that differ only in frame order; chance is one half.

    Args:
        table: The model's predictions.
        pairs: Such classes; for the built-in corpus `corpus.action_units.PAIRS`.

    Returns:
        `right`, `swapped` and `elsewhere` as in `order_counts`; `accuracy`, the share of right among right or swapped;
        and its 95 % `interval` by bootstrap over takes. None if no clip was either.
    """
    counts = confusion(table.labels, table.predicted, len(table.class_names))
    right, swapped, elsewhere = order_counts(counts, table.class_names, pairs)
    if right + swapped == 0:
        return None
    pair_of = np.full(len(table.class_names), -1)
    for number, positions in enumerate(_positions(table.class_names, pairs)):
        pair_of[list(positions)] = number
    rows = np.flatnonzero((pair_of[table.labels] >= 0) & (pair_of[table.labels] == pair_of[table.predicted]))
    interval = interval_of_mean(table.correct[rows], [table.takes[row] for row in rows])
    return {
        "right": right,
        "swapped": swapped,
        "elsewhere": elsewhere,
        "accuracy": right / (right + swapped),
        "interval": list(interval),
    }


def _positions(class_names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    names = list(class_names)
    return [(names.index(a), names.index(b)) for a, b in pairs if a in names and b in names]


def _check_same(one: PredictionTable, other: PredictionTable) -> None:
    """Raises `ValueError` unless two tables have the same clips."""
    where = f"{one.source} and {other.source}"
    if one.class_names != other.class_names:
        raise ValueError(f"{where} have different classes: compare runs on the same corpus")
    if one.keys != other.keys:
        key = min(set(one.keys) ^ set(other.keys))
        raise ValueError(f"{where} have different clips, only one has {key!r}: compare runs on the same test split")
    for name, values, others in (
        ("labels", one.labels, other.labels),
        ("modalities", one.modalities, other.modalities),
        ("actors", one.actors, other.actors),
    ):
        differing = np.flatnonzero(values != others)
        if len(differing):
            raise ValueError(
                f"{where} have different {name} for {one.keys[differing[0]]!r}: compare runs on the same corpus"
            )


def _hits(of_model: Sequence[PredictionTable]) -> NDArray[np.int64]:
    """In how many of its seeds a model got each clip right, [N]."""
    return np.sum([table.correct for table in of_model], axis=0)


def _resampled(
    tables: Mapping[str, Sequence[PredictionTable]], takes: Sequence[str]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The clips [R] of each resample, and each model's hits [R] in the same resamples, summed over its seeds."""
    member, num_groups = group_members(takes)
    columns = np.stack([np.ones(len(takes)), *(_hits(of_model) for of_model in tables.values())], axis=1)
    clips, *hits = resample(group_sums(member, num_groups, columns), num_resamples=NUM_RESAMPLES).T
    return clips, dict(zip(tables, hits, strict=True))


def _only_one_right(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> dict[str, Any]:
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return {"only_a": only_a, "only_b": only_b, "p_mcnemar": mcnemar(only_a, only_b)}


def _difference(
    tables: Mapping[str, Sequence[PredictionTable]],
    a: str,
    b: str,
    clips: NDArray[np.float64],
    hits: Mapping[str, NDArray[np.float64]],
    *,
    over: str,
) -> dict[str, Any]:
    """The difference of two models' mean accuracies, and how it varies over the resamples of takes or of people."""
    num_a, num_b = len(tables[a]), len(tables[b])
    # Integers, so that a tie is exact.
    ahead = hits[a] * num_b - hits[b] * num_a
    beyond = min((ahead <= 0).sum(), (ahead >= 0).sum())
    interval = list(percentile_interval(ahead / (clips * num_a * num_b)))
    p = min(1.0, float(2 * (1 + beyond) / (1 + len(clips))))
    if over:
        return {f"interval_{over}": interval, f"p_{over}": p}
    found = _hits(tables[a]).mean() / num_a - _hits(tables[b]).mean() / num_b
    return {"difference": float(found), "interval": interval, "p_bootstrap": p}
