"""What each tracker has of a run that was killed and resumed, and that trackers change no run."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import sqlite3
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, TRAIN, command, empty_figures
from PIL import Image
from same_bits import SMALL, assert_same_bits, bits

from fastemo.config import config_leaves, read_config
from fastemo.console import Console
from fastemo.experiment.resume import resolve
from fastemo.experiment.run import run
from fastemo.experiment.study.grid import read_study
from fastemo.report.page import write_page

ALL = "tensorboard,wandb,trackio"
# Dies in the third epoch, and checks that no call of a tracker moves the state of a generator.
DIES = """
import os, random, signal, time
import numpy, torch
from fastemo.training import trackers, trainer

def states():
    of_numpy = numpy.random.get_state()
    return random.getstate(), of_numpy[1].tolist(), of_numpy[2:], torch.get_rng_state().tolist()

def checked(method):
    def call(*arguments, **options):
        before = states()
        try:
            return method(*arguments, **options)
        finally:
            assert before == states(), method
            print("checked", method.__name__, flush=True)
    return call

for name in ("start", "log", "__exit__"):
    setattr(trackers.Trackers, name, checked(getattr(trackers.Trackers, name)))
step = trainer.Trainer.train_step
def dies(self, *arguments):
    step(self, *arguments)
    if self.progress.epoch == 3:
        time.sleep(2)  # Trackio writes every half second
        os.kill(os.getpid(), signal.SIGKILL)
trainer.Trainer.train_step = dies
"""
MAIN = "from fastemo.cli import main\nmain()\n"


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def options(few_clips: Path) -> list[str]:
    return [*SMALL, "--corpus.root", str(few_clips), "--train.epochs", "3", "--name", "run"]


@pytest.fixture(scope="module")
def killed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above `runs` and `trackio`, of a run that was killed in its third epoch and resumed by the command."""
    root = tmp_path_factory.mktemp("killed")
    (root / "dies.py").write_text(DIES + MAIN)
    places = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(root / "trackio"), "WANDB_API_KEY": "0123456789" * 4}
    places["PYTHONPATH"] = str(REPOSITORY)
    done = command(sys.executable, root / "dies.py", "train", *options, "--train.trackers", ALL, cwd=root, **places)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if "checked" in line] == [
        f"checked {name}" for name in ("start", "log", "log")
    ]
    (root / "checked.py").write_text(DIES.partition("step =")[0] + MAIN)
    done = command(sys.executable, root / "checked.py", "train", "--resume", "run", cwd=root, **places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked __exit__" in done.stdout
    assert "failed" not in done.stdout
    return root


@pytest.mark.slow
def test_a_tracked_run_that_was_killed_ends_in_the_same_bits(options, killed, tmp_path):
    with empty_figures():
        whole = run(*resolve([*options, "--runs_dir", str(tmp_path)]))
    assert_same_bits(bits(whole), bits(killed / "runs" / "run"))


@pytest.mark.slow
def test_no_file_holds_the_key(killed):
    for path in killed.rglob("*"):
        assert not path.is_file() or b"0123456789" * 4 not in path.read_bytes(), path


@pytest.mark.slow
def test_tensorboard_has_every_epoch_once_the_test_and_the_figures(killed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = killed / "runs" / "run"
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    for name in metrics_of(folder)[0]:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["epoch"], float(np.float32(row[name]))) for row in metrics_of(folder)], name
    result = json.loads((folder / "test.json").read_text())
    for name, value in flat_results(result).items():
        assert [(event.step, event.value) for event in events.Scalars(name)] == [(3, float(np.float32(value)))], name
    figures = {path.stem: Image.open(path).size for path in folder.glob("*.png")}
    assert {"curves", "confusion_matrix", "per_class_accuracy", "reliability", "misclassified"} <= {*figures}
    for stem, size in figures.items():
        (image,) = events.Images(f"figures/{stem}")
        assert (image.width, image.height) == size == Image.open(io.BytesIO(image.encoded_image_string)).size
    # The first session's alone: its hyperparameters, as the plugin reads them and as YAML.
    (text,) = folder.glob("tensorboard/*/hparams.yml")
    config = dict(config_leaves(read_config(["--config", str(folder / "config.yaml")])))
    (inner,) = {path.parent for path in folder.glob("tensorboard/*/events*")}
    (plugin,) = [
        EventAccumulator(str(inner)).Reload().SummaryMetadata(tag).plugin_data.content
        for tag in ("_hparams_/session_start_info",)
    ]
    for key in config:
        assert f"\n{key}: " in f"\n{text.read_text()}"
        assert key.encode() in plugin or config[key] is None


def flat_results(result: dict) -> dict[str, float]:
    found = {f"test/{name}": result[name] for name in ("accuracy", "uar", "macro_f1")}
    found |= {f"test/per_class/{name}": value for name, value in result["per_class"].items() if value is not None}
    low, high = result["intervals"]["accuracy"]
    return found | {"test/intervals/accuracy/low": low, "test/intervals/accuracy/high": high}


def wandb_records(path: Path):
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, content = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no room for a header in this block
            position += 32768 - position % 32768
        _, length, kind = struct.unpack_from("<IHB", data, position)
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(content)
            content = b""


@pytest.mark.slow
def test_wandb_has_one_run_with_every_epoch_once(killed):
    folder = killed / "runs" / "run"
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert (len(files), len({path.name for path in files})) == (2, 1)
    rows, config, ids, images = [], {}, set(), set()
    for record in wandb_records(files[-1]):  # of the session that ended
        kind = record.WhichOneof("record_type")
        if kind == "run":
            ids.add((record.run.project, record.run.display_name, f"run-{record.run.run_id}.wandb"))
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        if kind == "history":
            row = {it.key or "/".join(it.nested_key): json.loads(it.value_json) for it in record.history.item}
            images |= {name.rpartition("/")[0] for name in row if name.startswith("figures/")}
            rows.append(row)
    assert ids == {("fastemo", "run", files[0].name)}
    expected = metrics_of(folder)
    assert [row["_step"] for row in rows] == [1, 2, 3]
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    for name, value in flat_results(json.loads((folder / "test.json").read_text())).items():
        assert [row[name] for row in rows if name in row] == [value]
    assert images == {f"figures/{path.stem}" for path in folder.glob("*.png")}
    assert {"train.lr", "model.name", "corpus.synthetic.difficulty.place"} <= {*config}


@pytest.mark.slow
def test_trackio_has_one_run_with_every_epoch_once(killed):
    folder = killed / "runs" / "run"
    with sqlite3.connect(killed / "trackio" / "fastemo.db") as base:
        found = base.execute("select run_name, run_id, step, metrics from metrics order by id").fetchall()
        ((config,),) = base.execute("select config from configs").fetchall()
    assert {row[0] for row in found} == {"run"}
    assert len({row[1] for row in found}) == 1
    rows = [(step, json.loads(text)) for _, _, step, text in found]
    assert [(step, row) for step, row in rows if "train_loss" in row] == [
        (it["epoch"], it) for it in metrics_of(folder)
    ]
    expected = flat_results(json.loads((folder / "test.json").read_text()))
    (tested,) = [row for _, row in rows if "test/accuracy" in row]
    assert {name: tested[name] for name in expected} == expected
    media = [value for _, row in rows for value in row.values() if isinstance(value, dict)]
    assert len(media) == len(list(folder.glob("*.png")))
    assert all((killed / "trackio" / "media" / it["file_path"]).is_file() for it in media)
    assert json.loads(config)["train.lr"] == 1e-3


@pytest.mark.slow
def test_two_processes_log_once(options, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, TRAIN]
    done = command(*launcher, *options, "--train.trackers", "tensorboard", "--train.epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 processes\n" in done.stdout
    folder = tmp_path / "runs" / "run"
    assert len(list(folder.glob("tensorboard/events*"))) == len(list(folder.glob("tensorboard/*/events*"))) == 1
    assert json.loads((folder / "trackers.json").read_text()) == {"tensorboard": {"id": "run", "epoch": 1}}


@pytest.mark.slow
def test_a_study_and_its_page_take_trackers(few_clips, tmp_path):
    train = {"epochs": 1, "trackers": "tensorboard", "early_stop_patience": None}
    base = {"model": {"name": "early_cnn", "pretrained": False}, "video": {"size": 20, "num_frames": 2}, "train": train}
    study = {"name": "made", "base": {**base, "augment": {"crop_size": 16}}, "parts": [{"name": "a"}]}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    words = [sys.executable, "-m", "fastemo.cli", "study", "study.yaml", "--out", "out", "--corpus.root", few_clips]
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("out/cells/*/tensorboard/events*"))) == 1
    write_page([tmp_path / "out"], tmp_path / "report.html", Console())
    other = read_study(tmp_path / "study.yaml", ["--train.trackers", "wandb", "--corpus.root", str(few_clips)])
    assert [cell.name for cell in other.cells] == sorted(path.name for path in tmp_path.glob("out/cells/*"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_itself(options, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with empty_figures():
        folder = run(*resolve([*options, "--runs_dir", str(tmp_path), "--train.trackers", "mlflow"]))
    import mlflow

    known = json.loads((folder / "trackers.json").read_text())["mlflow"]
    history = mlflow.MlflowClient().get_metric_history(known["id"], "val_loss")
    assert [(it.step, it.value) for it in history] == [(row["epoch"], row["val_loss"]) for row in metrics_of(folder)]
