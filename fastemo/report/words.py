"""Text of numbers for the page, its figures and its templates."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from fastemo.report.schema import Machine

_MOST_LISTED = 4
BEST_ON_TEST = "best epoch on test (optimistic)"
_HARDEST_PAIR = "tested on actors 23 and 24, RAVDESS's hardest pair (docs/protocols.md)"
_SUBJECTS = {
    "shared": "People are in several splits: the accuracy is not for unseen subjects.",
    "unknown": "Whether the people tested are unseen is unknown: the accuracy may not be for unseen subjects.",
}


def percent(share: float, digits: int = 1) -> str:
    """`62.1 %`."""
    return f"{100 * share:.{digits}f} %"


def short(value: float) -> str:
    """`11.2 M`: three digits and a prefix."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def interval(found: Sequence[float] | None) -> str:
    """`55.8 to 72.5 %`, empty without one."""
    return "" if found is None else f"{100 * found[0]:.1f} to {100 * found[1]:.1f} %"


def points(difference: float) -> str:
    """A difference of shares: `+3.1`, in percentage points."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def p_value(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def counted(number: int, one: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def listed(values: Iterable[str | None]) -> str:
    """Each value once, at most the first few."""
    unique = list(dict.fromkeys(value for value in values if value))
    rest = len(unique) - _MOST_LISTED
    return "; ".join(unique[:_MOST_LISTED]) + (f"; {rest} more" if rest > 0 else "")


def machine(found: Machine | None) -> str:
    """`Intel Xeon, 2 processors, no GPU`."""
    if not found:
        return ""
    number: Any = found.get("processors")
    told = [found.get("processor"), number and counted(number, "processor"), found.get("gpu") or "no GPU"]
    return ", ".join(str(it) for it in told if it)


def versions(found: Iterable[dict[str, str] | None]) -> str:
    """`torch 2.11.0, ...`, every version of a package."""
    known: dict[str, dict[str, None]] = {}
    for of_run in found:
        for package, version in (of_run or {}).items():
            known.setdefault(package, {})[version] = None
    return ", ".join(f"{package} {' and '.join(versions)}" for package, versions in known.items())


def hardest_pair(protocol: str | None, corpus: str | None) -> str:
    """What a reader of any figure of RAVDESS's actors 23 and 24 must know; empty for other tests."""
    is_theirs = not {"speech", "report", "speech+song"}.isdisjoint((protocol or "").split(", "))  # of several corpora
    return _HARDEST_PAIR if is_theirs and not (corpus or "").startswith("built-in") else ""


def caveats(protocol: str | None, corpus: str | None, subjects: str) -> list[str]:
    """What a reader of a result's accuracy must know about the people tested, as sentences; `subjects` as in Result."""
    hardest = hardest_pair(protocol, corpus)
    hardest = hardest and f"T{hardest[1:]}: the accuracy says little about other people."
    return [it for it in (_SUBJECTS.get(subjects), hardest) if it]


def command(line: str) -> str:
    """A command without the path of the program."""
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    program = re.search(r"(?:^|[/\\])(fastemo|train\.py)$", words[0]) if words else None
    if program is None:
        return line
    return shlex.join(["fastemo", *(["train"] if program[1] == "train.py" else []), *words[1:]])


def confusions(counts: Sequence[Sequence[int]], names: Sequence[str], most: int = 5) -> list[str]:
    """The most frequent confusions: `fearful predicted as surprised 7 times of 16`."""
    errors = [(-it, i, j) for i, line in enumerate(counts) for j, it in enumerate(line) if i != j and it]
    return [
        f"{names[i]} predicted as {names[j]} {counted(-it, 'time')} of {sum(counts[i])}"
        for it, i, j in sorted(errors)[:most]
    ]
