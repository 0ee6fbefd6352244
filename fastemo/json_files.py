"""JSON files, checked against a schema as they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

_MOST_BYTES = 2**26


class Record(BaseModel):
    """An object of these keys; others are ignored, and null stands for a missing optional one."""

    model_config = ConfigDict(strict=True, frozen=True)


R = TypeVar("R", bound=Record)


def read_json(path: Path, kind: type[R]) -> R:
    """Read a JSON file.

    Raises:
        ValueError: It does not fit the schema; the message names the file and the key.
        OSError: The file is absent or unreadable.
    """
    return parse_json(_content_of(path), kind, str(path))


def read_json_lines(path: Path, kind: type[R]) -> list[R]:
    """Read a file of one JSON object per line; raises as `read_json`."""
    lines = _content_of(path).splitlines()
    return [parse_json(line, kind, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _content_of(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB, the limit for a run's files")
    return content


def parse_json(content: bytes, kind: type[R], where: str) -> R:
    """An object of JSON text in UTF-8; `where` names it in an error, which is a ValueError."""
    try:
        value = json.loads(content.decode(), parse_constant=lambda _: None)
        # A lone surrogate, which JSON allows, could not be written to the page.
        return kind.model_validate_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        said = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            place = ".".join(str(name)[:60] for name in first["loc"])
            said = f"{place}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")
        raise ValueError(f"{where} is damaged, restore or delete it: {said}") from error
