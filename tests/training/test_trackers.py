"""Trackers: what they get of a run, what becomes of a run whose tracker fails, and that they change no run."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import sqlite3
import struct
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import tracking
from helpers import REPOSITORY, TINY_RUN, TRAIN, command, empty_figures, files_of, refusal
from PIL import Image
from same_bits import SMALL, assert_same_bits, bits

from fastemo.config import config_leaves, read_config, write_config
from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.experiment.resume import resolve
from fastemo.experiment.run import run
from fastemo.experiment.study.grid import read_study
from fastemo.report.page import write_page
from fastemo.training import trackers
from fastemo.training.config import TRACKERS, TrainConfig
from fastemo.training.trackers import Trackers, check_installed

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


class TestConfiguration:
    def test_names_are_a_list_or_separated_by_commas(self, tmp_path: Path) -> None:
        (tmp_path / "list.yaml").write_text("train: {trackers: [tensorboard, wandb]}")
        (tmp_path / "text.yaml").write_text("train: {trackers: 'tensorboard, wandb'}")
        given = ["--config", str(tmp_path / "list.yaml")], ["--config", str(tmp_path / "text.yaml")]
        given += ["--train.trackers", "tensorboard,wandb"], ["--train.trackers=[tensorboard, wandb]"]
        for arguments in given:
            config = read_config(arguments)
            assert config.train.trackers == ["tensorboard", "wandb"]
        write_config(config, tmp_path / "config.yaml")
        assert read_config(["--config", str(tmp_path / "config.yaml")]) == config
        for nothing in ([], ["--train.trackers", ""], ["--train.trackers", "[]"]):
            assert read_config(nothing).train.trackers == []
        assert read_config(["--train.trackers", "mlflow"]).train == TrainConfig(trackers="mlflow")

    @pytest.mark.parametrize("value", ["wandbb", "wandb,wandbb", "[wandb, wandbb]"])
    def test_an_unknown_name_is_refused(self, value: str) -> None:
        expected = "train.trackers must be among tensorboard, wandb, trackio, mlflow, not 'wandbb'"
        assert refusal("--train.trackers", value) == expected

    def test_an_absent_package_is_named_with_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trackers, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"^train\.trackers wandb: .* wandb is not .*: pip install 'fastemo\[trac"):
            check_installed(["wandb"])
        # A folder wandb/ of the current one is importable, too.
        monkeypatch.setattr(trackers, "find_spec", lambda name: ModuleSpec(name, None, is_package=True))
        with pytest.raises(ValueError, match=r"^train\.trackers mlflow: .* mlflow is not .*: pip install mlflow$"):
            check_installed(["mlflow"])

    def test_a_run_without_the_package_leaves_no_folder(self, few_clips: Path, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(trackers, "find_spec", lambda name: None)
        options = [*TINY_RUN, "--corpus.root", str(few_clips), "--runs_dir", str(tmp_path / "runs")]
        with pytest.raises(ValueError, match="pip install"):
            run(*resolve([*options, "--train.trackers", "tensorboard"]))
        assert not (tmp_path / "runs").exists()

    def test_every_tracker_has_a_class_of_accelerate(self) -> None:
        assert set(TRACKERS) <= set(tracking.LOGGER_TYPE_TO_CLASS)


class Double(tracking.GeneralTracker):
    """A tracker that keeps what it gets, and fails where it is told to."""

    requires_logging_directory = False
    main_process_only = False

    def __init__(self, name: str, fails: str = "") -> None:
        self.name, self.fails = name, fails
        self.tracker = SimpleNamespace(step=0, info=SimpleNamespace(run_id="theirs"))
        self.got: list[tuple] = []

    def note(self, what: str, *values: object) -> None:
        if what == self.fails:
            raise ConnectionError("no\nroute to host.")
        self.got.append((what, *values))

    def store_init_configuration(self, values: dict) -> None:
        self.note("config", values)

    def log(self, values: dict, step: int | None = None) -> None:
        self.note("log", values, step)

    def log_images(self, values: dict, step: int | None = None, **options: object) -> None:
        self.note("images", *values, step)

    def log_artifact(self, path: str, folder: str) -> None:
        self.note("artifact", path)

    def finish(self) -> None:
        self.note("finish")


ROWS = [{"epoch": epoch, "train_loss": 1 / epoch, "test_confusion": [[1, 0], [0, 1]]} for epoch in (1, 2, 3)]
RESULT = {
    "accuracy": 0.5,
    "per_class": {"joy/glee": 0.25, "calm": None},
    "intervals": {"level": 0.95, "accuracy": [0.0, 1.0], "actors": {"uar": [0.25, 0.5]}},
    "confusion": [[1, 0], [0, 1]],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "test.json").write_text(json.dumps(RESULT))
    Image.new("RGBA", (3, 2)).save(folder / "curves.png")
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Double]:
    """The doubles that take the place of the trackers, by name; those that a test puts there first are taken."""
    made: dict[str, Double] = {}

    def started(name: str, run_dir: Path, config: dict, state: dict) -> Double:
        double = made.setdefault(name, Double(name))
        double.note("start", *state.values())
        double.got.append(("config", config))
        state["id"] = state["id"] or f"id of {name}"
        return double

    monkeypatch.setattr(trackers, "_started", started)
    return made


def started(names: list[str], folder: Path) -> Trackers:
    result = Trackers()
    result.start(names, [("a", folder), ("b", None), ("c", 0.5), ("d", [1])], folder, Console())
    return result


def test_a_session_logs_what_earlier_ones_did_not(folder, made):
    names = ["wandb", "mlflow"]
    session = started(names, folder)
    session.log(ROWS[:1])
    session.log(ROWS[:2])
    session.__exit__(KeyboardInterrupt)
    config = ("config", {"a": str(folder), "b": None, "c": 0.5, "d": "[1]"})
    rows = [("log", {"epoch": epoch, "train_loss": 1 / epoch}, epoch) for epoch in (1, 2, 3)]
    for name in names:
        assert made[name].got == [("start", None, 0), config, *rows[:2], ("finish",)]
        made[name].got.clear()
    made["wandb"].tracker.step = 7
    with started(names, folder) as session:
        session.log(ROWS[:2])  # the second epoch is trained again
    numbers = {"accuracy": 0.5, "per_class/joy_glee": 0.25, "intervals/level": 0.95, "intervals/accuracy/low": 0.0}
    numbers |= {"intervals/accuracy/high": 1.0, "intervals/actors/uar/low": 0.25, "intervals/actors/uar/high": 0.5}
    test = {f"test/{name}": value for name, value in numbers.items()}
    figure = ("artifact", str(folder / "curves.png"))
    assert made["mlflow"].got == [("start", "id of mlflow", 2), config, rows[2], ("log", test, 3), figure, ("finish",)]
    # W&B ignores what is logged to an earlier step than its own.
    later = [rows[2], ("log", test, 7), ("images", "figures/curves", 7)]
    assert made["wandb"].got == [("start", "id of wandb", 2), config, *later, ("finish",)]


def test_a_run_killed_before_its_first_epoch_keeps_its_ids(folder, made):
    started(["wandb"], folder)
    started(["wandb"], folder)
    assert [it for it in made["wandb"].got if it[0] == "start"] == [("start", None, 0), ("start", "id of wandb", 0)]


@pytest.mark.parametrize("fails", ["log", "images", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_left_out(folder, made, capsys, fails):
    made["wandb"] = Double("wandb", fails)
    with started(["wandb", "tensorboard"], folder) as session:
        for count in (1, 2, 3):
            session.log(ROWS[:count])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["tracker wandb failed: no route to host; training continues without it"]
    assert Counter(it[0] for it in made["tensorboard"].got) == Counter(start=1, config=1, log=4, images=1, finish=1)
    assert len(made["wandb"].got) == {"log": 2, "images": 6, "finish": 7}[fails]


def test_a_tracker_that_cannot_be_started_is_an_error_and_ends_the_others(folder, made):
    made["wandb"] = Double("wandb", "start")
    session = Trackers()
    message = r"^train\.trackers wandb: no route to host; set WANDB_MODE=offline, or log in with wandb login$"
    with pytest.raises(UserError, match=message), session:
        session.start(["tensorboard", "wandb"], [], folder, Console())
    assert made["tensorboard"].got == [("start", None, 0), ("config", {}), ("finish",)]


def test_a_run_whose_tracker_fails_is_finished(few_clips, tmp_path, made, capsys):
    made["tensorboard"] = Double("tensorboard", "log")
    options = [*TINY_RUN, "--corpus.root", str(few_clips), "--runs_dir", str(tmp_path), "--name", "run"]
    with empty_figures():
        folder = run(*resolve([*options, "--model.pretrained", "false", "--train.trackers", "tensorboard"]))
    assert (folder / "test.json").is_file()
    line = "tracker tensorboard failed: no route to host; training continues without it"
    assert capsys.readouterr().out.count(line) == (folder / "log.txt").read_text().count(line) == 1
    assert "trackers.json" in files_of(folder)


@pytest.mark.slow
def test_wandb_without_an_account_is_one_line_and_asks_nothing(tmp_path):
    """On a terminal, too: the script's standard input says that it is one."""
    script = tmp_path / "asks.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from fastemo.console import Console\n"
        "from fastemo.errors import one_line_errors\n"
        "from fastemo.training import trackers\n"
        "class Terminal:\n"
        "    isatty = lambda self: True\n"
        "sys.stdin, trackers.check_reachable = Terminal(), lambda _: None\n"
        "from accelerate import PartialState\n"
        "PartialState(cpu=True)\n"
        "with one_line_errors():\n"
        "    trackers.Trackers().start(['wandb'], [], Path(sys.argv[1]), Console())\n"
    )
    without = {name: "" for name in os.environ if name.startswith("WANDB_")}
    places = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "PYTHONPATH": str(REPOSITORY)}
    done = command(sys.executable, script, tmp_path, **(without | places))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fastemo: error: train.trackers wandb: ")
    assert last.endswith("; set WANDB_MODE=offline, or log in with wandb login")


def test_mlflow_gets_its_folder_and_the_run_to_continue(tmp_path, monkeypatch):
    """The package is a double: it is not among those that tests are run with."""
    got: list[tuple] = []
    package = SimpleNamespace(set_tracking_uri=lambda uri: got.append(("uri", uri)))
    monkeypatch.setitem(sys.modules, "mlflow", package)

    class MLflow(Double):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__("mlflow")
            got.append((*arguments, options))

    monkeypatch.setattr(tracking, "MLflowTracker", MLflow)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    state = {"id": None, "epoch": 0}
    trackers._started("mlflow", tmp_path / "run", {"a": 1}, state)
    assert state == {"id": "theirs", "epoch": 0}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    trackers._started("mlflow", tmp_path / "run", {"a": 1}, state)
    base = tmp_path / "run" / "mlruns"
    assert got == [
        ("uri", f"sqlite:///{base}/mlflow.db"),
        ("fastemo", base.as_uri(), {"run_id": None, "run_name": "run"}),
        ("fastemo", None, {"run_id": "theirs", "run_name": "run"}),
    ]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_itself(options, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with empty_figures():
        folder = run(*resolve([*options, "--runs_dir", str(tmp_path), "--train.trackers", "mlflow"]))
    import mlflow

    known = json.loads((folder / "trackers.json").read_text())["mlflow"]
    history = mlflow.MlflowClient().get_metric_history(known["id"], "val_loss")
    assert [(it.step, it.value) for it in history] == [(row["epoch"], row["val_loss"]) for row in metrics_of(folder)]
