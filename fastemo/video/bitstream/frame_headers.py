"""Headers of coded frames: how many frames a packet shows, for codecs without NAL units; and a bit reader.

Only headers are read; pictures are never decoded. Anything not fully understood raises `NotUnderstood`, and the
caller then keeps the stream as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import av

START_CODE = b"\0\0\1"


class NotUnderstood(Exception):
    """A stream that cannot be pruned safely; the message is the reason."""


class Bits:
    """Reads bits from the start of a few bytes."""

    def __init__(self, data: bytes) -> None:
        # Emulation prevention bytes are not part of the syntax. Source: ISO/IEC 14496-10, 7.4.1.
        data = data.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise NotUnderstood("a header ends early")
        return self._value >> self._left & (1 << count) - 1

    def ue(self) -> int:
        """An unsigned Exp-Golomb number. Source: ISO/IEC 14496-10, 9.1."""
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def check_vp9(data: memoryview, is_keyframe: bool) -> None:
    """Raises `NotUnderstood` unless a packet shows exactly one frame.

    Source: VP9 bitstream specification 0.6, 6.2 and annex B.
    """
    sizes, marker = [len(data)], data[-1]
    if marker & 0xE0 == 0xC0:
        width, count = (marker >> 3 & 3) + 1, (marker & 7) + 1
        index = data[len(data) - 2 - width * count :]
        if index[0] == marker:
            sizes = [int.from_bytes(index[1 + width * i : 1 + width * (i + 1)], "little") for i in range(count)]
    offset = num_shown = 0
    for number, size in enumerate(sizes):
        bits = Bits(bytes(data[offset : offset + 2]))
        offset += size
        marker_and_profile = bits.u(4)
        if marker_and_profile & 3 == 3:
            bits.u(1)
        shows_existing = bits.u(1)
        is_inter, is_shown = bits.u(1), bits.u(1)
        num_shown += shows_existing or is_shown
        if number == 0 and is_keyframe and (shows_existing or is_inter):
            raise NotUnderstood("a packet marked as a keyframe that holds another frame")
    if num_shown != 1:
        raise NotUnderstood(f"a packet that shows {num_shown} frames")


def check_mpeg4(data: memoryview) -> None:
    """Raises `NotUnderstood` unless a packet holds one coded picture (ISO/IEC 14496-2, 6.2.5).

    AVI files pack a B-picture with the next one, and put an uncoded picture of a few bytes in its place.
    """
    payload = bytes(data)
    if payload.count(START_CODE + b"\xb6") != 1 or len(payload) - payload.find(START_CODE + b"\xb6") <= 8:
        raise NotUnderstood("a packet that does not hold exactly one coded picture")


def check_av1(data: memoryview, is_keyframe: bool) -> None:
    """Raises `NotUnderstood` unless a packet shows exactly one frame, and a keyframe begins with a shown key frame.

    Source: AV1 bitstream specification 1.0.0, 5.3 and 5.9.2.
    """
    offset = num_frames = num_shown = 0
    while offset < len(data):
        header = data[offset]
        kind, has_extension, has_size = header >> 3 & 15, header >> 2 & 1, header >> 1 & 1
        offset += 1 + has_extension
        if not has_size:
            raise NotUnderstood("a unit without its size")
        size = shift = 0
        while True:
            if offset >= len(data):
                raise NotUnderstood("a header ends early")
            byte, offset = data[offset], offset + 1
            size, shift = size | (byte & 0x7F) << shift, shift + 7
            if not byte & 0x80:
                break
        if kind in (3, 6) and 0 < size <= len(data) - offset:  # frame header, frame
            first = data[offset]
            shows_existing, frame_type, is_shown = first >> 7, first >> 5 & 3, first >> 4 & 1
            if is_keyframe and not num_frames and (shows_existing or frame_type != 0 or not is_shown):
                raise NotUnderstood("a packet marked as a keyframe that holds another frame")
            num_frames, num_shown = num_frames + 1, num_shown + (shows_existing or is_shown)
        offset += size
    if num_shown != 1:
        raise NotUnderstood(f"a packet that shows {num_shown} frames")


def check_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: Sequence[av.Packet],
    payloads: Sequence[memoryview],
) -> None:
    """Check every packet of a codec that needs it.

    Raises:
        NotUnderstood: Something that pruning cannot handle.
    """
    codec = stream.codec_context.codec.canonical_name
    if codec in ("av1", "vp9"):
        check = check_av1 if codec == "av1" else check_vp9
        for packet, payload in zip(packets, payloads, strict=True):
            check(payload, packet.is_keyframe)
    if codec == "mpeg4":
        # The decoder works around bugs of DivX and Xvid by the AVI's FourCC, which an MP4 does not carry.
        if container.format.name == "avi" or stream.codec_context.codec_tag not in ("mp4v", "\0\0\0\0"):
            raise NotUnderstood("MPEG-4 part 2 with a FourCC other than MP4's")
        for payload in payloads:
            check_mpeg4(payload)
