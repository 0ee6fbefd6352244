"""Resources of parallel runs: a GPU each, or a share of the processors."""

from __future__ import annotations

import os

import torch

from fastemo.machine import available_memory, available_processors

# Measured memory of a run's process with torch, a small model and its figures.
_CELL_BYTES = 3 * 2**30
# With fewer, a run's start-up and figures would have no processor to spare.
_CELL_PROCESSORS = 2


def num_places(jobs: int | None) -> int:
    """The number of parallel runs; `None`: the number of GPUs, or what processors and memory allow.

    Raises:
        ValueError: Less than one.
    """
    if jobs is not None:
        if jobs < 1:
            raise ValueError(f"--jobs must be at least 1, not {jobs}")
        return jobs
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return max(1, min(available_processors() // _CELL_PROCESSORS, available_memory() // _CELL_BYTES))


def processors_of(place: int, num_places: int) -> str:
    """A place's share of the processors, as comma-separated numbers; empty: all of them."""
    if num_places == 1 or not hasattr(os, "sched_getaffinity"):
        return ""
    mine = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, mine[place::num_places])) if len(mine) >= num_places else ""


def environment_of(place: int) -> dict[str, str]:
    """Environment of a run's process: only one GPU is visible, if there are any."""
    if not torch.cuda.is_available():
        return dict(os.environ)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",")
    return {**os.environ, "CUDA_VISIBLE_DEVICES": devices[place % len(devices)]}
