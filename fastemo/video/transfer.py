"""The way to the device beside the training: a stream, events and pinned memory on CUDA; elsewhere plain tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import Lock
from typing import Any

import torch

# Buffers of a batch that wait to be used again: more than are ever on their way at once.
_MOST_FREE = 16


def send(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A few numbers to the device, on the calling thread's current stream, without waiting for it."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


class Transfer:
    """Where a loader's batches are filled while another is computed on.

    On CUDA a copy only begins when it is asked for: its source must not change, and its result must not be read on
    another stream, before the event that `mark` gave after it. On other devices all is done at once, and that event
    is `None`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copies = self._stream is not None  # or a batch may be the buffer it was filled in
        self._free: list[tuple[torch.Tensor, Any]] = []
        self._lock = Lock()

    def active(self) -> AbstractContextManager[Any]:
        """Inside, the device's work goes to this stream."""
        return torch.cuda.stream(self._stream)

    def buffer(self, *shape: int) -> torch.Tensor:
        """Host memory, uint8, pinned on CUDA, whose earlier copies are done; it holds anything."""
        with self._lock:
            for place, (buffer, event) in enumerate(self._free):
                if buffer.shape == shape and self._is_done(event):
                    del self._free[place]
                    return buffer
        return self._allocate(shape)

    def release(self, buffer: torch.Tensor, event: Any) -> None:
        """Give a buffer back, to be used again once `event` is done; without an event it may be the batch itself."""
        if event is not None:
            with self._lock:
                self._free.append((buffer, event))
                del self._free[:-_MOST_FREE]

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        """Begin to copy to the device. Memory that is not pinned is waited for."""
        return host.to(self.device, non_blocking=self._stream is not None)

    def download(self, tensor: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
        """Begin to copy from the device to a buffer, which is returned."""
        return host.copy_(tensor, non_blocking=True)

    def mark(self) -> Any:
        """An event after all that this stream was asked for so far."""
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
        """Have the calling thread's current stream wait for an event before it reads a tensor; the host does not."""
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            tensor.record_stream(current)

    def synchronize(self) -> None:
        """Wait for all that this stream was asked for."""
        if self._stream is not None:
            self._stream.synchronize()

    def _allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._stream is not None)

    def _is_done(self, event: Any) -> bool:
        return bool(event.query())
