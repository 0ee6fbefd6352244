"""Windows of a video: which frames each of them holds, and their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

SAME = 1e-6  # seconds: a frame at a window's start belongs to it, one at its end to the next


@dataclass(frozen=True, eq=False)
class WindowClip:
    """The sampled frames of one window of a video.

    Attributes:
        start, end: In seconds, as a player counts them.
        numbers: T frame numbers in the video, ascending; a window of fewer frames repeats some.
        times: Of these frames, in seconds.
        frames: Frame number -> uint8 [3, h, w], RGB, as `decode_clip` gives it; at least those of `numbers`.
        error: Why the window has no frames; `None` if it has.
    """

    start: float
    end: float
    numbers: tuple[int, ...] = ()
    times: tuple[float, ...] = ()
    frames: Mapping[int, np.ndarray] = field(default_factory=dict)
    error: str | None = None
