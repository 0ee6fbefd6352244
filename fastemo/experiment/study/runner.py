"""Executes the runs of a study, several in parallel if the machine has room, and keeps their states on disk."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from fastemo.config import write_config
from fastemo.console import Console
from fastemo.errors import Stopped, UserError
from fastemo.experiment.study.corpora import Corpora
from fastemo.experiment.study.grid import Cell, Study, with_folder
from fastemo.experiment.study.places import environment_of, num_places, processors_of
from fastemo.experiment.study.states import State, read_states, reason_of
from fastemo.experiment.study.summary import cell_result, parts_result
from fastemo.machine import describe_machine, only_one, versions, write_text
from fastemo.models.build import checked
from fastemo.report.words import BEST_ON_TEST, caveats
from fastemo.training.stopping import StopSignals

_POLL_SECONDS = 0.2
# The most of its running time that a killed study loses.
_NOTE_SECONDS = 30.0


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    output: Path
    started: float
    place: int
    file: IO[bytes] = field(repr=False)


def run_study(
    study: Study,
    source: Path,
    out: Path,
    console: Console,
    *,
    jobs: int | None = None,
    signals: StopSignals | None = None,
) -> dict[str, Any]:
    """Execute every unfinished run; return the contents of `study.json`.

    Each run has a folder in `out/cells` and is trained by a separate process. Failed runs are retried.

    Args:
        source: The study file, which is copied to `out`.
        jobs: Parallel runs; `None`: as many as the machine has room for.
        signals: SIGTERM and SIGINT are forwarded to the runs, which write their checkpoints.

    Raises:
        ValueError: The corpus is not usable, `out` is in use or belongs to another study, or `jobs` is below 1.
        UserError: Runs failed; the message names the first. The others are finished.
        Stopped: By a signal.
    """
    places = num_places(jobs)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out, f"study folder {out}"):
        states = read_states(study, out)
        write_text(out / "study.yaml", source.read_text(encoding="utf-8"))
        runner = _Runner(study, out, console, states, places, signals or StopSignals())
        runner.run()
        return runner.finish()


class _Runner:
    def __init__(
        self,
        study: Study,
        out: Path,
        console: Console,
        states: dict[str, State],
        places: int,
        signals: StopSignals,
    ) -> None:
        self._study, self._out, self._console, self._states = study, out, console, states
        self._places, self._signals = places, signals
        self._running: list[_Running] = []
        self._waited_for: set[str] = set()
        self._results: dict[str, dict[str, Any]] = {}
        self._noted = time.monotonic()
        self._head = {
            "name": study.name,
            "description": study.description,
            "command": shlex.join(["fastemo", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": describe_machine(),
            "versions": versions(),
        }

    def run(self) -> None:
        """Start runs as places become free, until none is waiting."""
        waiting = [cell for cell in self._study.cells if self._states[cell.name].status != "finished"]
        done = len(self._study.cells) - len(waiting)
        self._console.say(
            f"study {self._study.name}: {len(self._study.cells)} runs, {done} finished, {len(waiting)} to run, "
            f"{self._places} in parallel; {self._out}"
        )
        if not waiting:
            return
        self._prepare_corpora()
        with self._signals.deferred(), self._kill_on_exit():
            free = list(range(self._places))
            while waiting or self._running:
                self._fail_without_start(waiting)
                while free and not self._signals.received and (cell := self._next(waiting)):
                    waiting.remove(cell)
                    self._running.append(self._start(cell, free.pop(0)))
                ended = [it for it in self._running if it.process.poll() is not None]
                for it in ended:
                    self._running.remove(it)
                    free.append(it.place)
                    self._note_end(it)
                if self._signals.received and not self._running:
                    raise Stopped(self._signals.received, "the same command resumes the study")
                if self._signals.received:
                    self._forward_signal()
                if time.monotonic() - self._noted > _NOTE_SECONDS:
                    self._write()
                if not ended:
                    time.sleep(_POLL_SECONDS)

    def _next(self, waiting: Sequence[Cell]) -> Cell | None:
        """The first run whose folder is not locked: runs of a killed study may still write their checkpoints."""
        for cell in waiting:
            if cell.start is not None and self._states[cell.start].status != "finished":
                continue
            folder = self._out / "cells" / cell.name
            try:
                with only_one(folder, "") if folder.is_dir() else nullcontext():
                    return cell
            except ValueError:
                if cell.name not in self._waited_for:
                    self._waited_for.add(cell.name)
                    self._console.say(f"{time.strftime('%H:%M:%S')} waiting for another process to release {cell.name}")
        return None

    def _fail_without_start(self, waiting: list[Cell]) -> None:
        """Fail the runs that would start from the weights of a run that failed."""
        pending = {cell.name for cell in chain(waiting, (it.cell for it in self._running))}
        for cell in [*waiting]:
            if cell.start is None or cell.start in pending or self._states[cell.start].status == "finished":
                continue
            waiting.remove(cell)
            state = self._states[cell.name]
            state.status, state.reason = "failed", f"it starts from the weights of {cell.start}, which failed"
            self._say_end(f"failed   {cell.name}: {state.reason}")

    def _prepare_corpora(self) -> None:
        """Generate, scan and split every corpus before the runs do: its errors are reported once, immediately."""
        corpora = Corpora(self._console)
        for model in dict.fromkeys(cell.config.model for cell in self._study.cells):
            checked(model)
        for cell in self._study.cells:
            corpora.splits(cell.config.corpus)

    def _start(self, cell: Cell, place: int) -> _Running:
        folder = self._out / "cells"
        state = self._states[cell.name]
        state.status, state.reason, state.attempts = "running", None, state.attempts + 1
        write_config(with_folder(cell, folder), self._out / "configs" / f"{cell.name}.yaml")
        self._write()
        output = self._out / "output" / f"{cell.name}.txt"
        output.parent.mkdir(exist_ok=True)
        file = output.open("wb")
        options = ["--config", str(self._out / "configs" / f"{cell.name}.yaml"), "--resume", "auto"]
        mine = processors_of(place, self._places)
        process = subprocess.Popen(
            [sys.executable, "-m", "fastemo.experiment.cell", str(os.getpid()), mine, "--", *options],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment_of(place),
            # Ctrl-C reaches only the study, which forwards it once.
            start_new_session=True,
        )
        again = f", attempt {state.attempts}" if state.attempts > 1 else ""
        self._console.say(f"{time.strftime('%H:%M:%S')} started  {cell.name}{again}")
        return _Running(cell, process, output, time.monotonic(), place, file)

    def _forward_signal(self) -> None:
        """Send every run a signal to stop, once."""
        for it in self._running:
            if self._states[it.cell.name].status == "running":
                self._states[it.cell.name].status = "waiting"
                it.process.terminate()

    @contextmanager
    def _kill_on_exit(self) -> Iterator[None]:
        """However this process ends, no run outlives it."""
        try:
            yield
        finally:
            for it in self._running:
                it.process.kill()
                it.process.wait()
                it.file.close()

    def _note_end(self, it: _Running) -> None:
        it.file.close()
        cell, state = it.cell, self._states[it.cell.name]
        state.minutes += (time.monotonic() - it.started) / 60
        if (self._out / "cells" / cell.name / "test.json").is_file():
            state.status = "finished"
            result = cell_result(self._out / "cells" / cell.name)
            self._say_end(f"finished {cell.name}: accuracy {result['accuracy']:.1%} after {state.minutes:.1f} min")
        elif self._signals.received:
            state.status = "waiting"
            self._say_end(f"stopped  {cell.name}")
        else:
            state.status, state.reason = "failed", reason_of(it.output, it.process.returncode)
            self._say_end(f"failed   {cell.name}: {state.reason}")
        self._write()

    def _say_end(self, text: str) -> None:
        count = sum(state.status == "finished" for state in self._states.values())
        self._console.say(f"{time.strftime('%H:%M:%S')} {text} ({count}/{len(self._states)})")

    def _write(self, parts: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Write `study.json` and return its contents."""
        self._noted = time.monotonic()
        corpus = self._study.cells[0].config.corpus
        cells = [self._entry(cell) for cell in self._study.cells]
        found = {
            **self._head,
            "corpus": corpus.title,
            "protocol": next((it["result"]["protocol"] for it in cells if it["result"]), corpus.protocol),
            "minutes": round(sum(cell["minutes"] for cell in cells), 3),
            "cells": cells,
            "parts": list(parts),
        }
        write_text(self._out / "study.json", json.dumps(found, indent=1) + "\n")
        return found

    def _entry(self, cell: Cell) -> dict[str, Any]:
        state = self._states[cell.name]
        if state.status == "finished" and cell.name not in self._results:
            self._results[cell.name] = cell_result(self._out / "cells" / cell.name)
        return {
            "name": cell.name,
            "settings": cell.settings,
            "seed": cell.config.seed,
            "folder": f"cells/{cell.name}",
            "status": "waiting" if state.status == "running" else state.status,
            "reason": state.reason,
            "attempts": state.attempts,
            "minutes": round(state.minutes + self._running_minutes(cell), 3),
            "result": self._results.get(cell.name),
        }

    def _running_minutes(self, cell: Cell) -> float:
        return sum(time.monotonic() - it.started for it in self._running if it.cell is cell) / 60

    def finish(self) -> dict[str, Any]:
        """Write and show the summary.

        Raises:
            UserError: Runs failed.
        """
        finished = {name for name, state in self._states.items() if state.status == "finished"}
        found = self._write(parts_result(self._study, self._out, finished))
        for part in found["parts"]:
            lines = [_line(row) for row in part["rows"]]
            used = {name for line in lines for name, text in line.items() if text}
            self._console.table(part["title"], [{name: line[name] for name in line if name in used} for line in lines])
        told = [
            caveats(it["protocol"], it["corpus"], it.get("subjects", "unseen"))
            for cell in found["cells"]
            if (it := cell["result"])
        ]
        for note in dict.fromkeys(chain(*told)):
            self._console.say(f"note: {note}")
        failed = {name: state.reason for name, state in self._states.items() if state.status == "failed"}
        if failed:
            name, reason = next(iter(failed.items()))
            raise UserError(
                f"{len(failed)} of {len(self._states)} runs failed, such as {name}: {reason}. The same command "
                f"retries them; their output is in {self._out / 'output'}"
            )
        self._console.say(f"written: {self._out / 'study.json'}; to view it: fastemo page {self._out}")
        return found


def _line(row: dict[str, Any]) -> dict[str, str | int]:
    """A row of the terminal's table."""
    over_people = (row["intervals"] or {}).get("actors") or {}
    return {
        "run": row["label"],
        "accuracy (WAR)": _share(row) or "not finished",
        "95 % interval": _between(row["interval"]),
        "over people": _between(over_people.get("accuracy")),
        "UAR": _share(row, "uar"),
        BEST_ON_TEST: _share(row["best_epoch_on_test"]),
        "order": _share(row["order"]),
        "Roy (2025)": _share(row, "report"),
    }


def _share(found: Mapping[str, Any] | None, key: str = "accuracy") -> str:
    return f"{found[key]:.1%}" if found and found[key] is not None else ""


def _between(interval: Sequence[float] | None) -> str:
    return " to ".join(f"{it:.1%}" for it in interval or ())
