"""Clips a second from the file to the batch, compared with what people use today.

`python benchmarks/throughput.py` measures the stages of the data path, the loader from each tier of the store and the
peers in `peers/`, one after the other in several rounds. It writes tables, a JSON file with every round's figures, and
a chart. Real RAVDESS clips are read where there are any (`FASTEMO_CLIPS`, or `../shared/clips`), otherwise clips of
their shape are made and cached.
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

from benchmarks.common import corpus, results, throughput_report
from benchmarks.common.measure import Record, Rounds, Stage, in_own_process, in_turns
from benchmarks.common.options import choose, make_parser, parse_checked
from benchmarks.common.peers import PEERS, peer_stage
from benchmarks.common.stages import cold_stage, decode_stages, memory, store_stages
from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.video.config import VideoConfig

_STORED_CLIPS_QUICK = 96
_DECODES, _CLIPS_FOR_MEMORY = 3000, 200


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("throughput.py", __doc__)
    parser.add_argument("--corpus", default="auto", help="a folder of clips; generated; auto: real ones if there are")
    parser.add_argument("--num_frames", type=int, default=10, help="T, frames a clip")
    parser.add_argument("--size", type=int, default=128, help="side of a frame in pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="clips a batch")
    parser.add_argument("--rounds", type=int, help="rounds of everything: 5, with --quick 2")
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {', '.join(PEERS)}")
    parser.add_argument("--no_memory", action="store_true", help=f"leave out the {_DECODES} decodes for memory")
    parser.add_argument("--quick", action="store_true", help="small generated clips, two rounds: does it work at all?")
    positive = ("num_frames", "size", "batch_size", "rounds")
    options = parse_checked(parser, arguments, defaults={"rounds": (5, 2)}, positive=positive)
    names = choose("--peers", options.peers, PEERS, can_be_none=True)
    can_run = options.peers != "all" or torch.cuda.is_available()
    options.peer_names = [name for name in names if can_run or not PEERS[name].on_gpu]
    return options


def measure(stages: list[Stage], num_rounds: int, console: Console) -> tuple[Rounds, dict[str, str]]:
    """All stages and peers in turn, several rounds.

    Returns:
        By name and round what each took, and by name why something was skipped.
    """
    record = Record(console.say, num_rounds)
    for stage in stages:
        stage.warm()
    for number, stage in in_turns(stages, num_rounds):
        record.add(stage.name, number, stage.run)
    return record.rounds, record.skipped


def memory_growth(config: VideoConfig, batch_size: int, scratch: Path, console: Console) -> dict[str, Any]:
    """Memory over many decodes of small clips: RAVDESS's would take minutes."""
    shape = corpus.SMALL
    clips = corpus.lay_out(corpus.generated_folder(shape, console), _CLIPS_FOR_MEMORY, scratch / "small", {})
    console.say(f"{_DECODES} decodes of clips of {shape.width}x{shape.height} to watch memory")
    try:
        found = in_own_process(memory, clips.manifest, config, _DECODES, batch_size)
    except UserError as error:
        return {"skipped": str(error)}
    return {"clips": f"clips of {shape.width}x{shape.height}, {shape.num_frames} frames", **found}


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns what goes into the JSON file."""
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
        rounds, skipped = measure([*stages, *peers], options.rounds, console)
        if not options.quick and not options.no_memory:
            growth = memory_growth(config, options.batch_size, scratch, console)
    entries = {stage.name: results.entry(rounds[stage.name], stage.title) for stage in (*stages, *peers)}
    throughput_report.add_shares(entries, rounds)
    for name, entry in entries.items():
        entry |= told.get(name, {}) | ({"skipped": skipped[name]} if name in skipped else {})
    settings = {**job, "rounds": options.rounds, "quick": options.quick, "crop": config.crop}
    return {
        "settings": {**settings, "clips_in_store": num_stored},
        "corpus": clips.description,
        "rungs": {stage.name: entries[stage.name] for stage in stages},
        "peers": {stage.name: entries[stage.name] for stage in peers},
        "memory": growth,
        "ratios": throughput_report.ratios(rounds),
        "targets": throughput_report.targets(rounds, growth),
    }


def main(arguments: list[str] | None = None) -> None:
    results.run_command("throughput", arguments, parse, run, throughput_report.show, throughput_report.chart)


if __name__ == "__main__":
    main()
