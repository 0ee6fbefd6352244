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

from benchmarks import results, scaling_report
from benchmarks.measure import Pass
from benchmarks.scaling_launch import Hosts, Launches, parse_hosts
from benchmarks.scaling_worker import Job
from benchmarks.targets import Rounds
from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.corpus.config import SyntheticConfig
from fastemo.corpus.manifest import scan
from fastemo.corpus.synthetic.synthesis import synthesize
from fastemo.errors import one_line_errors
from fastemo.models.config import ModelName
from fastemo.training.config import Precision

_MOST_CLIPS = ravdess.NUM_ACTORS * 60
_LEAST_CLIPS, _LEAST_CLIPS_QUICK = 96, 24


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="scaling.py"
    )
    parser.add_argument("--processes", help="numbers with commas between; 1 is always run")
    parser.add_argument("--model", default="late_fusion", help=", ".join(get_args(ModelName)))
    parser.add_argument("--num_frames", type=int, help="T, frames a clip: 10, with --quick 2")
    parser.add_argument("--size", type=int, help="side of a stored frame in pixels: 128, with --quick 36")
    parser.add_argument("--batch_size", type=int, default=8, help="clips a step: of all processes, or of each (weak)")
    parser.add_argument("--rounds", type=int, help="rounds of everything: 5, with --quick 1")
    parser.add_argument("--steps", type=int, help="steps by the clock: 8, with --quick 3")
    parser.add_argument("--precision", default="auto", help="auto (what the trainer picks), fp32, bf16, fp16")
    parser.add_argument("--device", default="auto", help="auto, or cpu where there are GPUs")
    parser.add_argument("--hosts", help="addresses with commas between, the first one's host leads; see above")
    parser.add_argument("--host_rank", type=int, help="which of --hosts this is, from 0")
    parser.add_argument("--port", type=int, help="of the first launch, with --hosts: 29500")
    parser.add_argument("--out", type=Path, help="JSON file; the chart goes beside it")
    parser.add_argument("--quick", action="store_true", help="small clips, few steps, one round: does it work at all?")
    options = parser.parse_args(arguments)
    for name, whole, quick in (("num_frames", 10, 2), ("size", 128, 36), ("rounds", 5, 1), ("steps", 8, 3)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else whole)
    _check(options)
    options.hosts = parse_hosts(options.hosts, options.host_rank, options.port)
    options.on_gpu = options.device == "auto" and torch.cuda.is_available()
    if options.on_gpu and options.hosts.rank is None and len(options.hosts.addresses) > 1:
        raise ValueError("hosts at loopback addresses are played on the processors: add --device cpu")
    options.counts = _counts(options.processes, options.hosts, options.batch_size, on_gpu=options.on_gpu)
    return options


def _check(options: argparse.Namespace) -> None:
    for name in ("num_frames", "batch_size", "rounds", "steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.size < 36:
        raise ValueError(f"--size must be at least 36, not {options.size}")
    for name, allowed in (
        ("model", get_args(ModelName)),
        ("precision", get_args(Precision)),
        ("device", ("auto", "cpu")),
    ):
        if getattr(options, name) not in allowed:
            raise ValueError(f"--{name} must be one of {', '.join(allowed)}, not '{getattr(options, name)}'")
    if options.out and options.out.suffix != ".json":
        raise ValueError(f"--out names the JSON file, which ends in .json, not '{options.out.name}'")


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
        if batch_size * count > _MOST_CLIPS:
            raise ValueError(f"{count} processes of --batch_size {batch_size} need more than {_MOST_CLIPS} clips")
        if on_gpu and count > a_host * len(hosts.used(count)):
            raise ValueError(f"{count} processes need a GPU each, and there are {a_host} a host")
    return sorted(counts | {1})


def make_job(options: argparse.Namespace, folder: Path) -> Job:
    """The clips that every process reads, small ones of the built-in corpus, and what is done with them."""
    crop_size = options.size * 8 // 9 // 8 * 8  # 112 of 128, 224 of 256
    job = Job(
        task="speed",
        corpus=str(folder / "corpus"),
        manifest=str(folder / "manifest.csv"),
        store=str(folder / "store"),
        model=options.model,
        num_frames=options.num_frames,
        size=options.size,
        crop_size=crop_size,
        batch_size=options.batch_size,
        warm_up=1 if options.quick else 8,
        steps=options.steps,
        precision=options.precision,
    )
    least = _LEAST_CLIPS_QUICK if options.quick else _LEAST_CLIPS
    num_clips = max(least, options.batch_size * options.counts[-1], job.check_clips())
    a_actor = min(60, -(-num_clips // ravdess.NUM_ACTORS))
    shape = {"width": 128, "height": 72} if options.quick else {"width": 320, "height": 180}
    config = SyntheticConfig(clips_per_actor=a_actor, num_frames=options.num_frames + 2, **shape)
    # Workers would each import this file, torch and all, which takes longer than drawing a few small clips.
    manifest = scan(synthesize(Path(job.corpus), config, workers=1))
    manifest.write_csv(Path(job.manifest))
    return job


def measure(options: argparse.Namespace, job: Job, launches: Launches, console: Console) -> dict[str, Any] | None:
    """The checks, then the rounds; `None` on a host that does not lead."""
    checks: dict[int, dict[str, Any]] = {}
    for count in options.counts:
        if (found := launches.run(replace(job, task="check"), count)) is not None:
            checks[count] = found
            console.say(f"check, {count} process{'es' * (count > 1)}: last loss {found['steps'][-1]['loss']:.6f}")
    rounds: Rounds = {}
    about: dict[str, Any] = {}
    for number in range(1, options.rounds + 1):
        # Each round begins elsewhere: what grows slower over time is not always the same.
        first = (number - 1) % len(options.counts)
        for count in [*options.counts[first:], *options.counts[:first]]:
            if (found := launches.run(job, count)) is None:
                continue
            for kind, took in found.pop("passes").items():
                rounds.setdefault(f"{kind}_{count}", {})[number] = Pass(**took)
            about[str(count)] = found
            rate = rounds[f"strong_{count}"][number].clips / rounds[f"strong_{count}"][number].seconds
            console.say(
                f"round {number}/{options.rounds} {scaling_report.title(f'strong_{count}')}: {rate:.1f} clips/s"
            )
    if not options.hosts.is_main:
        return None
    processors = {count: count if options.on_gpu else options.hosts.num_processors(count) for count in options.counts}
    order = sorted(
        rounds, key=lambda name: (int(name.split("_")[-1]), list(scaling_report.KINDS).index(name.split("_")[0]))
    )
    compared = scaling_report.compare(rounds, processors, options.steps)
    equality = scaling_report.same_training(checks)
    runs = {name: results.entry(rounds[name], scaling_report.title(name)) for name in order}
    return {
        "launches": about,
        "processors": {str(count): number for count, number in processors.items()},
        "runs": runs,
        "scaling": compared,
        "equality": equality,
        "headlines": scaling_report.headlines(runs, compared),
        "targets": scaling_report.targets(compared, equality, processors, on_gpu=options.on_gpu),
    }


def run(options: argparse.Namespace, arguments: Sequence[str], console: Console) -> dict[str, Any] | None:
    """Everything; returns what goes into the JSON file, on the host that leads."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastemo-scaling-") as folder:
        job = make_job(options, Path(folder))
        found = measure(options, job, Launches(options.hosts, on_gpu=options.on_gpu), console)
    if found is None:
        return None
    settings = {
        name: getattr(options, name)
        for name in ("model", "num_frames", "size", "batch_size", "rounds", "steps", "precision", "quick")
    }
    played = options.hosts.rank is None
    reached = found.pop("targets")
    whole = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": results.command("benchmarks/scaling.py", arguments),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": results.machine(),
        "versions": results.collect_versions(),
        "settings": {
            **settings,
            "crop_size": job.crop_size,
            "processes": options.counts,
            "hosts": len(options.hosts.addresses),
            "hosts_are": "this machine" if played else "machines",
            "launcher": "accelerate launch" if options.on_gpu else "torchrun",
        },
        **found,
        "targets": [it.as_dict() for it in reached],
    }
    scaling_report.show(console, whole, reached)
    return whole


def default_path(found: dict[str, Any]) -> Path:
    """Runs on several hosts have files of their own."""
    settings = found["settings"]
    program = f"scaling-{settings['hosts']}-hosts" if settings["hosts"] > 1 else "scaling"
    return results.default_path(found["machine"], quick=settings["quick"], program=program)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        options, console = parse(arguments), Console()
        found = run(options, arguments, console)
        if found is None:
            console.say("done; the first of --hosts writes the results")
            return
        path = options.out or default_path(found)
        results.write(path, found, scaling_report.chart)
        console.say(f"written: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    # Whoever ends this program ends what it started as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
