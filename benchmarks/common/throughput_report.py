"""What the rounds of a throughput run say: ratios, targets, tables and a chart."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import measure, results
from benchmarks.common.measure import Rounds, Target, rates
from benchmarks.common.peers import PEERS
from fastemo.console import Console

_LIMITS = ("decode_full", "decode_pruned")
_TITLES = {
    "pruned_decode": "processor seconds a clip, full over pruned decode by the same library",
    "cold_over_best_peer": "cold loader over the best peer that decodes video",
    "cold_over_limit": "cold loader over the pruned decode on all processors",
    "memory_tier": "loader, memory tier, batches of 8",
    "disk_tier_cold": "loader, disk tier, cold page cache; or the disk's own speed",
    "report_over_memory": "report's way after extraction: slower than the memory tier by",
    "memory_growth": "resident memory growth over 3,000 decodes",
}


def add_shares(entries: dict[str, dict[str, Any]], rounds: Rounds) -> None:
    """What share of the two limits each entry reaches: full and pruned decode on all processors."""
    for name, found in entries.items():
        for limit in _LIMITS:
            share = measure.paired_ratio(rates(rounds.get(name, {})), rates(rounds.get(limit, {})))
            if share is not None:
                found[f"share_of_{limit}"] = share["median"]


def best_video_peer(rounds: Rounds) -> str | None:
    """The peer on processors that decodes video and has the highest median rate."""
    names = [name for name, peer in PEERS.items() if peer.decodes_video and not peer.on_gpu and rounds.get(name)]
    return max(names, key=lambda name: measure.median_rate(rounds, name) or 0.0, default=None)


def ratios(rounds: Rounds) -> dict[str, dict[str, float]]:
    """Medians and extremes of ratios within a round.

    The names say `<what>_over_<what>`; `cpu` ones compare processor seconds a clip, the others clips a second.
    """
    cost = {name: measure.cpu_costs(its) for name, its in rounds.items()}
    pruning, decode = cost.get("prune", {}), cost.get("decode_pruned", {})
    cost["prune_and_decode"] = {it: pruning[it] + decode[it] for it in pruning.keys() & decode.keys()}
    costs = measure.paired_ratios(cost, [("decode_full", "decode_pruned"), ("decode_full", "prune_and_decode")])
    pairs = [("loader_cold", "decode_pruned"), ("loader_cold", "decode_full"), ("loader_memory", "jpeg")]
    pairs += [("loader_disk_cold", "disk_read"), ("loader_memory_augmented", "jpeg")]
    pairs += [(loader, name) for loader in ("loader_cold", "loader_cold_gpu") for name in PEERS]
    speed = {name: rates(its) for name, its in rounds.items()}
    return {f"cpu_{name}": ratio for name, ratio in costs.items()} | measure.paired_ratios(speed, pairs)


def targets(rounds: Rounds, memory: dict[str, Any] | None) -> list[Target]:
    """Stated for T = 10, 128x128, genuine RAVDESS clips, two cores.

    Args:
        memory: What `memory.measure` found, or why it was skipped.
    """
    found, best, memory = ratios(rounds), best_video_peer(rounds), memory or {}
    with_pruning = measure.median_of(found, "cpu_decode_full_over_prune_and_decode")
    pruning_note = f"{with_pruning:.2f} x with the pruning itself" if with_pruning else ""
    peer_note = f"best: {PEERS[best].title}" if best else "no such peer ran"
    disk_share, disk_bound = measure.median_of(found, "loader_disk_cold_over_disk_read"), 500.0
    disk_note = f"{disk_share:.0%} of a plain cold read of the same file" if disk_share is not None else ""
    if disk_share is not None and disk_share >= 0.9:  # nine tenths of the disk's own speed count as its speed
        disk_bound = min(disk_bound, 0.9 * (measure.median_rate(rounds, "disk_read") or disk_bound))
    memory_note = memory.get("skipped", "")
    if "loader" in memory:
        memory_note = f"{memory['clips']}; as many by the loader: {memory['loader']['growth_mib']:.1f} MiB"
    figures = [
        ("pruned_decode", measure.median_of(found, "cpu_decode_full_over_decode_pruned"), 1.9, "x", pruning_note),
        ("cold_over_best_peer", measure.median_of(found, f"loader_cold_over_{best}"), 1.8, "x", peer_note),
        ("cold_over_limit", measure.median_of(found, "loader_cold_over_decode_pruned"), 0.9, "x", ""),
        ("memory_tier", measure.median_rate(rounds, "loader_memory"), 2000, "clips/s", ""),
        ("disk_tier_cold", measure.median_rate(rounds, "loader_disk_cold"), disk_bound, "clips/s", disk_note),
        ("report_over_memory", measure.median_of(found, "loader_memory_over_jpeg"), 50, "x", ""),
        ("memory_growth", memory.get("growth_mib"), 20, "MiB", memory_note),
    ]
    return [Target(name, _TITLES[name], *its, name == "memory_growth", note) for name, *its, note in figures]


def show(console: Console, found: dict[str, Any]) -> None:
    """The tables."""
    rows, notes = [], []
    for name, it in {**found["rungs"], **found["peers"]}.items():
        if it["rounds"]:
            shares = {f"of {limit}": results.percent(it.get(f"share_of_{limit}")) for limit in _LIMITS}
            rows.append({**results.entry_row(it), **shares})
        if "skipped" in it:
            notes.append(f"{name} skipped: {it['skipped']}")
        if extraction := it.get("extraction"):
            seconds = extraction["seconds"] / extraction["clips"]
            notes.append(f"{name}: extraction beforehand took {seconds:.2f} s a clip, not part of its figures")
    console.table(f"medians of {found['settings']['rounds']} rounds", rows)
    for note in notes:
        console.say(note)
    title = "targets, stated for T = 10, 128x128, genuine RAVDESS clips, two cores"
    results.show_targets(console, title, found["targets"])


def chart(found: dict[str, Any]) -> Figure:
    """Clips a second of every stage and peer."""
    measured = [it for it in {**found["rungs"], **found["peers"]}.values() if it["rounds"]]
    figure = Figure(figsize=(10, 1.6 + 0.36 * len(measured)), layout="constrained")
    results.draw_rates(figure.subplots(), found, measured)
    return figure
