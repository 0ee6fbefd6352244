"""Several corpora as one: keys, people, splits and classes of each, one map of classes, results by corpus."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import TINY_RUN, command, empty_figures, refusal, write_video

from fastemo.config import read_config, write_config
from fastemo.console import Console
from fastemo.corpus.config import CorpusConfig
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.corpus.prepare import prepare_corpus
from fastemo.corpus.protocol import split_clips
from fastemo.experiment.retest import evaluate_run
from fastemo.report.page import write_page

FASTEMO = Path(sys.executable).parent / "fastemo"
SPLIT_OF = {"01": "train", "21": "val", "23": "test"}
QUIET = Console(show=False)


@pytest.fixture
def two(put):
    """RAVDESS's names for actors 1, 21 and 23, and folders of three splits, of two classes each."""
    for actor in SPLIT_OF:
        put(*(f"RAVDESS/Actor_{actor}/02-01-{emotion}-01-01-01-{actor}.mp4" for emotion in ("03", "05")))
    root = put(*(f"lab/{split}/{name}/actor01_{split}.mp4" for split in ("train", "test") for name in ("joy", "other")))
    return put(*(f"lab/val/{name}/actor02.mp4" for name in ("joy", "other"))), [
        str(root / "RAVDESS"),
        str(root / "lab"),
    ]


def prepared(roots, **options):
    return prepare_corpus(
        CorpusConfig(root=[Path(root) for root in roots], labels=["ravdess", "folder"], **options), QUIET
    )


def test_keys_people_and_splits_are_of_each_corpus(two):
    root, roots = two
    manifest = prepared(roots)
    clip = manifest.clips[0]
    assert clip.key == "RAVDESS/Actor_01/02-01-03-01-01-01-01.mp4"
    assert (clip.corpus, clip.person) == ("RAVDESS", "RAVDESS/1")
    assert clip.file(manifest.root) == root / "RAVDESS/Actor_01/02-01-03-01-01-01-01.mp4"
    assert all(clip.file(manifest.root).is_file() for clip in manifest.clips)
    assert manifest.class_names == ("angry", "happy", "joy", "other")
    # Actor 1 of the one is not actor 1 of the other, who is in two splits.
    with pytest.raises(ValueError, match="lab/1"):
        split_clips(manifest)
    splits = split_clips(manifest, allow_shared_subjects=True)
    for name in ("train", "val", "test"):
        assert {clip.corpus for clip in splits[name]} == {"RAVDESS", "lab"}
        assert {SPLIT_OF[f"{c.actor:02d}"] for c in splits[name] if c.corpus == "RAVDESS"} == {name}
        assert {clip.split for clip in splits[name] if clip.corpus == "lab"} == {name}


def test_folds_are_of_all_people_together(two):
    manifest = prepared(two[1])
    tested = [split_clips(manifest, "loso", fold=fold).test for fold in range(5)]
    assert [sorted({clip.person for clip in clips}) for clips in tested] == [
        ["RAVDESS/1"],
        ["RAVDESS/21"],
        ["RAVDESS/23"],
        ["lab/1"],
        ["lab/2"],
    ]


def test_a_protocol_that_one_of_them_does_not_have_is_refused_by_its_name(two):
    with pytest.raises(ValueError, match=r"protocol speech goes by RAVDESS's file names, .* in .*lab"):
        split_clips(prepared(two[1]), "speech")


def test_folders_of_one_name_are_told_apart(put):
    root = put("a/videos/happy/1.mp4", "b/videos/happy/1.mp4")
    config = CorpusConfig(root=[root / "a/videos", root / "b/videos"], labels="folder")
    manifest = prepare_corpus(config, QUIET)
    assert [clip.key for clip in manifest.clips] == ["videos-2/happy/1.mp4", "videos/happy/1.mp4"]
    assert [clip.file(manifest.root).parts[-4] for clip in manifest.clips] == ["b", "a"]


def test_a_manifest_of_other_corpora_or_with_columns_that_are_none_is_refused(two, tmp_path):
    manifest = prepared(two[1])
    path = tmp_path / "manifest.csv"
    manifest.write_csv(path)
    assert read_manifest(path, manifest.root) == manifest
    with pytest.raises(ValueError, match=r"line 2: not a manifest \(its corpus 'RAVDESS' is none of lab, other\)"):
        read_manifest(path, {"lab": two[0], "other": two[0]})
    for columns in ("[1]", '{"a": 1}', "{"):
        Manifest.of(manifest.root, [replace(manifest.clips[0], columns=columns)]).write_csv(path)
        with pytest.raises(ValueError, match=r"line 2: not a manifest"):
            read_manifest(path, manifest.root)
    Manifest.of(manifest.root, [replace(manifest.clips[0], first_pts=-(2**62))]).write_csv(path)
    with pytest.raises(ValueError, match=r"not a manifest \(first_pts is"):
        read_manifest(path, manifest.root)


class TestClasses:
    def classes(self, two, text: str, **options):
        path = two[0] / "map.yaml"
        path.write_text(text)
        return prepared(two[1], classes=path, **options)

    def test_one_map_for_all(self, two):
        manifest = self.classes(two, "joy: happy\n' OTHER ': null\n")
        assert {(clip.corpus, clip.emotion) for clip in manifest.clips} == {
            ("RAVDESS", "happy"),
            ("RAVDESS", "angry"),
            ("lab", "happy"),
        }
        assert {clip.reason for clip in manifest.unlabelled} == {"class other is left out by map.yaml"}

    def test_a_map_for_each(self, two):
        manifest = self.classes(two, "lab:\n  joy: Happy\n  other: anger\nRAVDESS:\n  angry: sad\n")
        assert {(clip.corpus, clip.emotion) for clip in manifest.clips} == {
            ("RAVDESS", "happy"),
            ("RAVDESS", "sad"),
            ("lab", "happy"),
            ("lab", "angry"),
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("jov: happy", "names the class 'jov', which no clip has; there are angry, happy, joy, other"),
            ("LAB:\n  joy: happy", "names the corpus 'LAB', must be one of RAVDESS, lab"),
            ("joy: 3", "must hold lines such as 'anger: angry' or 'contempt: null', not 'joy: 3'"),
            ("joy: ''", "must hold lines such as"),
            ("[joy]", "must hold lines such as"),
            ("", "must hold lines such as"),
            ("joy: *x", "alias"),
        ],
    )
    def test_what_is_no_map(self, two, text, message):
        with pytest.raises(ValueError, match=rf"map\.yaml.*{message}" if message != "alias" else "alias"):
            self.classes(two, text)


class TestConfiguration:
    def test_values_after_an_option_are_a_list(self, tmp_path):
        config = read_config(["--corpus.root", "/a", "b c", "--corpus.labels", "ravdess", "x.csv", "--seed", "3"])
        assert config.corpus.root == [Path("/a"), Path("b c")]
        assert config.corpus.labels == ["ravdess", "x.csv"]
        assert config.seed == 3
        write_config(config, tmp_path / "config.yaml")
        assert read_config(["--config", str(tmp_path / "config.yaml")]) == config
        assert read_config(["--corpus.root", '["/a"]']).corpus.root == Path("/a")

    def test_labels_are_one_for_all_or_one_for_each(self):
        assert "corpus.labels one kind for all" in refusal(
            "--corpus.root", "a", "b", "--corpus.labels", *["folder"] * 3
        )
        assert "corpus.root must name folders" in refusal("--corpus.root", "[]")
        assert refusal("--corpus.root", "a", "./a") == "corpus.root names a folder twice"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on two corpora, by the command."""
    folder = tmp_path_factory.mktemp("both")
    for corpus, people in (("one", "ABC"), ("two", "DEF")):
        for person, split in zip(people, ("train", "val", "test"), strict=True):
            for name in ("joy", "calm"):
                write_video(folder / corpus / split / name / f"{person}.mp4", 4)
    (folder / "map.yaml").write_text("joy: happy\n")
    corpora = ["--corpus.root", folder / "one", folder / "two", "--corpus.labels", "folder"]
    classes = ["--corpus.classes", folder / "map.yaml", "--corpus.subjects", "([A-F]).mp4"]
    done = command(FASTEMO, "train", *TINY_RUN, *corpora, *classes, "--name", "both", "--runs_dir", folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_run_reports_all_and_each(finished):
    result = json.loads((finished / "runs" / "both" / "test.json").read_text())
    assert result["num_clips"] == 4
    assert list(result["per_class"]) == ["calm", "happy"]
    assert {name: group["num_clips"] for name, group in result["groups"]["corpus"].items()} == {"one": 2, "two": 2}
    assert result["corpus"] == f"{finished / 'one'}, {finished / 'two'}"
    assert list(result["groups"]["subject"]) == ["C", "F"]


@empty_figures()
def test_it_is_tested_again_resumed_and_shown_wherever_the_corpora_are(finished, tmp_path):
    run_dir = finished / "runs" / "both"
    before = json.loads((run_dir / "test.json").read_text())
    moved = [(finished / name).rename(tmp_path / name) for name in ("one", "two")]
    try:
        again = evaluate_run(run_dir, QUIET, split="test", root=moved, out=tmp_path / "out")
        assert again["confusion"] == before["confusion"]
        with pytest.raises(ValueError, match=r"2 clips of .*one were trained on"):
            evaluate_run(run_dir, QUIET, root=moved[0], labels="folder", out=tmp_path / "other")
        longer = ["--resume", str(run_dir), "--train.epochs", "2", "--corpus.root", *map(str, moved)]
        assert command(FASTEMO, "train", *longer).returncode == 0
        write_page([run_dir], tmp_path / "page.html", QUIET, corpus_root=None)
    finally:
        for name in ("one", "two"):
            (tmp_path / name).rename(finished / name)
    assert "two" in (tmp_path / "page.html").read_text()
