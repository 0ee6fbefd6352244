"""JSON that somebody gave, held to a shape: what passes can be used without another look.

A shape is a function of a value and of its place, such as `per_class.sad`, that returns the value or raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Shape = Callable[[Any, str], Any]

_MOST_BYTES = 2**26
_LONGEST_TEXT = 10_000
_LARGEST = 2**63


def read_json(path: Path, shape: Shape) -> Any:
    """Read a JSON file of a given shape.

    Raises:
        ValueError: It is none; the message names the file and the place in it.
        OSError: The file is absent or unreadable.
    """
    return _parsed(_text_of(path), shape, str(path))


def read_json_lines(path: Path, shape: Shape) -> list[Any]:
    """Read a file of one JSON object a line.

    Raises:
        ValueError, OSError: As `read_json`.
    """
    lines = _text_of(path).splitlines()
    return [_parsed(line, shape, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB, which no file of a run is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8; it is damaged, restore or delete it") from error


def _parsed(content: str, shape: Shape, where: str) -> Any:
    try:
        return shape(json.loads(content), "")
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deep for a file of fastemo") from error
    except ValueError as error:
        raise ValueError(f"{where} is not as fastemo writes it: {error}") from error


def number(low: float = -math.inf, high: float = math.inf) -> Shape:
    """A finite number within bounds, as float."""

    def check(value: Any, where: str) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _LARGEST or not low <= value <= high:
            raise _wrong(value, where, "a number" if math.inf in (-low, high) else f"a number from {low} to {high}")
        return float(value)

    return check


SHARE = number(0, 1)
DIFFERENCE = number(-1, 1)


def whole(value: Any, where: str) -> int:
    """A count."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST:
        raise _wrong(value, where, "a whole number")
    return value


def text(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise _wrong(value, where, "text")
    # Half a pair of surrogates, which JSON can spell, would stop the page from being written.
    return value.encode("utf-8", "replace").decode("utf-8")


def scalar(value: Any, where: str) -> str | int | float | bool | None:
    """A value of a configuration."""
    if isinstance(value, str):
        return text(value, where)
    if value is None or isinstance(value, bool):
        return value
    found: float = number()(value, where)
    return value if isinstance(value, int) else found


def maybe(shape: Shape) -> Shape:
    """Null, or of that shape."""
    return lambda value, where: None if value is None else shape(value, where)


def list_of(shape: Shape, length: int | None = None) -> Shape:
    def check(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or length not in (None, len(value)):
            raise _wrong(value, where, "a list" if length is None else f"a list of {length}")
        return [shape(item, f"{where}[{position}]") for position, item in enumerate(value)]

    return check


def map_of(shape: Shape) -> Shape:
    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        return {text(name, where): shape(item, _place(where, name)) for name, item in value.items()}

    return check


def record(needed: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """An object with these keys; optional ones may be absent or null and are None then, others are dropped."""

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, "an object")
        for name in needed:
            if name not in value:
                raise ValueError(f"{_place(where, name)} is missing")
        found = {name: shape(value[name], _place(where, name)) for name, shape in needed.items()}
        others = optional or {}
        return found | {name: maybe(shape)(value.get(name), _place(where, name)) for name, shape in others.items()}

    return check


def _place(where: str, name: str) -> str:
    return f"{where}.{name[:60]}" if where else name[:60]


def _wrong(value: Any, where: str, wanted: str) -> ValueError:
    shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return ValueError(f"{where or 'it'} must be {wanted}, not {shown[:80]}")
