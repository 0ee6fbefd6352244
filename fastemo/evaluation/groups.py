"""Results by who acts and what is acted: whether a model serves some people, or some takes, worse than others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemo.corpus.clip import Clip
from fastemo.corpus.ravdess import CHANNELS, INTENSITIES
from fastemo.evaluation.metrics import confusion, scores
from fastemo.evaluation.uncertainty import group_members, group_sums

STATEMENTS = ("kids", "dogs")  # "Kids are talking by the door", "Dogs are sitting by the door"
_NUM_SHUFFLES = 2000
_SHUFFLED_AT_ONCE = 2**20


def _gender(clip: Clip) -> str:
    """Known of RAVDESS's actors alone: the numbers of other corpora say nothing."""
    if not (clip.modality and clip.actor):
        return ""
    return "female" if clip.actor % 2 == 0 else "male"


def _named(number: int, names: Sequence[str]) -> str:
    """RAVDESS's word for one of its numbers, the number itself where it has none, nothing for 0."""
    return names[number - 1] if 0 < number <= len(names) else str(number or "")


# A field's value of a clip in words, empty where it is unknown.
FIELDS: dict[str, Callable[[Clip], str]] = {
    "actor": lambda clip: str(clip.actor or ""),
    "gender": _gender,
    "intensity": lambda clip: _named(clip.intensity, INTENSITIES),
    "statement": lambda clip: _named(clip.statement, STATEMENTS if clip.modality else ()),
    "channel": lambda clip: _named(clip.channel, CHANNELS),
}


def group_metrics(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], clips: Sequence[Clip], num_classes: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """`num_clips`, `accuracy`, `uar` and `macro_f1` by field and by the field's value.

    Clips of which a field is unknown are left out there. Values stand in the order of their numbers. UAR and macro F1
    are over the classes that the group holds: without neutral, for instance, among the strong ones.

    Args:
        labels, predicted: Integer [N].
        clips: The N clips.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for field, value_of in FIELDS.items():
        values = np.array([value_of(clip) for clip in clips])
        found[field] = {}
        # By the clip's own number where there is one, so that actor 9 stands before actor 10.
        for _, value in sorted({(getattr(clip, field, 0), value) for clip, value in zip(clips, values, strict=True)}):
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
    """The largest difference of accuracy within each field of `group_metrics`, the largest first.

    A field with fewer than two groups has none. With many small groups some gap is there by chance alone, so `p` tells
    how often takes dealt at random to groups of the same sizes show one as large: a permutation test, seeded.
    It takes an actor's takes for independent, so it cannot tell a gender from the few actors who stand for it.

    Args:
        groups: What `group_metrics` returned of these clips.
        correct: Boolean [N], whether each clip was predicted right.
        clips: The N clips.

    Returns:
        `by`, `best`, `worst`, `best_accuracy`, `worst_accuracy`, `gap`, `p` of each.
    """
    found = []
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
                "p": _chance_of_gap(correct, clips, FIELDS[field]),
            }
        )
    return sorted(found, key=lambda row: -row["gap"])


def _chance_of_gap(correct: NDArray[np.bool_], clips: Sequence[Clip], value_of: Callable[[Clip], str]) -> float:
    """The share of random dealings of the takes with at least the gap that was found, itself among them."""
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
        dealt = np.tile(group_of_take, (min(block, _NUM_SHUFFLES - start), 1))
        # Sums of other orders differ in the last bit.
        as_large += int((_spread(sums, rng.permuted(dealt, axis=1), num_groups) >= found - 1e-9).sum())
    return (1 + as_large) / (1 + _NUM_SHUFFLES)


def _spread(sums: NDArray[np.float64], groups: NDArray[np.int64], num_groups: int) -> NDArray[np.float64]:
    """Best less worst accuracy, [R], where take g belongs to group `groups[r, g]`; [G, 2] are its hits and clips."""
    rows = np.arange(len(groups))[:, None] * num_groups + groups
    hits, clips = (
        np.bincount(rows.ravel(), np.broadcast_to(column, groups.shape).ravel(), len(groups) * num_groups)
        for column in sums.T
    )
    accuracies = (hits / clips).reshape(len(groups), num_groups)
    return accuracies.max(1) - accuracies.min(1)
