"""The packets around a segment of a long file, found by seeking: the rest of the file is not read."""

from __future__ import annotations

import av

# Containers with an index of all keyframes; in others, seeking is a guess.
_INDEXED = frozenset({"mp4", "matroska"})
_BACK_SECONDS = (0, 1, 10)  # an index goes by decoding times, and a frame may be decoded before it is shown


def seek_packets(
    container: av.container.InputContainer, stream: av.VideoStream, anchor: tuple[int, int], last: int
) -> tuple[av.Packet, list[av.Packet], int] | None:
    """The file's first packet, those from the keyframe before a frame to beyond another, and the frames before them.

    Args:
        anchor: Number of a frame in the file and its timestamp.
        last: Number of the last frame wanted, not before the anchor.

    Returns:
        `None` if the container has no index of keyframes, or the anchor is not where it says.
    """
    number, pts = anchor
    if _INDEXED.isdisjoint(container.format.name.split(",")) or stream.time_base is None:
        return None
    opening = next(container.demux(stream))
    for seconds in _BACK_SECONDS:
        container.seek(max(0, pts - int(seconds / stream.time_base)), stream=stream)
        packets = _groups(container, stream, pts, last - number + 1)
        shown = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.is_discard)
        if pts in shown and packets[0].is_keyframe:
            return opening, packets, number - shown.index(pts)
    return None


def _groups(container: av.container.InputContainer, stream: av.VideoStream, pts: int, wanted: int) -> list[av.Packet]:
    """Whole groups of pictures with `wanted` frames from `pts` on, and the group after them.

    That one may begin with pictures that are shown before its keyframe.
    """
    packets: list[av.Packet] = []
    found = num_more = 0
    for packet in container.demux(stream):
        if not packet.size:
            continue
        num_more += packet.is_keyframe and found >= wanted
        if num_more == 2:
            break
        found += packet.pts is not None and packet.pts >= pts and not packet.is_discard
        packets.append(packet)
    return packets
