"""One timed pass: clips, seconds, processor seconds; statistics over several rounds; targets."""

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
    """What one pass took.

    Attributes:
        clips: How many went through.
        seconds: Wall clock.
        cpu_seconds: Processor time of all threads and of ended children.
    """

    clips: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Clips a second."""
        return self.clips / self.seconds


@dataclass(frozen=True)
class EpochPass(Pass):
    """A pass that trained.

    Attributes:
        steps: Of the optimiser.
        waited: Seconds that the loop waited for batches; `None` where that was not measured.
        loss, accuracy: Means over the clips, as they were trained on.
    """

    steps: int
    waited: float | None
    loss: float
    accuracy: float


Rounds = dict[str, dict[int, Pass]]


@dataclass(frozen=True)
class Stage:
    """A step of the data path.

    Attributes:
        title: For people.
        run: One pass.
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
    """What was measured by name and round, and why something was not.

    Attributes:
        say: Takes a line about each pass.
        skipped: By name, why it was skipped, and is not tried again.
    """

    say: Callable[[str], None]
    num_rounds: int
    rounds: Rounds = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, number: int, work: Callable[..., Pass], *arguments: Any) -> None:
        """One pass, unless it was skipped before."""
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
        value: What was measured; `None` where it was not.
        bound: At least that, or at most with `is_upper`.
        note: What else to know.
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
    """Time `work`, which returns the clips it went through."""
    cpu_before, before = cpu_seconds(), time.perf_counter()
    clips = work()
    return Pass(clips, time.perf_counter() - before, cpu_seconds() - cpu_before)


def cpu_seconds() -> float:
    """Processor time so far, of this process and of its ended children; Unix only."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(it.ru_utime + it.ru_stime for it in spent)


def in_turns(names: Sequence[T], num_rounds: int) -> Iterator[tuple[int, T]]:
    """Round numbers, from 1, and names; each round begins elsewhere, as a machine's pace changes over time."""
    for number in range(1, num_rounds + 1):
        first = (number - 1) * max(1, len(names) // num_rounds) % len(names)
        for name in [*names[first:], *names[:first]]:
            yield number, name


def in_rounds(stages: Sequence[Stage], num_rounds: int, say: Callable[[str], None]) -> Record:
    """All stages in turn, several rounds."""
    record = Record(say, num_rounds)
    for stage in stages:
        stage.warm()
    for number, stage in in_turns(stages, num_rounds):
        record.add(stage.name, number, stage.run)
    return record


def in_own_process(work: Callable[..., T], *arguments: Any) -> T:
    """Call `work` in a fresh interpreter, which imports no more than that needs: its memory is its own.

    Raises:
        UserError: It failed; the message is the last line on its standard error.
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
    """Median, extremes and spread, which is their distance as a share of the median."""
    values = list(values)
    median, low, high = statistics.median(values), min(values), max(values)
    return {"median": median, "min": low, "max": high, "spread": (high - low) / median if median else 0.0}


def rates(rounds: Mapping[int, Pass]) -> dict[int, float]:
    """Clips a second by round."""
    return {number: it.rate for number, it in rounds.items()}


def cpu_costs(rounds: Mapping[int, Pass]) -> dict[int, float]:
    """Processor seconds a clip by round."""
    return {number: it.cpu_seconds / it.clips for number, it in rounds.items()}


def median_rate(rounds: Rounds, name: str) -> float | None:
    """Clips a second; `None` where it was not measured."""
    return statistics.median(rates(rounds[name]).values()) if rounds.get(name) else None


def paired_ratio(above: Mapping[int, float], below: Mapping[int, float]) -> dict[str, float] | None:
    """Ratio of two figures of the same rounds: what slows down a whole round does not change it."""
    ratios = [above[number] / below[number] for number in sorted(above.keys() & below.keys()) if below[number]]
    return summary(ratios) if ratios else None


def paired_ratios(
    figures: Mapping[str, Mapping[int, float]], pairs: Iterable[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """`<above>_over_<below>` of each pair that shares a round."""
    found = {it: paired_ratio(*(figures.get(name, {}) for name in it)) for it in pairs}
    return {f"{above}_over_{below}": ratio for (above, below), ratio in found.items() if ratio is not None}
