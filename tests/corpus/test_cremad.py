"""CREMA-D's names, its fixed split, and folders of such files."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
from helpers import write_video
from hypothesis import given
from hypothesis import strategies as st

from fastemo.corpus import cremad
from fastemo.corpus.clip import Clip, is_named
from fastemo.corpus.manifest import Manifest, read_manifest, scan
from fastemo.corpus.protocol import split_clips
from fastemo.corpus.ravdess import EMOTIONS

CODES = {
    "sentence": st.sampled_from(cremad.SENTENCES),
    "emotion": st.sampled_from(sorted(cremad.EMOTIONS)),
    "level": st.sampled_from(sorted(cremad.INTENSITIES)),
}

VAL = [1006, 1010, 1011, 1042, 1047, 1061, 1077, 1079, 1091]
TEST = [1001, 1009, 1016, 1018, 1019, 1029, 1038, 1041, 1048, 1058, 1060, 1066, 1067, 1074, 1080, 1083, 1084, 1090]

ALL_NAMES = {
    "_".join((str(actor), *codes))
    for actor in cremad.ACTORS
    for codes in itertools.product(cremad.SENTENCES, cremad.EMOTIONS, cremad.INTENSITIES)
}


@given(st.integers(1001, 1091), *CODES.values())
def test_a_name_says_what_it_is_made_of(actor, sentence, emotion, level):
    found = cremad.parse_stem(f"{actor}_{sentence}_{emotion}_{level}")
    assert (found.actor, cremad.SENTENCES[found.statement - 1]) == (actor, sentence)
    assert found.emotion == cremad.EMOTIONS[emotion]
    assert found.emotion in EMOTIONS
    assert found.intensity == {"MD": 1, "HI": 2}.get(level, 0)
    assert is_named(f"{actor}_{sentence}_{emotion}_{level}", cremad.parse_stem)


@pytest.mark.parametrize(
    ("stem", "part"),
    [
        ("1000_DFA_ANG_XX", "actor is 1000"),
        ("1092_DFA_ANG_XX", "actor is 1092"),
        ("1001_XXX_ANG_XX", "sentence is 'XXX'"),
        ("1001_DFA_SUR_XX", "emotion is 'SUR'"),
        ("1001_DFA_ANG_YY", "level is 'YY'"),
        ("1001_DFA_ANG", "CREMA-D naming"),
        ("01-01-01-01-01-01-01", "CREMA-D naming"),
        ("١٠٠١_DFA_ANG_XX", "CREMA-D naming"),
        ("1001_dfa_ang_xx", "sentence is 'dfa'"),
        ("", "CREMA-D naming"),
    ],
)
def test_other_names_are_refused_with_the_part_that_is_wrong(stem, part):
    with pytest.raises(ValueError, match=part):
        cremad.parse_stem(stem)
    assert not is_named(stem, cremad.parse_stem)


@given(st.text() | st.from_regex(r"1[0-9]{3}_[A-Z]{3}_[A-Z]{3}_[A-Z]{2}", fullmatch=True))
def test_any_text_is_one_of_the_names_or_none(stem):
    assert is_named(stem, cremad.parse_stem) == (stem in ALL_NAMES)


def test_the_split_is_fixed_and_no_actor_is_in_two():
    parts = cremad.split_actors()
    assert {name: len(actors) for name, actors in parts.items()} == {"train": 64, "val": 9, "test": 18}
    assert sorted(actor for actors in parts.values() for actor in actors) == list(range(1001, 1092))
    # Written down: results of different versions are about the same people.
    assert (parts["val"], parts["test"]) == (VAL, TEST)


def write_takes(root, actors, emotions=("ANG", "SAD"), suffix="mp4"):
    for actor in actors:
        for emotion in emotions:
            write_video(root / f"{actor}_DFA_{emotion}_XX.{suffix}", 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two actors of each split, two takes each."""
    root = tmp_path_factory.mktemp("cremad")
    for actors in cremad.split_actors().values():
        write_takes(root, actors[:2])
    return root


def test_a_corpus_is_scanned_split_and_read_back(corpus, tmp_path):
    manifest = scan(corpus, labels="cremad")
    assert Counter(clip.emotion for clip in manifest.clips) == {"angry": 6, "sad": 6}
    assert manifest.class_names == EMOTIONS
    splits = split_clips(manifest)
    assert splits.protocol == "cremad"
    for name, actors in cremad.split_actors().items():
        assert {clip.actor for clip in splits[name]} == set(actors[:2])
    assert splits.notes[0].startswith("train lacks actors ")
    manifest.write_csv(tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv", corpus) == manifest


def test_the_five_folds_are_of_consecutive_actors():
    clips = [
        Clip(key=f"{actor}_DFA_{code}_XX.flv", actor=actor, emotion=emotion)
        for actor in range(1001, 1092)
        for code, emotion in cremad.EMOTIONS.items()
    ]
    manifest = Manifest.of(Path("corpus"), clips)
    folds = [range(1001, 1019), range(1019, 1037), range(1037, 1055), range(1055, 1073), range(1073, 1092)]
    for fold, test in enumerate(folds):
        splits, val = split_clips(manifest, "kfold5", fold=fold), folds[(fold + 1) % 5]
        assert [{clip.actor for clip in splits[name]} for name in ("val", "test")] == [{*val}, {*test}]
        assert {clip.actor for clip in splits.train} == {*range(1001, 1092)} - {*val} - {*test}
        assert (len(splits.train + splits.val + splits.test), splits.subjects) == (91 * 6, "unseen")
    # With others among them it is RAVDESS's.
    with pytest.raises(ValueError, match="protocol kfold5 goes by RAVDESS's file names"):
        split_clips(Manifest.of(Path("corpus"), [*clips, Clip(key="a/b.mp4", emotion="sad")]), "kfold5")


def test_one_take_in_two_files_counts_once(tmp_path):
    write_takes(tmp_path / "a", [1001])
    write_takes(tmp_path / "b", [1001], suffix="mkv")
    manifest = scan(tmp_path, labels="cremad")
    assert [clip.key for clip in manifest.clips] == ["a/1001_DFA_ANG_XX.mp4", "a/1001_DFA_SAD_XX.mp4"]
    assert manifest.rejected[0].reason == "duplicate take: not identical to a/1001_DFA_ANG_XX.mp4"


def test_files_of_other_names_are_left_unlabelled(tmp_path):
    write_takes(tmp_path, [1001], ["ANG"])
    for name in ("holiday.mp4", "02-01-04-01-02-01-01.mp4"):
        write_video(tmp_path / name, 3)
    manifest = scan(tmp_path, labels="cremad")
    assert [clip.key for clip in manifest.clips] == ["1001_DFA_ANG_XX.mp4"]
    assert ["CREMA-D naming" in clip.reason for clip in manifest.unlabelled] == [True, True]


def test_a_split_without_actors_says_which_are_missing(tmp_path):
    write_takes(tmp_path, cremad.split_actors()["train"][:1])
    with pytest.raises(ValueError, match=r"protocol cremad needs actors .* for val"):
        split_clips(scan(tmp_path, labels="cremad"))


def test_classes_by_folder_are_not_split_by_names(tmp_path):
    for actor, emotion in itertools.product(range(1001, 1009), ("happy", "sad")):
        write_video(tmp_path / emotion / f"{actor}_DFA_ANG_XX.mp4", 3)
    assert split_clips(scan(tmp_path, labels="folder")).protocol == "folders"


def test_real_recordings(clips_folder):
    manifest = scan(clips_folder / "crema-d", labels="cremad", verify="full")
    fields = [(clip.actor, clip.emotion, clip.statement) for clip in manifest.clips]
    assert fields == [(1001, "angry", 9), (1001, "happy", 9), (1001, "sad", 9)]
    assert all(clip.num_frames > 30 for clip in manifest.clips)
