"""One pass by the clock: clips, seconds, processor seconds; and what several rounds of them say."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


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


@dataclass(frozen=True)
class Rung:
    """A step of the ladder.

    Attributes:
        title: For people.
        run: One pass.
        warm: What is done once before the first round.
    """

    name: str
    title: str
    run: Callable[[], Pass]
    warm: Callable[[], object] = lambda: None


class Skipped(Exception):
    """A rung or a peer that cannot be measured here; the message is the reason."""


def timed(work: Callable[[], int]) -> Pass:
    """Time `work`, which returns the clips it went through."""
    cpu_before, before = cpu_seconds(), time.perf_counter()
    clips = work()
    return Pass(clips, time.perf_counter() - before, cpu_seconds() - cpu_before)


def cpu_seconds() -> float:
    """Processor time so far, of this process and of its ended children; Unix only."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(it.ru_utime + it.ru_stime for it in spent)


def total(passes: Sequence[Pass]) -> Pass:
    return Pass(sum(it.clips for it in passes), sum(it.seconds for it in passes), sum(it.cpu_seconds for it in passes))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and spread, which is their distance as a share of the median."""
    median = statistics.median(values)
    low, high = min(values), max(values)
    return {"median": median, "min": low, "max": high, "spread": (high - low) / median if median else 0.0}


def rates(rounds: dict[int, Pass]) -> dict[int, float]:
    """Clips a second by round."""
    return {number: it.clips / it.seconds for number, it in rounds.items()}


def cpu_costs(rounds: dict[int, Pass]) -> dict[int, float]:
    """Processor seconds a clip by round."""
    return {number: it.cpu_seconds / it.clips for number, it in rounds.items()}


def paired_ratio(above: dict[int, float], below: dict[int, float]) -> dict[str, float] | None:
    """Ratio of two figures taken in the same rounds, which what slows a whole round does not move."""
    ratios = [above[number] / below[number] for number in sorted(above.keys() & below.keys()) if below[number]]
    return summary(ratios) if ratios else None
