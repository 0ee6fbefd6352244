"""Packets of a file and wanted frames -> the fewest packets that decode to exactly those frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from fastemo.corpus.files.probe import CONTAINERS_ONLY, video_stream
from fastemo.errors import UserError
from fastemo.video.bitstream import frame_headers, nal
from fastemo.video.bitstream.frame_headers import NotUnderstood
from fastemo.video.bitstream.window import seek_packets

# Codecs whose output order is packet order.
_UNORDERED = frozenset({"av1", "mjpeg", "vp9"})
# Side data that changes the meaning of a packet's bytes and that a new file would lose.
_BINDING_SIDE_DATA = frozenset(
    {"new_extradata", "param_change", "palette", "encryption_info", "matroska_block_additional"}
)
# Range unspecified; matrix, primaries and transfer unspecified. Source: ISO/IEC 23091-2, tables 2-4.
_NO_COLOURS = (0, 2, 2, 2)
# Options for opening an MP4 whose headers are complete. FFmpeg otherwise reads and decodes its first frames, to learn
# what packets and decoder give anyway: 9 of the 13 ms that pruning a RAVDESS clip took. `skip_frame` affects only the
# decoders of that probe, not the stream's own. The stream's pixel format is unknown until a frame has been decoded;
# asking PyAV 17 for it crashes the process.
UNPROBED = {"skip_frame": "all", "probesize": "5000", "analyzeduration": "0", **CONTAINERS_ONLY}
# Any would do: frames are counted, not timed. 90 kHz is a multiple of the usual frame rates.
_TICKS, _TICKS_A_FRAME = 90_000, 3_000


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


@dataclass
class _Group:
    """The packets from one random access point to the next.

    Attributes:
        packets: Their numbers in decoding order.
        resets: It decodes independently of what precedes it; otherwise it may only follow the whole group before it,
            or come first.
        leading: Packets that need the whole group before this one, and to which only each other refer.
        droppable: Packets to which no other refers.
    """

    packets: range
    resets: bool
    leading: frozenset[int]
    droppable: frozenset[int]


@dataclass
class _Layout:
    """A stream as groups of packets.

    Attributes:
        groups: In decoding order.
        order: All packets, including discarded ones, in the order in which a decoder outputs their frames.
        is_order_coded: The order is coded in the stream itself, not taken from timestamps.
        notes: Bytes that the first packet of a new file must begin with, unless it is the stream's first.
    """

    groups: list[_Group]
    order: list[int]
    is_order_coded: bool
    notes: bytes


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
    try:
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
        with av.open(file, options=UNPROBED if _is_mp4(source) else CONTAINERS_ONLY) as container:
            stream = video_stream(container)
            if stream is None:
                raise BitstreamError(name, "the file has no video stream")
            if anchor is not None:
                with suppress(NotUnderstood):
                    near = seek_packets(container, stream, anchor, int(wanted.max()))
                    if near is not None:
                        opening, packets, before = near
                        data, positions = _prune(container, stream, packets, wanted - before, opening)
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
                data, positions = _prune(container, stream, packets, wanted)
                return PrunedClip(data, positions, pixel_aspect=stream.sample_aspect_ratio)
            except NotUnderstood:
                whole = source if isinstance(source, bytes) else Path(source).read_bytes()
                return PrunedClip(whole, wanted, is_whole=True)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise BitstreamError(name, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _is_mp4(source: Path | str | bytes) -> bool:
    """Whether a file begins like MP4 and MOV, whose headers name the streams before any packet is read."""
    if isinstance(source, bytes):
        return source[4:8] == b"ftyp"
    with Path(source).open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def _prune(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: list[av.Packet],
    wanted: np.ndarray,
    opening: av.Packet | None = None,
) -> tuple[bytes, np.ndarray]:
    """The pruned file and the wanted frames' positions; `opening` is the file's first packet if not the first here."""
    layout = _layout(container, stream, packets, opening or packets[0])
    if opening is not None and not layout.groups[0].resets:
        raise NotUnderstood("a group of pictures that depends on those before it")
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


def _layout(
    container: av.container.InputContainer, stream: av.VideoStream, packets: list[av.Packet], opening: av.Packet
) -> _Layout:
    if stream.codec_context is None:  # for a codec that FFmpeg does not know
        raise NotUnderstood("an unknown codec")
    codec = stream.codec_context.codec.canonical_name
    order = _shown_order(packets)
    payloads = [memoryview(packet) for packet in packets]
    numbers = range(len(packets))
    if codec in ("h264", "hevc"):
        frame = nal.framing(stream.codec_context.extradata, codec)
        pictures = (nal.h264_pictures if codec == "h264" else nal.hevc_pictures)(frame, payloads)
        starts = [number for number in numbers if pictures[number].random_access]
        resets = {number for number in numbers if pictures[number].resets}
        leading = {number for number in numbers if pictures[number].skipped_leading}
        droppable = {number for number in numbers if not pictures[number].is_reference}
    elif codec in ("av1", "mjpeg", "mpeg2video", "mpeg4", "vp9"):
        frame_headers.check_packets(container, stream, packets, payloads)
        starts = [number for number in numbers if packets[number].is_keyframe]
        resets, leading, droppable = set(starts), _leading(starts, order), set()
    else:
        raise NotUnderstood(f"codec {codec}")
    if not starts or starts[0] != 0:
        raise NotUnderstood("the stream begins inside a group of pictures")
    groups: list[_Group] = []
    for start, stop in zip(starts, [*starts[1:], len(packets)], strict=True):
        own = range(start, stop)
        groups.append(
            _Group(own, start in resets, frozenset(leading.intersection(own)), frozenset(droppable.intersection(own)))
        )
    # At the start of a file, or after HEVC's broken links, a decoder does not output them: packets are not frames then.
    if any(group.leading for group in groups if group.packets.start == 0 or (codec == "hevc" and group.resets)):
        raise NotUnderstood("pictures that refer to data missing from the stream")
    if codec == "h264":
        return _Layout(
            groups, _coded_order(packets, pictures, order), True, nal.encoder_notes(frame, memoryview(opening))
        )
    if codec in _UNORDERED and order != list(numbers):
        raise NotUnderstood("timestamps that contradict the order of packets")
    return _Layout(groups, order, codec in _UNORDERED, b"")


def _shown_order(packets: list[av.Packet]) -> list[int]:
    """Packet numbers by timestamp.

    Raises:
        NotUnderstood: Timestamps are ambiguous, or packets carry side data that a new file would lose.
    """
    times: list[int] = []
    for packet in packets:
        if packet.pts is None or packet.is_corrupt:
            raise NotUnderstood("packets that are damaged or without timestamps")
        if any(data.data_type in _BINDING_SIDE_DATA for data in packet.iter_sidedata()):
            raise NotUnderstood("packets with side data that a new file would lose")
        times.append(packet.pts)
    shown = [time for time, packet in zip(times, packets, strict=True) if not packet.is_discard]
    if len(set(shown)) != len(shown):
        raise NotUnderstood("timestamps that repeat")
    return sorted(range(len(packets)), key=times.__getitem__)


def _coded_order(packets: list[av.Packet], pictures: list[nal.Picture], order: list[int]) -> list[int]:
    """Packet numbers in the output order that is coded in the stream itself, which decoders follow.

    Timestamps of discarded packets are less reliable: RAVDESS's last packet is shown before its last but one.

    Raises:
        NotUnderstood: The timestamps of the other packets give another order, so one of the two is wrong.
    """
    period, keys = 0, []
    for number, picture in enumerate(pictures):
        period += picture.resets
        keys.append((period, number if picture.order is None else picture.order))
    coded = sorted(range(len(packets)), key=keys.__getitem__)
    is_shown = [not packet.is_discard for packet in packets]
    if len(set(keys)) != len(keys) or [n for n in coded if is_shown[n]] != [n for n in order if is_shown[n]]:
        raise NotUnderstood("timestamps that contradict the stream's own order")
    return coded


def _leading(starts: list[int], order: list[int]) -> set[int]:
    """Packets after a keyframe that are shown before it: they refer to the group before as well."""
    rank = {number: place for place, number in enumerate(order)}
    leading: set[int] = set()
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        leading.update(number for number in range(start + 1, stop) if rank[number] < rank[start])
    return leading


def _select(groups: list[_Group], needed: set[int]) -> list[int]:
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
                packet.is_keyframe = place == 0
                packet.stream, packet.time_base = stream, time_base
                packet.pts = (rank[number] + delay) * _TICKS_A_FRAME
                packet.dts, packet.duration = place * _TICKS_A_FRAME, _TICKS_A_FRAME
                container.mux_one(packet)
    except (ValueError, av.error.FFmpegError) as error:
        raise NotUnderstood(f"MP4 does not take the stream: {error}") from error
    return file.getvalue()
