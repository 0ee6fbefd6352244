"""Several processes: the same run as one process, gone on with when one of them dies."""

import csv
import functools
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers import TRAIN, command, files_of
from safetensors.torch import load_file
from same_bits import RECIPE, SMALL

from fastemo.config import read_config
from fastemo.experiment.run import run

# Nothing of a clip's result hangs on the clips beside it, nor on the process that it is dealt to; sums in fp32.
EQUAL = [
    *("--train.freeze_batch_norm", "true", "--model.dropout", "0", "--train.speed", "fp32"),
    *("--train.schedule", "plateau", "--train.plateau_patience", "0"),
]
# Adam divides each gradient by its size: in one near zero, rounding becomes a step of the whole rate. With this much
# added to the size, an error d of a gradient moves its weight by 2 * lr / EPS * d = d / 5 at most.
EPS = 1e-2
STEADY = f"""
import functools, torch
for name in ("Adam", "AdamW"):
    setattr(torch.optim, name, functools.partial(getattr(torch.optim, name), eps={EPS}))
from fastemo.train import main
main()
"""
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


def launch(words, cwd):
    return command(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, *words, cwd=cwd
    )


@pytest.mark.parametrize("recipe", [[], [*RECIPE, "--model.drop_path", "0", "--train.oversample", "false"]])
def test_two_processes_train_what_one_trains(tiny_corpus, tmp_path, monkeypatch, fault_log, recipe):
    """Whole runs. Neither 159, 15 nor 15 clips can be dealt evenly, and the last of the batches of 12 is a ragged one.

    Sums of 12 clips in another order differ by 12 * 2^-24 of a gradient, whose norm is 5 at most: by 4e-6. In 28 steps
    a weight departs by 28 / 5 of that, 2e-5, and what it does to the steps after stays below as much again.
    """
    corpus = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    (corpus / "synthetic.json").unlink()
    for actor in ("01", "21", "23"):
        next((corpus / f"Actor_{actor}").glob("*.mp4")).unlink()
    options = [*SMALL, *EQUAL, *recipe, "--corpus.root", str(corpus), "--train.epochs", "2"]
    (tmp_path / "steady.py").write_text(STEADY)
    done = launch([tmp_path / "steady.py", *options, "--name", "2", "--train.batch_size", "6"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 processes\n" in done.stdout
    assert "1 clips are repeated per epoch" in done.stdout
    assert sum(line.startswith("epoch") for line in done.stdout.splitlines()) == 2
    for name in ("Adam", "AdamW"):
        monkeypatch.setattr(torch.optim, name, functools.partial(getattr(torch.optim, name), eps=EPS))
    one = run(read_config([*options, "--runs_dir", str(tmp_path / "runs"), "--train.batch_size", "12", "--name", "1"]))
    two = tmp_path / "runs" / "2"
    assert files_of(two) == files_of(one)
    lines, others = ([json.loads(it) for it in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two))
    assert len(lines) == len(others) == 2
    for line, other in zip(lines, others, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_uar", "lr"):
            assert line[name] == pytest.approx(other[name], abs=1e-5), name
    weights, theirs = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (one, two))
    for name, value in weights.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=4e-5)
    rows, other_rows = (list(csv.DictReader((run / "predictions.csv").open(newline=""))) for run in (one, two))
    assert [row["key"] for row in rows] == [row["key"] for row in other_rows]
    assert len({row["key"] for row in rows}) == len(rows) == 15
    result = json.loads((two / "test.json").read_text())
    assert result["num_clips"] == sum(map(sum, result["confusion"])) == 15
    shares, other_shares = (
        [[float(value) for name, value in row.items() if name.startswith("probability_")] for row in table]
        for table in (rows, other_rows)
    )
    assert np.allclose(shares, other_shares, rtol=0, atol=1e-4)
    fault_log("2 processes instead of 1, ragged last batches", {"same losses, weights and metrics": 1})


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_from_the_last_checkpoint(tiny_corpus, tmp_path, fault_log):
    script = tmp_path / "dies_once.py"
    script.write_text(DIES_ONCE)
    options = [*SMALL, "--corpus.root", tiny_corpus, "--train.epochs", "2", "--train.batch_size", "4"]
    options += ["--name", "run", "--resume", "auto", "--train.checkpoint_minutes", "1e-9"]
    done = launch(["--max-restarts", "1", script, tmp_path / "died", *options], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert "resuming after epoch 2, clip " in done.stdout
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
    done = launch([script, tmp_path / "died", *options, "--train.checkpoint_minutes", "1e-9"], tmp_path)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("fastemo:")]
    # The launcher may end the other one before it notices by itself.
    assert any("another process of this training ended" in it or "SIGTERM" in it for it in ours), done.stderr
    again = launch([TRAIN, *options, "--resume", "auto"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming after epoch 2" in again.stdout
    fault_log("kill -9 of one of 2 processes", {"the other ended with a message, resumed afterwards": 1})
