"""Clips per second from file to batch, compared with common alternatives.

`python benchmarks/throughput.py` measures the stages of the data path, the loader from each tier of the store and the
peers in `peers/`, one after the other in several rounds. It writes tables, a JSON file with every round's figures, and
a chart. It reads real RAVDESS clips if there are any (`FASTEMO_CLIPS`, or `../shared/clips`), otherwise generated clips
of their shape, which are cached.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from matplotlib.figure import Figure

from benchmarks.common import corpus, measure, results
from benchmarks.common.options import Numbers, add_numbers, choose, make_parser, parse_checked
from benchmarks.common.peers import PEERS, peer_stage
from benchmarks.common.stages import cold_stage, decode_stages, memory, store_stages
from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.video.config import VideoConfig

_NUMBERS: Numbers = {"rounds": (5, 2, "measurement rounds")}
_STORED_CLIPS_QUICK = 96
_DECODES, _CLIPS_FOR_MEMORY = 3000, 200
_LIMITS = ("decode_full", "decode_pruned")
_TITLES = {
    "pruned_decode": "CPU time per clip, full decode over pruned decode",
    "cold_over_best_peer": "cold loader over the best peer that decodes video",
    "cold_over_limit": "cold loader over the pruned decode on all processors",
    "memory_tier": "loader, memory tier, batches of 8",
    "disk_tier_cold": "loader, disk tier, cold page cache; or the disk's own speed",
    "report_over_memory": "memory tier over the JPEG-frame baseline, without its extraction",
    "memory_growth": "resident memory growth over 3,000 decodes",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("throughput.py", __doc__)
    parser.add_argument("--corpus", default="auto", help="a folder; generated; or auto: real clips if available")
    parser.add_argument("--num_frames", type=int, default=10, help="T, frames per clip")
    parser.add_argument("--size", type=int, default=128, help="side of a frame in pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="clips per batch")
    add_numbers(parser, _NUMBERS)
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {', '.join(PEERS)}")
    parser.add_argument("--no_memory", action="store_true", help=f"skip the memory measurement over {_DECODES} decodes")
    parser.add_argument("--quick", action="store_true", help="small generated clips, two rounds: a smoke test")
    options = parse_checked(parser, arguments, numbers=_NUMBERS, positive=["num_frames", "size", "batch_size"])
    names = choose("--peers", options.peers, PEERS, can_be_none=True)
    can_run = options.peers != "all" or torch.cuda.is_available()
    options.peer_names = [name for name in names if can_run or not PEERS[name].on_gpu]
    return options


def memory_growth(config: VideoConfig, batch_size: int, scratch: Path, console: Console) -> dict[str, Any]:
    """Memory over many decodes of small clips, as RAVDESS's would take minutes."""
    shape = corpus.SMALL
    clips = corpus.lay_out(corpus.generated_folder(shape, console), _CLIPS_FOR_MEMORY, scratch / "small", {})
    console.say(f"{_DECODES} decodes of clips of {shape.width}x{shape.height} to measure memory")
    try:
        found = measure.in_own_process(memory, clips.manifest, config, _DECODES, batch_size)
    except UserError as error:
        return {"skipped": str(error)}
    return {"clips": f"clips of {shape.width}x{shape.height}, {shape.num_frames} frames", **found}


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run everything; return the contents of the JSON file."""
    config = VideoConfig(num_frames=options.num_frames, size=options.size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    num_stored, seconds = (_STORED_CLIPS_QUICK, 0.2) if options.quick else (corpus.MOST_CLIPS, 1.5)
    job = {name: getattr(options, name) for name in ("num_frames", "size", "batch_size")}
    told: dict[str, dict[str, Any]] = {}
    growth = None
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastemo-benchmark-")))
        num_clips = corpus.pass_length(options.batch_size)
        clips = corpus.choose(options.corpus, num_clips, scratch / "corpus", console, quick=options.quick)
        console.say(", ".join(f"{name} {value}" for name, value in clips.description.items()))
        stored = corpus.stored_corpus(num_stored, options.num_frames, options.size, scratch / "stored")
        stages = [*stack.enter_context(decode_stages(clips.manifest, config)).values()]
        for where in dict.fromkeys(("cpu", device)):
            stages.append(cold_stage(clips.manifest, config, options.batch_size, where, stack))
        store = store_stages(stored, scratch / "store", config, options.batch_size, seconds, device)
        stages += stack.enter_context(store)
        about = {"corpus": clips.manifest.root, **job}
        peers = [peer_stage(name, about, scratch / "jpegs", told) for name in options.peer_names]
        record = measure.in_rounds([*stages, *peers], options.rounds, console.say)
        if not options.quick and not options.no_memory:
            growth = memory_growth(config, options.batch_size, scratch, console)
    rounds = record.rounds
    entries = {stage.name: results.entry(rounds[stage.name], stage.title) for stage in (*stages, *peers)}
    add_shares(entries, rounds)
    for name, about_peer in told.items():
        entries[name] |= about_peer
    for name, reason in record.skipped.items():
        entries[name]["skipped"] = reason
    settings = {**job, "rounds": options.rounds, "quick": options.quick, "crop": config.crop}
    return {
        "settings": {**settings, "clips_in_store": num_stored},
        "corpus": clips.description,
        "rungs": {stage.name: entries[stage.name] for stage in stages},
        "peers": {stage.name: entries[stage.name] for stage in peers},
        "memory": growth,
        "ratios": ratios(rounds),
        "targets": targets(rounds, growth),
    }


def add_shares(entries: dict[str, dict[str, Any]], rounds: measure.Rounds) -> None:
    """Add each entry's share of the two limits: full and pruned decode on all processors."""
    for name, found in entries.items():
        for limit in _LIMITS:
            share = measure.paired_ratio(measure.rates(rounds.get(name, {})), measure.rates(rounds.get(limit, {})))
            if share is not None:
                found[f"share_of_{limit}"] = share["median"]


def best_video_peer(rounds: measure.Rounds) -> str | None:
    """The CPU peer that decodes video with the highest median rate."""
    names = [name for name, peer in PEERS.items() if peer.decodes_video and not peer.on_gpu and rounds.get(name)]
    return max(names, key=lambda name: measure.median_rate(rounds, name) or 0.0, default=None)


def ratios(rounds: measure.Rounds) -> dict[str, dict[str, float]]:
    """Medians and extremes of ratios within a round.

    Names are `<a>_over_<b>`; those with `cpu` compare processor seconds per clip, the others clips per second.
    """
    cost = {name: measure.cpu_costs(its) for name, its in rounds.items()}
    pruning, decode = cost.get("prune", {}), cost.get("decode_pruned", {})
    cost["prune_and_decode"] = {it: pruning[it] + decode[it] for it in pruning.keys() & decode.keys()}
    costs = measure.paired_ratios(cost, [("decode_full", "decode_pruned"), ("decode_full", "prune_and_decode")])
    pairs = [("loader_cold", "decode_pruned"), ("loader_cold", "decode_full"), ("loader_memory", "jpeg")]
    pairs += [("loader_disk_cold", "disk_read"), ("loader_memory_augmented", "jpeg")]
    pairs += [(loader, name) for loader in ("loader_cold", "loader_cold_gpu") for name in PEERS]
    speed = {name: measure.rates(its) for name, its in rounds.items()}
    return {f"cpu_{name}": ratio for name, ratio in costs.items()} | measure.paired_ratios(speed, pairs)


def targets(rounds: measure.Rounds, memory: dict[str, Any] | None) -> list[measure.Target]:
    """Stated for T = 10, 128x128, genuine RAVDESS clips, two cores.

    Args:
        memory: The result of `memory_growth`, or why it was skipped.
    """
    median = {name: it["median"] for name, it in ratios(rounds).items()}.get
    best, memory = best_video_peer(rounds), memory or {}
    with_pruning = median("cpu_decode_full_over_prune_and_decode")
    pruning_note = f"{with_pruning:.2f} x with the time of pruning" if with_pruning else ""
    peer_note = f"best: {PEERS[best].title}" if best else "no such peer ran"
    disk_share, disk_bound = median("loader_disk_cold_over_disk_read"), 500.0
    disk_note = f"{disk_share:.0%} of a plain cold read of the same file" if disk_share is not None else ""
    if disk_share is not None and disk_share >= 0.9:  # 90 % of the disk's speed is enough
        disk_bound = min(disk_bound, 0.9 * (measure.median_rate(rounds, "disk_read") or disk_bound))
    memory_note = memory.get("skipped", "")
    if "loader" in memory:
        memory_note = f"{memory['clips']}; as many by the loader: {memory['loader']['growth_mib']:.1f} MiB"
    figures = [
        ("pruned_decode", median("cpu_decode_full_over_decode_pruned"), 1.9, "x", pruning_note),
        ("cold_over_best_peer", median(f"loader_cold_over_{best}"), 1.8, "x", peer_note),
        ("cold_over_limit", median("loader_cold_over_decode_pruned"), 0.9, "x", ""),
        ("memory_tier", measure.median_rate(rounds, "loader_memory"), 2000, "clips/s", ""),
        ("disk_tier_cold", measure.median_rate(rounds, "loader_disk_cold"), disk_bound, "clips/s", disk_note),
        ("report_over_memory", median("loader_memory_over_jpeg"), 50, "x", ""),
        ("memory_growth", memory.get("growth_mib"), 20, "MiB", memory_note),
    ]
    return [
        measure.Target(name, _TITLES[name], value, bound, unit, is_upper=name == "memory_growth", note=note)
        for name, value, bound, unit, note in figures
    ]


def show(console: Console, found: dict[str, Any]) -> None:
    """Show the tables."""
    rows, notes = [], []
    for name, it in {**found["rungs"], **found["peers"]}.items():
        if it["rounds"]:
            shares = {f"of {limit}": it.get(f"share_of_{limit}") for limit in _LIMITS}
            texts = {limit: "-" if share is None else f"{share:,.1%}" for limit, share in shares.items()}
            rows.append({**results.entry_row(it), **texts})
        if "skipped" in it:
            notes.append(f"{name} skipped: {it['skipped']}")
        if extraction := it.get("extraction"):
            seconds = extraction["seconds"] / extraction["clips"]
            notes.append(f"{name}: the extraction beforehand took {seconds:.2f} s per clip, not part of its figures")
    console.table(f"medians of {found['settings']['rounds']} rounds", rows)
    for note in notes:
        console.say(note)
    title = "targets, stated for T = 10, 128x128, genuine RAVDESS clips, two cores"
    results.show_targets(console, title, found["targets"])


def chart(found: dict[str, Any]) -> Figure:
    """Clips per second of every stage and peer."""
    measured = [it for it in {**found["rungs"], **found["peers"]}.values() if it["rounds"]]
    figure = Figure(figsize=(10, 1.6 + 0.36 * len(measured)), layout="constrained")
    results.draw_rates(figure.subplots(), found, measured)
    return figure


def main(arguments: list[str] | None = None) -> None:
    results.run_command("throughput", arguments, parse, run, show, chart)


if __name__ == "__main__":
    main()
