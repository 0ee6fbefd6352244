"""The figures to reach, each computed from one run's rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Pass, cpu_costs, paired_ratio, rates, summary
from benchmarks.peer_runs import PEERS

Rounds = dict[str, dict[int, Pass]]


@dataclass(frozen=True)
class Target:
    """One row of the table of targets.

    Attributes:
        value: What was reached; `None` where it was not measured.
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
        return {
            "name": self.name,
            "title": self.title,
            "value": self.value,
            "at_most" if self.is_upper else "at_least": self.bound,
            "unit": self.unit,
            "verdict": self.verdict,
            "note": self.note,
        }


def best_video_peer(rounds: Rounds) -> str | None:
    """The peer on processors that decodes video and has the highest median rate."""
    medians = {
        name: summary(list(rates(rounds[name]).values()))["median"]
        for name, peer in PEERS.items()
        if peer.decodes_video and not peer.on_gpu and rounds.get(name)
    }
    return max(medians, key=medians.__getitem__) if medians else None


def ratios(rounds: Rounds) -> dict[str, dict[str, float]]:
    """What is compared with what: medians and extremes of ratios within a round.

    The names say `<what>_over_<what>`; `cpu` ones compare processor seconds a clip, the others clips a second.
    """
    speed = {name: rates(its) for name, its in rounds.items() if its}
    cost = {name: cpu_costs(its) for name, its in rounds.items() if its}
    found = {"cpu_decode_full_over_decode_pruned": _ratio(cost, "decode_full", "decode_pruned")}
    if {"prune", "decode_pruned", "decode_full"} <= cost.keys():
        both = {number: cost["prune"][number] + spent for number, spent in cost["decode_pruned"].items()}
        found["cpu_decode_full_over_prune_and_decode"] = paired_ratio(cost["decode_full"], both)
    pairs = [("loader_cold", "decode_pruned"), ("loader_cold", "decode_full"), ("loader_memory", "jpeg")]
    pairs += [("loader_disk_cold", "disk_read"), ("loader_memory_augmented", "jpeg")]
    pairs += [("loader_cold", name) for name, peer in PEERS.items() if not peer.on_gpu]
    pairs += [("loader_cold_gpu", name) for name in PEERS]
    for above, below in pairs:
        found[f"{above}_over_{below}"] = _ratio(speed, above, below)
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def _ratio(figures: dict[str, dict[int, float]], above: str, below: str) -> dict[str, float] | None:
    return paired_ratio(figures.get(above, {}), figures.get(below, {}))


def targets(rounds: Rounds, memory: dict[str, Any] | None) -> list[Target]:
    """The issue's table; every value is a median over rounds."""
    found = ratios(rounds)

    def ratio(name: str) -> float | None:
        return found[name]["median"] if name in found else None

    def rate(name: str) -> float | None:
        return summary(list(rates(rounds[name]).values()))["median"] if rounds.get(name) else None

    best = best_video_peer(rounds)
    with_pruning = ratio("cpu_decode_full_over_prune_and_decode")
    disk_share = ratio("loader_disk_cold_over_disk_read")
    by_disk = disk_share is not None and disk_share >= 0.9
    disk_note = f"{disk_share:.0%} of a plain cold read of the same file" if disk_share is not None else ""
    return [
        Target(
            "pruned_decode",
            "processor seconds a clip, full over pruned decode by the same library",
            ratio("cpu_decode_full_over_decode_pruned"),
            1.9,
            "x",
            note=f"{with_pruning:.2f} x with the pruning itself" if with_pruning else "",
        ),
        Target(
            "cold_over_best_peer",
            "cold loader over the best peer that decodes video",
            ratio(f"loader_cold_over_{best}") if best else None,
            1.8,
            "x",
            note=f"best: {PEERS[best].title}" if best else "no such peer ran",
        ),
        Target(
            "cold_over_limit",
            "cold loader over the pruned decode on all processors",
            ratio("loader_cold_over_decode_pruned"),
            0.9,
            "x",
        ),
        Target("memory_tier", "loader, memory tier, batches of 8", rate("loader_memory"), 2000, "clips/s"),
        Target(
            "disk_tier_cold",
            "loader, disk tier, cold page cache; or the disk's own speed",
            rate("loader_disk_cold"),
            # Nine tenths of what the disk gives count as its speed.
            min(500, 0.9 * (rate("disk_read") or 500)) if by_disk else 500,
            "clips/s",
            note=disk_note,
        ),
        Target(
            "report_over_memory",
            "report's way after extraction: slower than the memory tier by",
            ratio("loader_memory_over_jpeg"),
            50,
            "x",
        ),
        Target(
            "memory_growth",
            "resident memory growth over 3,000 decodes",
            memory["growth_mib"] if memory and "growth_mib" in memory else None,
            20,
            "MiB",
            is_upper=True,
            note=_memory_note(memory or {}),
        ),
    ]


def _memory_note(memory: dict[str, Any]) -> str:
    if "loader" not in memory:
        return memory.get("skipped", "")
    return f"{memory['clips']}; as many by the loader: {memory['loader']['growth_mib']:.1f} MiB"
