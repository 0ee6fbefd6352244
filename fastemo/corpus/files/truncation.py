"""Files that end early, by what their containers say: FFmpeg reads them as far as they go, mostly without an error."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_TOP_LEVEL_BOXES = frozenset(b"ftyp styp moov moof mdat mfra sidx free skip wide pnot uuid meta udta".split())
_EBML_HEADER, _EBML_SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")


def cut_off(path: Path, size: int) -> str:
    """What the container expects past the end of the file ('' for nothing)."""
    with path.open("rb") as file:
        start = file.read(4)
        if start == _EBML_HEADER:
            return _cut_segment(file, size)
        if start == b"RIFF":  # AVI: a chunk of 4 + 4 + n bytes; cameras that stop without closing leave n = 0
            length = 8 + int.from_bytes(file.read(4), "little")
            return f"its RIFF chunk ends {length - size} bytes past the file" if length > size else ""
        if start[:3] == b"FLV":
            return _cut_tag(file, size)
    return _cut_box(path, size)


def _cut_segment(file: BinaryIO, size: int) -> str:
    """How far a Matroska or WebM file's Segment reaches past its end. Source: RFC 8794, sections 4 and 6."""
    file.seek(0)
    while (identifier := file.read(4)) in (_EBML_HEADER, _EBML_SEGMENT):
        first = file.read(1)
        if not first or not first[0]:
            return ""
        num_bytes = 9 - first[0].bit_length()
        payload_bits = 7 * num_bytes
        number = int.from_bytes(first + file.read(num_bytes - 1), "big") & (1 << payload_bits) - 1
        if number == (1 << payload_bits) - 1:  # a live stream: the length was not known
            return ""
        end = file.tell() + number
        if end > size:
            return f"its Segment ends {end - size} bytes past the file"
        if identifier == _EBML_SEGMENT:
            return ""
        file.seek(end)
    return ""


def _cut_tag(file: BinaryIO, size: int) -> str:
    """Whether an FLV file's last four bytes are the length of the tag before them ('' if so).

    Source: Adobe Flash Video File Format Specification 10.1, annex E.3.
    """
    file.seek(size - 4)
    length = int.from_bytes(file.read(4), "big")
    if 11 <= length <= size - 13:
        file.seek(size - 4 - length)
        if int.from_bytes(file.read(4), "big") & 0xFFFFFF == length - 11:
            return ""
    return "it ends inside a tag"


def _cut_box(path: Path, size: int) -> str:
    """Which top-level box of an MP4 or MOV reaches past the end of the file ('' for none, or another format).

    Source: ISO/IEC 14496-12, section 4.2.
    """
    with path.open("rb") as file:
        offset = 0
        while offset + 8 <= size:
            file.seek(offset)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if kind not in _TOP_LEVEL_BOXES:
                return ""
            if length == 1 and len(header) == 16:
                length = int.from_bytes(header[8:], "big")
            if length == 0:  # the last box, open to the end of the file
                return ""
            if offset + length > size:
                return f"its '{kind.decode('latin-1')}' box ends {offset + length - size} bytes past the file"
            if length < 8:
                return ""
            offset += length
    return ""
