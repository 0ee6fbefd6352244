"""What lies between the threads of a live input: a stream's clock, the packets that wait, the frames of its windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Condition
from typing import Any

import av
import numpy as np

from fastemo.corpus.files.probe import SAME
from fastemo.inference.windows import Plan, WindowClip

SILENCE = 10.0  # seconds without a packet, after which a stream has failed
BEHIND = 1.0  # seconds of packets that may wait for the decoder


class StreamClock:
    """A stream's own times -> seconds since its first frame, also where the source restarts or its clock wraps."""

    def __init__(self) -> None:
        self._shift: float | None = None
        self._last, self._arrived = 0.0, 0.0

    def place(self, time: float, arrived: float) -> tuple[float, bool] | None:
        """The seconds of the next frame, and whether the source restarted before it; `None`: it is out of order."""
        if self._shift is None:
            self._shift = -time
            self._last, self._arrived = 0.0, arrived
            return 0.0, False
        restarted = not -BEHIND < time + self._shift - self._last < SILENCE
        if restarted:
            self._shift = self._last + arrived - self._arrived - time
        seconds = time + self._shift
        if seconds <= self._last:
            return None
        self._last, self._arrived = seconds, arrived
        return seconds, restarted


class WindowRing:
    """The frames of the last `window` seconds, and the newest window that they completed.

    Windows are those of `Plan`; the first frame is at 0 s.

    Attributes:
        skipped: Complete windows that nobody will get: a newer one was complete before they were taken, or frames
            are missing in them.
        num_added: Frames.
    """

    def __init__(self, num_frames: int, window: float, hop: float) -> None:
        self._plan = Plan(window, hop, num_frames)
        self._frames: dict[int, tuple[float, Any]] = {}
        self._ready: deque[tuple[WindowClip, float]] = deque()
        self.num_added = self.skipped = 0
        self._arrived, self._whole_from = 0.0, float("-inf")

    def add(self, time: float, pixels: Any, arrived: float, *, after_gap: bool = False) -> None:
        """Add the next frame, at `time` seconds; `after_gap`: frames directly before it are missing."""
        if after_gap:
            self._whole_from = time
        self._complete(self._plan.add([time]))
        self._frames[self.num_added] = time, pixels
        self.num_added, self._arrived = self.num_added + 1, arrived
        while self._frames[oldest := next(iter(self._frames))][0] < self._plan.start - SAME:
            del self._frames[oldest]

    def end(self, *, after_gap: bool = False) -> None:
        """No frame follows: complete the window that holds the last one."""
        if after_gap:
            self._whole_from = float("inf")
        self._complete(self._plan.finish(), is_last=True)

    def take(self) -> tuple[WindowClip, float] | None:
        """The newest complete window that was not taken yet, if any, and when its last frame had arrived."""
        return self._ready.popleft() if self._ready else None

    def _complete(self, clips: Sequence[WindowClip], *, is_last: bool = False) -> None:
        for clip in clips:
            if clip.error is not None or clip.start < self._whole_from - SAME:
                self.skipped += 1
                continue
            if not is_last:  # after the end nothing newer can wait behind an older one
                self.skipped += len(self._ready)
                self._ready.clear()
            frames = {number: self._frames[number][1] for number in clip.numbers}
            self._ready.append((replace(clip, frames=frames), self._arrived))


class Inbox:
    """What was read and waits to be decoded, bounded: the reader never waits, and what is too old is dropped."""

    def __init__(self) -> None:
        self._items: deque[tuple[Any, float, bool]] = deque()
        self._changed = Condition()
        self._is_closed, self._lost = False, True

    def put(self, packet: av.Packet, seconds: float) -> None:
        """Add a packet; if too many wait, those before the newest keyframe are dropped, or all up to the next one."""
        with self._changed:
            if _restarts(packet) or not self._lost:
                self._items.append((packet, seconds, self._lost))
                self._lost = False
            if self._items and abs(seconds - self._items[0][1]) > BEHIND:  # below 0 where the source restarted
                self._drop(first=1)
            self._changed.notify()

    def put_newest(self, picture: np.ndarray, seconds: float) -> None:
        """Add a picture in place of what waits."""
        with self._changed:
            self._items.clear()
            self._items.append((picture, seconds, False))
            self._changed.notify()

    def lose(self) -> None:
        """A packet did not decode: drop all up to the next keyframe."""
        with self._changed:
            self._drop(first=0)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def __iter__(self) -> Iterator[tuple[Any, float, bool]]:
        """(packet or picture, its seconds, whether some were dropped before it), until closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._is_closed)
                if not self._items:
                    return
                item = self._items.popleft()
            yield item

    def _drop(self, first: int) -> None:
        found = [index for index, item in enumerate(self._items) if index >= first and _restarts(item[0])]
        for _ in range(found[-1] if found else len(self._items)):
            self._items.popleft()
        if found:
            packet, seconds, _ = self._items[0]
            self._items[0] = packet, seconds, True
        else:
            self._lost = True


def _restarts(packet: av.Packet) -> bool:
    """Whether it needs no packet before it: a keyframe, or the empty one at the end."""
    return packet.is_keyframe or packet.size == 0
