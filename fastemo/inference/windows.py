"""Windows of a video: which frames each of them holds, and their pixels, in bounded memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from fastemo.corpus.files.probe import SAME
from fastemo.errors import DecodeError, UserError
from fastemo.video.config import Box
from fastemo.video.sampling import frame_indices

WINDOW_SECONDS, HOP_SECONDS = 3.0, 0.5  # where no others are asked for

Frames = Mapping[int, Any]  # each as `taker` gives it


@dataclass(frozen=True, eq=False)
class WindowClip:
    """The sampled frames of one window of a video.

    Attributes:
        start, end: In seconds, as a player counts them.
        numbers: T frame numbers in the video, ascending; a window of fewer frames repeats some.
        times: Of these frames, in seconds.
        frames: Frame number -> uint8 [3, h, w], RGB, as `decode_clip` gives it; at least those of `numbers`. Until the
            face is found that is cropped, `DecodedFrame`s.
        error: Why the window has no frames; `None` if it has.
        face, box: As in `Prediction`.
    """

    start: float
    end: float
    numbers: tuple[int, ...] = ()
    times: tuple[float, ...] = ()
    frames: Frames = field(default_factory=dict)
    error: str | None = None
    face: int = 0
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive frames of a video whose times are known.

    Attributes:
        first: Number of its first frame in the video.
        times: Of its frames, ascending, in seconds.
        decode: Frame numbers in it, ascending -> their pixels, now or later.
    """

    first: int
    times: Sequence[float]
    decode: Callable[[list[int]], Future[Frames]]


def window_and_hop(window: float | None, hop: float | None) -> tuple[float, float]:
    """The defaults for what is `None`."""
    window = WINDOW_SECONDS if window is None else window
    return window, min(HOP_SECONDS, window) if hop is None else hop


class Plan:
    """Windows `[k hop, k hop + window)` over frames whose times come one after another.

    The first window begins at 0, or earlier if a frame does; the last is the first that holds the last frame. A window
    is complete once a frame at or after its end is known.

    Args:
        window, hop: In seconds.
        num_frames: T.
        whole_up_to: In seconds: a video that is not longer is one clip.

    Raises:
        ValueError: `hop` is not positive, or longer than `window`, so that frames would be in no window.
    """

    def __init__(self, window: float, hop: float, num_frames: int, *, whole_up_to: float = 0.0) -> None:
        if not 0 < hop <= window < math.inf:
            raise ValueError(f"window ({window} s) and hop ({hop} s) must be positive, and the hop at most the window")
        self.window, self.hop, self._num_frames = window, hop, num_frames
        self.whole_up_to = whole_up_to
        self._times: list[float] = []
        self._first = 0  # number of the first frame in `_times`
        self._index: int | None = None

    @property
    def start(self) -> float:
        """No window that is still to come holds a frame before this time."""
        return -math.inf if self._index is None else self._index * self.hop

    def add(self, times: Sequence[float]) -> list[WindowClip]:
        """The windows, without pixels, that further frames complete."""
        self._times += times
        if not self._times:
            return []
        if self._index is None:
            if self.whole_up_to and self._end - self._times[0] <= self.whole_up_to + SAME:
                return []
            self._index = min(0, math.floor((self._times[0] + SAME) / self.hop))
        made = []
        while self._times[-1] >= self.start + self.window - SAME:
            made.append(self._next())
        return made

    def finish(self) -> list[WindowClip]:
        """The last window, without pixels; none if there were no frames."""
        if not self._times:
            return []
        if self._index is None:  # it is short enough to be one clip
            return [self._clip(self._times[0], self._end, 0, len(self._times))]
        return [self._next()]

    @property
    def _end(self) -> float:
        """The time at which the last known frame ends, if it is shown as long as the one before it."""
        return self._times[-1] + (self._times[-1] - self._times[-2] if len(self._times) > 1 else 0.0)

    def _next(self) -> WindowClip:
        assert self._index is not None
        start, end = self.start, self.start + self.window
        made = self._clip(start, min(end, self._end), *(bisect_left(self._times, it - SAME) for it in (start, end)))
        self._index += 1
        num_past = min(bisect_left(self._times, self.start - SAME), len(self._times) - 2)
        if num_past > 0:
            del self._times[:num_past]
            self._first += num_past
        return made

    def _clip(self, start: float, end: float, first: int, stop: int) -> WindowClip:
        if first == stop:
            return WindowClip(start, end, error=f"no frame between {start:.3f} and {end:.3f} s")
        chosen = frame_indices(stop - first, self._num_frames, first).tolist()
        times = tuple(self._times[place] for place in chosen)
        return WindowClip(start, end, tuple(self._first + place for place in chosen), times)


def window_clips(parts: Iterable[Part], plan: Plan, *, ahead: int) -> Iterator[WindowClip]:
    """The windows of a video with their pixels; each frame that any of them needs is decoded once.

    A frame that does not decode leaves the windows that need it without pixels; a video that ends with an error has a
    last window of no length that names it.

    Args:
        ahead: Parts that are decoded while others are used.

    Raises:
        UserError: The video cannot be read at all.
    """
    assembly = _Assembly(plan)
    error: UserError | None = None
    last = 0.0
    try:
        for part in parts:
            last = part.times[-1] if part.times else last
            assembly.add(part)
            yield from assembly.land(ahead)
    except UserError as found:
        error = found
    assembly.finish()
    if error is not None and not assembly.has_windows:
        raise error
    yield from assembly.land(0)
    if error is not None:
        yield WindowClip(last, last, error=getattr(error, "reason", str(error)))


class _Assembly:
    """Windows whose frames are still to come, and the parts that hold them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.has_windows = False
        self._waiting: deque[WindowClip] = deque()
        self._open: deque[tuple[Part, set[int]]] = deque()  # later windows may need more of their frames
        self._flying: deque[tuple[Part, list[int], Future[Frames] | None]] = deque()
        self._pixels: dict[int, Any] = {}
        self._failed: dict[int, str] = {}
        self._num_landed = 0

    def add(self, part: Part) -> None:
        self._open.append((part, set()))
        self._expect(self._plan.add(part.times))
        while self._open and (not (times := self._open[0][0].times) or times[-1] < self._plan.start - SAME):
            self._start()

    def finish(self) -> None:
        self._expect(self._plan.finish())
        while self._open:
            self._start()

    def _expect(self, windows: list[WindowClip]) -> None:
        self._waiting += windows
        self.has_windows |= bool(windows)
        for number in {number for window in windows for number in window.numbers}:
            part, wanted = next(it for it in self._open if number < it[0].first + len(it[0].times))
            assert number >= part.first
            wanted.add(number)

    def _start(self) -> None:
        part, wanted = self._open.popleft()
        self._flying.append((part, sorted(wanted), part.decode(sorted(wanted)) if wanted else None))

    def land(self, ahead: int) -> Iterator[WindowClip]:
        """Wait until no more than `ahead` parts are being decoded; the windows whose frames are there."""
        while len(self._flying) > ahead:
            part, wanted, future = self._flying.popleft()
            try:
                self._pixels.update(future.result() if future else {})
            except DecodeError as error:
                self._failed |= dict.fromkeys(wanted, error.reason)
            self._num_landed = part.first + len(part.times)
            while self._waiting and (not (numbers := self._waiting[0].numbers) or numbers[-1] < self._num_landed):
                yield self._filled(self._waiting.popleft())

    def _filled(self, window: WindowClip) -> WindowClip:
        reason = next((self._failed[number] for number in window.numbers if number in self._failed), None)
        frames = {} if reason else {number: self._pixels[number] for number in window.numbers}
        oldest = next((it.numbers[0] for it in self._waiting if it.numbers), self._num_landed)
        for known in (self._pixels, self._failed):
            for number in [number for number in known if number < oldest]:
                del known[number]
        return replace(window, frames=frames, error=window.error or reason)
