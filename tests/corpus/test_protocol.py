"""Who is trained on and who is tested: RAVDESS's counts, exactly, and no person or take on both sides."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest
from helpers import ravdess_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from fastemo.corpus.clip import Clip
from fastemo.corpus.config import PROTOCOLS, SPLITS, Protocol
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.protocol import num_folds, split_clips
from fastemo.corpus.ravdess import EMOTIONS, Performance, speech_performances
from fastemo.corpus.splits import Splits

ROOT = Path("corpus")
ACTORS = range(1, 25)


def songs(actor: int) -> list[Performance]:
    """Song knows neither disgust nor surprised, and actor 18 sang not at all."""
    if actor == 18:
        return []
    return [replace(take, channel=2) for take in speech_performances(actor) if take.emotion <= 6]


def corpus(actors: Iterable[int] = ACTORS, *, modalities: Iterable[int] = (1, 2), song: bool = False) -> Manifest:
    takes = [take for actor in actors for take in speech_performances(actor) + (songs(actor) if song else [])]
    return Manifest.of(ROOT, [ravdess_clip(take.with_modality(m)) for take in takes for m in modalities])


WHOLE = corpus(song=True)


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.val), len(splits.test)


def actors_of(clips: Iterable[Clip]) -> set[int]:
    return {clip.actor for clip in clips}


def class_counts(clips: Iterable[Clip]) -> dict[str, int]:
    return dict(Counter(clip.emotion for clip in clips))


def assert_disjoint(splits: Splits) -> None:
    for one, other in combinations(SPLITS, 2):
        assert not {c.actor for c in splits[one] if c.actor} & {c.actor for c in splits[other] if c.actor}
        assert not {c.take for c in splits[one]} & {c.take for c in splits[other]}


class TestReport:
    @pytest.mark.parametrize("song", [False, True])
    def test_counts_of_the_report(self, song):
        splits = split_clips(corpus(song=song), "report")
        assert sizes(splits) == (2400, 240, 240)
        assert [actors_of(splits[name]) for name in SPLITS] == [set(range(1, 21)), {21, 22}, {23, 24}]
        assert splits.class_names == EMOTIONS
        assert splits.count_table() == [
            {"split": split, "clips": clips, "takes": clips // 2, "actors": actors}
            | {name: per_class // 2 if name == "neutral" else per_class for name in EMOTIONS}
            for split, clips, actors, per_class in (("train", 2400, 20, 320), ("val", 240, 2, 32), ("test", 240, 2, 32))
        ]

    def test_a_note_says_that_takes_are_counted_twice(self):
        assert split_clips(WHOLE, "report").notes == (
            "2024 song files left out",
            "train: 2400 clips of 1200 takes, most counted twice (with and without sound)",
            "val: 240 clips of 120 takes, most counted twice (with and without sound)",
            "test: 240 clips of 120 takes, most counted twice (with and without sound)",
        )
        alone = split_clips(corpus(modalities=[2]), "report")
        assert (sizes(alone), alone.notes) == ((1200, 120, 120), ())


class TestOneFilePerTake:
    def test_speech(self):
        splits = split_clips(WHOLE, "speech")
        assert sizes(splits) == (1200, 120, 120)
        assert class_counts(splits.test) == {e: 8 if e == "neutral" else 16 for e in EMOTIONS}
        assert actors_of(splits.val) == {21, 22}
        assert splits.notes == ("2024 song files left out", "1440 files left out: the same take in another modality")
        assert split_clips(WHOLE) == splits  # the default for RAVDESS

    def test_speech_and_song(self):
        splits = split_clips(WHOLE, "speech+song")
        assert sizes(splits) == (1200 + 19 * 44, 120 + 88, 120 + 88)
        assert class_counts(splits.test) == {
            "neutral": 16,
            **dict.fromkeys(("calm", "happy", "sad", "angry", "fearful"), 32),
            **dict.fromkeys(("disgust", "surprised"), 16),
        }
        assert sum(clip.actor == 18 for clip in splits.train) == 60

    @pytest.mark.parametrize("protocol", ["speech", "speech+song", "split_a", "kfold5", "kfold6", "kfold", "loso"])
    def test_it_is_the_video_only_file(self, protocol):
        splits = split_clips(WHOLE, protocol)
        for name in SPLITS:
            assert {clip.modality for clip in splits[name]} == {2}
            assert len({clip.take for clip in splits[name]}) == len(splits[name])

    def test_it_is_the_other_file_where_there_is_no_video_only_one(self):
        clips = [clip for clip in WHOLE.clips if clip.modality == 1 or clip.statement == 1]
        splits = split_clips(Manifest.of(ROOT, clips), "speech")
        assert sizes(splits) == (1200, 120, 120)
        assert {(clip.statement, clip.modality) for clip in splits.train} == {(1, 2), (2, 1)}


class TestFolds:
    def test_kfold5_tests_the_published_actors(self):
        published = ({2, 5, 14, 15, 16}, {3, 6, 7, 13, 18}, {10, 11, 12, 19, 20}, {8, 17, 21, 23, 24}, {1, 4, 9, 22})
        assert num_folds(WHOLE, "kfold5") == 5
        for fold, test in enumerate(published):
            splits = split_clips(WHOLE, "kfold5", fold=fold)
            val = published[(fold + 1) % 5]
            assert [actors_of(splits[name]) for name in SPLITS] == [set(ACTORS) - val - test, val, test]
            assert sum(sizes(splits)) == 1440

    def test_kfold6_tests_four_consecutive_actors(self):
        assert num_folds(WHOLE, "kfold6") == 6
        for fold, first in enumerate((1, 5, 9, 13, 17, 21)):
            splits = split_clips(WHOLE, "kfold6", fold=fold)
            test = {first, first + 1, first + 2, first + 3}
            val = {(actor + 3) % 24 + 1 for actor in test}
            assert [actors_of(splits[name]) for name in SPLITS] == [set(ACTORS) - val - test, val, test]
            assert sizes(splits) == (960, 240, 240)

    def test_split_a(self):
        splits = split_clips(WHOLE, "split_a")
        val, test = {11, 13, 18, 22}, {5, 10, 16, 19}
        assert [actors_of(splits[name]) for name in SPLITS] == [set(ACTORS) - val - test, val, test]
        assert sizes(splits) == (960, 240, 240)
        assert splits.notes == ("2024 song files left out", "1440 files left out: the same take in another modality")

    def test_loso_tests_each_actor_once(self):
        manifest = corpus([3, 5, 8, 20])
        assert num_folds(manifest, "loso") == 4
        for fold, (test, val) in enumerate([(3, 5), (5, 8), (8, 20), (20, 3)]):
            splits = split_clips(manifest, "loso", fold=fold)
            assert [actors_of(splits[name]) for name in SPLITS] == [{3, 5, 8, 20} - {test, val}, {val}, {test}]
            assert sizes(splits) == (120, 60, 60)

    def test_loso_counts_those_who_speak(self):
        """An actor with song alone has no speech to be tested on."""
        manifest = Manifest.of(ROOT, [*corpus([1, 2, 3]).clips, *map(ravdess_clip, songs(9))])
        assert num_folds(manifest, "loso") == 3
        assert actors_of(split_clips(manifest, "loso", fold=2).test) == {3}

    @pytest.mark.parametrize(("actors", "held"), [([], "0:"), ([4], r"1 \(4\):"), ([4, 7], r"2 \(4, 7\):")])
    def test_loso_needs_three(self, actors, held):
        with pytest.raises(ValueError, match=f"loso needs clips of at least 3 people, but corpus has clips of {held}"):
            split_clips(corpus(actors), "loso")

    @pytest.mark.parametrize(
        ("protocol", "fold", "last"),
        [
            *(("kfold5", 5, 4), ("kfold5", -1, 4), ("kfold6", 6, 5), ("kfold", 5, 4), ("loso", 24, 23)),
            *((protocol, 1, 0) for protocol in ("report", "speech", "speech+song", "split_a", "folders")),
        ],
    )
    def test_a_fold_that_does_not_exist(self, protocol, fold, last):
        assert num_folds(WHOLE, protocol) == last + 1
        with pytest.raises(
            ValueError, match=f"^fold must be 0 to {last} with protocol {re.escape(protocol)}, not {fold}$"
        ):
            split_clips(WHOLE, protocol, fold=fold)


class TestMissing:
    @pytest.mark.parametrize(
        ("absent", "split", "listed"),
        [(range(21, 23), "val", "21-22"), (range(23, 25), "test", "23-24"), (range(1, 21), "train", "1-20")],
    )
    @pytest.mark.parametrize("protocol", ["report", "speech", "speech+song"])
    def test_an_empty_split_names_the_actors_that_it_needs(self, protocol, absent, split, listed):
        manifest = corpus(sorted(set(ACTORS) - set(absent)))
        with pytest.raises(ValueError, match=f"needs actors {listed} for {split}, but corpus has no clips of them"):
            split_clips(manifest, protocol)

    def test_kfold5_names_its_own(self):
        with pytest.raises(ValueError, match="needs actors 1, 4, 9, 22 for test"):
            split_clips(corpus([2, 3, 5, 8, 10]), "kfold5", fold=4)

    def test_some_who_are_missing_are_noted(self):
        splits = split_clips(corpus([1, 2, 3, 5, 21, 24], modalities=[2]), "speech")
        assert splits.notes == ("train lacks actors 4, 6-20", "val lacks actors 22", "test lacks actors 23")

    def test_an_empty_corpus(self):
        for protocol in PROTOCOLS:
            with pytest.raises(ValueError, match=str(ROOT)):
                split_clips(Manifest(ROOT, ()), protocol)

    def test_unlabelled_and_rejected_files_are_never_dealt(self):
        extra = replace(WHOLE.clips[0], key="x.mp4")
        manifest = replace(WHOLE, unlabelled=(extra,), rejected=(extra,))
        assert split_clips(manifest, "report") == split_clips(WHOLE, "report")

    def test_clips_without_a_ravdess_name_are_left_out_and_noted(self):
        clips = corpus(modalities=[2]).clips
        splits = split_clips(Manifest.of(ROOT, [*clips, Clip(key="happy/a.mp4", emotion="happy")]), "speech")
        assert (sizes(splits), splits.notes) == ((1200, 120, 120), ("1 clips without a RAVDESS name left out",))

    def test_an_unknown_protocol(self):
        with pytest.raises(ValueError, match=r"protocol must be one of report, speech, .*, not 'random'"):
            split_clips(WHOLE, "random")
        assert get_args(Protocol) == PROTOCOLS


def free_clip(key: str, **fields: object) -> Clip:
    return Clip(key=key, emotion=key.split("/")[-2], num_frames=10, **fields)


class TestFolders:
    def test_splits_are_the_folders(self):
        rows = [free_clip(f"{split}/{e}/{i}.mp4", split=split) for split in SPLITS for e in "ab" for i in range(3)]
        splits = split_clips(Manifest.of(ROOT, rows))
        assert (splits.protocol, splits.class_names, splits.notes) == ("folders", ("a", "b"), ())
        for name in SPLITS:
            assert [clip.key for clip in splits[name]] == [f"{name}/{e}/{i}.mp4" for e in "ab" for i in range(3)]
        more = split_clips(Manifest.of(ROOT, [*rows, free_clip("other/a/x.mp4")]))
        assert replace(more, notes=()) == splits
        assert more.notes == ("1 clips outside train, val and test left out",)

    @pytest.mark.parametrize("absent", SPLITS)
    def test_a_split_without_clips(self, absent):
        rows = [free_clip(f"{split}/a/x.mp4", split=split) for split in SPLITS if split != absent]
        with pytest.raises(ValueError, match=f"no labelled clips for {absent} in corpus: lay out the corpus as"):
            split_clips(Manifest.of(ROOT, rows), "folders")

    def test_an_actor_in_two_folders(self):
        rows = [free_clip(f"{split}/a/x.mp4", split=split, actor=7) for split in SPLITS]
        with pytest.raises(
            ValueError, match=r"^1 person is in several splits, such as person 7 in train and val and t"
        ):
            split_clips(Manifest.of(ROOT, rows), "folders")

    def test_without_folders_actors_are_dealt(self):
        rows = [free_clip(f"a/actor{n:02d}_{i}.mp4", actor=n) for n in range(1, 21) for i in range(5)]
        splits = split_clips(Manifest.of(ROOT, rows))
        assert {name: len(actors_of(splits[name])) for name in SPLITS} == {"train": 14, "val": 3, "test": 3}
        assert_disjoint(splits)
        assert sum(sizes(splits)) == 100
        assert splits.notes == ()
        # The same people on every machine, in every process.
        assert (actors_of(splits.val), actors_of(splits.test)) == ({16, 9, 14}, {1, 18, 13})
        shuffled = random.Random(0).sample(rows, len(rows))
        assert split_clips(Manifest.of(ROOT, shuffled)) == splits

    def test_without_actors_each_class_is_dealt_and_the_risk_is_noted(self):
        rows = [free_clip(f"{e}/{i}.mp4") for e in ("a", "b") for i in range(20)]
        splits = split_clips(Manifest.of(ROOT, rows))
        for name, count in {"train": 14, "val": 3, "test": 3}.items():
            assert class_counts(splits[name]) == {"a": count, "b": count}
        assert "40 clips without a person: these are split by clip, so the same person may be in" in splits.notes[0]
        assert (splits.subjects, splits.about_people["caveat"]) == ("unknown", "whether people are unseen is unknown")

    def test_people_who_are_known_stay_together_where_others_are_not(self):
        rows = [free_clip(f"{e}/{i}.mp4") for e in ("a", "b") for i in range(20)]
        rows += [
            free_clip(f"{e}/p{n}_{i}.mp4", subject=f"p{n}") for n in range(10) for e in ("a", "b") for i in range(3)
        ]
        splits = split_clips(Manifest.of(ROOT, rows))
        assert sizes(splits) == (28 + 36, 6 + 12, 6 + 12)
        assert splits.subjects == "unknown"

    def test_the_default_for_several_corpora_leaves_none_out(self):
        ravdess = [replace(clip, key=f"r/{clip.key}", corpus="r") for clip in corpus(modalities=[2]).clips]
        other = [replace(free_clip(f"o/a/{n}.mp4", subject=f"p{n}"), corpus="o") for n in range(20)]
        assert split_clips(Manifest.of({"r": ROOT}, ravdess)).protocol == "speech"
        splits = split_clips(Manifest.of({"r": ROOT, "o": ROOT}, [*ravdess, *other]))
        assert (splits.protocol, sum(sizes(splits)), splits.subjects) == ("folders, speech", 1440 + 20, "unseen")


def test_a_take_in_two_splits_is_refused():
    one, twin = Clip(key="a.mp4"), Clip(key="a.mp4")
    with pytest.raises(ValueError, match=r"^1 take is in several splits, such as take a\.mp4 in val and test: move"):
        Splits(protocol="folders", class_names=("a",), train=(), val=(one,), test=(twin,))


@settings(max_examples=60)
@given(
    st.sampled_from(PROTOCOLS),
    st.sets(st.sampled_from(ACTORS), min_size=3),
    st.integers(0, 23),
    st.integers(0, 2**32),
    st.floats(0.02, 1.0),
)
def test_no_actor_and_no_take_in_two_splits(protocol, actors, fold, seed, share):
    """Whatever part of RAVDESS is there: disjoint splits of files that are there, or a word on what is missing."""
    generator = random.Random(seed)
    clips = [clip for clip in WHOLE.clips if clip.actor in actors and generator.random() < share]
    manifest = Manifest.of(ROOT, clips)
    fold %= max(1, num_folds(manifest, protocol))
    try:
        splits = split_clips(manifest, protocol, fold=fold)
    except ValueError as error:
        if any(word in str(error) for word in ("needs actors", "needs clips of", "no labelled clip")):
            return
        raise
    assert_disjoint(splits)
    for name in SPLITS:
        assert splits[name]
        assert set(splits[name]) <= set(clips)
        assert len(set(splits[name])) == len(splits[name])
    if protocol not in ("report", "folders"):
        dealt = [clip.take for name in SPLITS for clip in splits[name]]
        assert len(set(dealt)) == len(dealt)
