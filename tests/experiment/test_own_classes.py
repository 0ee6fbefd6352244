"""A corpus of three classes: three outputs and one chance, in every place; and runs that had eight outputs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY_RUN, command, empty_figures, write_image, write_video
from safetensors.torch import load_file

from fastemo.config import read_config
from fastemo.console import Console
from fastemo.corpus import manifest as manifest_module
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.experiment.resume import resolve
from fastemo.experiment.retest import evaluate_run
from fastemo.experiment.run import run
from fastemo.report.folders import read_folders
from fastemo.report.page import write_page

FASTEMO = Path(sys.executable).parent / "fastemo"
FOLDERS = ("Happy", "sad", "ANGRY")


def outputs(run_dir: Path) -> int:
    weights = load_file(run_dir / "checkpoints" / "best" / "model.safetensors")
    return len(weights["classifier.3.bias"])


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory):
    root = tmp_path_factory.mktemp("three") / "corpus"
    for folder in FOLDERS:
        for split in ("train", "val", "test"):
            write_video(root / split / folder / f"{split}.mp4", 4)
    return root


@pytest.fixture(scope="module")
def trained(three_classes, tmp_path_factory):
    options = ["--corpus.root", str(three_classes), "--corpus.labels", "folder", "--name", "three"]
    with empty_figures():
        return run(read_config([*TINY_RUN, *options, "--runs_dir", str(tmp_path_factory.mktemp("runs"))]))


@empty_figures()
def test_chance_is_a_third_everywhere(trained, tmp_path, capsys):
    assert outputs(trained) == 3
    result = json.loads((trained / "test.json").read_text())
    assert list(result["per_class"]) == ["happy", "sad", "angry"]
    assert result["chance"] == pytest.approx(1 / 3)
    assert "chance 33.3%" in (trained / "log.txt").read_text()
    assert "chance 12.5" not in (trained / "log.txt").read_text()
    again = evaluate_run(trained, Console(), out=tmp_path / "again")
    assert again["chance"] == result["chance"]
    assert "chance 33.3%" in capsys.readouterr().out
    (found,) = read_folders([trained]).runs
    assert found.chance == result["chance"]
    write_page([trained], tmp_path / "page.html", Console(show=False))
    assert "chance is 33.3 %" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_pictures_in_folders_train(tmp_path):
    """Generated pictures laid out as FER2013 is, by the real command."""
    for split in ("train", "val", "test"):
        for number, name in enumerate(("happy", "sad", "surprise")):
            (tmp_path / "root" / split / name).mkdir(parents=True)
            pixels = np.full((48, 48, 3), 40 * number, np.uint8)
            write_image(tmp_path / "root" / split / name / "im0.png", pixels)
    options = ["--corpus.root", tmp_path / "root", "--model.pretrained", "false", "--name", "fer"]
    done = command(FASTEMO, "train", *TINY_RUN, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "9 clips, 0 unlabelled, 0 rejected" in done.stdout
    assert "chance 33.3%" in done.stdout


def test_a_run_needs_its_archives_unpacked(tmp_path):
    (tmp_path / "Video_Speech_Actor_01.zip").write_bytes(b"PK")
    done = command(FASTEMO, "train", *TINY_RUN, "--corpus.root", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "its .zip files are archives: unpack them" in done.stderr


@pytest.fixture
def old(three_classes, tmp_path, monkeypatch):
    """A run as version 0.1.0 left it: eight outputs for three folders, and classes written as the folders are."""

    def as_before(self: Manifest) -> tuple[str, ...]:
        return EMOTIONS

    options = ["--corpus.root", str(three_classes), "--corpus.labels", "folder", "--name", "old"]
    with monkeypatch.context() as patch, empty_figures():
        patch.setattr(manifest_module.Manifest, "class_names", property(as_before))
        folder = run(read_config([*TINY_RUN, *options, "--runs_dir", str(tmp_path / "runs")]))
    result = json.loads((folder / "test.json").read_text())
    del result["chance"]
    (folder / "test.json").write_text(json.dumps(result))
    assert outputs(folder) == 8
    return folder


@empty_figures()
def test_a_run_of_eight_outputs_is_tested_and_resumed(old, tmp_path):
    assert outputs(old) == len(EMOTIONS)
    was = json.loads((old / "test.json").read_text())
    assert read_folders([old]).runs[0].chance == pytest.approx(1 / 3)
    now = evaluate_run(old, Console(show=False), out=tmp_path / "again")
    assert (now["confusion"], now["chance"]) == (was["confusion"], pytest.approx(1 / 3))
    (old / "test.json").unlink()
    run(*resolve(["--resume", str(old), "--train.epochs", "2"]))
    assert outputs(old) == 8
    assert list(json.loads((old / "test.json").read_text())["per_class"]) == list(EMOTIONS)


@empty_figures()
def test_a_resumed_run_keeps_its_own_labels(trained, three_classes, tmp_path):
    """An older manifest has the folders' own spelling, and the fields of RAVDESS's names."""
    folder = shutil.copytree(trained, tmp_path / "runs" / "kept")
    (folder / "test.json").unlink()
    own = read_manifest(folder / "manifest.csv", three_classes)
    rows = [replace(clip, emotion=clip.emotion.title(), intensity=2) for clip in own.clips]
    Manifest.of(three_classes, rows).write_csv(folder / "manifest.csv")
    run(*resolve(["--resume", str(folder), "--train.epochs", "2"]))
    kept = read_manifest(folder / "manifest.csv", three_classes).clips
    assert {(clip.emotion, clip.intensity) for clip in kept} == {("Happy", 2), ("Sad", 2), ("Angry", 2)}


@empty_figures()
def test_an_old_spelling_of_a_class_is_found_in_another_corpus(trained, three_classes, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "runs" / "spelled")
    own = read_manifest(folder / "manifest.csv", three_classes)
    rows = [replace(clip, emotion=clip.emotion.title()) for clip in own.clips]
    Manifest.of(three_classes, rows).write_csv(folder / "manifest.csv")
    for name in ("happy", "sad", "bored"):
        write_video(tmp_path / "other" / name / "a.mp4", 4)
    result = evaluate_run(folder, Console(show=False), root=tmp_path / "other")
    assert (result["classes"], result["left_out"], result["chance"]) == (["Happy", "Sad"], {"bored": 1}, 0.5)
