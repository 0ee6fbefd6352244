"""Results by subgroup (actor, gender, statement, ...): whether a model does worse on some people or takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemo.corpus.clip import Clip
from fastemo.corpus.ravdess import CHANNELS, INTENSITIES
from fastemo.corpus.table import read_columns
from fastemo.evaluation.metrics import confusion, scores
from fastemo.evaluation.uncertainty import group_members, group_sums

STATEMENTS = ("kids", "dogs")  # "Kids are talking by the door", "Dogs are sitting by the door"
MOST_VALUES = 50
_NUM_SHUFFLES = 2000
_SHUFFLED_AT_ONCE = 2**20


def _gender(clip: Clip) -> str:
    """Known for RAVDESS's actors only: the numbers of other corpora do not give it."""
    if not (clip.modality and clip.actor):
        return ""
    return "female" if clip.actor % 2 == 0 else "male"


def _named(number: int, names: Sequence[str]) -> str:
    """RAVDESS's word for one of its numbers, the number itself if it has none, '' for 0."""
    return names[number - 1] if 0 < number <= len(names) else str(number or "")


# Field -> its value for a clip, as text; empty where unknown.
Fields = dict[str, Callable[[Clip], str]]
FIELDS: Fields = {
    "corpus": lambda clip: clip.corpus,
    "subject": lambda clip: clip.subject,
    "actor": lambda clip: str(clip.actor or ""),
    "gender": _gender,
    "intensity": lambda clip: _named(clip.intensity, INTENSITIES),
    "statement": lambda clip: _named(clip.statement, STATEMENTS if clip.modality else ()),
    "channel": lambda clip: _named(clip.channel, CHANNELS),
}


def fields_of(clips: Sequence[Clip]) -> Fields:
    """`FIELDS` and a label table's further columns, which precede fields of the same name.

    A column of more than `MOST_VALUES` values, such as remarks, is left out.
    """
    values: dict[str, set[str]] = defaultdict(set)
    for columns in {clip.columns for clip in clips}:
        for name, value in read_columns(columns).items():
            values[name].add(value)
    chosen = [name for name, found in values.items() if len(found) <= MOST_VALUES]

    def column(name: str) -> Callable[[Clip], str]:
        return lambda clip: read_columns(clip.columns).get(name, "")

    return {**FIELDS, **{name: column(name) for name in sorted(chosen)}}


def group_metrics(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], clips: Sequence[Clip], num_classes: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """`num_clips`, `accuracy`, `uar` and `macro_f1` by field and by the field's value.

    Clips with an unknown field are left out of that field. Values are in the order of their numbers. UAR and macro F1
    are over the classes in the group: without neutral, for instance, for strong intensity.

    Args:
        labels, predicted: Integer [N].
        clips: The N clips.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for field, value_of in fields_of(clips).items():
        values = np.array([value_of(clip) for clip in clips])
        found[field] = {}
        # By the clip's own number where there is one, so that actor 9 comes before actor 10.
        numbers = [getattr(clip, field, 0) if field in FIELDS else 0 for clip in clips]
        for _, value in sorted(set(zip(numbers, values.tolist(), strict=True))):
            if not value:
                continue
            mine = values == value
            counts = confusion(labels[mine], predicted[mine], num_classes)
            measured = {name: float(score) for name, score in scores(counts)._asdict().items()}
            found[field][value] = {"num_clips": int(mine.sum()), **measured}
    return found


def gaps(
    groups: dict[str, dict[str, dict[str, Any]]], correct: NDArray[np.bool_], clips: Sequence[Clip]
) -> list[dict[str, Any]]:
    """Subgroup gaps (fairness): the largest accuracy difference within each field of `group_metrics`, largest first.

    A field with fewer than two groups has none. With many small groups some gap arises by chance, so `p` is the share
    of random assignments of takes to groups of the same sizes with a gap as large: a seeded permutation test. It
    assumes that an actor's takes are independent, so it cannot separate a gender from the few actors who represent it.

    Args:
        groups: What `group_metrics` returned for these clips.
        correct: Boolean [N], whether each clip was classified correctly.
        clips: The N clips.

    Returns:
        For each field: `by`, `best`, `worst`, `best_accuracy`, `worst_accuracy`, `gap`, `p`.
    """
    found, fields = [], fields_of(clips)
    for field, of_field in groups.items():
        if len(of_field) < 2:
            continue
        accuracies = {value: row["accuracy"] for value, row in of_field.items()}
        best, worst = max(accuracies, key=accuracies.__getitem__), min(accuracies, key=accuracies.__getitem__)
        found.append(
            {
                "by": field,
                "best": best,
                "worst": worst,
                "best_accuracy": accuracies[best],
                "worst_accuracy": accuracies[worst],
                "gap": accuracies[best] - accuracies[worst],
                "p": _chance_of_gap(correct, clips, fields[field]),
            }
        )
    return sorted(found, key=lambda row: -row["gap"])


def _chance_of_gap(correct: NDArray[np.bool_], clips: Sequence[Clip], value_of: Callable[[Clip], str]) -> float:
    """The share of random assignments of the takes with at least the observed gap, the observed one included."""
    known = [i for i, clip in enumerate(clips) if value_of(clip)]
    take, num_takes = group_members([clips[i].take for i in known])
    group, num_groups = group_members([value_of(clips[i]) for i in known])
    sums = group_sums(take, num_takes, np.stack([correct[known], np.ones(len(known))], axis=1))
    group_of_take = np.zeros(num_takes, dtype=np.int64)
    group_of_take[take] = group
    rng = np.random.default_rng(0)
    block = max(1, _SHUFFLED_AT_ONCE // num_takes)
    found = _spread(sums, group_of_take[None], num_groups)[0]
    as_large = 0
    for start in range(0, _NUM_SHUFFLES, block):
        shuffled = np.tile(group_of_take, (min(block, _NUM_SHUFFLES - start), 1))
        # Sums of other orders differ in the last bit.
        as_large += int((_spread(sums, rng.permuted(shuffled, axis=1), num_groups) >= found - 1e-9).sum())
    return (1 + as_large) / (1 + _NUM_SHUFFLES)


def _spread(sums: NDArray[np.float64], groups: NDArray[np.int64], num_groups: int) -> NDArray[np.float64]:
    """Best minus worst accuracy, [R], if take g belongs to group `groups[r, g]`; `sums` [G, 2] are hits and clips."""
    rows = np.arange(len(groups))[:, None] * num_groups + groups
    hits, clips = (
        np.bincount(rows.ravel(), np.broadcast_to(column, groups.shape).ravel(), len(groups) * num_groups)
        for column in sums.T
    )
    accuracies = (hits / clips).reshape(len(groups), num_groups)
    return accuracies.max(1) - accuracies.min(1)
