"""Output of a run, on the main process only: progress bars on a terminal, lines on the terminal and in the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

Advance = Callable[..., None]


class Console:
    """Lines go to the terminal and, after `log_to`, to a log file as well; progress bars go to a terminal only.

    Args:
        show: If false (every process but the main one), nothing is printed or logged.
    """

    def __init__(self, *, show: bool = True) -> None:
        self._show = show
        self._log: Path | None = None
        width = None if sys.stdout.isatty() else 120
        self._rich = rich.console.Console(width=width, highlight=False, emoji=False, soft_wrap=True)

    def log_to(self, path: Path) -> None:
        self._log = path if self._show else None

    def say(self, text: str) -> None:
        if not self._show:
            return
        # A file name may hold bytes that are not text: escaped, since print would raise.
        encoding = self._rich.encoding
        self._rich.print(text.encode(encoding, "backslashreplace").decode(encoding), markup=False)
        self.log(text)

    def log(self, text: str) -> None:
        """Write to the log file only."""
        if self._log:
            with self._log.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def table(self, title: str, rows: list[dict[str, str | int]]) -> None:
        """Print rows that have the same keys."""
        if not self._show or not rows:
            return
        table = Table(title=title, title_justify="left")
        for name in rows[0]:
            table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        self._rich.print(table)
        self.log(title + "".join(f"\n    {row}" for row in rows))

    @contextmanager
    def track(self, what: str, unit: str) -> Iterator[Advance]:
        """Show the progress of a long step: yields `advance(done, total, note="")`."""
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._rich,
            transient=True,
        )
        started = time.monotonic()

        def advance(done: int, total: int, note: str = "") -> None:
            seconds = time.monotonic() - started
            rate = f"{done / seconds:.1f} {unit}/s" if seconds > 0 else ""
            progress.update(task, completed=done, total=total, rate=rate, note=note)

        # Not started without a terminal: up to rich 14.2 even a disabled bar prints an empty line at its end.
        with progress if self._show and self._rich.is_terminal else nullcontext():
            task = progress.add_task(what, total=None, rate="", note="")
            yield advance
