"""Training steps on 1, 2, ... N processes: how much faster, what exchanging gradients costs, and is it the same.

    python benchmarks/scaling.py                                # 1 and 2 processes on a CPU; 1, 2, 4 ... on GPUs
    python benchmarks/scaling.py --hosts 10.0.0.1,10.0.0.2 --host_rank 0    # --host_rank 1 on the second host
    python benchmarks/scaling.py --hosts 127.0.0.2,127.0.0.3 --device cpu   # two hosts played on this machine

A round launches every number of processes in turn (`accelerate launch` and NCCL on GPUs, torchrun and gloo on a CPU),
and each launch times the trainer's own steps on batches of the real loader whose clips lie in memory:

- strong scaling: --batch_size is the global batch, dealt to the processes;
- weak scaling: --batch_size is the batch of each process;
- each with the exchange of gradients and without it (`no_sync`), whose difference is what the exchange costs.

Before that a check trains two epochs of a few clips, with a smaller last step and padding, and compares every step
with one process's: the clips of the global batch and their order must be the same, its loss within 0.001 nats, and the
norm of its averaged gradients within 2 % (Adam would hide gradients of a wrong scale from the losses). It computes in
fp32, with dropout off, and BatchNorm by statistics that were taken once and kept: a process's own statistics depend on
its share of the batch, so training proper differs by them.

On several hosts every host runs this script with the same arguments but --host_rank (under Slurm it is taken from
SLURM_NODEID), reaches the first one at its address and at --port and the ports that follow, a port a launch, and the
first writes the results. A number of processes that the hosts cannot share evenly runs on the first alone. Where a
host has several networks, GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the one to use. With loopback addresses all
hosts are this machine, each with its share of the processors.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.common import results
from benchmarks.common.corpus import MOST_CLIPS
from benchmarks.common.measure import Pass, Rounds, in_turns
from benchmarks.common.options import make_parser, parse_checked
from benchmarks.common.scaling import report
from benchmarks.common.scaling.launch import Hosts, Launches, parse_hosts
from benchmarks.common.scaling.worker import Job
from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.corpus.config import SyntheticConfig
from fastemo.corpus.manifest import scan
from fastemo.corpus.synthetic.synthesis import synthesize
from fastemo.errors import one_line_errors
from fastemo.models.config import ModelName
from fastemo.training.config import Precision

_LEAST_CLIPS, _LEAST_CLIPS_QUICK = 96, 24
_LEAST_SIZE = 36
_DEFAULTS = {"num_frames": (10, 2), "size": (128, 36), "rounds": (5, 1), "steps": (8, 3)}
_SETTINGS = ("model", "num_frames", "size", "batch_size", "rounds", "steps", "precision", "quick")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("scaling.py", __doc__)
    parser.add_argument("--processes", help="numbers with commas between; 1 is always run")
    parser.add_argument("--model", default="late_fusion", help=", ".join(get_args(ModelName)))
    parser.add_argument("--num_frames", type=int, help="T, frames a clip: 10, with --quick 2")
    parser.add_argument("--size", type=int, help="side of a stored frame in pixels: 128, with --quick 36")
    parser.add_argument("--batch_size", type=int, default=8, help="clips a step: of all processes, or of each (weak)")
    parser.add_argument("--rounds", type=int, help="rounds of everything: 5, with --quick 1")
    parser.add_argument("--steps", type=int, help="steps that are timed: 8, with --quick 3")
    parser.add_argument("--precision", default="auto", help="auto (what the trainer picks), fp32, bf16, fp16")
    parser.add_argument("--device", default="auto", help="auto, or cpu where there are GPUs")
    parser.add_argument("--hosts", help="addresses with commas between, the first one's host leads; see above")
    parser.add_argument("--host_rank", type=int, help="which of --hosts this is, from 0")
    parser.add_argument("--port", type=int, help="of the first launch, with --hosts: 29500")
    parser.add_argument("--quick", action="store_true", help="small clips, few steps, one round: does it work at all?")
    options = parse_checked(parser, arguments, defaults=_DEFAULTS, positive=("batch_size", *_DEFAULTS))
    if options.size < _LEAST_SIZE:
        raise ValueError(f"--size must be at least {_LEAST_SIZE}, not {options.size}")
    choices = {"model": get_args(ModelName), "precision": get_args(Precision), "device": ("auto", "cpu")}
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise ValueError(f"--{name} must be one of {', '.join(allowed)}, not '{getattr(options, name)}'")
    options.hosts = parse_hosts(options.hosts, options.host_rank, options.port)
    options.on_gpu = options.device == "auto" and torch.cuda.is_available()
    if options.on_gpu and options.hosts.rank is None and len(options.hosts.addresses) > 1:
        raise ValueError("hosts at loopback addresses are played on the processors: add --device cpu")
    options.counts = _counts(options.processes, options.hosts, options.batch_size, on_gpu=options.on_gpu)
    return options


def _counts(text: str | None, hosts: Hosts, batch_size: int, *, on_gpu: bool) -> list[int]:
    """How many processes are run, ascending, 1 among them."""
    a_host = torch.cuda.device_count() if on_gpu else 2
    if text is None:
        most = max(a_host, 1) * len(hosts.addresses) if on_gpu else max(2, len(hosts.addresses))
        counts = {2**power for power in range(most.bit_length())} | {most}
        counts = {count for count in counts if batch_size % count == 0}
    elif all(it.strip().isdecimal() and int(it) > 0 for it in text.split(",")):
        counts = {int(it) for it in text.split(",")}
    else:
        raise ValueError(f"--processes takes numbers from 1 with commas between, not '{text}'")
    for count in sorted(counts):
        if batch_size % count:
            raise ValueError(f"--batch_size {batch_size} cannot be dealt to {count} processes evenly")
        if batch_size * count > MOST_CLIPS:
            raise ValueError(f"{count} processes of --batch_size {batch_size} need more than {MOST_CLIPS} clips")
        if on_gpu and count > a_host * len(hosts.used(count)):
            raise ValueError(f"{count} processes need a GPU each, and there are {a_host} a host")
    return sorted(counts | {1})


def make_job(options: argparse.Namespace, folder: Path) -> Job:
    """The clips that every process reads, small ones of the built-in corpus, and what is done with them."""
    job = Job(
        task="speed",
        corpus=str(folder / "corpus"),
        manifest=str(folder / "manifest.csv"),
        store=str(folder / "store"),
        crop_size=options.size * 8 // 9 // 8 * 8,  # 112 of 128, 224 of 256
        warm_up=1 if options.quick else 8,
        **{name: getattr(options, name) for name in _SETTINGS if name not in ("rounds", "quick")},
    )
    least = _LEAST_CLIPS_QUICK if options.quick else _LEAST_CLIPS
    num_clips = max(least, options.batch_size * options.counts[-1], job.check_clips())
    an_actor = min(60, -(-num_clips // ravdess.NUM_ACTORS))
    width, height = (128, 72) if options.quick else (320, 180)
    config = SyntheticConfig(clips_per_actor=an_actor, num_frames=options.num_frames + 2, width=width, height=height)
    # Workers would each import this file, torch and all, which takes longer than drawing a few small clips.
    scan(synthesize(Path(job.corpus), config, workers=1)).write_csv(Path(job.manifest))
    return job


def measure(options: argparse.Namespace, job: Job, launches: Launches, console: Console) -> dict[str, Any]:
    """The checks, then the rounds; empty on a host that does not lead."""
    checks: dict[int, dict[str, Any]] = {}
    for count in options.counts:
        if (found := launches.run(replace(job, task="check"), count)) is not None:
            checks[count] = found
            console.say(f"check, {count} process{'es' * (count > 1)}: last loss {found['steps'][-1]['loss']:.6f}")
    rounds: Rounds = {}
    about: dict[str, Any] = {}
    for number, count in in_turns(options.counts, options.rounds):
        if (found := launches.run(job, count)) is not None:
            for kind, took in found.pop("passes").items():
                rounds.setdefault(f"{kind}_{count}", {})[number] = Pass(**took)
            about[str(count)] = found
            strong = f"strong_{count}"
            rate = rounds[strong][number].rate
            console.say(f"round {number}/{options.rounds} {report.title(strong)}: {rate:.1f} clips/s")
    if not options.hosts.is_main:
        return {}
    processors = {count: count if options.on_gpu else options.hosts.num_processors(count) for count in options.counts}
    order = [f"{kind}{local}_{count}" for count in options.counts for kind in report.KINDS for local in ("", "_local")]
    compared, equality = report.compare(rounds, processors, options.steps), report.same_training(checks)
    runs = {name: results.entry(rounds[name], report.title(name)) for name in order if name in rounds}
    return {
        "launches": about,
        "processors": {str(count): number for count, number in processors.items()},
        "runs": runs,
        "scaling": compared,
        "equality": equality,
        "headlines": report.headlines(runs, compared),
        "targets": report.targets(compared, equality, processors, on_gpu=options.on_gpu),
    }


def run(options: argparse.Namespace, arguments: Sequence[str], console: Console) -> dict[str, Any] | None:
    """Everything; returns what goes into the JSON file, on the host that leads."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastemo-scaling-") as folder:
        job = make_job(options, Path(folder))
        measured = measure(options, job, Launches(options.hosts, on_gpu=options.on_gpu), console)
    if not measured:
        return None
    found = {
        **results.header("scaling.py", arguments, started),
        "settings": {
            **{name: getattr(options, name) for name in _SETTINGS},
            "crop_size": job.crop_size,
            "processes": options.counts,
            "hosts": len(options.hosts.addresses),
            "hosts_are": "this machine" if options.hosts.rank is None else "machines",
            "launcher": "accelerate launch" if options.on_gpu else "torchrun",
        },
        **measured,
    }
    report.show(console, found)
    return found


def default_path(found: dict[str, Any]) -> Path:
    """Runs on several hosts have files of their own."""
    hosts, quick = found["settings"]["hosts"], found["settings"]["quick"]
    program = f"scaling-{hosts}-hosts" if hosts > 1 else "scaling"
    return results.default_path(found["machine"], quick=quick, program=program)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        options, console = parse(arguments), Console()
        found = run(options, arguments, console)
        if found is None:
            console.say("done; the first of --hosts writes the results")
            return
        results.write(options.out or default_path(found), found, console, report.chart)


if __name__ == "__main__":
    # Whoever ends this program ends what it started as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
