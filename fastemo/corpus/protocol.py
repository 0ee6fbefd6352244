"""A Manifest -> train, val and test, split by person; both files of a take are always in the same split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fastemo.corpus.clip import Clip
from fastemo.corpus.config import PROTOCOLS, SPLITS, CorpusConfig, Protocol
from fastemo.corpus.folds import (
    RAVDESS_FOLDS,
    as_ranges,
    balanced_folds,
    by_number,
    name_digest,
    split_actors,
    split_of_fold,
)
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.splits import Splits

_PERSON_NEEDED = "give --corpus.subjects REGEX, or a label table with the column subject"


def num_folds(manifest: Manifest, protocol: str, folds: int = 5) -> int:
    """How many folds a protocol has: `folds` for `kfold`, the number of people for `loso`, 1 without folds."""
    if protocol == "loso":
        return len({clip.person for clip in manifest.clips if clip.person and clip.channel != 2})
    return folds if protocol == "kfold" else len(RAVDESS_FOLDS.get(protocol, [()]))


def split_corpus(manifest: Manifest, config: CorpusConfig) -> Splits:
    """`split_clips` as the configuration of a run has it."""
    return split_clips(
        manifest,
        config.protocol,
        fold=config.fold,
        folds=config.folds,
        allow_shared_subjects=config.allow_shared_subjects,
    )


def split_clips(
    manifest: Manifest,
    protocol: Protocol | None = None,
    *,
    fold: int = 0,
    folds: int = 5,
    allow_shared_subjects: bool = False,
) -> Splits:
    """Split a corpus's clips into train, val and test.

    | protocol | clips | actors |
    | --- | --- | --- |
    | `report` | speech, both modalities | 1-20 / 21-22 / 23-24, as in Roy (2025) |
    | `speech` | speech, one file per take | the same |
    | `speech+song` | all, one file per take | the same |
    | `split_a` | speech, one file per take | test: 5, 10, 16, 19; val: 11, 13, 18, 22; train: the rest |
    | `kfold5`, `kfold6` | speech, one file per take | test: a published fold; val: the next fold; train: the rest |
    | `kfold5` | CREMA-D, if all clips are | test: a fifth of the actors, consecutive; val: the next; train: the rest |
    | `cremad` | CREMA-D | 70, 10 and 20 % of its actors, always the same ones |
    | `kfold` | all but song, one file per take | test: a fold of people; val: the next fold; train: the rest |
    | `loso` | all but song, one file per take | test: one person; val: the next one; train: the rest |
    | `folders` | all | by the corpus's own train, val and test folders |

    Without such folders, `folders` splits 70, 15 and 15 % by person, and clips of unknown people by clip.
    "One file per take" means the video-only file where a take has both. `folds.balanced_folds` makes the folds of
    `kfold`; people of `loso` are in the order of the numbers in their names. Several corpora are split one by one, but
    `kfold` and `loso` take the people of all together.

    Args:
        manifest: The corpus.
        protocol: `None` means `speech` if a clip has its label from a RAVDESS name, `cremad` if all have theirs from
            CREMA-D names, and `folders` otherwise.
        fold, folds: Which fold to test on, 0 to `num_folds` - 1, and how many `kfold` has.
        allow_shared_subjects: Let a person or a take be in several splits; a note then says how many are.

    Raises:
        ValueError: An unknown protocol or fold, a split without clips (the message names the missing actors), clips
            without a person or too few people for `kfold` or `loso`, or a person or take in several splits.
    """
    chosen, notes, protocols = dict[str, tuple[Clip, ...]](), list[str](), dict[str, None]()
    for part in [manifest] if protocol in ("kfold", "loso") else _by_corpus(manifest):
        own = _checked_protocol(part, protocol, fold, folds)
        found, said = _split(part, own, fold, folds)
        chosen = {name: chosen.get(name, ()) + found[name] for name in SPLITS}
        notes += said if part is manifest else [f"{part.where}: {note}" for note in said]
        protocols[own] = None
    names, tested = manifest.class_names, {clip.emotion for clip in chosen["test"]}
    if untested := [name for name in names if name not in tested]:
        notes.append(f"test has no clips of {', '.join(untested)}: chance and UAR are those of {len(tested)} classes")
    splits = Splits(
        protocol=", ".join(protocols),
        class_names=names,
        train=chosen["train"],
        val=chosen["val"],
        test=chosen["test"],
        notes=tuple(notes),
        allow_shared_subjects=allow_shared_subjects,
    )
    is_shared = splits.subjects == "shared"
    return replace(splits, notes=(*notes, f"{splits.about_people['caveat']}")) if is_shared else splits


def _by_corpus(manifest: Manifest) -> list[Manifest]:
    """A manifest of each corpus."""
    names = dict.fromkeys(clip.corpus for clip in manifest.clips)
    if len(names) < 2 or isinstance(manifest.root, Path):
        return [manifest]
    return [
        Manifest(manifest.root[name], tuple(clip for clip in manifest.clips if clip.corpus == name)) for name in names
    ]


def _checked_protocol(manifest: Manifest, protocol: Protocol | None, fold: int, folds: int) -> Protocol:
    """The protocol that is meant; refuses one that does not exist, or does not have this fold."""
    if protocol is None:
        named = not manifest.clips or any(clip.channel for clip in manifest.clips if not clip.split)
        protocol = "speech" if named else "cremad" if all(clip.is_cremad for clip in manifest.clips) else "folders"
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not '{protocol}'")
    last = max(num_folds(manifest, protocol, folds), 1) - 1
    if not 0 <= fold <= last:
        raise ValueError(f"fold must be 0 to {last} with protocol {protocol}, not {fold}")
    return protocol


def _split(
    manifest: Manifest, protocol: Protocol, fold: int, folds: int
) -> tuple[dict[str, tuple[Clip, ...]], list[str]]:
    """The splits of one corpus, or of several by person, and notes."""
    if protocol == "folders":
        return _by_folder(manifest)
    if protocol in ("kfold", "loso"):
        return _by_person(manifest, protocol, fold, folds)
    return _by_actor(manifest, protocol, fold)


def _by_actor(manifest: Manifest, protocol: Protocol, fold: int) -> tuple[dict[str, tuple[Clip, ...]], list[str]]:
    """The splits of a protocol that goes by the actors' numbers, and notes."""
    is_cremad = protocol == "cremad" or (
        protocol == "kfold5" and bool(manifest.clips) and all(clip.is_cremad for clip in manifest.clips)
    )
    clips, notes = _clips_of(manifest, protocol, is_cremad)
    wanted = split_actors(protocol, fold, is_cremad)
    chosen = {name: tuple(clip for clip in clips if clip.actor in wanted[name]) for name in SPLITS}
    for name in SPLITS:
        missing = set(wanted[name]) - {clip.actor for clip in chosen[name]}
        if not chosen[name]:
            raise ValueError(
                f"protocol {protocol} needs actors {as_ranges(wanted[name])} for {name}, but {manifest.where} has no "
                f"clips of them: add them, or choose another --corpus.protocol ({', '.join(PROTOCOLS)})"
            )
        if missing:
            notes.append(f"{name} lacks actors {as_ranges(missing)}")
    if protocol == "report":
        notes += [
            f"{name}: {len(chosen[name])} clips of {num_takes} takes, most counted twice (with and without sound)"
            for name in SPLITS
            if (num_takes := len({clip.take for clip in chosen[name]})) < len(chosen[name])
        ]
    return chosen, notes


def _clips_of(manifest: Manifest, protocol: Protocol, is_cremad: bool) -> tuple[list[Clip], list[str]]:
    """The clips that a protocol uses, and notes on those it leaves out."""
    if is_cremad:
        clips = [clip for clip in manifest.clips if clip.is_cremad]
        left_out = len(manifest.clips) - len(clips)
        return clips, [f"{left_out} clips without a label from a CREMA-D name left out"] if left_out else []
    clips = [clip for clip in manifest.clips if clip.channel]
    if manifest.clips and not clips:
        raise ValueError(
            f"protocol {protocol} goes by RAVDESS's file names, from which no clip in {manifest.where} has its label: "
            f"choose --corpus.protocol folders, kfold or loso"
        )
    notes = []
    if len(clips) < len(manifest.clips):
        notes.append(f"{len(manifest.clips) - len(clips)} clips without a RAVDESS name left out")
    clips, others = _narrowed(clips, song=protocol == "speech+song", twins=protocol == "report")
    return clips, notes + others


def _narrowed(clips: Sequence[Clip], *, song: bool = False, twins: bool = False) -> tuple[list[Clip], list[str]]:
    """The clips without song and with one file per take, unless these are wanted; and notes."""
    speech = [clip for clip in clips if song or clip.channel != 2]
    notes = [f"{len(clips) - len(speech)} song files left out"] if len(speech) < len(clips) else []
    files = speech if twins else first_file_per_take(speech)
    if len(files) < len(speech):
        notes.append(f"{len(speech) - len(files)} files left out: the same take in another modality")
    return files, notes


def _by_person(
    manifest: Manifest, protocol: Protocol, fold: int, folds: int
) -> tuple[dict[str, tuple[Clip, ...]], list[str]]:
    """The splits of `kfold` and `loso`, and notes."""
    clips, notes = _narrowed(manifest.clips)
    if unknown := [clip.key for clip in clips if not clip.person]:
        raise ValueError(
            f"protocol {protocol} goes by person, but {len(unknown)} of {len(clips)} clips in {manifest.where} have "
            f"none, such as {unknown[0]}: {_PERSON_NEEDED}"
        )
    people = sorted({clip.person for clip in clips}, key=by_number)
    least = max(folds if protocol == "kfold" else 0, len(SPLITS))
    if len(people) < least:
        few = f" ({', '.join(people)})" if 0 < len(people) <= 10 else ""
        add = "add people, or " + (_PERSON_NEEDED if len(people) < 3 else f"choose --corpus.folds {len(people)}")
        raise ValueError(
            f"protocol {protocol} needs clips of at least {least} people, but {manifest.where} has clips of "
            f"{len(people)}{few}: {add}"
        )
    groups = balanced_folds(clips, folds) if protocol == "kfold" else [[person] for person in people]
    split_of = {person: name for name, group in split_of_fold(groups, fold).items() for person in group}
    return {name: tuple(clip for clip in clips if split_of[clip.person] == name) for name in SPLITS}, notes


def _by_folder(manifest: Manifest) -> tuple[dict[str, tuple[Clip, ...]], list[str]]:
    """The splits of `folders`, and notes."""
    notes = []
    if any(clip.split for clip in manifest.clips):
        split_of = {clip.key: clip.split for clip in manifest.clips}
        outside = sum(not split for split in split_of.values())
        if outside:
            notes.append(f"{outside} clips outside train, val and test left out")
    else:
        split_of = _split_by_hash(manifest.clips)
        if unknown := sum(not clip.person for clip in manifest.clips):
            notes.append(
                f"no train, val and test folders, and {unknown} clips without a person: these are split by clip, so "
                f"the same person may be in several splits; {_PERSON_NEEDED}"
            )
    chosen = {name: tuple(clip for clip in manifest.clips if split_of[clip.key] == name) for name in SPLITS}
    for name in SPLITS:
        if not chosen[name]:
            raise ValueError(
                f"protocol folders found no labelled clips for {name} in {manifest.where}: lay out the corpus as "
                f"ROOT/{{train,val,test}}/<emotion>/, with different people in each"
            )
    return chosen, notes


def _split_by_hash(clips: Sequence[Clip]) -> dict[str, str]:
    """70, 15 and 15 % of the people, and of each class's clips of unknown people; always the same ones."""

    def place(clip: Clip) -> tuple[str, str]:
        if clip.segment and not clip.person:
            return "/", f"{clip.corpus}/{clip.path}"  # one recording, most likely of one person
        return ("", clip.person) if clip.person else (clip.emotion, clip.take)

    groups: dict[str, set[str]] = {}
    for group, name in map(place, clips):
        groups.setdefault(group, set()).add(name)
    split_of: dict[tuple[str, str], str] = {}
    for group, names in groups.items():
        held = max(1, round(0.15 * len(names)))
        for position, name in enumerate(sorted(names, key=name_digest)):
            split_of[group, name] = "test" if position < held else "val" if position < 2 * held else "train"
    return {clip.key: split_of[place(clip)] for clip in clips}


def first_file_per_take(clips: Iterable[Clip]) -> list[Clip]:
    """One file of each take, the video-only one if there is one, sorted by key."""
    best: dict[str, Clip] = {}
    for clip in clips:
        held = best.get(clip.take)
        if held is None or clip.modality > held.modality:
            best[clip.take] = clip
    return sorted(best.values(), key=lambda clip: clip.key)
