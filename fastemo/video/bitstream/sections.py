"""A video as sections that decode by themselves, demuxed once from start to end in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import av.error

from fastemo.corpus.files.probe import CONTAINERS_ONLY, video_stream
from fastemo.video.bitstream import nal
from fastemo.video.bitstream.frame_headers import NotUnderstood
from fastemo.video.bitstream.layout import Layout, layout_of
from fastemo.video.bitstream.pruning import (
    UNPROBED,
    BitstreamError,
    PrunedClip,
    as_bitstream_errors,
    cut_packets,
    is_mp4,
)

# Decoding a section costs the opening of a file; a longer one needs more memory.
SECTION_SECONDS = 5.0
# More means a stream without keyframes at which decoding can begin.
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Section:
    """Consecutive frames of a video, from one keyframe to before another.

    Attributes:
        first: Number of its first frame in the video, as a full sequential decode counts.
        times: Of its frames, ascending, in seconds as a player counts them.
    """

    first: int
    times: list[float]
    _container: av.container.InputContainer = field(repr=False)
    _stream: av.VideoStream = field(repr=False)
    _packets: list[av.Packet] = field(repr=False)
    _layout: Layout = field(repr=False)
    _opening: av.Packet | None = field(repr=False)

    def pruned(self, wanted: Sequence[int]) -> PrunedClip:
        """The packets that the wanted frames need, as `prune` gives them.

        Args:
            wanted: Numbers of frames of this section, in the video.

        Raises:
            NotUnderstood: The section cannot be pruned.
        """
        inside = [number - self.first for number in wanted]
        data, positions = cut_packets(self._container, self._stream, self._packets, self._layout, inside, self._opening)
        return PrunedClip(data, positions, pixel_aspect=self._stream.sample_aspect_ratio)


@contextmanager
def sections(
    path: Path, *, seconds: float = SECTION_SECONDS, most_bytes: int = _MOST_BYTES
) -> Iterator[Iterator[Section]]:
    """Read a file once; each section is at least `seconds` long, except for the last. They are valid inside only.

    Raises:
        NotUnderstood: While it is read: the stream cannot be pruned or split, or a section exceeds `most_bytes`.
        BitstreamError: The file cannot be read, or has no video.
    """
    with as_bitstream_errors(path):
        container = av.open(str(path.absolute()), options=UNPROBED if is_mp4(path) else CONTAINERS_ONLY)
    with container:
        stream = video_stream(container)
        if stream is None or stream.codec_context is None:
            raise BitstreamError(path, "the file has no video stream")
        yield _split(path, container, stream, seconds, most_bytes)


def _demuxed(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    with as_bitstream_errors(path):
        yield from container.demux(stream)


def _split(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream, seconds: float, most_bytes: int
) -> Iterator[Section]:
    if stream.time_base is None:
        raise NotUnderstood("frames without times")
    unit, start = float(stream.time_base), (container.start_time or 0) / av.time_base
    first, num_bytes = 0, 0
    own: list[tuple[int, av.Packet]] = []  # with their timestamps
    following: list[tuple[int, av.Packet]] = []  # the next keyframe, and what is decoded after but shown before it
    opening: av.Packet | None = None

    def section() -> Section:
        packets, before = [packet for _, packet in own + following], opening if first else None
        end = following[0][0] if following else math.inf
        times = sorted(pts * unit - start for pts, packet in own + following if pts < end and not packet.is_discard)
        found = Section(first, times, container, stream, packets, layout_of(container, stream, packets, before), before)
        if not first and times and seconds < math.inf:
            found.pruned([0])  # what an MP4 cannot hold is the same in all sections
        return found

    for packet in _demuxed(path, container, stream):
        if not packet.size:
            continue
        pts = packet.pts
        if pts is None or packet.is_corrupt:
            raise NotUnderstood("packets that are damaged or without timestamps")
        opening = opening or packet
        if following and pts > following[0][0]:
            yield (made := section())
            first, own, following = first + len(made.times), following[:1], []
            num_bytes = own[0][1].size
        num_bytes += packet.size
        if num_bytes > most_bytes:
            raise NotUnderstood(f"more than {most_bytes} bytes without a keyframe that decoding can begin at")
        starts = bool(own) and (pts - own[0][0]) * unit >= seconds and _resets(stream, packet)
        (following if following or starts else own).append((pts, packet))
    if following:
        yield (made := section())
        first, own, following = first + len(made.times), following[:1], []
    if own:
        yield section()


def _resets(stream: av.VideoStream, packet: av.Packet) -> bool:
    """Whether decoding can begin at a packet, without anything before it."""
    codec = stream.codec_context.codec.canonical_name
    if not packet.is_keyframe or packet.is_discard or codec not in ("h264", "hevc"):
        return packet.is_keyframe and not packet.is_discard
    pictures = nal.h264_pictures if codec == "h264" else nal.hevc_pictures
    try:
        return pictures(nal.framing(stream.codec_context.extradata, codec), [memoryview(packet)])[0].resets
    except NotUnderstood:
        return False
