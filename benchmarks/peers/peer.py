"""Shared parts of the peers: arguments, files, timed passes, JSON lines.

A peer is what one would write without this package, so nothing here or beside it imports the package.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn

SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".flv"}


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments of all peers, to which a peer adds its own."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--corpus", type=Path, required=True, help="folder of videos, searched recursively")
    arguments.add_argument("--num_frames", type=int, default=10, help="T, frames per clip")
    arguments.add_argument("--size", type=int, default=128, help="side of a frame in pixels")
    arguments.add_argument("--batch_size", type=int, default=8, help="clips per batch")
    arguments.add_argument("--workers", type=int, help="worker processes")
    arguments.add_argument("--frames", type=Path, help="folder of extracted frames, for a peer that reads them")
    arguments.add_argument("--save_first", type=Path, help="save the first clip's frames as this .npy file")
    return arguments


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def files(corpus: Path) -> list[Path]:
    """The corpus's videos in the order of their paths."""
    found = sorted(path for path in corpus.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        sys.exit(f"no videos below {corpus.name}")
    return found


def frame_indices(num_frames: int, num_samples: int) -> list[int]:
    """`floor(k (N - 1) / (T - 1))`, k = 0 .. T-1; one sample takes the middle frame."""
    if num_samples == 1:
        return [(num_frames - 1) // 2]
    return [k * (num_frames - 1) // (num_samples - 1) for k in range(num_samples)]


def say(line: dict[str, Any]) -> None:
    """Print a JSON line, after ending an unfinished line of a library."""
    print(f"\n{json.dumps(line)}", flush=True)


def skip(name: str, reason: str) -> NoReturn:
    """Print why this peer cannot run here, and exit."""
    say({"peer": name, "skipped": reason})
    sys.exit()


def version(package: str) -> str:
    if package == "decord":  # decord2 installs this name, too
        return str(import_module(package).__version__)
    return metadata.version(package)


def serve(about: dict[str, Any], packages: Iterable[str], run: Callable[[], dict[str, float]]) -> None:
    """Print a JSON line about this peer; then run once per line on standard input, and print each pass's figures."""
    say({**about, "versions": {package: version(package) for package in ("torch", *packages)}})
    for _ in sys.stdin:
        say(timed(run))


def timed(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The result of `work`, and the seconds that it took."""
    before, cpu_before = time.perf_counter(), cpu_seconds()
    found = work()
    return {**found, "seconds": time.perf_counter() - before, "cpu_seconds": cpu_seconds() - cpu_before}


def cpu_seconds() -> float:
    """Processor time of this process, its ended children and, on Linux, its running ones."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(it.ru_utime + it.ru_stime for it in spent)
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
