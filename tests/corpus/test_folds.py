"""Folds of people, people in several splits, and clips of several splits with the same bytes."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from helpers import TINY_RUN, command, empty_figures, write_images, write_video
from hypothesis import given
from hypothesis import strategies as st

from fastemo.config import read_config
from fastemo.console import Console
from fastemo.corpus import identical
from fastemo.corpus.clip import Clip
from fastemo.corpus.config import SPLITS
from fastemo.corpus.folds import balanced_folds, by_number
from fastemo.corpus.identical import with_identical
from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.protocol import num_folds, split_clips, split_corpus
from fastemo.corpus.splits import Splits
from fastemo.experiment.retest import evaluate_run

ROOT = Path("corpus")
# Clips of each class: unbalanced within and between people.
SEVEN = {
    "Ada": {"happy": 9, "sad": 1},
    "Bo": {"happy": 1, "sad": 9},
    "Cem": {"happy": 4, "sad": 4, "angry": 2},
    "Dia": {"angry": 3},
    "Eva": {"happy": 2, "sad": 3, "angry": 1},
    "Fil": {"sad": 2},
    "Gus": {"happy": 1, "angry": 1},
}
# By hand: Cem, Ada and Bo (10 clips each, in the order of their digests) open a fold each. Eva goes to Ada (overlap
# 0.071, elsewhere 0.082 and 0.102), Dia to Bo (none of angry); Fil's overlap with Cem is that with Ada and Eva, and Cem
# has fewer clips; Gus goes to Cem (0.055, elsewhere 0.058 and 0.065).
FOLDS = [["Cem", "Fil", "Gus"], ["Ada", "Eva"], ["Bo", "Dia"]]


def clips_of(people):
    return [
        Clip(key=f"{name}/{emotion}/{number}.mp4", emotion=emotion, subject=name)
        for name, counts in people.items()
        for emotion, count in counts.items()
        for number in range(count)
    ]


def manifest_of(people):
    return Manifest.of(ROOT, clips_of(people))


def people_of(clips):
    return {clip.person for clip in clips}


class TestKfold:
    def test_seven_people_in_three_folds(self):
        """Written down: results of different versions and machines are about the same people."""
        assert balanced_folds(clips_of(SEVEN), 3) == FOLDS

    def test_everyone_is_tested_once_and_validated_by_the_next_fold(self):
        manifest = manifest_of(SEVEN)
        assert num_folds(manifest, "kfold", 3) == 3
        tested = []
        for fold in range(3):
            splits = split_clips(manifest, "kfold", fold=fold, folds=3)
            assert people_of(splits.test) == {*FOLDS[fold]}
            assert people_of(splits.val) == {*FOLDS[(fold + 1) % 3]}
            assert people_of(splits.train) == {*FOLDS[(fold + 2) % 3]}
            assert (splits.subjects, splits.about_people["caveat"]) == ("unseen", None)
            assert len(splits.train + splits.val + splits.test) == len(manifest.clips)
            tested += splits.test
        assert sorted(tested, key=lambda clip: clip.key) == list(manifest.clips)

    def test_the_order_of_the_clips_does_not_matter(self):
        clips = clips_of(SEVEN)
        for seed in range(5):
            assert balanced_folds(random.Random(seed).sample(clips, len(clips)), 4) == balanced_folds(clips, 4)

    def test_the_configuration_chooses_them(self):
        config = read_config(["--corpus.protocol", "kfold", "--corpus.folds", "4", "--corpus.fold", "3"]).corpus
        assert split_corpus(manifest_of(SEVEN), config) == split_clips(manifest_of(SEVEN), "kfold", fold=3, folds=4)

    @given(
        st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1), min_size=3, max_size=14),
        st.integers(3, 14),
    )
    def test_folds_are_never_empty_and_at_least_as_balanced_as_random_ones(self, counts, num_folds):
        people = {f"p{number}": of_person for number, of_person in enumerate(counts)}
        num_folds = min(num_folds, len(people))
        folds = balanced_folds(clips_of(people), num_folds)
        assert all(folds)
        assert sorted(name for fold in folds for name in fold) == sorted(people)
        totals = sum(map(Counter, counts), Counter())
        imbalance = sum(
            (Fraction(sum(people[name].get(label, 0) for name in fold), total) - Fraction(1, num_folds)) ** 2
            for label, total in totals.items()
            for fold in folds
        )
        of_people = sum(Fraction(count, totals[label]) ** 2 for person in counts for label, count in person.items())
        assert imbalance <= (1 - Fraction(1, num_folds)) * of_people

    def test_too_few_people(self):
        with pytest.raises(
            ValueError,
            match=r"kfold needs clips of at least 8 people, but corpus has clips of 7 \(Ada, .*, Gus\): add people, or "
            r"choose --corpus.folds 7$",
        ):
            split_clips(manifest_of(SEVEN), "kfold", folds=8)
        with pytest.raises(
            ValueError, match=r"at least 5 people, .* of 2 \(Ada, Bo\): add people, or give --corpus.sub"
        ):
            split_clips(manifest_of({name: SEVEN[name] for name in ("Ada", "Bo")}), "kfold")

    @pytest.mark.parametrize("protocol", ["kfold", "loso"])
    def test_clips_without_a_person(self, protocol):
        clips = [replace(clip, subject="" if clip.emotion == "angry" else clip.subject) for clip in clips_of(SEVEN)]
        with pytest.raises(
            ValueError,
            match=rf"^protocol {protocol} goes by person, but 7 of 43 clips in corpus have none, such as "
            r"Cem/angry/0.mp4: give --corpus.subjects REGEX, or a label table with the column subject$",
        ):
            split_clips(Manifest.of(ROOT, clips), protocol)


def test_loso_goes_by_the_numbers_in_names():
    names = ["S10", "S9", "S1", "s2", "Ada", "S09"]
    ordered = ["Ada", "S1", "S09", "S9", "S10", "s2"]
    assert sorted(names, key=by_number) == ordered
    manifest = manifest_of({name: {"sad": 2, "happy": 1} for name in names})
    assert num_folds(manifest, "loso") == 6
    for fold, name in enumerate(ordered):
        splits = split_clips(manifest, "loso", fold=fold)
        assert (people_of(splits.test), people_of(splits.val)) == ({name}, {ordered[(fold + 1) % 6]})
        assert len(splits.train) == 4 * 3


class TestSharedPeople:
    def clips(self):
        """Ada in all splits, Bo in two; one take in train with sound and in test without; Cem in one."""
        rows = [Clip(key=f"{split}/sad/ada{split}.mp4", subject="Ada", split=split) for split in SPLITS]
        rows += [Clip(key=f"{split}/sad/bo{split}.mp4", subject="Bo", split=split) for split in ("val", "test")]
        rows += [Clip(key="train/sad/cem.mp4", subject="Cem", split="train")]
        rows += [
            Clip(key=f"{split}/sad/{modality:02d}-01-04-01-01-01-07.mp4", modality=modality, split=split, actor=7)
            for split, modality in (("train", 1), ("test", 2))
        ]
        return [replace(clip, emotion="sad") for clip in rows]

    def test_they_are_refused_with_the_way_out(self):
        with pytest.raises(ValueError, match=r".") as raised:
            split_clips(Manifest.of(ROOT, self.clips()), "folders")
        assert str(raised.value) == (
            "3 people and 1 take are in several splits, such as person 7 in train and test: move the clips of each "
            "into one split, or accept an accuracy that is not one for unseen subjects with "
            "--corpus.allow_shared_subjects true"
        )

    def test_they_are_counted_where_they_are_allowed(self):
        splits = split_clips(Manifest.of(ROOT, self.clips()), "folders", allow_shared_subjects=True)
        assert [len(splits[name]) for name in SPLITS] == [3, 2, 3]
        caveat = "not an accuracy for unseen subjects: 3 people and 1 take are in several splits"
        assert splits.about_people == {"subjects": "shared", "caveat": caveat}
        assert splits.notes == (caveat,)

    def test_a_take_alone_is_shared(self):
        splits = Splits(
            protocol="folders",
            class_names=("sad",),
            train=(Clip(key="a.mp4"),),
            val=(Clip(key="b.mp4"),),
            test=(Clip(key="a.mp4"),),
            allow_shared_subjects=True,
        )
        assert splits.about_people["caveat"] == "not an accuracy for unseen subjects: 1 take is in several splits"

    def test_one_clip_without_a_person_makes_the_rest_unknown(self):
        clips = [Clip(key=f"{split}/a/{split}.mp4", emotion="a", subject=split, split=split) for split in SPLITS]
        assert split_clips(Manifest.of(ROOT, clips)).subjects == "unseen"
        clips[0] = replace(clips[0], subject="")
        assert split_clips(Manifest.of(ROOT, clips)).subjects == "unknown"


def in_splits(**keys: list[str]) -> Splits:
    """Splits of files of one size."""
    clips = {name: tuple(Clip(key=key, size_bytes=3) for key in of_split) for name, of_split in keys.items()}
    return Splits(protocol="folders", class_names=("a",), **clips)


class TestIdenticalClips:
    def test_they_are_named_with_their_number(self, tmp_path):
        contents = {"a": "one", "b": "two", "c": "two", "d": "six", "e": "two", "f": "one", "g": "ten"}
        for name, content in contents.items():
            (tmp_path / name).write_text(content)
        splits = with_identical(in_splits(train=["a", "b", "c"], val=["d"], test=["e", "f", "g"]), tmp_path)
        assert splits.notes == ("2 of 3 test clips are byte-identical to training clips, such as e and b",)
        assert splits.identical_to_training == 2
        splits = with_identical(in_splits(train=["a"], val=["b", "f"], test=["e"]), tmp_path)
        assert splits.notes == (
            "1 of 2 validation clips are byte-identical to training clips, such as f and a",
            "1 of 1 test clips are byte-identical to validation clips, such as e and b",
        )
        assert splits.identical_to_training == 0

    def test_only_files_of_a_size_in_several_splits_are_read_each_once(self, tmp_path, monkeypatch):
        for name in "abcd":
            (tmp_path / name).write_text("one")
        read = []
        monkeypatch.setattr(identical, "_content", lambda path: read.append(path.name) or b"")

        def clip(key: str, size: int, segment: str = "", first: int = 0) -> Clip:
            return Clip(key=key + segment, size_bytes=size, segment=segment.strip("#"), first_frame=first)

        one = (clip("a", 1), clip("b", 1), clip("c", 2), clip("d", 4, "#0-1"), clip("d", 4, "#1-2", 9))
        sizes = {"train": one, "val": (clip("e", 3), clip("d", 4, "#2-3", 20)), "test": (clip("d", 2), clip("f", 5))}
        with_identical(Splits(protocol="folders", class_names=(), **sizes), tmp_path)
        assert sorted(read) == ["c", "d"]

    def test_folders_of_images_go_by_their_files(self, tmp_path):
        for name, frames in (("a", 3), ("b", 3), ("c", 4)):
            write_images(tmp_path / name, frames)
        (tmp_path / "a" / "notes.txt").write_text("not a frame")
        splits = with_identical(in_splits(train=["a"], val=["c"], test=["b"]), tmp_path)
        assert splits.notes == ("1 of 1 test clips are byte-identical to training clips, such as b and a",)

    def test_files_that_are_gone_are_left_out(self, tmp_path):
        (tmp_path / "a").write_text("one")
        splits = in_splits(train=["a", "x"], val=["y"], test=["z"])
        assert with_identical(splits, tmp_path) == replace(splits, identical_to_training=0)


@empty_figures()
def test_a_run_on_people_in_several_splits_says_so_in_every_result(tmp_path):
    """By the real command, and tested again."""
    root = tmp_path / "corpus"
    # The clips of an actor all have the same bytes.
    for split, actors in {"train": (1, 2), "val": (2, 3), "test": (4, 5)}.items():
        for folder in ("happy", "sad"):
            for actor in actors:
                write_video(root / split / folder / f"actor{actor}_{split}.mp4", actor)
    shutil.copy(root / "train" / "sad" / "actor1_train.mp4", root / "test" / "sad" / "actor1_again.mp4")
    fastemo = Path(sys.executable).parent / "fastemo"
    options = ["--corpus.root", root, "--corpus.labels", "folder", "--model.pretrained", "false", "--name", "shared"]
    done = command(fastemo, "train", *TINY_RUN, *options, "--corpus.allow_shared_subjects", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    caveat = "not an accuracy for unseen subjects: 2 people are in several splits"
    log = (tmp_path / "runs" / "shared" / "log.txt").read_text()
    assert f"note: {caveat}\n" in log
    assert f"chance 50.0%; {caveat}\n" in log
    same = "test/sad/actor1_again.mp4 and train/happy/actor1_train.mp4"
    assert f"note: 1 of 5 test clips are byte-identical to training clips, such as {same}\n" in log
    result = json.loads((tmp_path / "runs" / "shared" / "test.json").read_text())
    assert (result["subjects"], result["caveat"], result["identical_to_training"]) == ("shared", caveat, 1)
    for split, expected in (("val", "shared"), ("train", None)):
        again = evaluate_run(tmp_path / "runs" / "shared", Console(show=False), split=split)
        assert again.get("subjects") == expected
    with pytest.raises(ValueError, match=r"^2 people are in several splits"):
        split_clips(scan(root, labels="folder"))
