"""Transfers to the device during training: a stream, events and pinned memory on CUDA; plain tensors elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

import torch

# Batch buffers kept for reuse: more than are ever in flight at once.
_MOST_FREE = 16


def send(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a few numbers to the device, on the calling thread's current stream, without waiting for it."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


class Transfer:
    """Fills a loader's batches on the device while another batch is computed on.

    On CUDA copies are asynchronous: a copy's source must not change, and its result must not be read on another stream,
    before the event that `mark` returned after it. On other devices copies are synchronous, and that event is `None`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copies = self._stream is not None  # if not, a batch may be the buffer itself
        self._free: list[tuple[torch.Tensor, Any]] = []
        self._lock = Lock()

    def active(self) -> AbstractContextManager[Any]:
        """A context in which the device's work goes to this stream."""
        return torch.cuda.stream(self._stream)

    def buffer(self, *shape: int) -> torch.Tensor:
        """Host memory, uint8, pinned on CUDA, whose earlier copies are done; uninitialised."""
        with self._lock:
            for place, (buffer, event) in enumerate(self._free):
                if buffer.shape == shape and self._is_done(event):
                    del self._free[place]
                    return buffer
        return self._allocate(shape)

    def release(self, buffer: torch.Tensor, event: Any) -> None:
        """Return a buffer for reuse once `event` is done; without an event it may be the batch itself."""
        if event is not None:
            with self._lock:
                self._free.append((buffer, event))
                del self._free[:-_MOST_FREE]

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        """Start a copy to the device. From memory that is not pinned, the copy is synchronous."""
        return host.to(self.device, non_blocking=self._stream is not None)

    def download(self, tensor: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
        """Start a copy from the device to a buffer, which is returned."""
        return host.copy_(tensor, non_blocking=True)

    def mark(self) -> Any:
        """An event after all work on this stream so far."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: Any) -> None:
        """Wait on the host until an event is done."""
        if event is not None:
            event.synchronize()

    def hand_over(self, tensor: torch.Tensor, event: Any) -> None:
        """Make the calling thread's current stream, not the host, wait for an event before it reads a tensor."""
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            tensor.record_stream(current)

    def synchronize(self) -> None:
        """Wait for all work on this stream."""
        if self._stream is not None:
            self._stream.synchronize()

    def _allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._stream is not None)

    def _is_done(self, event: Any) -> bool:
        return bool(event.query())
