"""What the peers share: arguments, files, a timed pass, one JSON line.

A peer stands for what somebody without this package would write, so nothing here or beside it imports the package.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".flv"}
SKIPPED = 3  # exit status of a peer that cannot run here


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all peers take; a peer adds its own."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--corpus", type=Path, required=True, help="folder of videos, any depth")
    arguments.add_argument("--num_frames", type=int, default=10, help="T, frames a clip")
    arguments.add_argument("--size", type=int, default=128, help="side of a frame in pixels")
    arguments.add_argument("--batch_size", type=int, default=8, help="clips a batch")
    arguments.add_argument("--workers", type=int, help="processes or threads")
    arguments.add_argument("--frames", type=Path, help="folder of extracted frames, of a peer that reads those")
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


def skip(name: str, reason: object) -> NoReturn:
    """Print the JSON line that says why this peer cannot run here."""
    print(json.dumps({"peer": name, "skipped": str(reason)}))
    sys.exit(SKIPPED)


def version(package: str) -> str:
    if package == "decord":  # which decord2 installs under this name too
        return str(import_module(package).__version__)
    return metadata.version(package)


def report(
    options: argparse.Namespace,
    name: str,
    batches: Iterable[torch.Tensor],
    *,
    packages: Iterable[str],
    settings: dict[str, Any],
    **more: Any,
) -> None:
    """Time one full pass and print the JSON line.

    Args:
        batches: uint8 [B, T, 3, size, size].
        more: Further entries of the JSON line.
    """
    first, count, clips = None, 0, 0
    shapes, dtypes = set(), set()
    cpu_before, before = cpu_seconds(), time.perf_counter()
    for frames in batches:
        first = frames[0] if first is None else first
        clips, count = clips + len(frames), count + 1
        shapes.add(tuple(frames.shape[1:]))
        dtypes.add(str(frames.dtype).removeprefix("torch."))
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    seconds, spent = time.perf_counter() - before, cpu_seconds() - cpu_before
    if options.save_first and first is not None:
        np.save(options.save_first, first.cpu().numpy())
    line = {
        "peer": name,
        "versions": {package: version(package) for package in ("torch", *packages)},
        "settings": {"batch_size": options.batch_size, **settings},
        "clip_shapes": sorted(shapes),
        "dtypes": sorted(dtypes),
        "pass": {"clips": clips, "batches": count, "seconds": seconds, "cpu_seconds": spent},
        **more,
    }
    print(json.dumps(line), flush=True)


def cpu_seconds() -> float:
    """Processor time of this process, of its ended children and, on Linux, of its living ones."""
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(it.ru_utime + it.ru_stime for it in spent)
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
