"""Several processes: the same run as one process, gone on with when one of them dies."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from same_bits import SMALL

TRAIN = Path(__file__).resolve().parent.parent / "fastemo" / "train.py"
# Nothing of a clip's result hangs on the clips beside it, nor on the process that it is dealt to; sums in fp32.
EQUAL = [
    *("--train.freeze_batch_norm", "true", "--model.dropout", "0", "--train.speed", "plain"),
    *("--train.schedule", "plateau", "--train.plateau_patience", "0"),
]
DIES_ONCE = """
import os, pathlib, runpy, signal, sys
from fastemo.training import trainer
real, marker = trainer.Trainer._wish, pathlib.Path(sys.argv.pop(1))
def wish(self, loader):
    if self.progress.epoch == 2 and loader.state_dict()["clips"] >= 24 and self.rank == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, loader)
trainer.Trainer._wish = wish
from fastemo.train import main
main()
"""


def launch(words, cwd, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, **options)


def torchrun(*more):
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *more]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tiny_corpus, tmp_path, fault_log):
    """Whole runs by the command line, 160 clips in global batches of 12: the last of each epoch is a ragged one."""
    for processes in (1, 2):
        launcher = torchrun() if processes == 2 else []
        options = [*SMALL, *EQUAL, "--corpus.root", tiny_corpus, "--train.epochs", "3", "--name", processes]
        done = launch([*launcher, TRAIN, *options, "--train.batch_size", 12 // processes], tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "runs" / "1", tmp_path / "runs" / "2"
    lines, others = ([json.loads(it) for it in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two))
    assert len(lines) == len(others) == 3
    for line, other in zip(lines, others, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_uar", "lr"):
            assert line[name] == pytest.approx(other[name], abs=1e-5), name
    weights, theirs = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (one, two))
    for name, value in weights.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-4)
    rows, other_rows = (list(csv.DictReader((run / "predictions.csv").open(newline=""))) for run in (one, two))
    assert [row["key"] for row in rows] == [row["key"] for row in other_rows]
    assert len({row["key"] for row in rows}) == len(rows) == 16
    for row, other in zip(rows, other_rows, strict=True):
        assert np.isclose(float(row["probability_happy"]), float(other["probability_happy"]), atol=1e-4)
    fault_log("2 processes in place of 1, ragged last batches", {"same losses, weights and metrics": 1})


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_from_the_last_checkpoint(tiny_corpus, tmp_path, fault_log):
    script = tmp_path / "dies_once.py"
    script.write_text(DIES_ONCE)
    options = [*SMALL, "--corpus.root", tiny_corpus, "--train.epochs", "2", "--train.batch_size", "4"]
    options += ["--name", "run", "--resume", "auto", "--train.checkpoint_minutes", "1e-9"]
    done = launch([*torchrun("--max-restarts", "1"), script, tmp_path / "died", *options], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert "going on after epoch 2, clip " in done.stdout
    folder = tmp_path / "runs" / "run"
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2]
    assert (folder / "test.json").is_file()
    fault_log("kill -9 of one of 2 processes, with --max-restarts", {"all started again from the last checkpoint": 1})


@pytest.mark.slow
def test_without_restarts_the_others_say_so_and_end(tiny_corpus, tmp_path, fault_log):
    script = tmp_path / "dies_once.py"
    script.write_text(DIES_ONCE)
    options = [*SMALL, "--corpus.root", tiny_corpus, "--train.epochs", "2", "--name", "run"]
    done = launch([*torchrun(), script, tmp_path / "died", *options, "--train.checkpoint_minutes", "1e-9"], tmp_path)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("fastemo:")]
    # The launcher may end the other one before it notices by itself.
    assert any("another process of this training ended" in it or "SIGTERM" in it for it in ours), done.stderr
    again = launch([*torchrun(), TRAIN, *options, "--resume", "auto"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "going on after epoch 2" in again.stdout
    fault_log("kill -9 of one of 2 processes", {"the other ended with a message; gone on with afterwards": 1})
