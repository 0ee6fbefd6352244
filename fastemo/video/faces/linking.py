"""Faces of consecutive frames -> whose is whose, by overlap; and the box of a clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np
from scipy.optimize import linear_sum_assignment

from fastemo.video.config import Box, area

LEAST_OVERLAP = 0.2  # of a face's expected and found box, as intersection over union
_MOST_MISSED = 2  # frames in a row in which a face may be hidden

# A face of a clip: the frame's place among the clip's frames -> its box there.
Track = dict[int, Box]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    inside = 1.0
    for axis in (0, 1):
        start, end = max(one[axis], other[axis]), min(one[axis] + one[axis + 2], other[axis] + other[axis + 2])
        inside *= max(0, end - start)
    return inside / (area(one) + area(other) - inside)


def assign(overlaps: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns of float [N, M] that belong together, each once, so that their overlaps' sum is the largest."""
    pairs = zip(*linear_sum_assignment(overlaps, maximize=True), strict=True)
    return [(int(row), int(column)) for row, column in pairs if overlaps[row, column] >= LEAST_OVERLAP]


def link(faces: Sequence[Sequence[Box]]) -> list[Track]:
    """The faces of T frames, given by their boxes, as tracks, in the order in which they appear.

    A face is expected where it would be if it went on moving as between its last two frames.
    """
    tracks: list[Track] = []
    for place, found in enumerate(faces):
        open_tracks = [track for track in tracks if place - max(track) <= _MOST_MISSED + 1]
        expected = [_expected(track, place) for track in open_tracks]
        overlaps = np.array([[overlap(one, other) for other in found] for one in expected])
        pairs = assign(overlaps.reshape(len(expected), len(found)))
        for row, column in pairs:
            open_tracks[row][place] = found[column]
        taken = {column for _, column in pairs}
        tracks += [{place: box} for column, box in enumerate(found) if column not in taken]
    return tracks


def _expected(track: Track, place: int) -> Box:
    *_, before, last = [*track] if len(track) > 1 else [*track] * 2
    (left, top, width, height), (old_left, old_top, _, _) = track[last], track[before]
    steps = (place - last) / max(1, last - before)
    return left + round(steps * (left - old_left)), top + round(steps * (top - old_top)), width, height


def lasting(tracks: Sequence[Track]) -> list[Track]:
    """Those that are in at least half of the frames in which any face was found."""
    num_frames = len({place for track in tracks for place in track})
    return [track for track in tracks if 2 * len(track) >= num_frames]


def median_box(boxes: Iterable[Box]) -> Box:
    """Each side's median, in whole pixels."""
    left, top, width, height = (round(median(values)) for values in zip(*boxes, strict=True))
    return left, top, width, height


def clip_face(faces: Sequence[Sequence[Box]]) -> tuple[Box | None, int]:
    """The box of a clip's largest face, its median over the T frames, and how many faces the clip has."""
    boxes = [median_box(track.values()) for track in lasting(link(faces))]
    return max(boxes, key=area, default=None), len(boxes)
