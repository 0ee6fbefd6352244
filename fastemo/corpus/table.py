"""A label table -> its rows: a file or a segment of one, and its label, person, split and further columns.

    path,label,subject,split,start,end,condition
    day1/long.mp4,happy,P01,train,12.5,15.25,indoors

CSV or TSV as spreadsheets write them: separated by `,`, `;` or tabs, with a decimal point or comma, in UTF-8, UTF-16
with a byte order mark, or Windows-1252.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastemo.corpus.config import SPLITS

_NEEDED = ("path", "label")
_KNOWN = (*_NEEDED, "subject", "split", "start", "end")
_SEPARATORS = ",;\t"
_SECONDS = re.compile(r"\d{1,7}([.,]\d{1,9})?", re.ASCII)
_MOST_FAULTS = 5


class TableRow(NamedTuple):
    """One clip of a label table.

    Attributes:
        line: In the table, from 1.
        path: Of the file, below the corpus root, with forward slashes.
        segment: `start-end` in seconds, `end` empty for the file's end; empty for the whole file.
        columns: The further columns as a JSON object of texts, empty without any.
    """

    line: int
    path: str
    label: str
    subject: str = ""
    split: str = ""
    segment: str = ""
    columns: str = ""

    @property
    def key(self) -> str:
        return f"{self.path}#{self.segment}" if self.segment else self.path

    @property
    def seconds(self) -> tuple[float, float]:
        """Start and end; infinity for the file's end."""
        return segment_seconds(self.segment)


def by_file(rows: Sequence[TableRow]) -> dict[str, list[TableRow]]:
    """The rows of each file, in the order of the table."""
    found: dict[str, list[TableRow]] = defaultdict(list)
    for row in rows:
        found[row.path].append(row)
    return found


def segment_seconds(segment: str) -> tuple[float, float]:
    """Start and end of `start-end` in seconds; infinity for the file's end."""
    start, _, end = segment.partition("-")
    return float(start or 0), float(end or "inf")


def read_table(path: Path, root: Path) -> list[TableRow]:
    """Read a label table.

    Args:
        root: The corpus root, to which the paths in the table are relative; absolute paths must lie below it.

    Raises:
        ValueError: The file is not such a table, or some lines are faulty: a value that is missing or makes no sense, a
            clip given twice, overlapping segments in two splits; the message names the table and the lines.
    """
    try:
        text = _decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the label table {path}: {getattr(error, 'strerror', None) or error}") from error
    faults: list[tuple[int, str]] = []
    rows: list[TableRow] = []
    try:
        names, lines = _lines(text)
        for line, cells in lines:
            try:
                rows.append(_row(line, dict(zip(names, cells, strict=True)), root))
            except ValueError as error:
                faults.append((line, str(error)))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a label table: {error}") from error
    faults = sorted([*faults, *_clashes(rows)])
    if faults:
        shown = "; ".join(f"line {line}: {fault}" for line, fault in faults[:_MOST_FAULTS])
        more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise ValueError(f"{path}, {shown}{more}")
    return rows


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def _lines(text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns' names, and the number and cells of each line that is not blank."""
    first = 0
    if re.match(r"sep=.\r?\n", text):  # for Excel
        first, text = 1, text[text.index("\n") + 1 :]
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        names = [name.strip().lower() for name in next(reader, [])]
        if set(_NEEDED) <= set(names):
            break
    else:
        raise ValueError(f"its first line must name the columns {' and '.join(_NEEDED)}, separated by ',', ';' or tabs")
    used = [name for name in names if name]
    if len(set(used)) < len(used):
        raise ValueError(f"its first line names the column {max(used, key=used.count)} twice")

    def lines() -> Iterator[tuple[int, list[str]]]:
        for cells in reader:
            if any(map(str.strip, cells)):
                missing = len(names) - len(cells)
                if missing < 0 and any(cells[missing:]):
                    raise ValueError(f"line {first + reader.line_num} has {len(cells)} cells for {len(names)} columns")
                yield first + reader.line_num, [*cells, *[""] * missing][: len(names)]

    return names, lines()


def _row(line: int, cells: dict[str, str], root: Path) -> TableRow:
    """Raises `ValueError` for a cell that is missing or makes no sense."""
    cells = {name: cell.strip() for name, cell in cells.items() if name}
    split = cells.get("split", "").lower()
    if split and split not in SPLITS:
        raise ValueError(f"the split is '{split}', must be one of {', '.join(SPLITS)}, or empty")
    start, end = (_seconds(name, cells.get(name, "")) for name in ("start", "end"))
    segment = f"{start or 0}-{end}" if start or end else ""
    if end and Decimal(end) <= Decimal(start or 0):
        raise ValueError(f"the segment ends at {end} s, not after its start at {start or 0} s")
    columns = tuple((name, cell) for name, cell in cells.items() if name not in _KNOWN and cell)
    return TableRow(
        line=line,
        path=_below(cells["path"], root),
        label=cells["label"],
        subject=cells.get("subject", ""),
        split=split,
        segment=segment,
        columns=_as_json(columns) if columns else "",
    )


@cache
def read_columns(text: str) -> dict[str, str]:
    """A row's further columns by name.

    Raises:
        ValueError: It is not what `TableRow.columns` holds.
    """
    found = json.loads(text or "{}")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("its columns are not a JSON object of texts")
    return found


@cache
def _as_json(columns: tuple[tuple[str, str], ...]) -> str:
    return json.dumps(dict(columns), ensure_ascii=False, sort_keys=True)


def _seconds(name: str, text: str) -> str:
    """A number of seconds in its shortest form, so that 1.50 and 1,5 are the same."""
    if text and not _SECONDS.fullmatch(text):
        raise ValueError(f"{name} is '{text}', must be a number of seconds such as 12.5")
    return f"{Decimal(text.replace(',', '.')).normalize():f}" if text else ""


def _below(path: str, root: Path) -> str:
    """A path relative to the corpus root, with forward slashes."""
    parts = path.replace("\\", "/").split("/")
    if not parts[0]:
        here = root.absolute().as_posix().split("/")
        if parts[: len(here)] == here and len(parts) > len(here):
            parts = parts[len(here) :]
    parts = [part for part in parts[:-1] if part != "."] + parts[-1:]
    if any(part in ("", ".", "..") or "\0" in part for part in parts) or re.match("[A-Za-z]:$", parts[0]):
        raise ValueError(f"the path '{path}' is not that of a file below the corpus root {root}" if path else "no path")
    return "/".join(parts)


def _clashes(rows: Sequence[TableRow]) -> Iterator[tuple[int, str]]:
    """The lines that repeat a clip, or whose segment overlaps one in another split, and why."""
    for same in by_file(rows).values():
        seen: dict[str, TableRow] = {}
        latest: dict[str, TableRow] = {}  # of each split, the row that ends last
        for row in sorted(same, key=lambda row: (row.seconds, row.line)):
            owner = seen.setdefault(row.key, row)
            if owner is not row:
                yield row.line, f"{row.key} is in line {owner.line} already"
                continue
            for split, other in latest.items():
                if row.split and split != row.split and other.seconds[1] > row.seconds[0]:
                    one, two = sorted((row, other), key=lambda it: it.line)
                    yield two.line, f"{two.key} ({two.split}) overlaps {one.key} ({one.split}) in line {one.line}"
            if row.split and (row.split not in latest or latest[row.split].seconds[1] < row.seconds[1]):
                latest[row.split] = row
