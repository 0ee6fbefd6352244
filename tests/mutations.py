"""MP4s damaged on purpose, each from a good one and a random generator, and a check of how one decodes."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np

_CONTAINERS = frozenset(b"moov trak mdia minf stbl edts dinf".split())
_TABLES = frozenset(b"stts ctts stsc stsz stco co64 stss elst".split())
_LARGE = (2**31 - 1, 2**31, 2**32 - 1, 2**30, 2**28, 2**24)

# PNG, JPEG, WAV, ZIP, ELF, gzip.
_MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    b"RIFF\x24\0\0\0WAVEfmt ",
    b"PK\x03\x04",
    b"\x7fELF",
    b"\x1f\x8b\x08",
)


@dataclass(frozen=True)
class Box:
    """A box of an MP4: where it begins, its length with header, and its four letters."""

    start: int
    length: int
    kind: bytes
    parent: bytes = b""
    header: int = 8

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def body(self) -> int:
        return self.start + self.header


def boxes(data: bytes, start: int = 0, end: int | None = None, parent: bytes = b"") -> Iterator[Box]:
    """All boxes of a good MP4, each before those inside it."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        length, kind = int.from_bytes(data[start : start + 4], "big"), bytes(data[start + 4 : start + 8])
        header = 16 if length == 1 else 8
        if length == 1:
            length = int.from_bytes(data[start + 8 : start + 16], "big")
        if not 8 <= length <= end - start:  # QuickTime ends some lists by four zero bytes
            return
        yield Box(start, length, kind, parent, header)
        if kind in _CONTAINERS:
            yield from boxes(data, start + 8, start + length, kind)
        start += length


def box(data: bytes, kind: bytes) -> Box:
    """The longest of a kind: some files have an empty one as well."""
    return max((it for it in boxes(data) if it.kind == kind), key=lambda it: it.length)


def wrapped(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def replaced(data: bytes, old: Box, new: bytes) -> bytes:
    """The file with one box changed, the boxes around it and the places of the frames made to fit."""
    result = bytearray(data[: old.start] + new + data[old.end :])
    growth = len(new) - old.length
    for around in boxes(data):
        if around.start < old.start and around.end >= old.end:
            struct.pack_into(">I", result, around.start, around.length + growth)
    if box(data, b"mdat").start > old.start:
        for table in [it for it in boxes(data) if it.kind == b"stco"]:
            place = table.start + (growth if table.start > old.start else 0)
            if table.start != old.start:
                (count,) = struct.unpack_from(">I", result, place + 12)
                offsets = struct.unpack_from(f">{count}I", result, place + 16)
                struct.pack_into(f">{count}I", result, place + 16, *(offset + growth for offset in offsets))
    return bytes(result)


def with_parameters(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with another avcC: H.264's parameter sets."""
    stsd = box(data, b"stsd")
    table = bytearray(data[stsd.start : stsd.end])
    start = table.index(b"avcC") - 4
    (length,) = struct.unpack_from(">I", table, start)
    new = wrapped(b"avcC", change(bytes(table[start + 8 : start + length])))
    table[start : start + length] = new
    for around in (0, 16):  # the table and its one entry
        (old,) = struct.unpack_from(">I", table, around)
        struct.pack_into(">I", table, around, old + len(new) - length)
    return replaced(data, stsd, bytes(table))


def _flipped(data: bytes, rng: Random, start: int, end: int, count: int) -> bytes:
    result = bytearray(data)
    for _ in range(count):
        result[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(result)


def few_bits(data: bytes, rng: Random) -> bytes:
    return _flipped(data, rng, 0, len(data), rng.randint(1, 8))


def many_bits(data: bytes, rng: Random) -> bytes:
    return _flipped(data, rng, 0, len(data), max(1, int(len(data) * rng.choice((0.001, 0.01, 0.05)))))


def index_bits(data: bytes, rng: Random) -> bytes:
    moov = box(data, b"moov")
    return _flipped(data, rng, moov.start, moov.end, rng.randint(1, 6))


def frame_bits(data: bytes, rng: Random) -> bytes:
    mdat = box(data, b"mdat")
    end = mdat.end if mdat.end > mdat.body else len(data)  # a real clip has its frames behind an empty box
    return _flipped(data, rng, mdat.body, end, rng.choice((1, 1, 2, 4, 16, 64)))


def parameter_bits(data: bytes, rng: Random) -> bytes:
    stsd = box(data, b"stsd")
    if rng.random() < 0.5:
        return _flipped(data, rng, stsd.body, stsd.end, rng.randint(1, 4))
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        result[rng.randrange(stsd.end - 90, stsd.end)] = rng.choice((0, 1, 127, 255))
    return bytes(result)


def cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))]


def moved_bytes(data: bytes, rng: Random) -> bytes:
    """A run of bytes taken out, put in twice, blanked or swapped with another."""
    length = min(rng.choice((1, 4, 16, 100, 1000)), len(data) // 4)
    here, there = sorted(rng.randrange(len(data) - length) for _ in range(2))
    run = data[here : here + length]
    return {
        0: data[:here] + data[here + length :],
        1: data[:there] + run + data[there:],
        2: data[:here] + bytes(length) + data[here + length :],
        3: data[:here] + data[there : there + length] + data[here + length : there] + run + data[there + length :],
    }[rng.randrange(4) if there >= here + length else rng.randrange(3)]


def damaged(data: bytes, rng: Random) -> bytes:
    """Any file with bits flipped, bytes moved, or its end cut off."""
    for _ in range(rng.choice((1, 1, 3))):
        data = rng.choice((few_bits, moved_bytes, cut))(data, rng) or b"x"
    return data


def shuffled_boxes(data: bytes, rng: Random) -> bytes:
    """The boxes inside one box, or those of the file, in another order."""
    within = rng.choice([None, *(it for it in boxes(data) if it.kind in _CONTAINERS)])
    start, end = (within.body, within.end) if within else (0, len(data))
    kind = within.kind if within else b""
    inner = [it for it in boxes(data, start, end, kind) if it.parent == kind]
    rng.shuffle(inner)
    return data[:start] + b"".join(data[it.start : it.end] for it in inner) + data[end:]


def other_lengths(data: bytes, rng: Random) -> bytes:
    it = rng.choice([*boxes(data)])
    result = bytearray(data)
    new = rng.choice((0, 1, 2, 7, 8, it.length - 1, it.length + 1, it.length // 2, it.length * 2, *_LARGE))
    struct.pack_into(">I", result, it.start, new % 2**32)
    if new == 1 and it.length >= 16:  # the true length follows, in 64 bits
        long = rng.choice((0, 1, 15, 16, it.length, it.length - 8, 2**31, 2**32, 2**62, 2**63, 2**64 - 1))
        struct.pack_into(">Q", result, it.body, long)
    return bytes(result)


def absurd_counts(data: bytes, rng: Random) -> bytes:
    result = bytearray(data)
    table = rng.choice([it for it in boxes(data) if it.kind in _TABLES])
    if table.kind == b"stsz":
        size = rng.choice((0, 0, 1, 100))  # bytes of every frame; 0: a table follows
        struct.pack_into(">II", result, table.body + 4, size, rng.choice(_LARGE))
    else:
        struct.pack_into(">I", result, table.body + 4, rng.choice(_LARGE))
    return bytes(result)


def bomb(data: bytes, rng: Random) -> bytes:
    return with_frames(data, rng.choice((2**22, 2**24, 2**27)))


def with_frames(data: bytes, count: int) -> bytes:
    """Tables of a few kilobytes that say: very many frames of one byte each, all of them inside the file."""
    mdat = box(data, b"mdat")
    per_chunk = mdat.length - 8
    chunks = count // per_chunk
    data = replaced(data, box(data, b"stsz"), wrapped(b"stsz", struct.pack(">III", 0, 1, chunks * per_chunk)))
    data = replaced(data, box(data, b"stsc"), wrapped(b"stsc", struct.pack(">IIIII", 0, 1, 1, per_chunk, 1)))
    body = struct.pack(">II", 0, chunks) + struct.pack(">I", mdat.body) * chunks
    return replaced(data, box(data, b"stco"), wrapped(b"stco", body))


def outside_the_file(data: bytes, rng: Random) -> bytes:
    """Places or lengths of frames that the file does not have."""
    result = bytearray(data)
    table = box(data, rng.choice((b"stco", b"stsz")))
    first = table.body + (8 if table.kind == b"stco" else 12)
    if first >= table.end:
        return bytes(result)
    for _ in range(rng.choice((1, 3))):
        place = rng.randrange(first, table.end, 4)
        value = rng.choice((0, 1, len(data) - 1, len(data), len(data) * 2, *_LARGE))
        struct.pack_into(">I", result, place, value)
    return bytes(result)


def random_entries(data: bytes, rng: Random) -> bytes:
    """Entries of the tables of frames and times: any number, or another entry's."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        table = rng.choice([it for it in boxes(data) if it.kind in _TABLES and it.length >= 20])
        places = range(table.body + 8, table.end - 3, 4)
        value = rng.choice((rng.getrandbits(32), rng.randrange(64), 0, 2**32 - 1))
        if rng.random() < 0.5:
            (value,) = struct.unpack_from(">I", data, rng.choice(places))
        struct.pack_into(">I", result, rng.choice(places), value)
    return bytes(result)


def no_frames(data: bytes, rng: Random) -> bytes:
    """A stream of zero frames, or frames of zero bytes."""
    kind = rng.choice((b"stsz", b"stts", b"stsc", b"stco", b"mdat", b"all"))
    empty = {b"stsz": struct.pack(">III", 0, 0, 0), b"mdat": b""}
    for name in (b"stsz", b"stts", b"stsc", b"stco") if kind == b"all" else (kind,):
        data = replaced(data, box(data, name), wrapped(name, empty.get(name, struct.pack(">II", 0, 0))))
    return data


def edit_lists(data: bytes, rng: Random) -> bytes:
    """Edit lists that repeat, go back, begin before the beginning, stand still or never end."""
    count = rng.choice((1, 2, 3, 20, 100) if len(data) < 100_000 else (1, 2, 3))  # each repeats the whole clip
    times = (0, 0, -1, -2, 512, 1024, 5000, rng.randrange(20_000), 2**31 - 1, -(2**31))
    lengths = (0, 1, 40, 200, 1000, 2**31 - 1, 2**32 - 1)
    rates = (0x10000, 0x10000, 0x10000, 0, 0x20000, -0x10000, 0x8000)
    entries = b"".join(
        struct.pack(">Iii", rng.choice(lengths), rng.choice(times), rng.choice(rates)) for _ in range(count)
    )
    body = struct.pack(">II", 0, rng.choice((count, count, count + 1, 2**31))) + entries
    edts = wrapped(b"edts", wrapped(b"elst", body))
    found = next((it for it in boxes(data) if it.kind == b"edts"), None)
    if found:
        return replaced(data, found, edts)
    mdia = box(data, b"mdia")
    return replaced(data, mdia, edts + data[mdia.start : mdia.end])


def other_sizes(data: bytes, rng: Random) -> bytes:
    """The stream's header names another size of frame than its frames have."""
    stsd = box(data, b"stsd")
    result = bytearray(data)
    values = (0, 1, 16, 48, 64, 4096, 16384, 65535)
    struct.pack_into(">HH", result, stsd.start + 16 + 8 + 24, rng.choice(values), rng.choice(values))
    return bytes(result)


def not_a_video(data: bytes, rng: Random) -> bytes:
    """Files of other kinds, such as name other files."""
    other = b"other.mp4"
    return rng.choice(
        [
            b"",
            b"\0",
            bytes(rng.randrange(1, 5000)),
            rng.randbytes(rng.randrange(1, 5000)),
            b"words and words\n" * rng.randrange(1, 500),
            *(magic + rng.randbytes(500) for magic in _MAGIC),
            b"<html><body>404</body></html>\n",
            b"ffconcat version 1.0\nfile " + other + b"\n",
            b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n" + other + b"\n#EXT-X-ENDLIST\n",
            b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
            b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 9 RTP/AVP 96\r\n",
            data[4:],
            data[box(data, b"mdat").body :],
            wrapped(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41"),
        ]
    )


MUTATIONS: dict[str, Callable[[bytes, Random], bytes]] = {
    "a few bits flipped anywhere": few_bits,
    "many bits flipped anywhere": many_bits,
    "bits flipped in the index": index_bits,
    "bits flipped in the frames": frame_bits,
    "bits flipped in the codec's parameters": parameter_bits,
    "cut off at a random place": cut,
    "bytes removed, repeated, blanked or swapped": moved_bytes,
    "boxes in another order": shuffled_boxes,
    "boxes of another length": other_lengths,
    "tables with absurd counts": absurd_counts,
    "tables that claim millions of frames": bomb,
    "tables that point outside the file": outside_the_file,
    "tables with random entries": random_entries,
    "streams without frames": no_frames,
    "absurd edit lists": edit_lists,
    "a header with another frame size": other_sizes,
    "files of other kinds named .mp4": not_a_video,
}


def mixed_sizes(path: Path, clips: list[Path], keep: list[int], *, all_in_header: bool = False) -> Path:
    """One H.264 stream from clips of several frame sizes, their parameter sets in the frames.

    Args:
        path: The MP4 to write.
        clips: MP4s of H.264 with avcC.
        keep: Of each clip, how many packets.
        all_in_header: Put the parameter sets of the first two into the header as well.
    """
    with av.open(str(path), "w") as output:
        stream, place = None, 0
        for clip, count in zip(clips, keep, strict=True):
            with av.open(str(clip)) as container:
                source = container.streams.video[0]
                extradata = source.codec_context.extradata
                assert extradata is not None
                if stream is None:
                    stream = output.add_stream_from_template(source)
                    if all_in_header:
                        with av.open(str(clips[1])) as second:
                            other = second.streams.video[0].codec_context.extradata
                        both = parameter_sets(extradata) + parameter_sets(other)
                        stream.codec_context.extradata = packed(extradata, both)
                packets = [packet for packet in container.demux(source) if packet.size][:count]
                for number, packet in enumerate(packets):
                    head = b"".join(struct.pack(">I", len(it)) + it for it in parameter_sets(extradata))
                    new = av.Packet((b"" if number else head) + bytes(packet))
                    assert packet.pts is not None
                    assert packet.dts is not None
                    new.stream, new.time_base, new.is_keyframe = stream, source.time_base, packet.is_keyframe
                    new.pts, new.dts, new.duration = packet.pts + place, packet.dts + place, packet.duration
                    output.mux_one(new)
                place += max((packet.pts or 0) + (packet.duration or 0) for packet in packets)
    return path


def parameter_sets(extradata: bytes) -> list[bytes]:
    sets, offset = [], 5
    for mask in (31, 255):
        count, offset = extradata[offset] & mask, offset + 1
        for _ in range(count):
            length = int.from_bytes(extradata[offset : offset + 2], "big")
            sets.append(extradata[offset + 2 : offset + 2 + length])
            offset += 2 + length
    return sets


def packed(header: bytes, sets: list[bytes]) -> bytes:
    """An avcC that begins as `header` and has these parameter sets; one without bytes counts as a sequence's."""
    result = header[:5]
    for kind, mark in ((7, 0xE0), (8, 0)):
        own = [it for it in sets if (it[0] & 31 if it else 7) == kind]
        result += bytes([mark | len(own)]) + b"".join(struct.pack(">H", len(it)) + it for it in own)
    return result


def checked(request: dict[str, Any]) -> dict[str, Any]:
    """Called in a process of its own: decode an accepted file's samples and compare them to a full decode.

    Args:
        request: `path`; `num_frames` as the manifest has it.

    Returns:
        `outcome`: "decoded exactly", "decode error by name", or else what went wrong.
    """
    from fastemo.errors import DecodeError
    from fastemo.video.decode import decode_clip
    from fastemo.video.sampling import frame_indices

    path, num_frames = Path(request["path"]), request["num_frames"]
    samples = [frame_indices(num_frames, count).tolist() for count in (1, 3, 10)]
    samples += [[0], [num_frames - 1], [num_frames // 3, min(num_frames // 3 + 1, num_frames - 1)]]
    expected, trouble = _hashes_of_full_decode(path, {index for sample in samples for index in sample})
    if not trouble and expected["count"] != num_frames:
        trouble = f"{num_frames} frames in the manifest, {expected['count']} decode"
    wrong: list[str] = []
    for sample in samples:
        try:
            frames = decode_clip(path, sample, None)
        except DecodeError as error:
            if str(path) not in str(error):
                return {"outcome": f"an error without the file's name: {error}"}
            return {"outcome": "decode error by name", "detail": str(error), "trouble": trouble, "wrong": wrong}
        except Exception as error:
            return {"outcome": f"an exception that names no file: {error!r}"}
        if frames.dtype != np.uint8 or frames.shape[:2] != (len(sample), 3):
            return {"outcome": f"frames are {frames.dtype} {frames.shape}"}
        got = [_hash(frame.transpose(1, 2, 0)) for frame in frames]
        wrong += [f"{index} of {sample}" for index, it in zip(sample, got, strict=True) if it != expected.get(index)]
    if wrong:
        return {"outcome": "other frames", "detail": ", ".join(wrong), "trouble": trouble}
    return {"outcome": "decoded exactly", "trouble": trouble}


def _hash(frame: np.ndarray) -> str:
    data = np.ascontiguousarray(frame).data
    return hashlib.blake2b(data, digest_size=8, key=str(frame.shape).encode()).hexdigest()


def _hashes_of_full_decode(path: Path, wanted: set[int]) -> tuple[dict[Any, Any], str]:
    """What PyAV gives for the wanted frames when it decodes them all in turn, how many come, and what stopped it."""
    found: dict[Any, Any] = {"count": 0}
    try:
        with av.open(io.BytesIO(path.read_bytes())) as container:
            stream = container.streams.best("video")
            assert isinstance(stream, av.VideoStream)
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if found["count"] in wanted:
                    found[found["count"]] = _hash(frame.to_ndarray(format="rgb24"))
                found["count"] += 1
    except (av.error.FFmpegError, ValueError) as error:
        return found, f"{type(error).__name__}: {error}"
    return found, ""
