"""Files written by an earlier version still open: a run, a store, a study and a manifest (`tests/data`)."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import empty_figures, turn, write_video

from fastemo.config import read_config, write_config
from fastemo.console import Console
from fastemo.corpus.files.isolation import Examiner
from fastemo.corpus.manifest import read_manifest, scan
from fastemo.experiment import retest
from fastemo.experiment.resume import check_same_corpus, resolve
from fastemo.experiment.retest import evaluate_run
from fastemo.experiment.run import run
from fastemo.experiment.study.grid import read_study
from fastemo.experiment.study.runner import run_study
from fastemo.models import fusion
from fastemo.report.page import write_page
from fastemo.video import store as store_module
from fastemo.video.config import FrameSpec, StoreConfig
from fastemo.video.decode import decoder_name

DATA = Path(__file__).parent / "data" / "0.1.0"
QUIET = Console(show=False)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, with the modification times that the manifest gives, as the working directory."""
    folder = tmp_path / "old"
    shutil.copytree(DATA, folder)
    for clip in read_manifest(folder / "manifest.csv", folder / "corpus").clips:
        os.utime(folder / "corpus" / clip.key, ns=(clip.mtime_ns, clip.mtime_ns))
    monkeypatch.chdir(folder)
    # The channels of the model that was trained.
    monkeypatch.setattr(fusion, "_EARLY_WIDTHS", (2, 2, 4, 4))
    monkeypatch.setattr(fusion, "_EARLY_HIDDEN", 4)
    return folder


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 300_000


def test_a_manifest_is_read_but_does_not_save_examining_the_files_again(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say how pictures are stored."""
    before = read_manifest(old / "manifest.csv", Path("corpus"))
    assert {clip.orientation for clip in before.clips} == {0}
    found = scan("corpus", known=old / "manifest.csv")
    assert len(found.clips) == 24
    assert (
        found.clips == tuple(replace(clip, orientation=1) for clip in before.clips) == before.rebased(found.root).clips
    )
    found.write_csv(old / "again.csv")
    monkeypatch.setattr(Examiner, "probe", lambda *_, **__: pytest.fail("examined again"))
    assert scan("corpus", known=old / "again.csv").rows == found.rows == read_manifest(old / "again.csv", old).rows


def test_clips_whose_pixels_changed_since_are_told_apart(tmp_path: Path) -> None:
    """Version 0.1.0 took pictures as they are stored: a run of it is not resumed on upright ones."""
    turn(write_video(tmp_path / "plain.mp4", 5), tmp_path / "plain.mp4", 3)
    now = scan(tmp_path, labels="folder")
    (clip,) = (replace(clip, emotion="happy", status="clip") for clip in now.unlabelled)
    now = replace(now, clips=(clip,), unlabelled=())
    before = replace(now, clips=(replace(clip, orientation=0, mtime_ns=0),))
    assert clip.orientation == 3
    assert before.rebased(tmp_path).clips == now.clips
    console = Mock()
    assert retest._rebased(before, tmp_path, console) == now == retest._rebased(now, tmp_path, console)
    (said,) = console.say.call_args_list
    assert "1 clips are upright and in shape now" in said.args[0]
    with pytest.raises(ValueError, match=r"plain\.mp4 changed \(orientation 0 -> 3\)"):
        check_same_corpus(before, now, tmp_path)


@empty_figures()
def test_an_interrupted_run_is_resumed(old: Path) -> None:
    folder = Path("runs/interrupted")
    before = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads((folder / "checkpoints" / "last" / "state.json").read_text())
    run(*resolve(["--resume", str(folder), "--train.epochs", str(len(before) + 1)]))
    after = (folder / "metrics.jsonl").read_text().splitlines()
    assert after[:-1] == before
    assert json.loads(after[-1])["epoch"] == len(before) + 1
    assert json.loads((folder / "test.json").read_text())["num_clips"] == 8


def test_a_configuration_is_read_and_written_alike(old: Path) -> None:
    for path in old.rglob("config.yaml"):
        write_config(read_config(["--config", str(path)]), old / "again.yaml")
        before, after = (path.read_text().splitlines() for path in (path, old / "again.yaml"))
        rest = iter(after)
        assert all(line in rest for line in before), "keys are added, none is lost or moved"


def test_a_store_is_read(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written for the corpus in `/data`, whose files it asks for their size and time."""
    clips = {str(clip.key): clip for clip in read_manifest(old / "manifest.csv", old / "corpus").clips}
    root = Path("/data/corpus")

    def fingerprint(path: Path) -> tuple[int, int]:
        clip = clips[path.relative_to(root).as_posix()]
        return clip.size_bytes, clip.mtime_ns

    monkeypatch.setattr(store_module, "fingerprint", fingerprint)
    (folder,) = (old / "store").iterdir()
    header = json.loads((folder / "header.json").read_text())
    assert header["decoder"].startswith("decode 1,"), "a version that did not turn frames"
    assert decoder_name("pyav").startswith("decode 2,"), "another store"
    rows = np.fromfile(folder / "frames.bin", np.uint8).reshape(-1, 2, 3, 20, 20)
    config, spec = StoreConfig(root=old / "store"), FrameSpec(**header["spec"])
    with store_module.ClipStore(config, root, [*clips.values()], spec, (20, 20), header["decoder"]) as store:
        assert store.folder == folder
        for key, clip in clips.items():
            slot = np.zeros(rows.shape[1:], np.uint8)
            assert store.read(clip, slot)
            assert np.array_equal(slot, rows[header["keys"].index(key)])


@empty_figures()
def test_a_run_of_a_study_is_tested_again(old: Path) -> None:
    cell = next((old / "studies/small/cells").iterdir())
    was = json.loads((cell / "test.json").read_text())
    now = evaluate_run(cell, QUIET, split="test", out=old / "again")
    assert now["accuracy"] == was["accuracy"]
    assert now["confusion"] == was["confusion"]
    assert now["temperature"] == 1, "that version did not calibrate"


def test_a_study_is_finished_and_makes_a_page(old: Path) -> None:
    study = read_study(Path("study.yaml"), ["--corpus.root", "corpus"])
    was = json.loads(Path("studies/small/study.json").read_text())
    found = run_study(study, Path("study.yaml"), Path("studies/small"), QUIET)
    assert [cell["attempts"] for cell in found["cells"]] == [cell["attempts"] for cell in was["cells"]]
    assert [cell["result"].pop("has_learned") for cell in found["cells"]] == [False] * len(found["cells"])  # one epoch
    assert found["cells"] == was["cells"]
    (rows,), (rows_before,) = ([part.pop("rows") for part in it["parts"]] for it in (found, was))
    assert found["parts"] == was["parts"]
    for row, before in zip(rows, rows_before, strict=True):
        assert {name: row[name] for name in before} == before
    write_page([Path("studies/small")], Path("page.html"), QUIET)
    text = Path("page.html").read_text(encoding="utf-8")
    assert "Early fusion" in text
    assert text.count("data:image/") == 18
