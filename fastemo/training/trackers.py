"""Experiment trackers (TensorBoard, W&B, Trackio, MLflow), through Accelerate's classes."""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import tracking
from PIL import Image

from fastemo.console import Console
from fastemo.errors import MOST_OF_OTHERS, UserError, one_line
from fastemo.machine import write_text
from fastemo.models.pretrained import check_reachable

_PROJECT = "fastemo"
# Of test.json: what a tracker gets.
_RESULTS = ("accuracy", "uar", "macro_f1", "num_clips", "num_takes", "per_class", "intervals", "best_epoch_on_test")
_ADVICE = {"wandb": "; set WANDB_MODE=offline, or log in with wandb login"}


def check_installed(names: Sequence[str]) -> None:
    """Raises:
    ValueError: A tracker's package is not installed.
    """
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # such as a folder wandb/ that a run left in the current one
            package = name if name == "mlflow" else "'fastemo[trackers]'"
            raise ValueError(f"train.trackers {name}: the package {name} is not installed: pip install {package}")


class Trackers:
    """The started trackers of a run; a context manager that ends them.

    Once started, a tracker that fails is reported and left out; no method but `start` raises its errors.
    """

    def __init__(self) -> None:
        self._running: dict[str, tracking.GeneralTracker] = {}
        # Of each tracker the id of its run, which is null before it has one, and the last epoch that it logged.
        self._state: dict[str, dict[str, Any]] = {}

    def start(
        self, names: Sequence[str], config: Iterable[tuple[str, object]], run_dir: Path, console: Console
    ) -> None:
        """Start the trackers, or continue with their runs that `trackers.json` names, and log the configuration.

        Raises:
            UserError: One cannot be started; the message says why.
        """
        self._run_dir, self._console, self._file = run_dir, console, run_dir / "trackers.json"
        if self._file.is_file():
            self._state = json.loads(self._file.read_text(encoding="utf-8"))
        values = {key: value if isinstance(value, int | float | str | None) else str(value) for key, value in config}
        for name in names:
            state = self._state.setdefault(name, {"id": None, "epoch": 0})
            try:
                with _no_questions():
                    self._running[name] = _started(name, run_dir.resolve(), values, state)
            except Exception as error:
                raise UserError(f"train.trackers {name}: {_reason(error)}{_ADVICE.get(name, '')}") from error
        if names:
            self._write()

    def log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs' rows that are not logged yet."""

        def log(name: str, tracker: tracking.GeneralTracker) -> None:
            state = self._state[name]
            for row in history:
                if row["epoch"] > state["epoch"]:
                    _log(name, tracker, dict(_numbers(row)), row["epoch"])
                    state["epoch"] = row["epoch"]
            self._write()

        self._each(log)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._running:
            lines = (self._run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            self.log([json.loads(line) for line in lines])
            self._each(self._log_test)
        self._each(lambda _, tracker: tracker.finish())
        self._running = {}

    def _log_test(self, name: str, tracker: tracking.GeneralTracker) -> None:
        """Log the results in `test.json` and the figures in the run folder."""
        result = json.loads((self._run_dir / "test.json").read_text(encoding="utf-8"))
        found = {key: result[key] for key in _RESULTS if key in result}
        step = self._state[name]["epoch"]
        if name == "wandb":
            step = max(step, tracker.tracker.step)  # it ignores what is logged to an earlier step
        _log(name, tracker, dict(_numbers(found, "test/")), step)
        for path in sorted(self._run_dir.glob("*.png")):
            _log_figure(name, tracker, path, step)

    def _write(self) -> None:
        write_text(self._file, json.dumps(self._state, indent=2) + "\n")

    def _each(self, work: Callable[[str, tracking.GeneralTracker], None]) -> None:
        for name, tracker in [*self._running.items()]:
            try:
                work(name, tracker)
            except Exception as error:
                del self._running[name]
                self._console.say(f"tracker {name} failed: {_reason(error)}; training continues without it")


def _started(
    name: str, run_dir: Path, config: Mapping[str, bool | int | float | str | None], state: dict[str, Any]
) -> tracking.GeneralTracker:
    """A tracker, started, with the run's configuration.

    Args:
        state: Of an earlier session, if there was one; updated.
    """
    is_new, state["id"] = state["id"] is None, state["id"] or run_dir.name
    if name == "tensorboard":
        # Hides steps of an earlier session that was killed after logging them.
        tracker = tracking.TensorBoardTracker(name, run_dir, purge_step=state["epoch"] + 1)
    elif name == "trackio":
        options = {"name": run_dir.name, "config": config, "resume": "never" if is_new else "allow", "embed": False}
        tracker = tracking.TrackioTracker(_PROJECT, **options)
    elif name == "wandb":
        import wandb

        state["id"] = uuid.uuid4().hex if is_new else state["id"]
        settings = wandb.setup().settings
        if settings.mode in ("online", "shared"):
            check_reachable(settings.base_url)  # wandb itself tries for 90 s
        options = {"name": run_dir.name, "dir": run_dir, "config": config, "allow_val_change": True, "resume": "allow"}
        tracker = tracking.WandBTracker(_PROJECT, id=state["id"], settings=wandb.Settings(console="off"), **options)
    else:
        import mlflow

        folder = None if "MLFLOW_TRACKING_URI" in os.environ else run_dir / "mlruns"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        artifacts, run_id = folder and folder.as_uri(), None if is_new else state["id"]
        tracker = tracking.MLflowTracker(_PROJECT, artifacts, run_id=run_id, run_name=run_dir.name)
    tracker.start()
    if name == "wandb":
        tracker.tracker.define_metric("*", step_metric="epoch")
        # The server knows what reached it. An offline session's file gets every epoch: it replaces the one before.
        state["epoch"] = tracker.tracker.step - 1
    if name == "mlflow":
        state["id"] = tracker.tracker.info.run_id
    if name in ("tensorboard", "mlflow") and is_new:
        tracker.store_init_configuration(config)
    return tracker


def _log(name: str, tracker: tracking.GeneralTracker, values: dict[str, Any], step: int) -> None:
    # Accelerate 1.10's class for Trackio ignores the step.
    (tracker.tracker if name == "trackio" else tracker).log(values, step=step)


@contextmanager
def _no_questions() -> Iterator[None]:
    """Standard input is empty: a tracker without an account raises an error instead of asking for one."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = before


def _log_figure(name: str, tracker: tracking.GeneralTracker, path: Path, step: int) -> None:
    key, pixels = f"figures/{path.stem}", np.asarray(Image.open(path).convert("RGB"))
    if name == "mlflow":
        tracker.log_artifact(str(path), "figures")
    elif name == "trackio":  # Accelerate's class logs no images
        import trackio

        _log(name, tracker, {key: trackio.Image(pixels)}, step)
    else:
        options = {"dataformats": "NHWC"} if name == "tensorboard" else {}
        tracker.log_images({key: pixels[None]}, step=step, **options)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number and its name; nested names are joined by slashes, and an interval becomes `low` and `high`."""
    for key, value in values.items():
        name = prefix + re.sub(r"[^\w\-. :]", "_", key)  # MLflow accepts no other characters
        if isinstance(value, list) and [type(it) for it in value] == [float, float]:
            value = {"low": value[0], "high": value[1]}
        if isinstance(value, dict):
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, value


def _reason(error: Exception) -> str:
    return one_line(error)[:MOST_OF_OTHERS].rstrip(".")
