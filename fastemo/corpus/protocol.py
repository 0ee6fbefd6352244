"""A Manifest -> train, val and test, split by actor; both files of a take are always in the same split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastemo.corpus import cremad
from fastemo.corpus.clip import Clip
from fastemo.corpus.config import PROTOCOLS, SPLITS, Protocol
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.ravdess import NUM_ACTORS

_FIXED_ACTORS = {"train": range(1, 21), "val": range(21, 23), "test": range(23, 25)}

# The folds that published visual-only results on RAVDESS use. Source: Luna-Jimenez et al. (2021),
# "A Proposal for Multimodal Emotion Recognition Using Aural Transformers and Action Units on RAVDESS".
KFOLD5_TEST_ACTORS = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The clips of train, val and test.

    Attributes:
        class_names: Class i's name at position i.
        notes: Remarks for the log: twins left out, actors missing from a split, classes missing from the test.
    """

    protocol: Protocol
    class_names: tuple[str, ...]
    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _assert_disjoint("actor", {name: {str(c.actor) for c in self[name] if c.actor} for name in SPLITS})
        _assert_disjoint("take", {name: {c.take for c in self[name]} for name in SPLITS})

    def __getitem__(self, name: str) -> tuple[Clip, ...]:
        if name not in SPLITS:
            raise KeyError(name)
        clips: tuple[Clip, ...] = getattr(self, name)
        return clips

    def count_table(self) -> list[dict[str, str | int]]:
        """One row per split: clips, takes, actors, and the clips of each class."""
        table: list[dict[str, str | int]] = []
        for name in SPLITS:
            clips = self[name]
            counts = Counter(clip.emotion for clip in clips)
            table.append(
                {
                    "split": name,
                    "clips": len(clips),
                    "takes": len({clip.take for clip in clips}),
                    "actors": len({clip.actor for clip in clips if clip.actor}),
                    **{class_name: counts[class_name] for class_name in self.class_names},
                }
            )
        return table


def num_folds(manifest: Manifest, protocol: Protocol) -> int:
    if protocol == "kfold5":
        return len(KFOLD5_TEST_ACTORS)
    return len(_speakers(manifest)) if protocol == "loso" else 1


def split_clips(manifest: Manifest, protocol: Protocol | None = None, *, fold: int = 0) -> Splits:
    """Split a corpus's clips into train, val and test.

    | protocol | clips | actors |
    | --- | --- | --- |
    | `report` | speech, both modalities | 1-20 / 21-22 / 23-24, as in Roy (2025) |
    | `speech` | speech, one file per take | the same |
    | `speech+song` | all, one file per take | the same |
    | `kfold5` | speech, one file per take | test: the published fold; val: the next fold; train: the rest |
    | `loso` | speech, one file per take | test: one actor; val: the next one; train: the rest |
    | `cremad` | CREMA-D | 70, 10 and 20 % of its actors, always the same ones |
    | `folders` | all | by the corpus's own train, val and test folders |

    Without such folders, `folders` splits 70, 15 and 15 % by actor if file names give one (`actor01_...`), else by
    clip.
    "One file per take" means the video-only file where a take has both.

    Args:
        manifest: The corpus.
        protocol: `None` means `speech` if a clip has its label from a RAVDESS name, `cremad` if all have theirs from
            CREMA-D names, and `folders` otherwise.
        fold: Which fold of `kfold5` (0-4) or `loso` (0 to actors - 1) to test on.

    Raises:
        ValueError: An unknown protocol or fold, or a split without clips; the message names the missing
            actors.
    """
    if protocol is None:
        named = not manifest.clips or any(clip.channel for clip in manifest.clips if not clip.split)
        protocol = "speech" if named else "cremad" if all(clip.is_cremad for clip in manifest.clips) else "folders"
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not '{protocol}'")
    folds = num_folds(manifest, protocol)
    if not 0 <= fold < max(folds, 1):
        raise ValueError(f"fold must be 0 to {max(folds, 1) - 1} with protocol {protocol}, not {fold}")
    if protocol == "folders":
        return _by_folder(manifest)
    clips, notes = _clips_of(manifest, protocol)
    wanted = _split_actors(manifest, protocol, fold)
    chosen = {name: tuple(clip for clip in clips if clip.actor in wanted[name]) for name in SPLITS}
    for name in SPLITS:
        missing = sorted(set(wanted[name]) - _actors(chosen[name]))
        if not chosen[name]:
            raise ValueError(
                f"protocol {protocol} needs actors {_listed(wanted[name])} for {name}, but {manifest.where} has no "
                f"clips of them: add them, or choose another --corpus.protocol ({', '.join(PROTOCOLS)})"
            )
        if missing:
            notes.append(f"{name} lacks actors {_listed(missing)}")
    if protocol == "report":
        notes += [
            f"{name}: {len(chosen[name])} clips of {num_takes} takes, most counted twice (with and without sound)"
            for name in SPLITS
            if (num_takes := len({clip.take for clip in chosen[name]})) < len(chosen[name])
        ]
    return _splits(manifest, protocol, notes, chosen)


def _splits(manifest: Manifest, protocol: Protocol, notes: list[str], chosen: dict[str, tuple[Clip, ...]]) -> Splits:
    names, tested = manifest.class_names, {clip.emotion for clip in chosen["test"]}
    if untested := [name for name in names if name not in tested]:
        notes.append(f"test has no clips of {', '.join(untested)}: chance and UAR are those of {len(tested)} classes")
    return Splits(protocol=protocol, class_names=names, notes=tuple(notes), **chosen)


def _clips_of(manifest: Manifest, protocol: Protocol) -> tuple[list[Clip], list[str]]:
    """The clips that a protocol uses, and notes on those it leaves out."""
    if protocol == "cremad":
        clips = [clip for clip in manifest.clips if clip.is_cremad]
        left_out = len(manifest.clips) - len(clips)
        return clips, [f"{left_out} clips without a label from a CREMA-D name left out"] if left_out else []
    clips = [clip for clip in manifest.clips if clip.channel]
    if manifest.clips and not clips:
        raise ValueError(
            f"protocol {protocol} goes by RAVDESS's file names, from which no clip in {manifest.where} has its label: "
            f"choose --corpus.protocol folders"
        )
    notes = []
    if len(clips) < len(manifest.clips):
        notes.append(f"{len(manifest.clips) - len(clips)} clips without a RAVDESS name left out")
    if protocol != "speech+song":
        num_files = len(clips)
        clips = [clip for clip in clips if clip.channel == 1]
        if num_files > len(clips):
            notes.append(f"{num_files - len(clips)} song files left out")
    if protocol != "report":
        num_files = len(clips)
        clips = first_file_per_take(clips)
        if num_files > len(clips):
            notes.append(f"{num_files - len(clips)} files left out: the same take in another modality")
    return clips, notes


def _split_actors(manifest: Manifest, protocol: Protocol, fold: int) -> dict[str, Sequence[int]]:
    if protocol in ("kfold5", "loso"):
        groups: Sequence[Sequence[int]] = KFOLD5_TEST_ACTORS
        everyone: Sequence[int] = range(1, NUM_ACTORS + 1)
        if protocol == "loso":
            everyone = _speakers(manifest)
            groups = [[actor] for actor in everyone]
            if len(groups) < len(SPLITS):
                raise ValueError(
                    f"protocol loso needs speech of at least {len(SPLITS)} actors, but {manifest.where} has "
                    f"{f'only actors {_listed(everyone)}' if everyone else 'none'}"
                )
        test, val = groups[fold], groups[(fold + 1) % len(groups)]
        return {"train": [a for a in everyone if a not in (*test, *val)], "val": val, "test": test}
    return cremad.split_actors() if protocol == "cremad" else dict(_FIXED_ACTORS)


def _by_folder(manifest: Manifest) -> Splits:
    notes = []
    if any(clip.split for clip in manifest.clips):
        split_of = {clip.key: clip.split for clip in manifest.clips}
        outside = sum(not split for split in split_of.values())
        if outside:
            notes.append(f"{outside} clips outside train, val and test left out")
    else:
        split_of = _split_by_hash(manifest.clips)
        if not all(clip.actor for clip in manifest.clips):
            notes.append(
                "no train, val and test folders and no actors in the file names: split by clip, so the same person may "
                "be in several splits and the accuracy on unseen people is unknown"
            )
    chosen = {name: tuple(clip for clip in manifest.clips if split_of[clip.key] == name) for name in SPLITS}
    for name in SPLITS:
        if not chosen[name]:
            raise ValueError(
                f"protocol folders found no labelled clips for {name} in {manifest.where}: lay out the corpus as "
                f"ROOT/{{train,val,test}}/<emotion>/, with different people in each"
            )
    return _splits(manifest, "folders", notes, chosen)


def _split_by_hash(clips: Sequence[Clip]) -> dict[str, str]:
    """70, 15 and 15 % of the actors, or of each class's clips where actors are unknown; always the same ones."""
    by_actor = all(clip.actor for clip in clips)
    groups: dict[str, set[str]] = {}
    for clip in clips:
        groups.setdefault("" if by_actor else clip.emotion, set()).add(_person(clip, by_actor))
    split_of: dict[tuple[str, str], str] = {}
    for group, people in groups.items():
        order = sorted(people, key=lambda name: hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest())
        held = max(1, round(0.15 * len(order)))
        for position, person in enumerate(order):
            name = "test" if position < held else "val" if position < 2 * held else "train"
            split_of[group, person] = name
    return {c.key: split_of["" if by_actor else c.emotion, _person(c, by_actor)] for c in clips}


def _person(clip: Clip, by_actor: bool) -> str:
    return str(clip.actor) if by_actor else clip.take


def first_file_per_take(clips: Iterable[Clip]) -> list[Clip]:
    """One file of each take, the video-only one if there is one, sorted by key."""
    best: dict[str, Clip] = {}
    for clip in clips:
        held = best.get(clip.take)
        if held is None or clip.modality > held.modality:
            best[clip.take] = clip
    return sorted(best.values(), key=lambda clip: clip.key)


def _speakers(manifest: Manifest) -> list[int]:
    return sorted(_actors(clip for clip in manifest.clips if clip.channel == 1))


def _actors(clips: Iterable[Clip]) -> set[int]:
    return {clip.actor for clip in clips if clip.actor}


def _listed(actors: Iterable[int]) -> str:
    """Actor numbers as ranges: `1-20, 22`."""
    runs: list[list[int]] = []
    for actor in sorted(actors):
        if runs and actor == runs[-1][1] + 1:
            runs[-1][1] = actor
        else:
            runs.append([actor, actor])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _assert_disjoint(what: str, members: dict[str, set[str]]) -> None:
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = set(members[one]) & set(members[other])
        if shared:
            raise ValueError(f"{what} {sorted(shared)[0]} is in both {one} and {other}: no {what} may be in two splits")
