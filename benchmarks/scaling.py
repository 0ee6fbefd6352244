"""Training steps on 1, 2, ... N processes: speed-up, cost of the gradient all-reduce, and whether training is the same.

    python benchmarks/scaling.py                                # 1 and 2 processes on a CPU; 1, 2, 4 ... on GPUs
    python benchmarks/scaling.py --hosts 10.0.0.1,10.0.0.2 --host_rank 0    # --host_rank 1 on the second host
    python benchmarks/scaling.py --hosts 127.0.0.2,127.0.0.3 --device cpu   # two hosts simulated on this machine

A round launches every number of processes in turn, over NCCL on GPUs and gloo on a CPU, and each launch times the
trainer's steps on batches of the real loader, with the clips in memory:

- strong scaling: --batch_size is the global batch, split over the processes;
- weak scaling: --batch_size is the batch of each process;
- each with and without (`no_sync`) the gradient all-reduce: the difference is its cost.

Before that a check trains two epochs of a few clips, with a smaller last step and padding, and compares every step
with that of one process: the clips of the global batch and their order must be the same, its loss within 0.001 nats,
and the norm of its averaged gradients within 2 % (with Adam, gradients of a wrong scale would not show in the losses).
It runs in fp32, without dropout and with frozen BatchNorm statistics: in real training, each process computes its own
from its share of the batch.

With several hosts, every host runs this script with the same arguments except --host_rank (under Slurm taken from
SLURM_NODEID). They connect to the first one's address at --port and the following ports, one port per launch, and the
first writes the results. If the hosts cannot share a number of processes evenly, the first runs them alone. On a host
with several networks, GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME selects one. With loopback addresses all hosts are this
machine, each with a share of its processors.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
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
from benchmarks.common.options import Numbers, add_numbers, make_parser, parse_checked
from benchmarks.common.scaling import report
from benchmarks.common.scaling.launch import Launches, parse_hosts
from benchmarks.common.scaling.worker import Job
from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.corpus.config import SyntheticConfig
from fastemo.corpus.manifest import scan
from fastemo.corpus.synthetic.synthesis import synthesize
from fastemo.models.config import ModelName
from fastemo.training.config import Precision

_NUMBERS: Numbers = {
    "num_frames": (10, 2, "T, frames per clip"),
    "size": (128, 36, "side of a stored frame in pixels"),
    "rounds": (5, 1, "measurement rounds"),
    "steps": (8, 3, "timed steps"),
}
_OF_A_JOB = ("model", "num_frames", "size", "crop_size", "batch_size", "steps", "precision")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("scaling.py", __doc__)
    parser.add_argument("--processes", help="comma-separated numbers; 1 is always run")
    parser.add_argument("--model", default="late_fusion", help=", ".join(get_args(ModelName)))
    add_numbers(parser, _NUMBERS)
    parser.add_argument("--batch_size", type=int, default=8, help="clips per step: of all processes, or of each (weak)")
    parser.add_argument("--precision", default="auto", help="auto (what the trainer picks), fp32, bf16, fp16")
    parser.add_argument("--device", default="auto", help="auto, or cpu on a machine with GPUs")
    parser.add_argument("--hosts", help="comma-separated addresses, the first host leads; see above")
    parser.add_argument("--host_rank", type=int, help="index of this host in --hosts, from 0")
    parser.add_argument("--port", type=int, help="port of the first launch (default with --hosts: 29500)")
    parser.add_argument("--quick", action="store_true", help="small clips, few steps, one round: a smoke test")
    options = parse_checked(parser, arguments, numbers=_NUMBERS, positive=["batch_size"])
    if options.size < 36:
        raise ValueError(f"--size must be at least 36, not {options.size}")
    choices = {"model": get_args(ModelName), "precision": get_args(Precision), "device": ("auto", "cpu")}
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise ValueError(f"--{name} must be one of {', '.join(allowed)}, not '{getattr(options, name)}'")
    options.crop_size = options.size * 8 // 9 // 8 * 8  # 112 of 128, 224 of 256
    options.hosts = parse_hosts(options.hosts, options.host_rank, options.port)
    options.on_gpu = options.device == "auto" and torch.cuda.is_available()
    if options.on_gpu and options.hosts.rank is None and len(options.hosts.addresses) > 1:
        raise ValueError("hosts at loopback addresses are simulated on the CPU: add --device cpu")
    options.processes = _counts(options)
    return options


def _counts(options: argparse.Namespace) -> list[int]:
    """The numbers of processes to run, ascending, including 1."""
    text, batch_size, num_hosts = options.processes, options.batch_size, len(options.hosts.addresses)
    gpus = torch.cuda.device_count() if options.on_gpu else 0
    if text is None:
        most = gpus * num_hosts or max(2, num_hosts)
        powers = (2**power for power in range(most.bit_length()))
        counts = {1, *(count for count in (*powers, most) if batch_size % count == 0)}
    elif all(it.strip().isdecimal() and int(it) > 0 for it in text.split(",")):
        counts = {1, *map(int, text.split(","))}
    else:
        raise ValueError(f"--processes must be comma-separated numbers from 1, not '{text}'")
    for count in sorted(counts):
        if batch_size % count:
            raise ValueError(f"--batch_size {batch_size} cannot be split evenly over {count} processes")
        if batch_size * count > MOST_CLIPS:
            raise ValueError(f"{count} processes of --batch_size {batch_size} need more than {MOST_CLIPS} clips")
        if options.on_gpu and count > gpus * len(options.hosts.used(count)):
            raise ValueError(f"{count} processes need a GPU each, and there are {gpus} per host")
    return sorted(counts)


def make_job(options: argparse.Namespace, folder: Path) -> Job:
    """The clips that every process reads, small ones of the built-in corpus, and the settings."""
    shared = {name: getattr(options, name) for name in _OF_A_JOB}
    job = Job(task="speed", folder=str(folder), warm_up=1 if options.quick else 8, **shared)
    least, width, height = (24, 128, 72) if options.quick else (96, 320, 180)
    num_clips = max(least, options.batch_size * options.processes[-1], job.check_clips())
    an_actor = min(60, -(-num_clips // ravdess.NUM_ACTORS))
    config = SyntheticConfig(clips_per_actor=an_actor, num_frames=options.num_frames + 2, width=width, height=height)
    # Each worker would import this file and torch, which takes longer than drawing a few small clips.
    scan(synthesize(folder / "corpus", config, workers=1)).write_csv(folder / "manifest.csv")
    return job


def measure(options: argparse.Namespace, job: Job, console: Console) -> dict[str, Any] | None:
    """Run the checks, then the rounds; `None` on a host that does not lead."""
    launches = Launches(options.hosts, on_gpu=options.on_gpu)
    checks: dict[str, dict[str, Any]] = {}
    for count in options.processes:
        if found := launches.run(replace(job, task="check"), count):
            checks[str(count)] = found
            console.say(f"check, {count} process{'es' * (count > 1)}: last loss {found['steps'][-1]['loss']:.6f}")
    rounds: Rounds = {}
    about: dict[str, Any] = {}
    for number, count in in_turns(options.processes, options.rounds):
        if found := launches.run(job, count):
            for kind, took in found.pop("passes").items():
                rounds.setdefault(f"{kind}_{count}", {})[number] = Pass(**took)
            about[str(count)] = found
            rate = rounds[f"strong_{count}"][number].rate
            console.say(f"round {number}/{options.rounds} {report.title(f'strong_{count}')}: {rate:.1f} clips/s")
    if not checks:
        return None
    processors = {str(it): it if options.on_gpu else options.hosts.num_processors(it) for it in options.processes}
    compared, equality = report.compare(rounds, processors, options.steps), report.same_training(checks)
    order = sorted(rounds, key=lambda name: int(name.rpartition("_")[2]))
    runs = {name: results.entry(rounds[name], report.title(name)) for name in order}
    return {
        "launches": about,
        "processors": processors,
        "runs": runs,
        "scaling": compared,
        "equality": equality,
        "headlines": report.headlines(runs, compared),
        "targets": report.targets(compared, equality, processors),
    }


def run(options: argparse.Namespace, console: Console) -> dict[str, Any] | None:
    """Run everything; on the leading host, return the contents of the JSON file."""
    with tempfile.TemporaryDirectory(prefix="fastemo-scaling-") as folder:
        measured = measure(options, make_job(options, Path(folder)), console)
    if measured is None:
        console.say("done; the first of --hosts writes the results")
        return None
    settings = {
        **{name: getattr(options, name) for name in (*_OF_A_JOB, "rounds", "quick", "processes")},
        "hosts": len(options.hosts.addresses),
        "hosts_are": "this machine" if options.hosts.rank is None else "machines",
        "launcher": "a program for each process, torch's env:// rendezvous",
    }
    return {"settings": settings, **measured}


def kind(found: dict[str, Any]) -> str:
    """Results of several hosts get separate files."""
    return f"-{found['settings']['hosts']}-hosts" if found["settings"]["hosts"] > 1 else ""


def main(arguments: list[str] | None = None) -> None:
    results.run_command("scaling", arguments, parse, run, report.show, report.chart, kind)


if __name__ == "__main__":
    # Ending this program also ends the processes that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
