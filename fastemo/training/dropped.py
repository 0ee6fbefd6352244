"""Clips that training went on without."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastemo.errors import UserError
from fastemo.machine import write_text

_COLUMNS = ("key", "split", "epoch", "reason")
_MOST_NAMES = 5


class TooManyDropped(UserError):
    """More clips stopped decoding than a run may go on without."""


def write(path: Path, dropped: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a CSV table, one row a clip: key, split, first epoch without it (0: the test), reason."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([key, *(found[name] for name in _COLUMNS[1:])] for key, found in sorted(dropped.items()))
    write_text(path, text.getvalue())


def too_many(dropped: Mapping[str, Mapping[str, Any]], allowed: int, path: Path) -> TooManyDropped:
    first = "; ".join(str(dropped[key]["reason"]) for key in sorted(dropped)[:_MOST_NAMES])
    return TooManyDropped(
        f"{len(dropped)} clips did not decode, {allowed} may be dropped (--corpus.max_dropped): {first}. All of them "
        f"are listed in {path}; repair or remove them and start again"
    )
