"""Packets of a file and wanted frames -> the fewest packets that decode to exactly those frames."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from fastemo.corpus.files.probe import CONTAINERS_ONLY, video_stream
from fastemo.errors import UserError
from fastemo.video.bitstream.frame_headers import NotUnderstood
from fastemo.video.bitstream.layout import Group, Layout, layout_of
from fastemo.video.bitstream.window import seek_packets

# Range unspecified; matrix, primaries and transfer unspecified. Source: ISO/IEC 23091-2, tables 2-4.
_NO_COLOURS = (0, 2, 2, 2)
# Options for opening an MP4 whose headers are complete. FFmpeg otherwise reads and decodes its first frames, to learn
# what packets and decoder give anyway: 9 of the 13 ms that pruning a RAVDESS clip took. `skip_frame` affects only the
# decoders of that probe, not the stream's own. The stream's pixel format is unknown until a frame has been decoded;
# asking PyAV 17 for it crashes the process.
UNPROBED = {"skip_frame": "all", "probesize": "5000", "analyzeduration": "0", **CONTAINERS_ONLY}
# Any would do: frames are counted, not timed. 90 kHz is a multiple of the usual frame rates.
_TICKS, _TICKS_A_FRAME = 90_000, 3_000
_REWRITTEN = ("is_keyframe", "stream", "time_base", "pts", "dts", "duration")


class BitstreamError(UserError):
    """A file that cannot be read, or has fewer frames than wanted; the message names it.

    Attributes:
        reason: What is wrong, without the file's name.
        frame: The wanted frame that lies outside the file; `None` if the file itself is bad.
    """

    def __init__(self, path: Path | str, reason: str, frame: int | None = None) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.frame = path, reason, frame


@dataclass(frozen=True)
class PrunedClip:
    """A smaller file, and the positions of the wanted frames in it.

    Attributes:
        data: A video file: an MP4 with one video stream, or the source's own bytes if it cannot be pruned.
        positions: int64 [T], the wanted frames as indices into a full sequential decode of `data`.
        is_whole: `data` is the source as it is; otherwise it may be opened `UNPROBED`.
        pixel_aspect: What the source's container says about the shape of its pixels, which an MP4 may not carry.
    """

    data: bytes
    positions: np.ndarray
    is_whole: bool = False
    pixel_aspect: Fraction | None = None


def prune(
    source: Path | str | bytes, indices: Sequence[int] | np.ndarray, *, anchor: tuple[int, int] | None = None
) -> PrunedClip:
    """Keep only the packets needed to decode the wanted frames.

    H.264: from every IDR picture that begins a group with a wanted frame, the reference pictures up to the last
    wanted one in decoding order, and the wanted pictures. A non-IDR recovery point does not end a group: later pictures
    may depend on earlier ones through the decoder's state. HEVC, AV1, VP9, MPEG-2, MPEG-4 part 2, Motion JPEG: whole
    groups and the tails of groups are dropped, nothing inside; HEVC's open groups (CRA) keep the groups before them
    back to one that resets the decoder. A stream that is not understood (fields; timestamps that are missing, repeated
    or contradict the stream's own order; changing parameter sets; lost references; other codecs) is kept whole.

    Args:
        source: A video file's path or its bytes.
        indices: int [T], frame numbers as a full sequential decode counts them; any order, repeats allowed.
        anchor: Number of a frame, not after the wanted ones, and its timestamp in the stream's time base: of a file
            with an index, only what lies near is read. The result is the same.

    Raises:
        BitstreamError: The file cannot be read, has no video, or a wanted frame lies outside it.
    """
    wanted = np.array(indices, dtype=np.int64)
    assert wanted.ndim == 1, "frame indices are a flat list"
    assert wanted.size, "a sample has at least one frame"
    name = "(bytes in memory)" if isinstance(source, bytes) else source
    with as_bitstream_errors(name):
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
        with av.open(file, options=UNPROBED if is_mp4(source) else CONTAINERS_ONLY) as container:
            stream = video_stream(container)
            if stream is None:
                raise BitstreamError(name, "the file has no video stream")
            if anchor is not None:
                with suppress(NotUnderstood):
                    near = seek_packets(container, stream, anchor, int(wanted.max()))
                    if near is not None:
                        opening, packets, before = near
                        data, positions = prune_packets(container, stream, packets, wanted - before, opening)
                        return PrunedClip(data, positions, pixel_aspect=stream.sample_aspect_ratio)
                return prune(source, indices)
            packets = [packet for packet in container.demux(stream) if packet.size]
            num_frames = sum(not packet.is_discard for packet in packets)
            outside = wanted[(wanted < 0) | (wanted >= num_frames)]
            if outside.size:
                raise BitstreamError(
                    name, f"frame {outside[0]} lies outside the file's {num_frames} frames", int(outside[0])
                )
            try:
                data, positions = prune_packets(container, stream, packets, wanted)
                return PrunedClip(data, positions, pixel_aspect=stream.sample_aspect_ratio)
            except NotUnderstood:
                whole = source if isinstance(source, bytes) else Path(source).read_bytes()
                return PrunedClip(whole, wanted, is_whole=True)


@contextmanager
def as_bitstream_errors(name: Path | str) -> Iterator[None]:
    """Inside, an error of reading a file becomes a `BitstreamError`."""
    try:
        yield
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise BitstreamError(name, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def is_mp4(source: Path | str | bytes) -> bool:
    """Whether a file begins like MP4 and MOV, whose headers name the streams before any packet is read."""
    if isinstance(source, bytes):
        return source[4:8] == b"ftyp"
    with Path(source).open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def prune_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: list[av.Packet],
    wanted: Sequence[int] | np.ndarray,
    opening: av.Packet | None = None,
) -> tuple[bytes, np.ndarray]:
    """The pruned file, and the wanted frames' positions in it, int64 [T].

    Args:
        packets: Whole groups of pictures, in decoding order.
        wanted: int [T], numbers of frames, counted from the first that these packets show.
        opening: The file's first packet, if it is not the first here.

    Raises:
        NotUnderstood: The packets cannot be pruned.
    """
    return cut_packets(container, stream, packets, layout_of(container, stream, packets, opening), wanted, opening)


def cut_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: list[av.Packet],
    layout: Layout,
    wanted: Sequence[int] | np.ndarray,
    opening: av.Packet | None = None,
) -> tuple[bytes, np.ndarray]:
    """`prune_packets` with the packets' layout, which serves any wanted frames."""
    wanted = np.asarray(wanted, dtype=np.int64)
    frames = [number for number in layout.order if not packets[number].is_discard]
    kept = _select(layout.groups, {frames[index] for index in wanted.tolist()})
    kept_set = set(kept)
    rank = {number: place for place, number in enumerate(number for number in layout.order if number in kept_set)}
    if wanted.min() < 0 or wanted.max() >= len(frames):
        raise NotUnderstood("frames outside these packets")
    if not layout.is_order_coded:
        # Discarded frames are output now. Edit lists place those before the first frame correctly, but not others.
        late = layout.order[layout.order.index(frames[0]) :]
        if any(packets[number].is_discard for number in kept_set.intersection(late)):
            raise NotUnderstood("discarded frames among those to keep")
    has_notes = kept[0] == 0 and opening is None
    data = _remux(stream, packets, kept, rank, b"" if has_notes else layout.notes)
    if "mp4" not in container.format.name and _colours(stream) != _NO_COLOURS:
        # Matroska can signal colours that MP4 cannot, such as full range alone.
        with av.open(io.BytesIO(data)) as made:
            if _colours(made.streams.video[0]) != _colours(stream):
                raise NotUnderstood("colours that MP4 cannot signal")
    return data, np.array([rank[frames[index]] for index in wanted.tolist()], dtype=np.int64)


def _colours(stream: av.VideoStream) -> tuple[int, ...]:
    context = stream.codec_context
    return context.color_range, context.colorspace, context.color_primaries, context.color_trc


def _select(groups: list[Group], needed: set[int]) -> list[int]:
    """The packets to keep, in decoding order.

    Groups are visited from last to first, because a group can only require the one before it.
    """
    first, kept = min(needed), []
    wants_whole = False
    for group in reversed(groups):
        own = needed.intersection(group.packets)
        if not own and not wants_whole:
            continue
        last = group.packets[-1] if wants_whole else max(own)
        # The picture order counts of an open group continue those before it: nothing in between may be missing.
        wants_whole = bool(own & group.leading) or (not group.resets and first < group.packets.start)
        dropped = group.droppable if wants_whole else group.droppable | group.leading
        kept += [n for n in reversed(group.packets) if n <= last and (n in own or n not in dropped)]
    return kept[::-1]


def _remux(
    source: av.VideoStream, packets: list[av.Packet], kept: list[int], rank: dict[int, int], notes: bytes
) -> bytes:
    """An MP4 of the kept packets, with even timestamps: decoded at 0, 1, 2 ..., shown in the same order as before.

    The first frame is shown as late as the reordering needs, so decoding times are not negative and the file needs no
    edit list, which decoders interpret differently. Only the first packet is marked as a keyframe: the file is read
    from its start, and decord, which looks for the first frame by its time, would otherwise begin at a second keyframe
    that is decoded before the first is shown.

    Raises:
        NotUnderstood: MP4 does not support this codec.
    """
    delay = max(place - rank[number] for place, number in enumerate(kept))
    file = io.BytesIO()
    time_base = Fraction(1, _TICKS)
    try:
        with av.open(file, "w", format="mp4", options={"use_editlist": "0"}) as container:
            stream = container.add_stream_from_template(source, opaque=True)
            stream.time_base = time_base
            for place, number in enumerate(kept):
                packet = packets[number]
                begins_with = notes if place == 0 else b""
                if begins_with or packet.is_discard:  # a normal frame here, but the flag cannot be cleared
                    packet = av.Packet(begins_with + bytes(packet))
                before = {name: getattr(packets[number], name) for name in _REWRITTEN}
                packet.is_keyframe = place == 0
                packet.stream, packet.time_base = stream, time_base
                packet.pts = (rank[number] + delay) * _TICKS_A_FRAME
                packet.dts, packet.duration = place * _TICKS_A_FRAME, _TICKS_A_FRAME
                container.mux_one(packet)
                for name, value in before.items():  # a section of a video begins with a packet of the one before it
                    setattr(packets[number], name, value)
    except (ValueError, av.error.FFmpegError) as error:
        raise NotUnderstood(f"MP4 does not take the stream: {error}") from error
    return file.getvalue()
