"""A study run: every cell once, failures reported and tried again, killed at any moment and resumed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import command, wait_until

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


def words_of(path: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    options = [str(path), "--out", str(out), "--corpus.root", str(corpus), *more]
    return [sys.executable, "-m", "fastemo.cli", "study", *options]


def is_free(folder: Path) -> bool:
    try:
        with only_one(folder, "it"):
            return True
    except ValueError:
        return False


def study(path: Path, corpus: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return command(*words_of(path, corpus, out, *more))


def study_json(out: Path) -> dict[str, Any]:
    return json.loads((out / "study.json").read_text())


def statuses(out: Path) -> list[str]:
    return [cell["status"] for cell in study_json(out)["cells"]]


@pytest.mark.slow
class TestRunning:
    def test_cells_are_runs_and_rows_are_their_means(self, few_clips, tmp_path):
        path, out = write_study(tmp_path, seeds=[0, 1]), tmp_path / "out"
        done = study(path, few_clips, out, "--jobs", "2")
        assert done.returncode == 0, done.stderr
        assert [line.split()[1] for line in done.stdout.splitlines() if line[2:3] == ":"][:2] == ["started"] * 2
        found = study_json(out)
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
            # The order accuracy is that of the built-in corpus's pairs; a corpus given by its path may be any.
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

    def test_a_failed_cell_is_reported_and_tried_again(self, few_clips, tmp_path):
        # A number that makes the loss infinite, and a cell behind it that works.
        part = {"name": "one", "base": {"model.name": "early_cnn"}, "grid": {"train.lr": [1e30, 1e-3]}}
        path, out = write_study(tmp_path, parts=[part]), tmp_path / "out"
        for attempt in (1, 2):
            done = study(path, few_clips, out)
            assert done.returncode == 2
            assert "Traceback" not in done.stderr
            assert "1 of 2 runs failed" in done.stderr
            assert statuses(out) == ["failed", "finished"]
            failed, finished = study_json(out)["cells"]
            assert "the loss is infinite or NaN" in failed["reason"]
            assert (failed["attempts"], finished["attempts"]) == (attempt, 1)
            rows = study_json(out)["parts"][0]["rows"]
            assert [row["accuracy"] is None for row in rows] == [True, False]

    def test_a_run_starts_from_another_one_of_the_study(self, few_clips, tmp_path):
        """It waits for that, in parallel too; if that fails it fails with it, and both are tried again."""
        start = {"name": "start", "base": {"model.name": "early_cnn", "train.lr": 1e30}}
        tuned = {"name": "tuned", "base": {"model.name": "early_cnn", "model.weights": "part:start"}}
        path, out = write_study(tmp_path, parts=[start, tuned]), tmp_path / "out"
        done = study(path, few_clips, out, "--jobs", "2")
        assert "2 of 2 runs failed" in done.stderr
        first, second = study_json(out)["cells"]
        assert second["reason"] == f"it starts from the weights of {first['name']}, which failed"
        start["base"]["train.lr"] = 1e-3
        done = study(write_study(tmp_path, parts=[start, tuned]), few_clips, out, "--jobs", "2")
        assert done.returncode == 0, done.stderr
        first, second = study_json(out)["cells"]
        log = (out / second["folder"] / "log.txt").read_text()
        assert re.search(rf"\d+ of \d+ tensors from .*cells/{first['name']}", log)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_killed_and_resumed(self, tiny_corpus, tmp_path, number):
        path, out = write_study(tmp_path), tmp_path / "out"
        words = words_of(path, tiny_corpus, out, "--train.epochs", "3")
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_until(lambda: list(out.glob("cells/*/metrics.jsonl")))
        process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number, shown
            assert "resumes the study" in shown
            assert "Traceback" not in shown
        assert "finished" not in statuses(out)
        # At once, while a cell of the killed study may still be writing its checkpoint.
        done = study(path, tiny_corpus, out, "--train.epochs", "3")
        assert done.returncode == 0, done.stderr
        assert statuses(out) == ["finished"] * 2
        assert all(is_free(folder) for folder in out.glob("cells/*"))
        first, second = study_json(out)["cells"]
        assert (first["attempts"], second["attempts"]) == (2, 1)
        # It resumed where it was, not from the beginning.
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


def refused(tmp_path: Path, message: str, *arguments: str) -> None:
    path = write_study(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_study(read_study(path, arguments), path, tmp_path / "out", Console(show=False))
    assert not (tmp_path / "out" / "cells").exists()


class TestRefusing:
    @pytest.mark.parametrize("options", [[], ["--dry-run"]])
    def test_jobs_below_one(self, tmp_path, options, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["study", str(write_study(tmp_path)), "--out", str(tmp_path / "out"), "--jobs", "0", *options])
        assert capsys.readouterr().err == "fastemo: error: --jobs must be at least 1, not 0\n"

    def test_a_corpus_that_does_not_exist(self, tmp_path):
        refused(tmp_path, "nowhere", "--corpus.root", str(tmp_path / "nowhere"))

    def test_a_folder_in_use(self, tmp_path):
        (tmp_path / "out").mkdir()
        with only_one(tmp_path / "out", "it"):
            refused(tmp_path, "in use by another process")

    @pytest.mark.parametrize(
        ("note", "message"),
        [
            ('{"name": "other", "cells": []}', "belongs to the study other, not to made"),
            ("", r"study.json is damaged"),
            ("[]", r"study.json is damaged"),
            ("{}", r"study.json is damaged"),
            ('{"name": "made", "cells": [3]}', r"study.json is damaged"),
            ('{"name": "made", "cells": {}', r"study.json is damaged"),
        ],
    )
    def test_the_folder_of_another_study_or_a_damaged_one(self, tmp_path, note, message):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "study.json").write_text(note)
        refused(tmp_path, message)

    def test_options_of_no_command(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["index", "x", "--train.lr", "1"])
        assert "unrecognized arguments: --train.lr 1" in capsys.readouterr().err
