"""States of a study's runs, which `study.json` keeps between commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastemo.experiment.study.grid import Study

_MOST_REASON = 400


@dataclass
class State:
    """State of one run; the fields are those of `study.json`."""

    status: str = "waiting"
    reason: str | None = None
    attempts: int = 0
    minutes: float = 0.0


def read_states(study: Study, out: Path) -> dict[str, State]:
    """The state of each run from an earlier command; a finished run folder overrides what was noted.

    Raises:
        ValueError: The folder belongs to another study, or its `study.json` is damaged.
    """
    path = out / "study.json"
    noted: dict[str, Any] = {}
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            name, cells = found["name"], found["cells"]
            noted = {it["name"]: State(it["status"], it["reason"], it["attempts"], it["minutes"]) for it in cells}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it: finished runs beside it still count") from error
        if name != study.name:
            raise ValueError(f"{out} belongs to the study {name}, not to {study.name}; choose another --out")
    states = {}
    for cell in study.cells:
        state = noted.get(cell.name, State())
        if (out / "cells" / cell.name / "test.json").is_file():
            state.status, state.reason = "finished", None
        elif state.status != "failed":
            state.status = "waiting"
        states[cell.name] = state
    return states


def reason_of(output: Path, status: int) -> str:
    """Why a run failed: its error message, or the last line of its output."""
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line.partition("error: ")[2] for line in lines if line.startswith("fastemo: error: ")]
    reason = told[-1] if told else lines[-1] if lines else "it printed nothing"
    if status < 0:
        reason = f"ended by signal {-status}" + (", possibly out of memory" if status == -9 else "")
    return reason if len(reason) <= _MOST_REASON else f"{reason[: _MOST_REASON - 1]}…"
