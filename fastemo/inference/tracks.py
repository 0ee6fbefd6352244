"""Faces in windows of a video: each followed from window to window, and cropped as in training."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from fastemo.inference.prediction import NO_FACE, Faces
from fastemo.inference.windows import WindowClip
from fastemo.video.config import Box, FrameSpec, area
from fastemo.video.decode import ToRGB
from fastemo.video.faces.detector import FaceDetector
from fastemo.video.faces.linking import assign, lasting, link, median_box, overlap

# Larger pictures than in training: small faces beside a large one count as well.
_SIDES_FOR_ALL = (320, 640)
_MOST_SECONDS = 1.0  # for which a face may be hidden; then it is another one

_Path = dict[float, Box]  # a face's boxes by their times


def detector_for(faces: Faces, weights: Path | None) -> FaceDetector:
    """The detector for a number of faces; `weights` and errors as those of `FaceDetector`."""
    return FaceDetector(weights, sides=_SIDES_FOR_ALL) if faces == "all" else FaceDetector(weights)


class FaceTracks:
    """The faces of one video, window by window.

    A face keeps its number while its boxes overlap from frame to frame; one that was away for more than a second gets
    a new one.

    Args:
        spec: Of the run, with crop `face`.
        faces: Whether each window gives its `largest` face or `all`.
        pool: Threads that the detector may use; `None`: the calling one alone.
    """

    def __init__(
        self, detector: FaceDetector, spec: FrameSpec, faces: Faces, pool: ThreadPoolExecutor | None = None
    ) -> None:
        self._detector, self._spec, self._faces, self._pool = detector, spec, faces, pool
        self._found: dict[int, list[Box]] = {}  # by frame number
        self._paths: dict[int, _Path] = {}
        self._num_faces = 0

    def clips(self, window: WindowClip) -> list[WindowClip]:
        """A window of `DecodedFrame`s as one clip a face, in the order of their numbers.

        Without a face, and of a window that has failed, one with an error.
        """
        if window.error is not None:
            return [window]
        numbers = [*dict.fromkeys(window.numbers)]
        times = dict(zip(window.numbers, window.times or window.numbers, strict=True))
        self._detect(window, numbers)
        tracks = lasting(link([self._found[number] for number in numbers]))
        named = self._named([{times[numbers[place]]: box for place, box in track.items()} for track in tracks])
        boxes = {face: median_box(path.values()) for face, path in sorted(named.items())}
        if not boxes:
            return [replace(window, frames={}, error=NO_FACE)]
        if self._faces == "largest":
            largest = max(boxes, key=lambda face: area(boxes[face]))
            boxes = {largest: boxes[largest]}
        return [self._cropped(window, face, box) for face, box in boxes.items()]

    def _cropped(self, window: WindowClip, face: int, box: Box) -> WindowClip:
        to_rgb = ToRGB(self._spec.at(box))
        frames = {number: to_rgb(*window.frames[number]).transpose(2, 0, 1) for number in dict.fromkeys(window.numbers)}
        return replace(window, frames=frames, face=face, box=box)

    def _detect(self, window: WindowClip, numbers: Sequence[int]) -> None:
        """Find the faces of the frames in which no earlier window has found them."""
        self._found = {number: it for number, it in self._found.items() if number >= numbers[0]}
        new = [number for number in numbers if number not in self._found]
        run = map if self._pool is None else self._pool.map
        self._found.update(zip(new, run(self._detector.faces, [window.frames[it] for it in new]), strict=True))

    def _named(self, tracks: Sequence[_Path]) -> dict[int, _Path]:
        """The tracks by the numbers of their faces."""
        begin = min((min(track) for track in tracks), default=0.0) - _MOST_SECONDS
        self._paths = {face: path for face, path in self._paths.items() if max(path) >= begin}
        known = [*self._paths]
        overlaps = [[_overlap(self._paths[face], track) for track in tracks] for face in known]
        pairs = assign(np.array(overlaps).reshape(len(known), len(tracks)))
        faces = {column: known[row] for row, column in pairs}
        named = {}
        for column, track in enumerate(tracks):
            if column not in faces:
                self._num_faces += 1
            face = faces.get(column, self._num_faces)
            before = {time: box for time, box in self._paths.get(face, {}).items() if time >= begin}
            named[face], self._paths[face] = track, dict(sorted({**before, **track}.items()))
        return named


def _overlap(path: _Path, track: _Path) -> float:
    """How far a track's boxes cover those of a known face, where that was less than a second before or after."""
    return mean([overlap(_at(path, time), box) for time, box in track.items() if _is_near(path, time)] or [0.0])


def _is_near(path: _Path, time: float) -> bool:
    return any(abs(time - known) <= _MOST_SECONDS for known in path)


def _at(path: _Path, time: float) -> Box:
    """A face's box at a time: between those before and after it, or as the last or first one."""
    times = [*path]
    sides = [np.interp(time, times, [box[side] for box in path.values()]) for side in range(4)]
    left, top, width, height = (round(float(side)) for side in sides)
    return left, top, width, height
