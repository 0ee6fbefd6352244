"""Properties of one file, found by demuxing it once and decoding its first frame or all of it."""

from __future__ import annotations

import errno
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
from av.stream import Disposition

from fastemo.corpus.config import PICTURE_SUFFIXES, Verify
from fastemo.corpus.files.display import Display
from fastemo.corpus.files.truncation import cut_off

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".divx", ".flv", ".f4v", ".mpg", ".mpeg"}
    | {".m2v", ".vob", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".ogv", ".ogm", ".mxf", ".dv", ".gif", ".y4m"}
)
IMAGE_NAME = re.compile(r"frame(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE | re.ASCII)


# Options for opening untrusted files. Playlists and lists of files (HLS, DASH, concat) name other files, anywhere, and
# FFmpeg would open them: only containers that hold their own frames are read, whatever the file's name.
CONTAINERS_ONLY = {
    "format_whitelist": "mov,mp4,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,mxf,dv,gif,yuv4mpegpipe",
    "protocol_whitelist": "file",
}
IMAGES_ONLY = {
    "format_whitelist": "image2,jpeg_pipe,png_pipe,bmp_pipe,gif,tiff_pipe,webp_pipe",
    "protocol_whitelist": "file",
    "pattern_type": "none",
}


# Recordings of these begin anywhere and have gaps, and may hold the two fields of a frame in a packet each.
_BROADCAST = frozenset({"mpegts", "mpeg"})
SAME = 1e-6  # seconds: a frame at a range's start belongs to it, one at its end to the next
_HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of the transfer functions


class BadFile(ValueError):
    """An unusable file; the message is the reason, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Properties of a video.

    Attributes:
        num_frames: Frames that decode: the packets that no edit list discards. The count in the header is often
            higher (RAVDESS: by one).
        fps: Average frames per second; 0 for a folder of images, which has no time base.
        width, height: Of the picture that a player shows, in square pixels: see `Display.size`.
        codec: FFmpeg's name of the codec, or `images` for a folder of images.
        duration_seconds: `num_frames / fps`; 0 for a folder of images.
        orientation: How the picture is stored, 1 to 8 as Exif numbers it; 1 is upright.
        pixel_aspect: Width of a stored pixel, as a multiple of its height.
        hdr: `PQ` or `HLG` for these transfer functions, else empty.
        ranges: For each segment asked for, its first frame, the one after its last, and the first one's timestamp in
            the stream's time base (0 if it has no frame or no timestamp).
        times: Of the frames, ascending, in seconds as a player counts them; only if asked for.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    codec: str
    duration_seconds: float
    orientation: int = 1
    pixel_aspect: float = 1.0
    hdr: str = ""
    ranges: list[tuple[int, int, int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def probe_clip(path: Path, *, verify: Verify = "quick", segments: Sequence[tuple[float, float]] = ()) -> Probe:
    """`probe_video` of a file, or `probe_images` of a folder or picture.

    Raises:
        BadFile: As these two, or segments of images.
    """
    if not holds_images(path):
        return probe_video(path, verify=verify, segments=segments)
    if segments:
        raise BadFile("pictures have no times, so that they have no segments")
    return probe_images(path, verify=verify)


def probe_video(
    path: Path, *, verify: Verify = "quick", segments: Sequence[tuple[float, float]] = (), with_times: bool = False
) -> Probe:
    """Demux a file once and decode its first frame (`quick`) or every frame (`full`).

    Args:
        segments: Start and end in seconds, as a player counts them. A segment's frames are those whose time t fulfils
            start <= t < end, to the microsecond.

    Raises:
        BadFile: The file is empty, unreadable or truncated, has no video stream, does not decode, or (only with `full`)
            has frames of several sizes.
    """
    size = path.stat().st_size
    if size == 0:
        raise BadFile("zero length")
    try:
        with _open(path) as container:
            stream = _checked_stream(container)
            timestamps, is_whole = _timestamps(container, stream)
            num_frames = len(timestamps)
            clock = _Clock(stream.time_base or Fraction(0), (container.start_time or 0) / av.time_base)
            fps = max(0.0, float(stream.average_rate or stream.guessed_rate or 0))
            codec, is_broadcast = stream.codec_context.name, container.format.name in _BROADCAST
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        cut = cut_off(path, size)
        raise BadFile(f"truncated: {cut}" if cut else f"unreadable: {_reason(error)}") from error
    cut = cut_off(path, size)
    if cut:
        raise BadFile(f"truncated: {cut}")
    if num_frames == 0:
        raise BadFile("no frame decodes: the video stream has no packets")
    # Frames before the first keyframe, and after gaps, may or may not decode.
    in_full = verify == "full" or not is_whole
    found, shown = _decode(path, None if in_full else 1, strict=verify == "full")
    if not (decoded := len(found)):
        raise BadFile("no frame decodes")
    if is_whole and in_full and decoded != num_frames and not is_broadcast:
        raise BadFile(f"only {decoded} of {num_frames} stored frames decode")
    if in_full or decoded > 1:
        num_frames, timestamps = decoded, found
    return Probe(
        num_frames=num_frames,
        fps=fps,
        codec=codec,
        duration_seconds=num_frames / fps if fps else 0.0,
        ranges=_ranges(timestamps, clock, fps, segments) if segments else [],
        times=_times(timestamps, clock, fps)[1] if with_times else [],
        **shown,
    )


class _Clock(NamedTuple):
    """How a stream's timestamps give the time that a player shows: the unit, and the file's start, in seconds."""

    time_base: Fraction
    start: float


def _ranges(
    timestamps: Sequence[int | None], clock: _Clock, fps: float, segments: Sequence[tuple[float, float]]
) -> list[tuple[int, int, int]]:
    """`Probe.ranges`."""
    known, times = _times(timestamps, clock, fps)
    ranges = [(bisect_left(times, start - SAME), bisect_left(times, end - SAME)) for start, end in segments]
    return [(first, stop, known[first] if first < stop else 0) for first, stop in ranges]


def _times(timestamps: Sequence[int | None], clock: _Clock, fps: float) -> tuple[list[int], list[float]]:
    """Sorted timestamps and times in seconds; frames without timestamps follow each other evenly, from 0."""
    known = sorted(pts for pts in timestamps if pts is not None)
    if len(known) == len(timestamps) and clock.time_base:
        return known, [float(pts * clock.time_base) - clock.start for pts in known]
    if not fps:
        raise BadFile("its frames have no times, so that it has no segments")
    return [0] * len(timestamps), [number / fps for number in range(len(timestamps))]


def holds_images(path: Path) -> bool:
    """Whether a clip is a folder of images or a single picture."""
    return path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """The frames of a folder of images (`frame0001.jpg` ...), in the order of their numbers; or a single picture."""
    if not folder.is_dir():
        return [folder]
    numbered = [
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := IMAGE_NAME.fullmatch(path.name)) and path.is_file()
    ]
    return [path for _, path in sorted(numbered)]


def probe_images(folder: Path, *, verify: Verify = "quick") -> Probe:
    """Probe a folder of images, or a picture, as a clip: decode the first image (`quick`) or all of them (`full`).

    Raises:
        BadFile: An image is empty or does not decode, or its size differs from the first one's.
    """
    files = image_files(folder)
    if not files:
        raise BadFile("no images named frame0001.jpg, frame0002.jpg, ...")
    displays: list[Display] = []
    for path in files if verify == "full" else files[:1]:
        try:
            with av.open(str(path.absolute()), options=IMAGES_ONLY) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                displays.append(Display.of_image(next(container.decode(video=0)), path))
        except (av.error.FFmpegError, StopIteration, IndexError) as error:
            raise BadFile(f"image {path.name} does not decode") from error
        (width, height), (first_width, first_height) = displays[-1].size, displays[0].size
        if (width, height) != (first_width, first_height):
            raise BadFile(f"image {path.name} is {width}x{height}, the first is {first_width}x{first_height}")
    shown = _properties(displays[0])
    return Probe(num_frames=len(files), fps=0.0, codec="images", duration_seconds=0.0, **shown)


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The video that a player shows: not a cover picture; the default one, and of several the largest."""

    def rank(stream: av.VideoStream) -> tuple[bool, bool, int]:
        flags, context = stream.disposition, stream.codec_context
        area = context.width * context.height if context is not None else 0
        return not flags & Disposition.attached_pic, bool(flags & Disposition.default), area

    return max(container.streams.video, key=rank, default=None)


def _checked_stream(container: av.container.InputContainer) -> av.VideoStream:
    stream = video_stream(container)
    if stream is None:
        raise BadFile("no video stream")
    if stream.disposition & Disposition.attached_pic:
        raise BadFile("no video stream, only a cover picture")
    if stream.codec_context is None:  # for a codec that FFmpeg does not know
        raise BadFile("no frame decodes: the video's codec is unknown")
    return stream


def _timestamps(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[list[int | None], bool]:
    """The timestamps of the frames that no edit list discards, and whether all of them should decode."""
    timestamps, is_whole = [], None
    for packet in container.demux(stream):
        if packet.size == 0:  # the flush packet at the end
            continue
        if packet.is_corrupt and container.format.name not in _BROADCAST:
            raise BadFile("truncated: the file ends inside a frame")
        if any(data.data_type == "encryption_info" for data in packet.iter_sidedata()):
            raise BadFile("it is encrypted")
        is_whole = (packet.is_keyframe if is_whole is None else is_whole) and not packet.is_corrupt
        if not packet.is_discard:
            timestamps.append(packet.pts)
    return timestamps, bool(is_whole)


def _open(path: Path) -> av.container.InputContainer:
    return av.open(str(path.absolute()), options=CONTAINERS_ONLY)


def _decode(path: Path, limit: int | None, *, strict: bool) -> tuple[list[int | None], dict[str, Any]]:
    """The timestamps of the frames that decode, and the properties of the picture.

    Ends after `limit` frames, unless packets may be fields. If `strict`, damage that the decoder would conceal is an
    error.
    """
    timestamps: list[int | None] = []
    display, last = None, None
    try:
        with _open(path) as container:
            stream = _checked_stream(container)
            stream.codec_context.thread_count = 1
            if strict:
                stream.codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(stream):
                if strict and frame.is_corrupt:
                    raise BadFile(f"frame {len(timestamps)} is damaged")
                now = Display.of(frame, pixel_aspect(stream))
                if display is not None and display.size != now.size:
                    width, height = display.size
                    raise BadFile(
                        f"frame {len(timestamps)} is {now.size[0]}x{now.size[1]}, earlier ones {width}x{height}"
                    )
                display, last = now, frame
                timestamps.append(frame.pts)
                if len(timestamps) == limit and not (frame.interlaced_frame and container.format.name in _BROADCAST):
                    break
    except av.error.FFmpegError as error:
        where = f"frame {len(timestamps)} does not decode" if timestamps else "no frame decodes"
        raise BadFile(f"{where}: {_reason(error)}") from error
    return timestamps, _properties(display, last) if display else {}


def pixel_aspect(stream: av.VideoStream) -> Fraction | None:
    """The container's, else the codec's; the latter is known once a frame has been decoded."""
    return stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio


def _properties(display: Display, frame: av.VideoFrame | None = None) -> dict[str, Any]:
    width, height = display.size
    return {
        "width": width,
        "height": height,
        "orientation": display.orientation,
        "pixel_aspect": float(display.pixel_aspect),
        "hdr": _HDR.get(int(frame.color_trc), "") if frame else "",
    }


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.EINVAL:  # FFmpeg's error for a format that is not on the list
        return "it is damaged or not a video file, whatever its name"
    return str(getattr(error, "strerror", "") or error)
