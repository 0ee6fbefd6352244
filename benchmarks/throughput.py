"""How many clips a second, from the file to the batch, and beside what people use today.

`python benchmarks/throughput.py` measures the steps of the data path, the loader from each tier of the store and the
peers in `peers/`, a round of all of them after the other, several rounds, and nothing at the same time. Tables, a JSON
file with every round's figures, and a chart. Real RAVDESS clips are read where they are at hand (`FASTEMO_CLIPS`, or
`../shared/clips`), otherwise clips of their shape are made and kept in the cache folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import corpus, peer_runs, results
from benchmarks.ladder import cold_rung, decode_rungs
from benchmarks.measure import Pass, Rung, Skipped
from benchmarks.store_rungs import StoreRungs
from benchmarks.targets import Rounds, ratios, targets
from fastemo.console import Console
from fastemo.errors import one_line_errors
from fastemo.video.config import VideoConfig

_STORED_CLIPS, _STORED_CLIPS_QUICK = 1440, 96  # RAVDESS's speech, one file a take
_DECODES, _CLIPS_FOR_MEMORY = 3000, 200


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="throughput.py"
    )
    parser.add_argument("--corpus", default="auto", help="a folder of clips; generated; auto: real ones where at hand")
    parser.add_argument("--num_frames", type=int, default=10, help="T, frames a clip")
    parser.add_argument("--size", type=int, default=128, help="side of a frame in pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="clips a batch")
    parser.add_argument("--rounds", type=int, help="rounds of everything: 5, with --quick 2")
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {', '.join(peer_runs.PEERS)}")
    parser.add_argument("--out", type=Path, help="JSON file; the chart goes beside it")
    parser.add_argument("--no_memory", action="store_true", help=f"leave out the {_DECODES} decodes for memory")
    parser.add_argument("--quick", action="store_true", help="small generated clips, two rounds: does it work at all?")
    options = parser.parse_args(arguments)
    options.rounds = (2 if options.quick else 5) if options.rounds is None else options.rounds
    for name in ("num_frames", "size", "batch_size", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.out and options.out.suffix != ".json":
        raise ValueError(f"--out names the JSON file, which ends in .json, not '{options.out.name}'")
    options.peer_names = peer_runs.choose(options.peers, has_gpu=torch.cuda.is_available())
    return options


def measure(
    rungs: list[Rung], peers: peer_runs.PeerRuns, names: list[str], num_rounds: int, console: Console
) -> tuple[Rounds, dict[str, str]]:
    """All rungs and peers in turn, several rounds, each beginning elsewhere.

    Returns:
        By name and round what each took, and by name why something was skipped.
    """
    work: dict[str, Callable[[], Pass]] = {rung.name: rung.run for rung in rungs}
    work |= {name: lambda name=name: peers.run(name) for name in names}  # type: ignore[misc]
    found: Rounds = {name: {} for name in work}
    skipped: dict[str, str] = {}
    order = list(work)
    for rung in rungs:
        try:
            rung.warm()
        except Skipped as reason:
            skipped[rung.name] = str(reason)
    for number in range(1, num_rounds + 1):
        first = (number - 1) * len(order) // num_rounds
        for name in [*order[first:], *order[:first]]:
            if name in skipped:
                continue
            try:
                took = found[name][number] = work[name]()
            except Skipped as reason:
                skipped[name] = str(reason)
                console.say(f"{name} skipped: {reason}")
            else:
                console.say(f"round {number}/{num_rounds} {name}: {took.clips / took.seconds:.1f} clips/s")
    return found, skipped


def resident_growth(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """Run `memory.py` in a process of its own, on small clips: 3,000 of RAVDESS's would take minutes."""
    shape = corpus.SMALL
    clips = corpus.lay_out(corpus.generated_folder(shape, console), _CLIPS_FOR_MEMORY, scratch / "small", {})
    console.say(f"{_DECODES} decodes of clips of {shape.width}x{shape.height} for memory's sake")
    script = Path(__file__).resolve().parent / "memory.py"
    command = [sys.executable, str(script), "--corpus", str(clips.manifest.root), "--decodes", str(_DECODES)]
    command += ["--num_frames", str(options.num_frames), "--size", str(options.size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    return {"clips": f"clips of {shape.width}x{shape.height}, {shape.num_frames} frames", **json.loads(done.stdout)}


def run(options: argparse.Namespace, arguments: list[str], console: Console) -> dict[str, Any]:
    """Everything; returns what goes into the JSON file."""
    config = VideoConfig(num_frames=options.num_frames, size=options.size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastemo-benchmark-")))
        num_clips = corpus.pass_length(options.batch_size)
        clips = corpus.choose(options.corpus, num_clips, scratch / "corpus", console, quick=options.quick)
        console.say(", ".join(f"{name} {value}" for name, value in clips.description.items()))
        num_stored = _STORED_CLIPS_QUICK if options.quick else _STORED_CLIPS
        stored = corpus.stored_corpus(num_stored, options.num_frames, options.size, scratch / "stored")
        rungs = stack.enter_context(decode_rungs(clips.manifest, config))
        for where in dict.fromkeys(("cpu", device)):
            rungs.append(cold_rung(clips.manifest, config, options.batch_size, where, stack))
        tiers = StoreRungs(
            stored,
            scratch / "store",
            config,
            batch_size=options.batch_size,
            seconds=0.2 if options.quick else 1.5,
            device=device,
        )
        rungs += stack.enter_context(tiers.rungs())
        peers = peer_runs.PeerRuns(
            clips.manifest.root,
            scratch,
            num_frames=options.num_frames,
            size=options.size,
            batch_size=options.batch_size,
        )
        rounds, skipped = measure(rungs, peers, options.peer_names, options.rounds, console)
        memory = None if options.quick or options.no_memory else resident_growth(options, scratch, console)
    found = {
        "rungs": {rung.name: results.entry(rounds[rung.name], rung.title) for rung in rungs},
        "peers": {
            name: {**results.entry(rounds[name], peer_runs.PEERS[name].title), **peers.told.get(name, {})}
            for name in options.peer_names
        },
    }
    for entries in found.values():
        results.add_shares(entries, rounds)
        for name in entries.keys() & skipped.keys():
            entries[name]["skipped"] = skipped[name]
    reached = targets(rounds, memory)
    settings = {name: getattr(options, name) for name in ("num_frames", "size", "batch_size", "rounds", "quick")}
    whole = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": results.command("benchmarks/throughput.py", arguments),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": results.machine(),
        "versions": results.collect_versions(),
        "settings": {**settings, "crop": config.crop, "clips_in_store": num_stored},
        "corpus": clips.description,
        **found,
        "memory": memory,
        "ratios": ratios(rounds),
        "targets": [target.as_dict() for target in reached],
    }
    results.show(console, whole, reached)
    return whole


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        options, console = parse(arguments), Console()
        found = run(options, arguments, console)
        path = options.out or results.default_path(found["machine"], quick=options.quick)
        results.write(path, found)
        console.say(f"written: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
