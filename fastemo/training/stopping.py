"""When a training is asked to end: by a signal, by another process, or by a loss that is no number."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from fastemo.errors import Stopped

# What a process asks of all of them; the highest is done.
GO_ON, SAVE, STOP, FAIL = range(4)


class StopSignals:
    """SIGTERM and SIGINT: the first asks to end, the second ends at once.

    Attributes:
        received: The first signal's number; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._is_deferred = self._is_ending = False

    @contextmanager
    def installed(self) -> Iterator[StopSignals]:
        """Handle both signals until the end of the context; in a thread that may not, nothing changes."""
        before: dict[int, Any] = {}
        try:
            for number in (int(signal.SIGTERM), int(signal.SIGINT)):
                before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread
            pass
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted, for `received` to be looked at; outside, it raises `Stopped`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def end(self) -> None:
        """From now on the first signal changes nothing: what went wrong is about to be told."""
        self._is_ending = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        if self._is_ending:
            return
        if not self._is_deferred:
            raise Stopped(number)
        # Written past Python's buffers, which the interrupted code may be in the middle of.
        text = f"fastemo: {signal.Signals(number).name}: ending this step and writing a checkpoint; again: at once\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())


class Agreement:
    """What the processes ask of each other, known to all at the same step, one step after it was asked.

    The device is not waited for: the exchange is among processors, beside the step.
    """

    def __init__(self, world_size: int) -> None:
        # A group of its own: the device's may only take the device's tensors, in the order of its queue.
        self._group: Any = dist.new_group(backend="gloo") if world_size > 1 else None
        self._work: dist.Work | None = None

    def vote(self, wish: int) -> int:
        """Ask; returns the highest wish of all processes at the step before, of one process at once."""
        if self._group is None:
            return wish
        agreed = self.settle()
        self._wish = torch.tensor([wish])
        self._work = dist.all_reduce(self._wish, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def settle(self) -> int:
        """The highest of the last wishes."""
        work, self._work = self._work, None
        if work is None:
            return GO_ON
        work.wait()
        return int(self._wish)

    def now(self, wish: int) -> int:
        """The highest wish of all processes, which wait for each other: for between epochs and saves."""
        at_once = self.vote(wish)
        return max(at_once, self.settle())

    def close(self) -> None:
        """Let go of the group of processes."""
        self._work = self._group = None


class FiniteWatch:
    """Losses that are infinite or no numbers, found without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._pending: deque[tuple[Sequence[str], torch.Tensor, Any]] = deque()
        self.clips: list[str] = []

    def add(self, keys: Sequence[str], losses: torch.Tensor) -> None:
        """Watch the losses [B] of these clips."""
        bad = ~torch.isfinite(losses.detach())
        if not self._is_cuda:
            self._pending.append((keys, bad, None))
            return
        host = torch.empty(bad.shape, dtype=torch.bool, pin_memory=True)
        host.copy_(bad, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((keys, host, event))

    def found(self, *, wait: bool = False) -> bool:
        """Whether a loss that is known by now was not finite; `clips` are those of the first such batch.

        Args:
            wait: For the device, until all are known.
        """
        while self._pending and not self.clips:
            keys, bad, event = self._pending[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()
            self._pending.popleft()
            if bad.any():
                self.clips = [key for key, is_bad in zip(keys, bad, strict=True) if is_bad]
        return bool(self.clips)
