"""A file as one clip: the frames that training would sample from it, decoded by the run's backend, and their times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import torch

from fastemo.corpus.clip import Clip
from fastemo.corpus.files.display import Display
from fastemo.corpus.files.examining import PROBED
from fastemo.corpus.files.probe import CONTAINERS_ONLY, SAME, BadFile, holds_images, probe_images, probe_video
from fastemo.corpus.files.truncation import cut_off
from fastemo.inference.parts import file_parts
from fastemo.inference.windows import Frames, Plan, WindowClip
from fastemo.video import dali
from fastemo.video.backends import Decoder, choose_backend
from fastemo.video.bitstream.frame_headers import NotUnderstood
from fastemo.video.bitstream.pruning import BitstreamError
from fastemo.video.bitstream.sections import sections
from fastemo.video.bitstream.source import Source
from fastemo.video.config import FrameSpec, VideoConfig
from fastemo.video.decode import frames_by_number, taker
from fastemo.video.sampling import frame_indices

Size = tuple[int, int]

# Larger files are not read into memory; of smaller ones the headers need no look.
_MOST_BYTES, _SMALL_BYTES = 256 * 2**20, 16 * 2**20


@dataclass(frozen=True, eq=False)
class PendingClip(WindowClip):
    """A clip without pixels, which DALI is still to decode.

    Attributes:
        source: Its packets.
        size: Width and height of its frames once sampled, in pixels.
    """

    source: Source | None = None
    size: Size = (0, 0)


class Reader:
    """Reads files as the loader of a training does: by DALI or decord, and by PyAV what these leave to it.

    With crop `face` PyAV reads them, in whose frames the faces are found, too.

    Attributes:
        note: Why another backend than the run's is used; empty if it is the run's.
    """

    def __init__(self, config: VideoConfig, device: torch.device) -> None:
        self._spec, self._device, self.note = config.spec, device, ""
        try:
            self.backend, _ = choose_backend(config.backend, device)
        except ValueError as error:  # it is not installed on this machine
            self.backend, self.note = "pyav", f"PyAV decodes: {error}"
        if config.crop == "face" and self.backend != "pyav":
            self.backend, self.note = "pyav", f"PyAV decodes instead of {self.backend}: faces are found in its frames"
        self._dalis: dict[Size, dali.DaliDecoder] = {}

    def read(self, path: Path, most_seconds: float) -> WindowClip | None:
        """As `read_clip`, on the calling thread; for DALI a `PendingClip`."""
        if self.backend == "pyav" or holds_images(path):
            return read_clip(path, self._spec, most_seconds=most_seconds)
        probe = probe_video(path, with_times=True)
        if (found := whole_clip(probe.times, self._spec, most_seconds)) is None:
            return None
        size = self._spec.out_size(probe.width, probe.height)
        row = Clip(key=path.name, **{name: getattr(probe, name) for name in PROBED})
        decoder = Decoder([row], path.parent, self._spec, size, self.backend, self._device)
        source = decoder.prune(0) if decoder.by_dali(0) else None
        if source is not None:
            return PendingClip(found.start, found.end, found.numbers, found.times, source=source, size=size)
        return replace(found, frames=by_number(found.numbers, decoder.decode(0)))

    def finished(self, clips: Sequence[WindowClip]) -> list[WindowClip]:
        """The same clips; those that are pending decoded by DALI, one batch for each size. Not for several threads."""
        done = list(clips)
        pending: dict[Size, list[tuple[int, PendingClip, Source]]] = {}
        for row, clip in enumerate(clips):
            if isinstance(clip, PendingClip) and clip.source is not None:
                pending.setdefault(clip.size, []).append((row, clip, clip.source))
        for size, waiting in pending.items():
            if size not in self._dalis:
                self._dalis[size] = dali.DaliDecoder(self._spec, self._device, frame_size=size)
            frames, errors = self._dalis[size].decode([source for _, _, source in waiting])
            for place, ((row, clip, _), pixels) in enumerate(zip(waiting, frames.cpu().numpy(), strict=True)):
                error = errors[place].reason if place in errors else None
                done[row] = WindowClip(
                    clip.start, clip.end, clip.numbers, clip.times, by_number(clip.numbers, pixels), error
                )
        return done


def read_clip(path: Path, spec: FrameSpec, *, most_seconds: float = math.inf) -> WindowClip | None:
    """Sample T frames from a whole video, folder of images or picture, on the calling thread.

    They are the frames that training samples and, decoded by PyAV, the same bytes.

    Returns:
        `None` if it is longer than `most_seconds`.

    Raises:
        BadFile: It cannot be used, for the reason by which a scan would reject it.
        DecodeError: A frame does not decode.
        OSError: It cannot be read.
    """
    if holds_images(path):
        numbers = frame_indices(probe_images(path).num_frames, spec.num_frames).tolist()
        return WindowClip(0.0, 0.0, tuple(numbers), (), frames_by_number(path, numbers, spec))
    size = path.stat().st_size
    if size > _SMALL_BYTES and most_seconds < math.inf and _header_seconds(path) > most_seconds:
        return None
    if size > _MOST_BYTES:
        return _read_twice(path, spec, most_seconds)
    try:
        with sections(path, seconds=math.inf, most_bytes=_MOST_BYTES) as found:
            section = next(iter(found), None)
            if section is None or not section.times or cut_off(path, size):
                raise NotUnderstood
            if (clip := whole_clip(section.times, spec, most_seconds)) is None:
                return None
            wanted = [*dict.fromkeys(clip.numbers)]
            pruned = section.pruned(wanted)
    except (NotUnderstood, BitstreamError):
        return _read_probed(path, spec, most_seconds)
    return replace(clip, frames=frames_by_number(path, wanted, spec, pruned))


def by_number(numbers: Sequence[int], frames: np.ndarray) -> Frames:
    """Frames uint8 [T, 3, h, w] by their numbers."""
    return dict(zip(numbers, frames, strict=True))


def array_clip(frames_NHWC: np.ndarray, spec: FrameSpec) -> WindowClip:
    """T of the frames uint8 [N, H, W, 3], cropped and resized as those of files.

    Raises:
        ValueError: The array has another shape or dtype, or no frames.
    """
    if frames_NHWC.dtype != np.uint8 or frames_NHWC.ndim != 4 or frames_NHWC.shape[3] != 3:
        shape = f"{frames_NHWC.dtype} {list(frames_NHWC.shape)}"
        raise ValueError(f"frames must be uint8 [N, H, W, 3], RGB, not {shape}")
    numbers = frame_indices(len(frames_NHWC), spec.num_frames).tolist()
    height, width = frames_NHWC.shape[1:3]
    take, pixels = taker(spec), {}
    for number in dict.fromkeys(numbers):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames_NHWC[number]), format="rgb24")
        pixels[number] = take(frame, Display(width, height))
    return WindowClip(0.0, 0.0, tuple(numbers), (), pixels)


def whole_clip(times: Sequence[float], spec: FrameSpec, most_seconds: float = math.inf) -> WindowClip | None:
    """All frames of a video as one clip, without pixels; `None` if it is longer than `most_seconds`."""
    plan = Plan(1.0, 1.0, spec.num_frames, whole_up_to=math.inf)
    plan.add(times)
    [clip] = plan.finish()
    return None if clip.end - clip.start > most_seconds + SAME else clip


def _read_probed(path: Path, spec: FrameSpec, most_seconds: float) -> WindowClip | None:
    """What pruning does not understand, or cannot read: probed as a scan does."""
    probe = probe_video(path, with_times=True)
    if (clip := whole_clip(probe.times, spec, most_seconds)) is None:
        return None
    return replace(clip, frames=frames_by_number(path, clip.numbers, spec))


def _read_twice(path: Path, spec: FrameSpec, most_seconds: float) -> WindowClip | None:
    """A file that is too large for memory: read once for its times, and once more for the wanted frames."""
    with file_parts(path, spec) as parts:
        times = [time for part in parts for time in part.times]
    if not times:
        raise BadFile("no frame decodes: the video stream has no packets")
    if (clip := whole_clip(times, spec, most_seconds)) is None:
        return None
    pixels: dict[int, Any] = {}
    with file_parts(path, spec) as parts:
        for part in parts:
            wanted = [it for it in dict.fromkeys(clip.numbers) if part.first <= it < part.first + len(part.times)]
            pixels.update(part.decode(wanted).result() if wanted else {})
    return replace(clip, frames=pixels)


def _header_seconds(path: Path) -> float:
    """The duration that the file's header gives; 0 if it gives none."""
    with (
        suppress(av.error.FFmpegError, ValueError),
        av.open(str(path.absolute()), options=CONTAINERS_ONLY) as container,
    ):
        return (container.duration or 0) / av.time_base
    return 0.0
