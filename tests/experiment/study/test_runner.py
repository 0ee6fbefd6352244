"""A study run: every cell once, failures told and tried again, killed at any moment and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastemo.cli import main
from fastemo.console import Console
from fastemo.evaluation.compare import read_predictions
from fastemo.experiment.study.grid import read_study
from fastemo.experiment.study.runner import run_study
from fastemo.machine import only_one

BASE = {
    "model.pretrained": False,
    "video": {"size": 20, "num_frames": 2},
    "augment": {"crop_size": 16},
    "train": {"epochs": 2, "early_stop_patience": None, "lr": 0.001},
}


def write_study(folder: Path, **content: object) -> Path:
    path = folder / "study.yaml"
    part = {"name": "one", "base": {"model.name": "early_cnn"}, "grid": {"augment.enabled": [True, False]}}
    path.write_text(json.dumps({"name": "made", "base": BASE, "parts": [part], **content}))
    return path


def command(path: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    options = [str(path), "--out", str(out), "--corpus.root", str(corpus), *more]
    return [sys.executable, "-m", "fastemo.cli", "study", *options]


def study(path: Path, corpus: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, corpus, out, *more), capture_output=True, text=True)


def statuses(out: Path) -> list[str]:
    return [cell["status"] for cell in json.loads((out / "study.json").read_text())["cells"]]


def wait_for(what, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.05)


@pytest.mark.slow
class TestRunning:
    def test_cells_are_runs_and_rows_are_their_means(self, few_clips, tmp_path):
        path, out = write_study(tmp_path, seeds=[0, 1]), tmp_path / "out"
        done = study(path, few_clips, out, "--jobs", "2")
        assert done.returncode == 0, done.stderr
        assert [line.split()[1] for line in done.stdout.splitlines() if line[2:3] == ":"][:2] == ["started"] * 2
        found = json.loads((out / "study.json").read_text())
        assert statuses(out) == ["finished"] * 4
        assert [cell["attempts"] for cell in found["cells"]] == [1] * 4
        (part,) = found["parts"]
        assert [row["label"] for row in part["rows"]] == ["early_cnn, augmented", "early_cnn, not augmented"]
        for row in part["rows"]:
            tables = [read_predictions(out / "cells" / name / "predictions.csv") for name in row["cells"]]
            own = [float(table.correct.mean()) for table in tables]
            assert row["accuracies"] == own
            assert row["accuracy"] == pytest.approx(sum(own) / 2)
            assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
            # Its corpus was given by a path: it may be anybody's, and order is told of the built-in one alone.
            assert row["order"] is None
        assert [(it["a"], it["b"]) for it in part["comparisons"]] == [tuple(row["label"] for row in part["rows"])]
        for cell in found["cells"]:
            test = json.loads((out / cell["folder"] / "test.json").read_text())
            assert (cell["result"]["accuracy"], cell["seed"]) == (test["accuracy"], test["seed"])
        # Nothing is done twice.
        before = {it: it.stat().st_mtime_ns for it in out.glob("cells/*/test.json")}
        again = study(path, few_clips, out)
        assert again.returncode == 0
        assert "4 finished, 0 to run" in again.stdout
        assert {it: it.stat().st_mtime_ns for it in out.glob("cells/*/test.json")} == before

    def test_a_failed_cell_is_told_kept_apart_and_tried_again(self, few_clips, tmp_path):
        # A number that makes the loss infinite, and a cell behind it that works.
        part = {"name": "one", "base": {"model.name": "early_cnn"}, "grid": {"train.lr": [1e30, 1e-3]}}
        path, out = write_study(tmp_path, parts=[part]), tmp_path / "out"
        for attempt in (1, 2):
            done = study(path, few_clips, out)
            assert done.returncode == 2
            assert "Traceback" not in done.stderr
            assert "1 of 2 runs failed" in done.stderr
            assert statuses(out) == ["failed", "finished"]
            failed, finished = json.loads((out / "study.json").read_text())["cells"]
            assert "the loss is infinite or not a number" in failed["reason"]
            assert (failed["attempts"], finished["attempts"]) == (attempt, 1)
            rows = json.loads((out / "study.json").read_text())["parts"][0]["rows"]
            assert rows[0]["accuracy"] is None
            assert rows[1]["accuracy"] is not None

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_killed_and_gone_on_with(self, tiny_corpus, tmp_path, number):
        path, out = write_study(tmp_path), tmp_path / "out"
        process = subprocess.Popen(
            command(path, tiny_corpus, out, "--train.epochs", "3"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wait_for(lambda: list(out.glob("cells/*/metrics.jsonl")))
        process.send_signal(number)
        said = process.communicate(timeout=60)[0].decode()
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number, said
            assert "goes on with the study" in said
            assert "Traceback" not in said
        assert "finished" not in statuses(out)
        # At once, while a cell of the killed study may still be writing its checkpoint.
        done = study(path, tiny_corpus, out, "--train.epochs", "3")
        assert done.returncode == 0, done.stderr
        assert statuses(out) == ["finished"] * 2
        assert all(is_free(folder) for folder in out.glob("cells/*"))
        first, second = json.loads((out / "study.json").read_text())["cells"]
        assert (first["attempts"], second["attempts"]) == (2, 1)
        # It went on where it was, not from the beginning.
        log = (out / first["folder"] / "log.txt").read_text()
        assert "resuming after epoch" in log
        assert len((out / first["folder"] / "metrics.jsonl").read_text().splitlines()) == 3

    def test_a_dry_run_lists_cells_and_minutes_and_makes_nothing(self, few_clips, tmp_path):
        path, out = write_study(tmp_path), tmp_path / "out"
        done = study(path, few_clips, out, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("waiting") == 2
        assert "2 runs, 2 to run" in done.stdout
        assert not out.exists()


def is_free(folder: Path) -> bool:
    try:
        with only_one(folder, "it"):
            return True
    except ValueError:
        return False


class TestRefusing:
    @pytest.mark.parametrize("options", [[], ["--dry-run"]])
    def test_jobs_below_one(self, tmp_path, options, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["study", str(write_study(tmp_path)), "--out", str(tmp_path / "out"), "--jobs", "0", *options])
        assert caught.value.code == 2
        assert capsys.readouterr().err == "fastemo: error: --jobs must be at least 1, not 0\n"

    def test_a_corpus_that_is_not_there_before_any_cell(self, tmp_path):
        path = write_study(tmp_path)
        with pytest.raises(ValueError, match="nowhere"):
            run_study(
                read_study(path, ["--corpus.root", str(tmp_path / "nowhere")]),
                path,
                tmp_path / "out",
                Console(show=False),
            )
        assert not (tmp_path / "out" / "cells").exists()

    def test_a_folder_in_use(self, tmp_path):
        path, out = write_study(tmp_path), tmp_path / "out"
        out.mkdir()
        code = (
            "import sys, pathlib, time; from fastemo.machine import only_one\n"
            "with only_one(pathlib.Path(sys.argv[1]), 'it'): print('held', flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            try:
                with pytest.raises(ValueError, match="in use by another process"):
                    run_study(read_study(path), path, out, Console(show=False))
            finally:
                os.kill(other.pid, signal.SIGKILL)

    def test_the_folder_of_another_study(self, tmp_path):
        path, out = write_study(tmp_path), tmp_path / "out"
        out.mkdir()
        (out / "study.json").write_text(json.dumps({"name": "other", "cells": []}))
        with pytest.raises(ValueError, match="is the folder of the study other, not of made"):
            run_study(read_study(path), path, out, Console(show=False))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "made", "cells": [3]}', '{"name": "made", "cells": {}'])
    def test_a_damaged_note(self, tmp_path, text):
        path, out = write_study(tmp_path), tmp_path / "out"
        out.mkdir()
        (out / "study.json").write_text(text)
        with pytest.raises(ValueError, match=r"study.json is damaged"):
            run_study(read_study(path), path, out, Console(show=False))

    def test_options_of_no_command(self):
        done = subprocess.run(
            [sys.executable, "-m", "fastemo.cli", "index", "x", "--train.lr", "1"], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "unrecognized arguments: --train.lr 1" in done.stderr
