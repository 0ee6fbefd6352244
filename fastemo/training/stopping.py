"""Requests to stop a training: by a signal, by another process, or by a loss that is not finite."""

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

# Requests of a process to all of them; the highest is carried out.
GO_ON, SAVE, STOP, FAIL = range(4)


class StopSignals:
    """SIGTERM and SIGINT: the first requests a stop, the second exits immediately.

    Attributes:
        received: The first signal's number; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._is_deferred = self._is_ending = False

    @contextmanager
    def installed(self) -> Iterator[StopSignals]:
        """Handle both signals until the end of the context; outside the main thread, do nothing."""
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
        """Inside, a signal only sets `received`; outside, it raises `Stopped`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def end(self) -> None:
        """Ignore a first signal from now on: an error is about to be reported."""
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
        # Bypasses Python's buffers, which the interrupted code may be writing to.
        text = f"fastemo: {signal.Signals(number).name}: writing a checkpoint; a second signal exits immediately\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())


class Agreement:
    """Requests between the processes, known to all at the same step, one step after they were made.

    They are exchanged between CPUs during the step, without waiting for the device.
    """

    def __init__(self, world_size: int) -> None:
        # A separate group: the device's may accept only its own tensors, in the order of its queue.
        self._group: Any = dist.new_group(backend="gloo") if world_size > 1 else None
        self._work: dist.Work | None = None

    def vote(self, wish: int) -> int:
        """Make a request; return the highest of all processes at the step before, or at once with one process."""
        if self._group is None:
            return wish
        agreed = self.settle()
        self._wish = torch.tensor([wish])
        self._work = dist.all_reduce(self._wish, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def settle(self) -> int:
        """The highest of the last requests."""
        work, self._work = self._work, None
        if work is None:
            return GO_ON
        work.wait()
        return int(self._wish)

    def now(self, wish: int) -> int:
        """The highest request of all processes, which wait for each other; used between epochs and saves."""
        at_once = self.vote(wish)
        return max(at_once, self.settle())

    def close(self) -> None:
        """Release the process group."""
        self._work = self._group = None


class FiniteWatch:
    """Finds losses that are infinite or NaN without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._pending: deque[tuple[Sequence[str], torch.Tensor, Any]] = deque()
        self.clips: list[str] = []

    def add(self, keys: Sequence[str], losses: torch.Tensor) -> None:
        """Add the losses [B] of these clips."""
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
        """Whether a loss known so far was not finite; `clips` are those of the first such batch.

        Args:
            wait: Wait for the device until all are known.
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
