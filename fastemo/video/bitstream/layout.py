"""Packets -> groups of pictures, and the order in which a decoder outputs their frames."""

from __future__ import annotations

from dataclasses import dataclass

import av

from fastemo.video.bitstream import frame_headers, nal
from fastemo.video.bitstream.frame_headers import NotUnderstood

# Codecs whose output order is packet order.
_UNORDERED = frozenset({"av1", "mjpeg", "vp9"})
# Side data that changes the meaning of a packet's bytes and that a new file would lose.
_BINDING_SIDE_DATA = frozenset(
    {"new_extradata", "param_change", "palette", "encryption_info", "matroska_block_additional"}
)


@dataclass
class Group:
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
class Layout:
    """A stream as groups of packets.

    Attributes:
        groups: In decoding order.
        order: All packets, including discarded ones, in the order in which a decoder outputs their frames.
        is_order_coded: The order is coded in the stream itself, not taken from timestamps.
        notes: Bytes that the first packet of a new file must begin with, unless it is the stream's first.
    """

    groups: list[Group]
    order: list[int]
    is_order_coded: bool
    notes: bytes


def layout_of(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: list[av.Packet],
    opening: av.Packet | None = None,
) -> Layout:
    """The packets as groups of pictures; arguments and errors as for `prune_packets`."""
    layout = _layout(container, stream, packets, opening or packets[0])
    if opening is not None and not layout.groups[0].resets:
        raise NotUnderstood("a group of pictures that depends on those before it")
    return layout


def _layout(
    container: av.container.InputContainer, stream: av.VideoStream, packets: list[av.Packet], opening: av.Packet
) -> Layout:
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
    groups: list[Group] = []
    for start, stop in zip(starts, [*starts[1:], len(packets)], strict=True):
        own = range(start, stop)
        groups.append(
            Group(own, start in resets, frozenset(leading.intersection(own)), frozenset(droppable.intersection(own)))
        )
    # At the start of a file, or after HEVC's broken links, a decoder does not output them: packets are not frames then.
    if any(group.leading for group in groups if group.packets.start == 0 or (codec == "hevc" and group.resets)):
        raise NotUnderstood("pictures that refer to data missing from the stream")
    if codec == "h264":
        return Layout(
            groups, _coded_order(packets, pictures, order), True, nal.encoder_notes(frame, memoryview(opening))
        )
    if codec in _UNORDERED and order != list(numbers):
        raise NotUnderstood("timestamps that contradict the order of packets")
    return Layout(groups, order, codec in _UNORDERED, b"")


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
