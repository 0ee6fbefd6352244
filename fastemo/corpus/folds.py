"""Who is tested together: the folds of published results, and folds of any corpus's people."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from fastemo.corpus import cremad
from fastemo.corpus.clip import Clip
from fastemo.corpus.config import Protocol

_Who = TypeVar("_Who", int, str)

# RAVDESS's actors; of folds, those tested. Source of kfold5: Luna-Jimenez et al. (2021), "A Proposal for Multimodal
# Emotion Recognition Using Aural Transformers and Action Units on RAVDESS"; of kfold6: MAE-DFER, SVFAP, HiCMAE.
RAVDESS_FOLDS: Mapping[str, Sequence[Sequence[int]]] = {
    "kfold5": ((2, 5, 14, 15, 16), (3, 6, 7, 13, 18), (10, 11, 12, 19, 20), (8, 17, 21, 23, 24), (1, 4, 9, 22)),
    "kfold6": [range(first, first + 4) for first in range(1, 25, 4)],
}
_FIXED = {"train": range(1, 21), "val": range(21, 23), "test": range(23, 25)}
_SPLIT_A = {
    "train": (1, 2, 3, 4, 6, 7, 8, 9, 12, 14, 15, 17, 20, 21, 23, 24),
    "val": (11, 13, 18, 22),
    "test": (5, 10, 16, 19),
}
_RAVDESS_SPLITS: Mapping[str, Mapping[str, Sequence[int]]] = {
    **dict.fromkeys(("report", "speech", "speech+song"), _FIXED),
    "split_a": _SPLIT_A,
}


def split_actors(protocol: Protocol, fold: int, is_cremad: bool) -> Mapping[str, Sequence[int]]:
    """The actors of each split, for a protocol that goes by their numbers."""
    if protocol in RAVDESS_FOLDS:
        return split_of_fold(cremad.FOLDS if is_cremad else RAVDESS_FOLDS[protocol], fold)
    return cremad.split_actors() if is_cremad else _RAVDESS_SPLITS[protocol]


def split_of_fold(groups: Sequence[Sequence[_Who]], fold: int) -> dict[str, Sequence[_Who]]:
    """Test on a group, validate on the next one (the first follows the last), train on the rest."""
    val = (fold + 1) % len(groups)
    rest = [who for place, group in enumerate(groups) if place not in (fold, val) for who in group]
    return {"train": rest, "val": groups[val], "test": groups[fold]}


def balanced_folds(clips: Iterable[Clip], num_folds: int) -> list[list[str]]:
    """Divide people into folds of about as many clips of each class.

    A greedy assignment: people by descending number of clips, ties by the BLAKE2b digests of their names; each to the
    fold where sum over classes of (own clips x the fold's clips) / (all clips of the class)^2 is lowest; of equal folds
    to that with the fewest clips, then to the first. All in integers, so the result depends on nothing but the number
    of clips of each person and class. With as many people as folds or more, no fold is empty.

    The sum over folds and classes of (share of the class's clips - 1 / K)^2 is at most what dealing people to K folds
    at random gives on average: (1 - 1 / K) times the sum over people and classes of (share of the class's clips)^2.

    Args:
        clips: Each with a person.
        num_folds: K.

    Returns:
        K lists of people, in the order of the assignment.
    """
    counts: dict[str, Counter[str]] = {}
    for clip in clips:
        counts.setdefault(clip.person, Counter())[clip.emotion] += 1
    totals: Counter[str] = Counter()
    for of_person in counts.values():
        totals.update(of_person)
    common = math.lcm(*totals.values())
    weights = {name: (common // total) ** 2 for name, total in totals.items()}
    folds: list[list[str]] = [[] for _ in range(num_folds)]
    held: list[Counter[str]] = [Counter() for _ in range(num_folds)]
    for person in sorted(counts, key=lambda name: (-counts[name].total(), name_digest(name))):
        overlap = [sum(weights[name] * n * fold[name] for name, n in counts[person].items()) for fold in held]
        place = min(range(num_folds), key=lambda k: (overlap[k], held[k].total(), k))
        folds[place].append(person)
        held[place].update(counts[person])
    return folds


def name_digest(name: str) -> bytes:
    """An order of names that is the same on every machine and unrelated to what they mean."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest()


def by_number(name: str) -> tuple[str, str]:
    """Sorts names by the numbers in them: `S9` before `S10`."""
    return re.sub(r"\d+", lambda number: number[0].zfill(20), name, flags=re.ASCII), name


def as_ranges(actors: Iterable[int]) -> str:
    """Actor numbers as ranges: `1-20, 22`."""
    runs: list[list[int]] = []
    for actor in sorted(actors):
        if runs and actor == runs[-1][1] + 1:
            runs[-1][1] = actor
        else:
            runs.append([actor, actor])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
