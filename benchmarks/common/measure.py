"""Timed passes (clips, seconds, processor seconds), statistics over rounds, and targets."""

from __future__ import annotations

import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastemo.errors import UserError

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]
_CHILD = """
import pickle, sys
work, arguments, path = pickle.load(sys.stdin.buffer)
path.write_bytes(pickle.dumps(work(*arguments)))
"""


@dataclass(frozen=True)
class Pass:
    """The measurements of one pass.

    Attributes:
        clips: Number of clips.
        seconds: Wall-clock time.
        cpu_seconds: Processor time of all threads and of ended children.
    """

    clips: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Clips per second."""
        return self.clips / self.seconds


@dataclass(frozen=True)
class EpochPass(Pass):
    """A training pass.

    Attributes:
        steps: Optimiser steps.
        waited: Seconds spent waiting for batches; `None` if not measured.
        loss, accuracy: Training means over the clips.
    """

    steps: int
    waited: float | None
    loss: float
    accuracy: float


Rounds = dict[str, dict[int, Pass]]


@dataclass(frozen=True)
class Stage:
    """A stage of the data path.

    Attributes:
        title: For readers.
        run: Executes one pass.
        warm: Called once before the first round.
    """

    name: str
    title: str
    run: Callable[[], Pass]
    warm: Callable[[], object] = lambda: None


class Skipped(Exception):
    """A stage or a peer that cannot be measured here; the message is the reason."""


@dataclass
class Record:
    """Passes by name and round, and the reasons for skipped ones.

    Attributes:
        say: Called with a line about each pass.
        skipped: Reasons by name; a skipped one is not tried again.
    """

    say: Callable[[str], None]
    num_rounds: int
    rounds: Rounds = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, number: int, work: Callable[..., Pass], *arguments: Any) -> None:
        """Run one pass, unless it was skipped before."""
        found = self.rounds.setdefault(name, {})
        if name in self.skipped:
            return
        try:
            found[number] = work(*arguments)
            self.say(f"round {number}/{self.num_rounds} {name}: {found[number].rate:.1f} clips/s")
        except Skipped as reason:
            self.skipped[name] = str(reason)
            self.say(f"{name} skipped: {reason}")


@dataclass(frozen=True)
class Target:
    """One row of the table of targets.

    Attributes:
        value: The measured value; `None` if it was not measured.
        bound: Minimum, or maximum with `is_upper`.
        note: Additional information.
    """

    name: str
    title: str
    value: float | None
    bound: float
    unit: str
    is_upper: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        reached = self.value <= self.bound if self.is_upper else self.value >= self.bound
        return "reached" if reached else "not reached"

    def as_dict(self) -> dict[str, Any]:
        found = {**asdict(self), "verdict": self.verdict}
        found["at_most" if found.pop("is_upper") else "at_least"] = found.pop("bound")
        return found


def timed(work: Callable[[], int]) -> Pass:
    """Time `work`, which returns its number of clips."""
    cpu_before, before = cpu_seconds(), time.perf_counter()
    clips = work()
    return Pass(clips, time.perf_counter() - before, cpu_seconds() - cpu_before)


def cpu_seconds() -> float:
    """Processor time so far, of this process and of its ended children; Unix only."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(it.ru_utime + it.ru_stime for it in spent)


def in_turns(names: Sequence[T], num_rounds: int) -> Iterator[tuple[int, T]]:
    """Round numbers, from 1, and names; each round starts with another name, as a machine's speed changes over time."""
    for number in range(1, num_rounds + 1):
        first = (number - 1) * max(1, len(names) // num_rounds) % len(names)
        for name in [*names[first:], *names[:first]]:
            yield number, name


def in_rounds(stages: Sequence[Stage], num_rounds: int, say: Callable[[str], None]) -> Record:
    """Run all stages in turn, for several rounds."""
    record = Record(say, num_rounds)
    for stage in stages:
        stage.warm()
    for number, stage in in_turns(stages, num_rounds):
        record.add(stage.name, number, stage.run)
    return record


def in_own_process(work: Callable[..., T], *arguments: Any) -> T:
    """Call `work` in a new interpreter, which imports only what it needs, to isolate its memory.

    Raises:
        UserError: It failed; the message is the last line of its standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result"
        given = pickle.dumps((work, arguments, path))
        done = subprocess.run([sys.executable, "-c", _CHILD], input=given, stderr=subprocess.PIPE, cwd=REPOSITORY)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise UserError((lines or [f"status {done.returncode}"])[-1])
        return pickle.loads(path.read_bytes())


def total(passes: Sequence[Pass]) -> Pass:
    return Pass(sum(it.clips for it in passes), sum(it.seconds for it in passes), sum(it.cpu_seconds for it in passes))


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median, extremes, and spread: their distance as a share of the median."""
    values = list(values)
    median, low, high = statistics.median(values), min(values), max(values)
    return {"median": median, "min": low, "max": high, "spread": (high - low) / median if median else 0.0}


def rates(rounds: Mapping[int, Pass]) -> dict[int, float]:
    """Clips per second by round."""
    return {number: it.rate for number, it in rounds.items()}


def cpu_costs(rounds: Mapping[int, Pass]) -> dict[int, float]:
    """Processor seconds per clip by round."""
    return {number: it.cpu_seconds / it.clips for number, it in rounds.items()}


def median_rate(rounds: Rounds, name: str) -> float | None:
    """Median of clips per second; `None` if not measured."""
    return statistics.median(rates(rounds[name]).values()) if rounds.get(name) else None


def paired_ratio(above: Mapping[int, float], below: Mapping[int, float]) -> dict[str, float] | None:
    """Ratio of two figures within rounds, which is not affected by what slows down a whole round."""
    ratios = [above[number] / below[number] for number in sorted(above.keys() & below.keys()) if below[number]]
    return summary(ratios) if ratios else None


def paired_ratios(
    figures: Mapping[str, Mapping[int, float]], pairs: Iterable[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """`<above>_over_<below>` of each pair that shares a round."""
    found = {it: paired_ratio(*(figures.get(name, {}) for name in it)) for it in pairs}
    return {f"{above}_over_{below}": ratio for (above, below), ratio in found.items() if ratio is not None}
