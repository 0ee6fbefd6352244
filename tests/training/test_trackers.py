"""Which trackers are taken, what they get, and what becomes of a run whose tracker fails."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import tracking
from helpers import REPOSITORY, TINY_RUN, command, empty_figures, files_of, refusal
from PIL import Image

from fastemo.config import read_config, write_config
from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.experiment.resume import resolve
from fastemo.experiment.run import run
from fastemo.training import trackers
from fastemo.training.config import TRACKERS, TrainConfig
from fastemo.training.trackers import Trackers, check_installed


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
