"""Faults outside this program's control, as errors whose messages say what to do."""

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
# Messages of gloo, NCCL and torch's store when the process at the other end is gone.
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
    """A step does not fit in the device's memory."""


class NotFinite(UserError):
    """A loss or a weight became infinite or not a number."""


class ProcessLost(UserError):
    """Another process of the training ended."""


class TooManyDropped(UserError):
    """More clips failed to decode than a run may drop."""


@dataclass
class MemoryUse:
    """Memory use of a device, in bytes.

    Attributes:
        fixed: With the model, before the first step.
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
        """The maximum so far; on a CPU the current use."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident_memory()

    def capacity(self) -> int:
        """The memory available to this process in total."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
        return available_memory() + resident_memory()


def batch_that_fits(batch_size: int, fixed: int, peak: int, capacity: int) -> int:
    """The most clips per step that can fit, estimated from what `batch_size` clips took until memory ran out.

    The step that failed would have taken more than `peak`, so this is an upper bound.

    Args:
        fixed, peak, capacity: Bytes before the first step, at the maximum so far, and in total.
    """
    a_clip = max(1, peak - fixed) / batch_size
    return max(0, min(batch_size - 1, int((capacity - fixed) / a_clip)))


def out_of_memory(error: BaseException, batch_size: int, memory: MemoryUse) -> OutOfMemory | None:
    """A readable error if this one says that memory ran out, else `None`."""
    is_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    if not (isinstance(error, torch.OutOfMemoryError) or is_cpu):
        return None
    fixed, peak, capacity = memory.fixed, memory.peak(), memory.capacity()
    fits = batch_that_fits(batch_size, fixed, peak, capacity)
    measured = (
        f"{(peak - fixed) / _MIB:,.0f} MiB were used besides {fixed / _MIB:,.0f} MiB for the model, of "
        f"{capacity / _MIB:,.0f} MiB"
    )
    advice = (
        f"at most {fits} clips fit: try --train.batch_size {fits} and --train.accumulate_steps {-(-batch_size // fits)}"
        if fits
        else "not even one clip fits: choose a smaller --augment.crop_size, --video.num_frames or model"
    )
    if memory.device.type == "cuda":
        advice += "; --store.tier memory keeps decoded clips off the GPU"
    return OutOfMemory(f"{memory.device} is out of memory with train.batch_size {batch_size}: {measured}; {advice}")


def process_lost(error: BaseException, world_size: int) -> ProcessLost | None:
    """A readable error if this one says that another process is gone, else `None`."""
    if world_size == 1 or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, torch.distributed.DistError) and not any(it in str(error).lower() for it in _DEAD_PEER):
        return None
    return ProcessLost("another process of this training ended or no longer responds; its own message says why")


@contextmanager
def as_user_errors(batch_size: int, world_size: int, memory: MemoryUse) -> Iterator[None]:
    """Turn faults of the machine or of another process into `OutOfMemory` or `ProcessLost`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if exhausted := out_of_memory(error, batch_size, memory):
            raise exhausted from error
        if lost := process_lost(error, world_size):
            raise lost from error
        raise


def not_finite(clips: Sequence[str], epoch: int, position: int) -> NotFinite:
    """The error for a loss that is not finite on some clips; on a whole batch where a weight is not finite."""
    more = f" and {len(clips) - _MOST_NAMES} more" if len(clips) > _MOST_NAMES else ""
    return NotFinite(
        f"the loss is infinite or NaN in epoch {epoch}, at clip {position} or before, on "
        f"{', '.join(clips[:_MOST_NAMES])}{more}; check these clips, lower --train.lr, or use "
        f"--train.precision fp32. The last checkpoint is from before that"
    )


def check_weights(model: dict[str, torch.Tensor], epoch: int) -> None:
    """Refuse to save weights that no training can resume from.

    Raises:
        NotFinite: A weight is infinite or NaN; the message names it.
    """
    for name, value in model.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NotFinite(
                f"the weight {name} is infinite or NaN in epoch {epoch}; lower --train.lr, or use "
                f"--train.precision fp32. The last checkpoint is from before that"
            )


def not_written(error: OSError, folder: Path) -> UserError:
    """Why a checkpoint or a result could not be written."""
    what = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "your quota is used up; free some space",
        errno.EROFS: "the file system is read-only; choose another --runs_dir",
        errno.EACCES: "its folder is not writable; change its permissions",
        errno.EPERM: "its folder is not writable; change its permissions",
    }.get(error.errno or 0, f"{error.strerror or error}; check the disk")
    return UserError(f"{folder} could not be written: {what}. The previous contents are unchanged")


def write_dropped(path: Path, dropped: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a CSV table, one row per clip: key, split, first epoch without it (0: the test), reason."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_DROPPED_COLUMNS)
    writer.writerows([key, *(found[name] for name in _DROPPED_COLUMNS[1:])] for key, found in sorted(dropped.items()))
    write_text(path, text.getvalue())


def too_many_dropped(dropped: Mapping[str, Mapping[str, Any]], allowed: int, path: Path) -> TooManyDropped:
    first = "; ".join(str(dropped[key]["reason"]) for key in sorted(dropped)[:_MOST_DROPPED_NAMED])
    return TooManyDropped(
        f"{len(dropped)} clips did not decode, at most {allowed} may be dropped (--corpus.max_dropped): {first}. "
        f"{path} lists them all; repair or remove them and start again"
    )
