"""What went wrong outside this program's control, in words that say what to do."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastemo.errors import UserError
from fastemo.machine import available_memory, resident_memory, write_text

_MIB = 2**20
_MOST_NAMES = 8
# What gloo, NCCL and torch's own store say when a process at the other end is gone.
_DEAD_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "timed out",
    "connection was likely closed",
    "nccl",
    "gloo",
    "socket",
)


_DROPPED_COLUMNS = ("key", "split", "epoch", "reason")
_MOST_DROPPED_NAMED = 5


class OutOfMemory(UserError):
    """The device's memory does not hold a step."""


class NotFinite(UserError):
    """A loss or a weight became infinite or not a number."""


class ProcessLost(UserError):
    """Another process of the training ended."""


class TooManyDropped(UserError):
    """More clips stopped decoding than a run may go on without."""


@dataclass
class MemoryUse:
    """What a device held when, in bytes.

    Attributes:
        fixed: With the model on it, before the first step.
    """

    device: torch.device
    fixed: int = 0

    def start(self) -> None:
        self.fixed = self._used()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _used(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else resident_memory()

    def peak(self) -> int:
        """The most so far, on a CPU what is used now."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident_memory()

    def capacity(self) -> int:
        """What this process can have in all."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
        return available_memory() + resident_memory()


def batch_that_fits(batch_size: int, fixed: int, peak: int, capacity: int) -> int:
    """Clips a step for which memory would do at most, by what `batch_size` of them took until it ran out.

    The step that failed would have taken more than `peak`, so this is an upper bound.

    Args:
        fixed, peak, capacity: Bytes before the first step, at most so far, and in all.
    """
    a_clip = max(1, peak - fixed) / batch_size
    return max(0, min(batch_size - 1, int((capacity - fixed) / a_clip)))


def out_of_memory(error: BaseException, batch_size: int, memory: MemoryUse) -> OutOfMemory | None:
    """The error in plain words where it says that memory ran out, else `None`."""
    is_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    if not (isinstance(error, torch.OutOfMemoryError) or is_cpu):
        return None
    fixed, peak, capacity = memory.fixed, memory.peak(), memory.capacity()
    fits = batch_that_fits(batch_size, fixed, peak, capacity)
    measured = (
        f"{(peak - fixed) / _MIB:,.0f} MiB were taken beside {fixed / _MIB:,.0f} MiB for the model when it ran out, of "
        f"{capacity / _MIB:,.0f} MiB"
    )
    advice = (
        f"by that, at most {fits} fit: try --train.batch_size {fits} and --train.accumulate_steps "
        f"{-(-batch_size // fits)}"
        if fits
        else "not even one clip fits: choose a smaller --augment.crop_size, --video.num_frames or model"
    )
    if memory.device.type == "cuda":
        advice += "; --store.tier memory takes decoded clips off the GPU"
    return OutOfMemory(f"{memory.device} is out of memory with train.batch_size {batch_size}: {measured}; {advice}")


def process_lost(error: BaseException, world_size: int) -> ProcessLost | None:
    """The error in plain words where it says that another process is gone, else `None`."""
    if world_size == 1 or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, torch.distributed.DistError) and not any(it in str(error).lower() for it in _DEAD_PEER):
        return None
    return ProcessLost(
        "another process of this training ended or no longer answers; its own message says why, and this one cannot "
        "go on alone"
    )


@contextmanager
def as_user_errors(batch_size: int, world_size: int, memory: MemoryUse) -> Iterator[None]:
    """What a machine or another process did within, as `OutOfMemory` or `ProcessLost`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if exhausted := out_of_memory(error, batch_size, memory):
            raise exhausted from error
        if lost := process_lost(error, world_size):
            raise lost from error
        raise


def not_finite(clips: Sequence[str], epoch: int, position: int) -> NotFinite:
    """A loss that is no number, and on which clips; all of a batch where a weight is none."""
    more = f" and {len(clips) - _MOST_NAMES} more" if len(clips) > _MOST_NAMES else ""
    return NotFinite(
        f"the loss is infinite or not a number in epoch {epoch}, at clip {position} or before, on "
        f"{', '.join(clips[:_MOST_NAMES])}{more}; look at these clips, lower --train.lr, or compute in "
        f"--train.precision fp32. The last checkpoint is from before"
    )


def check_weights(model: dict[str, torch.Tensor], epoch: int) -> None:
    """Refuse to save what no training can go on from.

    Raises:
        NotFinite: A weight is infinite or not a number; the message names it.
    """
    for name, value in model.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NotFinite(
                f"{name} of the model is infinite or not a number in epoch {epoch}; lower --train.lr, or compute in "
                f"--train.precision fp32. The last checkpoint is from before"
            )


def not_written(error: OSError, folder: Path) -> UserError:
    """Why a checkpoint or a result could not be written."""
    what = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "your quota is used up; free some space",
        errno.EROFS: "the file system is read-only; choose another --runs_dir",
        errno.EACCES: "its folder is not writable; change its permissions",
        errno.EPERM: "its folder is not writable; change its permissions",
    }.get(error.errno or 0, f"{error.strerror or error}; see to the disk")
    return UserError(f"{folder} could not be written: {what}. What was there before is as it was")


def write_dropped(path: Path, dropped: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a CSV table, one row a clip: key, split, first epoch without it (0: the test), reason."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_DROPPED_COLUMNS)
    writer.writerows([key, *(found[name] for name in _DROPPED_COLUMNS[1:])] for key, found in sorted(dropped.items()))
    write_text(path, text.getvalue())


def too_many_dropped(dropped: Mapping[str, Mapping[str, Any]], allowed: int, path: Path) -> TooManyDropped:
    first = "; ".join(str(dropped[key]["reason"]) for key in sorted(dropped)[:_MOST_DROPPED_NAMED])
    return TooManyDropped(
        f"{len(dropped)} clips did not decode, {allowed} may be dropped (--corpus.max_dropped): {first}. All of them "
        f"are listed in {path}; repair or remove them and start again"
    )
