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
from fastemo.errors import UserError
from fastemo.machine import write_text
from fastemo.models.weights import check_reachable

_PROJECT = "fastemo"
# Of test.json: what a tracker gets.
_RESULTS = ("accuracy", "uar", "macro_f1", "num_clips", "num_takes", "per_class", "intervals", "best_epoch_on_test")
# Their configuration may change, such as when a finished run is trained further.
_UPDATABLE = ("wandb", "trackio")
_LONGEST_REASON = 300
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
        # Of each tracker the id of its run, and the last epoch that it logged.
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
            known = self._state.get(name)
            try:
                with _no_questions():
                    tracker, self._state[name] = _started(name, run_dir.resolve(), **known or {"id": None, "epoch": 0})
                self._running[name] = tracker
                if known is None or name in _UPDATABLE:
                    tracker.store_init_configuration(values)
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
                    tracker.log(dict(_numbers(row)), step=row["epoch"])
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
        tracker.log(dict(_numbers(found, "test/")), step=step)
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


def _started(name: str, run_dir: Path, *, id: str | None, epoch: int) -> tuple[tracking.GeneralTracker, dict[str, Any]]:
    """A tracker, the id of its run, and the last epoch that the run has.

    Args:
        id: Of the run to continue; `None`: a new one.
        epoch: The last that was logged; 0: none.
    """
    if name == "tensorboard":
        # Steps from `purge_step` on are hidden in earlier files: the process may have been killed just after logging.
        tracker = tracking.TensorBoardTracker(name, run_dir, purge_step=epoch + 1)
    elif name == "wandb":
        import wandb

        settings, id = wandb.setup().settings, id or uuid.uuid4().hex
        if settings.mode in ("online", "shared"):
            check_reachable(settings.base_url)  # wandb itself tries for 90 s
        options = {"name": run_dir.name, "dir": run_dir, "settings": wandb.Settings(console="off")}
        tracker = tracking.WandBTracker(_PROJECT, id=id, resume="allow", **options)
    elif name == "trackio":
        resume = "never" if id is None else "allow"
        tracker, id = tracking.TrackioTracker(_PROJECT, name=run_dir.name, resume=resume, embed=False), run_dir.name
    else:
        import mlflow

        folder = None
        if "MLFLOW_TRACKING_URI" not in os.environ:
            (folder := run_dir / "mlruns").mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        artifacts = None if folder is None else folder.as_uri()
        tracker = tracking.MLflowTracker(_PROJECT, artifacts, run_id=id, run_name=run_dir.name)
    tracker.start()
    if name == "wandb":
        tracker.tracker.define_metric("*", step_metric="epoch")
        # The server knows what reached it. An offline session's file gets every epoch: it replaces the one before.
        epoch = tracker.tracker.step - 1
    return tracker, {"id": tracker.tracker.info.run_id if name == "mlflow" else id, "epoch": epoch}


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

        tracker.log({key: trackio.Image(pixels)}, step=step)
    elif name == "tensorboard":
        tracker.log_images({key: pixels[None]}, step=step, dataformats="NHWC")
    else:
        tracker.log_images({key: pixels[None]}, step=step)


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
    return " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".") or type(error).__name__
