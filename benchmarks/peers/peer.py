"""What the peers share: arguments, a DataLoader over files, full passes by the clock, one JSON line.

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
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".flv"}
SKIPPED = 3  # exit status of a peer that cannot run here


def parser(description: str | None, *, workers: int | None = None) -> argparse.ArgumentParser:
    """The arguments that all peers take; a peer adds its own."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--corpus", type=Path, required=True, help="folder of videos, any depth")
    arguments.add_argument("--num_frames", type=int, default=10, help="T, frames a clip")
    arguments.add_argument("--size", type=int, default=128, help="side of a frame in pixels")
    arguments.add_argument("--batch_size", type=int, default=8, help="clips a batch")
    arguments.add_argument("--workers", type=int, default=workers or processors, help="processes or threads")
    arguments.add_argument("--passes", type=int, default=1, help="full passes over the corpus that are timed")
    arguments.add_argument("--save_first", type=Path, help="keep the first clip's frames as this .npy file")
    return arguments


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


def skip(name: str, reason: str) -> NoReturn:
    """Say on the JSON line why this peer cannot run here."""
    print(json.dumps({"peer": name, "skipped": reason}))
    sys.exit(SKIPPED)


def version(package: str) -> str:
    if package == "decord":  # which decord2 installs under this name too
        return str(import_module(package).__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


class Clips(Dataset[torch.Tensor]):
    """Files as uint8 [T, 3, size, size] RGB."""

    def __init__(self, paths: list[Path], read: Callable[[Path], torch.Tensor]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(self.paths[index])


def run_data_loader(
    name: str,
    paths: list[Path],
    read: Callable[[Path], torch.Tensor],
    options: argparse.Namespace,
    *,
    packages: Iterable[str],
    settings: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> None:
    """Time passes of a DataLoader whose workers live on, started and warmed outside the clock."""
    # A list that changes between passes: the workers that the warm-up started serve the passes too.
    plan: list[list[int]] = [[i % len(paths)] for i in range(2 * options.workers)]
    loader = DataLoader(
        Clips(paths, read),
        batch_sampler=plan,
        num_workers=options.workers,
        persistent_workers=True,
        prefetch_factor=2,
    )
    for _ in loader:
        pass
    count = range(len(paths))
    plan[:] = [list(count[i : i + options.batch_size]) for i in range(0, len(paths), options.batch_size)]
    settings = {"workers": options.workers, "prefetch_factor": 2, "persistent_workers": True, **settings}
    report(name, lambda: iter(loader), options, packages=["torch", *packages], settings=settings, extra=extra)


def report(
    name: str,
    start_pass: Callable[[], Iterator[torch.Tensor]],
    options: argparse.Namespace,
    *,
    packages: Iterable[str],
    settings: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> None:
    """Time full passes and print the JSON line.

    Args:
        start_pass: Gives one pass's batches, uint8 [B, T, 3, size, size].
        extra: Further entries of the JSON line.
    """
    shapes: set[tuple[int, ...]] = set()
    dtypes: set[str] = set()
    passes, first = [], None
    for _ in range(options.passes):
        clips = batches = 0
        cpu_before, before = cpu_seconds(), time.perf_counter()
        for frames in start_pass():
            first = frames[0] if first is None else first
            clips, batches = clips + len(frames), batches + 1
            shapes.add(tuple(frames.shape[1:]))
            dtypes.add(str(frames.dtype).removeprefix("torch."))
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - before
        spent = cpu_seconds() - cpu_before
        passes.append({"clips": clips, "batches": batches, "seconds": seconds, "cpu_seconds": spent})
    if options.save_first and first is not None:
        np.save(options.save_first, first.cpu().numpy())
    line = {
        "peer": name,
        "versions": {package: version(package) for package in packages},
        "settings": {"batch_size": options.batch_size, **settings},
        "clip_shapes": sorted(shapes),
        "dtypes": sorted(dtypes),
        "passes": passes,
        **(extra or {}),
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
