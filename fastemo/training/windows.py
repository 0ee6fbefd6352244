"""The batches that make up an update."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastemo.video.loader import ClipBatch


def timed(batches: Iterator[ClipBatch]) -> Iterator[tuple[ClipBatch, float]]:
    """Each batch with the seconds spent waiting for it."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def windows(batches: Iterator[tuple[ClipBatch, float]], size: int) -> Iterator[tuple[list[ClipBatch], float]]:
    """`size` batches at a time, with the seconds spent waiting for them; the last window may be shorter."""
    window: list[ClipBatch] = []
    waited = 0.0
    for batch, seconds in batches:
        window.append(batch)
        waited += seconds
        if len(window) == size:
            yield window, waited
            window, waited = [], 0.0
    if window:
        yield window, waited
