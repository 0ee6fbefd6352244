"""Doubles: of a processor whose copies take time, and of the face detector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
import torch

from fastemo.corpus.files.display import Display
from fastemo.video.loader import ClipBatch
from fastemo.video.transfer import Transfer


class RecordingTransfer(Transfer):
    """A double for a processor that behaves as if copies took time, and refuses what would then go wrong.

    Raises:
        AssertionError: An event was marked before a batch's uploads; a buffer is used before its event is done, or
            uploaded from after it was given back. What is read of a download before its event is zeros.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.copies = True
        self._thread, self._guard = threading.local(), threading.Lock()
        self._count, self._done_until = 0, 0
        self.out: dict[int, torch.Tensor] = {}  # buffers in somebody's hands
        self.back: dict[int, Any] = {}  # given back, with the event that frees them
        self.handed: set[int] = set()
        self._downloads: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        self._thread.batch = {"uploads": 0}
        yield

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        place = host.untyped_storage().data_ptr()
        with self._guard:
            assert place not in self.back, "a copy begins from a buffer that was given back"
            self._count += 1
            getattr(self._thread, "batch", {})["uploads"] = self._count
        return host.clone()

    def download(self, tensor: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
        with self._guard:
            self._count += 1
            self._downloads.append((self._count, tensor.clone(), host.zero_()))
        return host

    def wait(self, event: Any) -> None:
        with self._guard:
            self._done_until = max(self._done_until, event.number)
            for number, source, host in self._downloads:
                if number < event.number:
                    host.copy_(source)
            self._downloads = [it for it in self._downloads if it[0] > event.number]

    def mark(self) -> Any:
        with self._guard:
            self._count += 1
            return _Event(self, self._count, getattr(self._thread, "batch", {"uploads": 0}))

    def hand_over(self, tensor: torch.Tensor, event: Any) -> None:
        assert event is not None, "a batch was handed over without an event"
        assert event.batch["uploads"] < event.number, "a batch's event was marked before its uploads"
        with self._guard:
            self.handed.add(tensor.data_ptr())
            # What was asked for before the batch before this one is over by now.
            self._done_until = max(self._done_until, event.number - 1)

    def buffer(self, *shape: int) -> torch.Tensor:
        buffer = super().buffer(*shape)
        place = buffer.untyped_storage().data_ptr()
        event = self.back.pop(place, None)
        assert event is None or event.query(), "a buffer is used again before its copy is over"
        self.out[place] = buffer
        return buffer

    def release(self, buffer: torch.Tensor, event: Any) -> None:
        place = buffer.untyped_storage().data_ptr()
        self.out.pop(place, None)
        if event is not None:
            self.back[place] = event
        super().release(buffer, event)
        held = {it.untyped_storage().data_ptr() for it, _ in self._free}
        self.back = {key: value for key, value in self.back.items() if key in held}

    def synchronize(self) -> None:
        self._done_until = self._count

    def check_batch(self, batch: ClipBatch) -> None:
        assert batch.frames.data_ptr() in self.handed, "a batch is read that was not handed over"

    def check_over(self) -> None:
        assert not self.out, f"{len(self.out)} buffers were not given back"


@dataclass
class _Event:
    transfer: RecordingTransfer
    number: int
    batch: dict[str, int]

    def query(self) -> bool:
        return self.number <= self.transfer._done_until


class SquareDetector:
    """A double for the face detector, which finds white squares on black; the largest first.

    Attributes:
        seen: How many frames it has looked at.
    """

    digest = "squares"

    def __init__(self, *_: object, **__: object) -> None:
        self.seen = 0

    def faces(self, frame: tuple[av.VideoFrame, Display]) -> list[tuple[int, int, int, int]]:
        self.seen += 1
        picture = frame[1].upright(frame[0].to_ndarray(format="rgb24"))[..., 1]
        _, _, found, _ = cv2.connectedComponentsWithStats((picture > 128).astype(np.uint8))
        boxes = [tuple(map(int, row[:4])) for row in found[1:] if row[4] > 16]
        return sorted(boxes, key=lambda box: -box[2] * box[3])


def squares(*boxes: tuple[int, int, int], width: int = 128, height: int = 96) -> np.ndarray:
    """White squares (left, top, side) on black, uint8 [h, w, 3]."""
    picture = np.zeros((height, width, 3), np.uint8)
    for left, top, side in boxes:
        picture[max(0, top) : top + side, max(0, left) : left + side] = 255
    return picture
