"""A video and its predictions -> the video with the predictions drawn over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.error
import numpy as np

from fastemo.corpus.files.display import Display
from fastemo.corpus.files.probe import CONTAINERS_ONLY, holds_images, pixel_aspect, video_stream
from fastemo.errors import UserError
from fastemo.inference.output.overlay import Overlay
from fastemo.inference.parts import codec_threads
from fastemo.inference.prediction import Prediction
from fastemo.machine import replacing

# Codecs of sound that players expect in MP4; others become AAC.
_COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})
_SOUND_RATE = 48000
_H264 = {"preset": "veryfast", "crf": "20"}
_MP4 = {"movie_timescale": "90000"}  # of the tracks' starts, by default milliseconds
_BT601 = 6  # FFmpeg's number of the matrix that RGB is converted with


def check_annotation(video: Path, out: Path) -> None:
    """Refuse what `annotate` would refuse, before any work.

    Raises:
        ValueError: `out` is not an .mp4, is `video` itself or in no folder, or `video` is a picture or a folder.
    """
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out}: an annotated video ends in .mp4")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}: create it first")
    if holds_images(video):
        raise ValueError(f"{video}: only a video can be annotated, not pictures")
    if out.exists() and video.exists() and out.samefile(video):
        raise ValueError(f"{out}: the annotated video would replace the video itself: choose another name")


def annotate(
    video: Path,
    predictions: Sequence[Prediction],
    class_names: Sequence[str],
    out: Path,
    on_progress: Callable[[float, float], None] | None = None,
) -> None:
    """Write a video as a player shows it, with the prediction of each window, and a strip of all of them over time.

    Every frame keeps its time. The sound is copied, or becomes AAC where MP4 does not take its codec. Packets that do
    not decode are left out, as players do.

    Args:
        video: A file; not a picture or a folder of images.
        predictions: Of its windows, in order.
        class_names: In the order of their colours.
        out: An .mp4, written atomically; one that exists is replaced.
        on_progress: Called after each frame with the seconds done and the seconds in all (0 where unknown).

    Raises:
        ValueError: As `check_annotation`.
        UserError: The video cannot be read, or the file not be written.
    """
    check_annotation(video, out)
    try:
        first, display = _first_frame(video)
        with (
            replacing(out) as partial,
            _open(video) as source,
            av.open(str(partial.absolute()), "w", format="mp4", options=_MP4) as target,
        ):
            stream = _video(source, video)
            picture = _Picture(stream, target, first, display, predictions, class_names)
            sound = _Sound(source, target)
            begin = Fraction(source.start_time or 0, av.time_base)
            total = (source.duration or 0) / av.time_base
            for packet in source.demux([it for it in (stream, sound.source) if it is not None]):
                if packet.stream.index != stream.index:
                    sound.take(packet, begin)
                elif (seconds := picture.take(packet, begin)) is not None and on_progress is not None:
                    on_progress(seconds, total)
            picture.close()
            sound.close()
    except (av.error.FFmpegError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{video}: cannot be annotated to {out}: {reason}") from error


class _Picture:
    """Frames: decoded, turned upright, drawn over and encoded."""

    def __init__(
        self,
        source: av.VideoStream,
        target: av.container.OutputContainer,
        first: av.VideoFrame,
        display: Display,
        predictions: Sequence[Prediction],
        class_names: Sequence[str],
    ) -> None:
        self._source, self._target = source, target
        self._size = width, height = tuple(max(2, side // 2 * 2) for side in display.size)
        self._tick = source.time_base or Fraction(1, 90_000)
        rate = source.average_rate or source.guessed_rate or Fraction(25)
        self._last, self._step = -1, max(1, round(1 / (rate * self._tick)))
        self._encoder = target.add_stream("libx264", rate=rate, options=_H264)
        self._encoder.width, self._encoder.height, self._encoder.pix_fmt = width, height, "yuv420p"
        context = self._encoder.codec_context
        context.time_base = self._tick
        context.thread_count = source.codec_context.thread_count = codec_threads()
        shown = first.reformat(format="yuv420p")
        context.color_range, context.colorspace = shown.color_range, shown.colorspace
        context.color_trc, context.color_primaries = shown.color_trc, shown.color_primaries
        if first.format.is_rgb:
            context.colorspace = _BT601
        self._overlay = Overlay(predictions, class_names, width, height, int(context.colorspace))

    def take(self, packet: av.Packet, begin: Fraction) -> float | None:
        """Decode a packet, and encode the frames that come of it; returns the time of the last one, in seconds."""
        frames: list[av.VideoFrame] = []
        with suppress(av.error.InvalidDataError):
            frames = packet.decode()
        seconds = None
        for frame in frames:
            pts = self._last + self._step if frame.pts is None else frame.pts - round(begin / self._tick)
            self._last = max(pts, self._last + 1)
            seconds = float(self._last * self._tick)
            drawn = self._drawn(frame, seconds)
            drawn.pts, drawn.time_base = self._last, self._tick
            self._target.mux(self._encoder.encode(drawn))
        return seconds

    def close(self) -> None:
        self._target.mux(self._encoder.encode(None))

    def _drawn(self, frame: av.VideoFrame, seconds: float) -> av.VideoFrame:
        display = Display.of(frame, pixel_aspect(self._source))
        width, height = self._size[::-1] if display.is_turned else self._size
        data: Any = frame.reformat(width=width, height=height, format="yuv420p").to_ndarray().ravel()
        parts = np.split(data, [width * height, width * height * 5 // 4])
        shapes = (height, width), (height // 2, width // 2), (height // 2, width // 2)
        planes = [display.upright(part.reshape(*shape, 1))[..., 0] for part, shape in zip(parts, shapes, strict=True)]
        self._overlay.draw(planes, seconds)
        width, height = self._size
        data = np.concatenate([plane.ravel() for plane in planes]).reshape(height * 3 // 2, width)
        return av.VideoFrame.from_ndarray(data, format="yuv420p")


class _Sound:
    """The sound: copied, or encoded anew."""

    def __init__(self, source: av.container.InputContainer, target: av.container.OutputContainer) -> None:
        found: Any = source.streams.best("audio")
        self.source = found if found is not None and found.codec_context is not None else None
        self._target, self._out = target, cast(Any, None)
        if self.source is None:
            return
        self._is_copied = self.source.codec_context.codec.canonical_name in _COPIED
        if self._is_copied:
            self._out = target.add_stream_from_template(self.source)
            return
        self.source.codec_context.thread_count = 1
        self._out = target.add_stream("aac", rate=_SOUND_RATE)
        self._out.codec_context.layout = "mono" if self.source.codec_context.channels == 1 else "stereo"

    def take(self, packet: av.Packet, begin: Fraction) -> None:
        offset = round(begin / packet.time_base)
        if not self._is_copied:
            with suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    frame.pts = None if frame.pts is None else frame.pts - offset
                    self._target.mux(self._out.encode(frame))
        elif packet.size and packet.dts is not None:
            packet.pts = (packet.dts if packet.pts is None else packet.pts) - offset
            packet.dts -= offset
            packet.stream = self._out
            self._target.mux(packet)

    def close(self) -> None:
        if self.source is not None and not self._is_copied:
            self._target.mux(self._out.encode(None))


def _open(video: Path) -> av.container.InputContainer:
    return av.open(str(video.absolute()), options=CONTAINERS_ONLY)


def _video(container: av.container.InputContainer, video: Path) -> av.VideoStream:
    stream = video_stream(container)
    if stream is None or stream.codec_context is None:
        raise UserError(f"{video}: no video stream that can be decoded")
    return stream


def _first_frame(video: Path) -> tuple[av.VideoFrame, Display]:
    with _open(video) as container:
        stream = _video(container, video)
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            with suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    return frame, Display.of(frame, pixel_aspect(stream))
    raise UserError(f"{video}: no frame decodes")
