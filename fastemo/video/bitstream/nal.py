"""NAL units of H.264 and HEVC: properties of the picture in a packet.

Only headers are read; pictures are never decoded. Anything not fully understood raises
`NotUnderstood`, and the caller then keeps the stream as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fastemo.video.bitstream.frame_headers import START_CODE, Bits, NotUnderstood

H264_SLICE, H264_IDR, H264_SEI, H264_SPS, H264_PPS = 1, 5, 6, 7, 8
H264_PARTITIONS = range(2, 5)
# Sequence and picture parameter sets, the former's extension, subset sequence parameter sets.
H264_PARAMETER_SETS = frozenset({H264_SPS, H264_PPS, 13, 15})
HEVC_RASL = frozenset({8, 9})
HEVC_IRAP = range(16, 24)
HEVC_CRA = 21
HEVC_PARAMETER_SETS = frozenset({32, 33, 34})
HEVC_ENDS = frozenset({36, 37})
# Profiles whose sequence parameter set describes the chroma. Source: ISO/IEC 14496-10, 7.3.2.1.1.
_CHROMA_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
# A slice header up to its picture order count takes at most 13 bytes; more, for emulation prevention bytes.
_SLICE_HEADER_BYTES = 24


@dataclass(frozen=True)
class Picture:
    """The picture in one packet, by its NAL units.

    Attributes:
        random_access: Decoding can begin here: H.264 IDR, HEVC IRAP.
        resets: Decoding does not depend on anything before it in decoding order: H.264 IDR, HEVC IDR and BLA.
        is_reference: Another picture may be predicted from it.
        skipped_leading: HEVC RASL: undecodable when decoding begins at the random access picture before it.
        order: Output order among the pictures since the last that resets; `None` if the headers do not give it.
    """

    random_access: bool
    resets: bool
    is_reference: bool
    skipped_leading: bool
    order: int | None


@dataclass(frozen=True)
class Framing:
    """How a stream's packets frame NAL units, and the parameter sets outside the packets.

    Attributes:
        length_size: Bytes of the length field before each unit; 0 for Annex B start codes.
        parameter_sets: The units in the codec's extradata.
    """

    length_size: int
    parameter_sets: tuple[bytes, ...]

    def units(self, data: memoryview) -> Iterator[memoryview]:
        """The NAL units of a packet, without lengths and start codes."""
        if self.length_size == 0:
            yield from _annex_b_units(data)
            return
        offset, end = 0, len(data)
        while offset + self.length_size <= end:
            start = offset + self.length_size
            offset = start + int.from_bytes(data[offset:start], "big")
            if offset > end:
                raise NotUnderstood("a NAL unit that reaches past its packet")
            if offset > start:
                yield data[start:offset]
        if offset != end:
            raise NotUnderstood("bytes after a packet's last NAL unit")

    def pack(self, units: Iterable[bytes]) -> bytes:
        """Units framed as in this stream's packets."""
        if self.length_size == 0:
            return b"".join(b"\0" + START_CODE + unit for unit in units)
        return b"".join(len(unit).to_bytes(self.length_size, "big") + unit for unit in units)


def framing(extradata: bytes | None, codec: str) -> Framing:
    """Read `avcC` or `hvcC` (ISO/IEC 14496-15, 5.3.3 and 8.3.3), or parameter sets in Annex B.

    Raises:
        NotUnderstood: There is no extradata, or it is neither.
    """
    if not extradata:
        raise NotUnderstood("no parameter sets outside the packets")
    if extradata[:3] == START_CODE or extradata[:4] == b"\0" + START_CODE:
        return Framing(0, tuple(map(_trimmed, _annex_b_units(memoryview(extradata)))))
    sets: list[bytes] = []
    try:
        if codec == "h264":
            length_size, counts, offset = (extradata[4] & 3) + 1, (extradata[5] & 31, None), 6
            for count in counts:
                if count is None:
                    count, offset = extradata[offset], offset + 1
                offset = _take_sets(extradata, offset, count, sets)
        else:
            length_size, offset = (extradata[21] & 3) + 1, 23
            for _ in range(extradata[22]):
                count = int.from_bytes(extradata[offset + 1 : offset + 3], "big")
                offset = _take_sets(extradata, offset + 3, count, sets)
    except IndexError as error:
        raise NotUnderstood("the codec's extradata ends early") from error
    if offset > len(extradata) or extradata[0] != 1:
        raise NotUnderstood("the codec's extradata is neither a configuration record nor Annex B")
    return Framing(length_size, tuple(sets))


def h264_pictures(frame: Framing, packets: Sequence[memoryview]) -> list[Picture]:
    """One picture per packet, with its output order (ISO/IEC 14496-10, 7.3.3, 7.4.1 and 8.2.1).

    `nal_ref_idc` 0 marks a picture that no other one refers to. Dropping it leaves no gap in `frame_num`, which
    counts reference pictures, and changes no picture order count, which is coded relative to them.

    Raises:
        NotUnderstood: Fields, several sequence parameter sets, data partitions, lost references, not one picture per
            packet.
    """
    sps = [unit for unit in frame.parameter_sets if unit[0] & 31 == H264_SPS]
    if len(set(sps)) != 1:
        raise NotUnderstood(f"{len(set(sps))} sequence parameter sets")
    pps = {unit for unit in frame.parameter_sets if unit[0] & 31 == H264_PPS}
    if len({Bits(unit[1:9]).ue() for unit in pps}) != len(pps):
        raise NotUnderstood("picture parameter sets that replace each other")
    sequence = _Sequence.parse(sps[0])
    pictures: list[Picture] = []
    previous_msb = previous_lsb = reference_num = 0
    for data in packets:
        first: memoryview | None = None
        is_reference, num_first = False, 0
        for unit in frame.units(data):
            kind = unit[0] & 31
            if kind in (H264_SLICE, H264_IDR):
                is_reference |= bool(unit[0] & 0x60)
                num_first += len(unit) > 1 and unit[1] >> 7  # first_mb_in_slice = 0 is the single bit 1
                first = unit if first is None else first
            elif kind in H264_PARTITIONS:
                raise NotUnderstood("data partitions")
            elif kind in H264_PARAMETER_SETS and _trimmed(unit) not in frame.parameter_sets:
                raise NotUnderstood("parameter sets that change inside the stream")
        if first is None or num_first != 1:
            raise NotUnderstood("a packet that does not hold exactly one picture")
        is_idr = first[0] & 31 == H264_IDR
        frame_num, lsb = sequence.counts(bytes(first[1:_SLICE_HEADER_BYTES]), is_idr)
        # If a reference picture is lost, decoders use the previous one instead, which pruning may have dropped.
        if frame_num != (0 if is_idr else (reference_num + 1) % sequence.max_frame_num):
            raise NotUnderstood("reference pictures that are missing")
        reference_num = frame_num if is_reference else reference_num
        order: int | None = None
        if lsb is not None:
            if is_idr:
                previous_msb = previous_lsb = 0
            half = sequence.max_order_lsb // 2
            msb = previous_msb
            if previous_lsb - lsb >= half:
                msb += 2 * half
            elif lsb - previous_lsb > half:
                msb -= 2 * half
            order = msb + lsb
            if is_reference:
                previous_msb, previous_lsb = msb, lsb
        pictures.append(Picture(is_idr, is_idr, is_reference, False, order))
    return pictures


def hevc_pictures(frame: Framing, packets: Sequence[memoryview]) -> list[Picture]:
    """One picture per packet (ISO/IEC 23008-2, 7.3.1.2 and table 7-1).

    Raises:
        NotUnderstood: Parameter sets that change, several sequences, not one picture per packet.
    """
    pictures: list[Picture] = []
    for data in packets:
        kind, num_first = -1, 0
        for unit in frame.units(data):
            if len(unit) < 3 or (unit[0] & 1) << 5 | unit[1] >> 3:  # nuh_layer_id: other layers are not shown
                continue
            unit_kind = unit[0] >> 1 & 63
            if unit_kind < 32:
                kind, num_first = unit_kind, num_first + (unit[2] >> 7)
                if kind in HEVC_IRAP and unit[2] & 0x40 and pictures:  # no_output_of_prior_pics_flag
                    raise NotUnderstood("pictures that are never shown")
            elif unit_kind in HEVC_ENDS:
                raise NotUnderstood("several sequences")
            elif unit_kind in HEVC_PARAMETER_SETS and _trimmed(unit) not in frame.parameter_sets:
                raise NotUnderstood("parameter sets that change inside the stream")
        if num_first != 1:
            raise NotUnderstood("a packet that does not hold exactly one picture")
        is_irap = kind in HEVC_IRAP
        pictures.append(Picture(is_irap, is_irap and kind != HEVC_CRA, True, kind in HEVC_RASL, None))
    return pictures


def encoder_notes(frame: Framing, data: memoryview) -> bytes:
    """The H.264 packet's unregistered user data (SEI payload type 5), framed.

    x264 writes its version there, once, in the first packet; FFmpeg's decoder works around old versions' bugs by it.
    """
    notes = [bytes(u) for u in frame.units(data) if u[0] & 31 == H264_SEI and len(u) > 1 and u[1] == 5]
    return frame.pack(notes)


@dataclass(frozen=True)
class _Sequence:
    """The fields of an H.264 sequence parameter set that are needed to read slice headers."""

    separate_planes: bool
    frame_num_bits: int
    order_lsb_bits: int  # 0: pictures come out in decoding order
    frames_only: bool

    @property
    def max_frame_num(self) -> int:
        return 1 << self.frame_num_bits

    @property
    def max_order_lsb(self) -> int:
        return 1 << self.order_lsb_bits

    @classmethod
    def parse(cls, unit: bytes) -> _Sequence:
        """Source: ISO/IEC 14496-10, 7.3.2.1.1."""
        bits = Bits(unit[1:])
        profile = bits.u(8)
        bits.u(16)
        bits.ue()
        separate_planes = False
        if profile in _CHROMA_PROFILES:
            chroma = bits.ue()
            separate_planes = chroma == 3 and bool(bits.u(1))
            bits.ue(), bits.ue(), bits.u(1)  # bit depths, lossless transform bypass
            if bits.u(1):
                for number in range(12 if chroma == 3 else 8):
                    if bits.u(1):
                        _skip_scaling_list(bits, 16 if number < 6 else 64)
        frame_num_bits = bits.ue() + 4
        order_type = bits.ue()
        if order_type == 1:
            raise NotUnderstood("picture order count type 1")
        order_lsb_bits = bits.ue() + 4 if order_type == 0 else 0
        bits.ue(), bits.u(1)  # reference frames, gaps allowed
        bits.ue(), bits.ue()  # width, height
        return cls(separate_planes, frame_num_bits, order_lsb_bits, bool(bits.u(1)))

    def counts(self, header: bytes, is_idr: bool) -> tuple[int, int | None]:
        """`frame_num` and, if there is one, `pic_order_cnt_lsb` of a slice header (ISO/IEC 14496-10, 7.3.3)."""
        bits = Bits(header)
        bits.ue(), bits.ue(), bits.ue()  # first macroblock, slice type, picture parameter set
        bits.u(2 if self.separate_planes else 0)
        frame_num = bits.u(self.frame_num_bits)
        if not self.frames_only and bits.u(1):
            raise NotUnderstood("pictures coded as fields")
        if is_idr:
            bits.ue()
        return frame_num, bits.u(self.order_lsb_bits) if self.order_lsb_bits else None


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _take_sets(extradata: bytes, offset: int, count: int, sets: list[bytes]) -> int:
    for _ in range(count):
        start = offset + 2
        offset = start + int.from_bytes(extradata[offset:start], "big")
        if unit := _trimmed(extradata[start:offset]):
            sets.append(unit)
    return offset


def _annex_b_units(data: memoryview) -> Iterator[memoryview]:
    """Units between start codes (ISO/IEC 14496-10, annex B); zero bytes before a start code stay at a unit's end."""
    payload = bytes(data)
    start = payload.find(START_CODE)
    if start < 0 or payload[:start].strip(b"\0"):
        raise NotUnderstood("a packet that does not begin with a start code")
    while start >= 0:
        following = payload.find(START_CODE, start + 3)
        end = following if following >= 0 else len(payload)
        if end > start + 3:
            yield data[start + 3 : end]
        start = following


def _trimmed(unit: bytes | memoryview) -> bytes:
    """A unit without trailing zero bytes; its own last byte is never zero."""
    return bytes(unit).rstrip(b"\0")
