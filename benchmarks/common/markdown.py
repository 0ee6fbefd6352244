"""Markdown of results: tables, when and with what a file was made, shares with their intervals."""

from __future__ import annotations

from typing import Any

NO_RESULTS = "No results yet."
_VERSIONS = {"torch": "torch", "av": "PyAV", "fastemo": "fastemo"}

# The content of a results file.
Found = dict[str, Any]


def markdown(rows: list[list[str]]) -> str:
    """A table, the first row its head; columns of which every cell is empty are left out."""
    columns = [column for column in zip(*rows, strict=True) if len(rows) == 1 or set(column[1:]) - {"", "-"}]
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in zip(*columns, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def facts(found: Found) -> dict[str, str]:
    """When, with what versions and by what command a file was made."""
    known = found["versions"]
    versions = ", ".join(f"{title} {known[name]}" for name, title in _VERSIONS.items() if name in known)
    return {"date": found["date"][:10], "versions": versions, "command": f"`{found['command']}`"}


def share(found: Found) -> str:
    """An accuracy and its interval, in percent."""
    low, high = found["interval"]
    return f"{found['accuracy'] * 100:.1f} % ({low * 100:.1f} to {high * 100:.1f})"
