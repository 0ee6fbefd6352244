"""A pruned file decodes to exactly the wanted frames, bit by bit, by PyAV and by decord."""

import io
import random
import struct
from dataclasses import dataclass, field

import av
import decord
import numpy as np
import pytest
from helpers import numbered_frame, write_video

from fastemo.errors import UserError
from fastemo.video import bitstream
from fastemo.video.bitstream import nal
from fastemo.video.bitstream.frame_headers import Bits, NotUnderstood, check_av1, check_mpeg4, check_vp9
from fastemo.video.bitstream.pruning import UNPROBED, BitstreamError, prune
from fastemo.video.decode import unpadded
from fastemo.video.sampling import frame_indices

WIDTH, HEIGHT = 96, 64
NUM_FRAMES = 75


@dataclass(frozen=True)
class Source:
    """How a test's video is encoded.

    Attributes:
        x264: Parameters in x264's or x265's own syntax.
        whole: Passes through as it is.
    """

    name: str
    x264: str = ""
    codec: str = "libx264"
    suffix: str = ".mp4"
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    whole: bool = False


X264 = "scenecut=0:"
H264_SOURCES = [
    *[Source(f"bf{bf}-keyint{g}", f"bframes={bf}:keyint={g}") for bf in (0, 2, 3) for g in (1, 12, 29, 250)],
    *[
        Source(
            f"pyramid-{pyramid}-{'open' if is_open else 'closed'}-refs{refs}",
            f"bframes=3:b-adapt=0:b-pyramid={pyramid}:open-gop={is_open}:ref={refs}:keyint=12",
        )
        for pyramid in ("none", "strict", "normal")
        for is_open in (0, 1)
        for refs in (1, 5)
    ],
    Source("open-bf2-keyint29", "bframes=2:b-adapt=0:open-gop=1:keyint=29"),
    Source("intra-refresh", "intra-refresh=1:keyint=12:bframes=0"),
    Source("intra-refresh-bf2", "intra-refresh=1:keyint=29:bframes=2:b-adapt=0"),
    Source("cavlc", "cabac=0:bframes=2:keyint=29"),
    Source("weightp", "weightp=2:weightb=1:bframes=3:ref=3:keyint=29"),
    Source("unweighted", "weightp=0:weightb=0:bframes=3:keyint=29"),
    Source("444", "bframes=3:keyint=29", pix_fmt="yuv444p"),
    Source("full-range", "bframes=3:keyint=29:fullrange=on", pix_fmt="yuvj420p"),
    Source("slices", "slices=4:bframes=2:keyint=29:aud=1"),
    Source("scaling-lists", "cqm=jvt:bframes=2:keyint=29:8x8dct=1"),
    Source("interlaced", "tff=1:bframes=2:keyint=29"),
    Source("headers-repeated", "repeat-headers=1:bframes=2:keyint=12"),
    Source("ts", "bframes=3:keyint=12", suffix=".ts"),
    Source("ts-open", "bframes=3:b-pyramid=normal:open-gop=1:keyint=12", suffix=".ts"),
    Source("mkv", "bframes=3:keyint=29", suffix=".mkv"),
    Source("mov", "bframes=3:keyint=29", suffix=".mov"),
    Source("avi", "bframes=0:keyint=12", suffix=".avi"),
]
OTHER_SOURCES = [
    Source("x265", "log-level=0:keyint=250", codec="libx265"),
    Source("x265-open", "log-level=0:keyint=12:min-keyint=12:scenecut=0:open-gop=1:bframes=4", codec="libx265"),
    Source("x265-closed", "log-level=0:keyint=12:min-keyint=12:scenecut=0:open-gop=0", codec="libx265"),
    Source("x265-mkv", "log-level=0:keyint=12:min-keyint=12:scenecut=0", codec="libx265", suffix=".mkv"),
    Source("x265-ts", "log-level=0:keyint=12:min-keyint=12:scenecut=0", codec="libx265", suffix=".ts"),
    Source("x265-repeat", "log-level=0:keyint=12:repeat-headers=1:scenecut=0", codec="libx265"),
    Source("vp9", codec="libvpx-vp9", options={"g": "12", "cpu-used": "8", "lag-in-frames": "16", "auto-alt-ref": "1"}),
    Source("webm", codec="libvpx-vp9", suffix=".webm", options={"g": "29", "cpu-used": "8"}),
    Source("av1", codec="libsvtav1", options={"g": "12", "preset": "10"}),
    Source("av1-mkv", codec="libsvtav1", suffix=".mkv", options={"g": "29", "preset": "10"}),
    Source("mpeg4", codec="mpeg4", options={"g": "12"}),
    Source("mpeg4-bf2", codec="mpeg4", options={"g": "12", "bf": "2"}),
    Source("mpeg4-avi", codec="mpeg4", suffix=".avi", options={"g": "12", "bf": "2"}, whole=True),
    Source("mpeg2", codec="mpeg2video", options={"g": "12", "bf": "2"}),
    Source("mpeg2-ts", codec="mpeg2video", suffix=".ts", options={"g": "12", "bf": "2"}),
    Source("mjpeg-mov", codec="mjpeg", suffix=".mov", pix_fmt="yuvj420p"),
    Source("mjpeg-avi", codec="mjpeg", suffix=".avi", pix_fmt="yuvj420p"),
]
SOURCES = {source.name: source for source in H264_SOURCES + OTHER_SOURCES}

# decord 0.6 knows no AV1. decord2 3.4 gives up (EAGAIN) where HEVC's decoder has several frames ready.
IS_DECORD2 = not decord.__version__.startswith("0.")
UNREAD_BY_DECORD = {"x265-closed"} if IS_DECORD2 else {"av1", "av1-mkv"}


def moving_frame(number, width, height):
    """Stripes that number the frame, over a texture that moves and a little noise: no two frames are alike."""
    texture = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    moved = np.roll(texture, (number, 3 * number), (0, 1))
    noise = np.random.default_rng(number + 1).integers(0, 64, (height, width, 3))
    return (numbered_frame(number, width, height) * 0.3 + moved * 0.4 + noise).clip(0, 255).astype(np.uint8)


def write(source, folder):
    params = {"libx264": "x264-params", "libx265": "x265-params"}.get(source.codec)
    options = {**source.options, **({"preset": "veryfast", params: source.x264} if params else {})}
    if source.codec == "libx264":
        options[params] = X264 + source.x264
    kind = {"codec": source.codec, "pixel_format": source.pix_fmt, "options": options}
    return write_video(folder / f"{source.name}{source.suffix}", NUM_FRAMES, WIDTH, HEIGHT, draw=moving_frame, **kind)


def by_pyav(file, unprobed=False):
    """All frames: the decoder's own planes, and what turns them into RGB."""
    with av.open(file, options=UNPROBED if unprobed else {}) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return [
            # An unspecified range (0) and a limited one (1) mean the same.
            (frame.format.name, frame.colorspace, max(frame.color_range, 1), frame.to_ndarray().tobytes())
            for frame in container.decode(stream)
        ]


def by_decord(path, count):
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    return [unpadded(reader.next().asnumpy()) for _ in range(min(count, len(reader)))]


class Truth:
    """A file and its full decodes."""

    def __init__(self, path, by_decord_too=True):
        self.path, self.scratch = path, path.with_suffix(".pruned")
        self.frames = by_pyav(str(path))
        if not by_decord_too:
            self.rgb = None
        elif path.stem in ("interlaced", "rotated"):  # decord scales the chroma of fields apart, and turns pictures
            self.rgb = by_decord(path, len(self.frames))
        else:
            with av.open(str(path)) as container:
                self.rgb = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]

    def kinds(self):
        """Of each H.264 packet, whether it holds a reference picture."""
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            framing = nal.framing(stream.codec_context.extradata, "h264")
            packets = [memoryview(packet) for packet in container.demux(stream) if packet.size]
            return [picture.is_reference for picture in nal.h264_pictures(framing, packets)]

    def check(self, indices, unprobed=True):
        """Prune and compare every wanted frame by both decoders."""
        clip = prune(self.path, indices)
        assert clip.is_whole == (clip.data == self.path.read_bytes())
        got = by_pyav(io.BytesIO(clip.data), unprobed=unprobed and not clip.is_whole)
        assert clip.positions.dtype == np.int64
        assert len(clip.positions) == len(indices)
        for index, position in zip(indices, clip.positions, strict=True):
            assert got[position] == self.frames[index], f"{self.path.name}: frame {index} of {list(indices)}"
        if self.rgb is not None:
            self.scratch.write_bytes(clip.data)
            got_decord = by_decord(self.scratch, max(clip.positions) + 1)
            for index, position in zip(indices, clip.positions, strict=True):
                same = np.array_equal(got_decord[position], self.rgb[index])
                assert same, f"{self.path.name} by decord: frame {index} of {list(indices)}"
        return clip, len(got)


@pytest.fixture(scope="module")
def truths(tmp_path_factory):
    """Each source is encoded once, when first asked for."""
    folder, made = tmp_path_factory.mktemp("sources"), {}

    def get(name):
        if name not in made:
            made[name] = Truth(write(SOURCES[name], folder), name not in UNREAD_BY_DECORD)
        return made[name]

    return get


def check_index_sets(truth):
    return [truth.check(indices) for indices in index_sets(len(truth.frames))]


def index_sets(num_frames):
    return [
        *[frame_indices(num_frames, num_samples) for num_samples in (1, 2, 6, 10, 16)],
        [num_frames - 1],
        [0],
        [num_frames // 3],
        [num_frames - 2, 3, 3, num_frames - 2],
        range(num_frames),
        *[random.Random(number).sample(range(num_frames), 5) for number in range(4)],
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_wanted_frames_are_exact(truths, name):
    truth = truths(name)
    assert len(truth.frames) == NUM_FRAMES
    check_index_sets(truth)
    clip, num_left = truth.check([0], unprobed=False)
    assert clip.is_whole == SOURCES[name].whole
    if not clip.is_whole:
        assert num_left == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_encoder_settings(tmp_path, seed):
    draw = random.Random(seed)
    params = {
        "bframes": draw.randint(0, 6),
        "b-adapt": draw.randint(0, 2),
        "b-pyramid": draw.choice(("none", "strict", "normal")),
        "open-gop": draw.randint(0, 1),
        "ref": draw.randint(1, 8),
        "keyint": draw.choice((1, 2, 5, 12, 29, 60, 250)),
        "cabac": draw.randint(0, 1),
        "weightp": draw.randint(0, 2),
        "weightb": draw.randint(0, 1),
        "direct": draw.choice(("none", "spatial", "temporal", "auto")),
        "slices": draw.randint(1, 4),
        "repeat-headers": draw.randint(0, 1),
        "scenecut": draw.choice((0, 40)),
        "intra-refresh": int(draw.random() < 0.2),
    }
    suffix = draw.choice((".mp4", ".mkv", ".mov", ".ts"))
    if suffix == ".ts":  # holds parameter sets nowhere else
        params["repeat-headers"] = 1
    text = ":".join(f"{key}={value}" for key, value in params.items())
    truth = Truth(write(Source(f"seed{seed}", text, suffix=suffix), tmp_path))
    assert len(truth.frames) == NUM_FRAMES
    check_index_sets(truth)
    for _ in range(10):
        truth.check([draw.randrange(NUM_FRAMES) for _ in range(draw.randint(1, 8))])
    assert truth.check([0])[1] == 1


def test_only_reference_frames_and_wanted_ones_remain(truths):
    """A wanted B takes the picture before and the one after that it refers to; the last P takes no B at all."""
    truth = truths("pyramid-none-closed-refs5")
    with av.open(str(truth.path)) as container:
        types = "".join("?IPB"[frame.pict_type] for frame in container.decode(video=0))
    group, first_b, last_p = types[:12], types.index("B"), types[:12].rindex("P")
    assert types[12] == "I"
    assert group.count("B") >= 6
    assert truth.check([first_b])[1] == 3
    assert truth.check([0, first_b, 12])[1] == 4
    assert truth.check([last_p])[1] == 12 - group.count("B")
    assert truth.check([last_p, 24])[1] == 12 - group.count("B") + 1


def test_a_pruned_file_is_the_same_from_bytes_and_can_be_pruned_again(truths):
    truth = truths("pyramid-normal-closed-refs5")
    clip = prune(truth.path, [3, 20, 60])
    again = prune(truth.path.read_bytes(), [3, 20, 60])
    assert again.data == clip.data
    twice = bitstream.prune(clip.data, clip.positions[1:])
    got = by_pyav(io.BytesIO(twice.data))
    assert [got[position] for position in twice.positions] == [truth.frames[20], truth.frames[60]]


def test_x264s_version_note_goes_along(truths):
    """FFmpeg's decoder reads it from the first packet, and mends old versions' errors by it."""
    for name in ("444", "ts"):
        assert b"x264 - core" in prune(truths(name).path, [NUM_FRAMES - 1]).data


def remux(source, target, change=lambda number, packet, ticks: packet, **attributes):
    """Copy a stream, each packet as `change(number, packet, ticks a frame)` returns it; None leaves it out.

    Attributes of the codec's context, by name, are what the container says of the stream.
    """
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        template = reader.streams.video[0]
        stream = writer.add_stream_from_template(template, opaque=True)
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        packets = [packet for packet in reader.demux(template) if packet.size]
        first = min(packet.pts for packet in packets)
        for number, packet in enumerate(packets):
            packet.dts = (packet.pts if packet.dts is None else packet.dts) - first
            packet.pts -= first
            changed = change(number, packet, round(1 / 25 / packet.time_base))
            if changed is not None:
                changed.stream = stream
                writer.mux_one(changed)
    return target


def copied(packet, payload):
    new = av.Packet(payload)
    new.pts, new.dts, new.duration, new.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
    new.is_keyframe = packet.is_keyframe
    return new


@pytest.mark.parametrize("num_cut", [3, 5, 14])
@pytest.mark.parametrize(
    "name", ["bf3-keyint12", "pyramid-normal-open-refs5", "x265", "x265-open", "x265-closed", "mpeg4-bf2", "vp9"]
)
def test_frames_that_an_edit_list_discards_do_not_count(truths, tmp_path, name, num_cut):
    def shift(number, packet, ticks):
        packet.pts, packet.dts = packet.pts - num_cut * ticks, packet.dts - num_cut * ticks
        return packet

    truth = Truth(remux(truths(name).path, tmp_path / "cut.mp4", shift), name not in UNREAD_BY_DECORD)
    assert len(truth.frames) == NUM_FRAMES - num_cut
    assert truth.frames == truths(name).frames[num_cut:]
    check_index_sets(truth)


@pytest.mark.parametrize("name", ["pyramid-normal-open-refs5", "x265-open", "mpeg4-bf2"])
@pytest.mark.parametrize("num_cut", [12, 13])
def test_a_stream_that_begins_inside_a_group_stays_whole(truths, tmp_path, name, num_cut):
    path = remux(truths(name).path, tmp_path / "cut.mp4", lambda number, p, _: p if number >= num_cut else None)
    assert prune(path, [5, 20]).data == path.read_bytes()


def test_a_stream_that_lost_a_reference_stays_whole(truths, tmp_path):
    """What decoders put in its place depends on pictures that nothing refers to."""
    source = truths("bf3-keyint29")
    for is_reference in (True, False):
        lost = source.kinds().index(is_reference, 3)
        path = tmp_path / f"{lost}.mp4"
        remux(source.path, path, lambda number, packet, _, lost=lost: packet if number != lost else None)
        assert prune(path, [25]).is_whole == is_reference


def test_timestamps_that_are_missing_repeated_or_wrong(truths, tmp_path):
    def repeat(number, packet, ticks):
        packet.pts = packet.dts + (ticks if number % 2 == 0 else 0)
        return packet

    def disorder(number, packet, _):
        packet.pts = packet.dts  # as if there were no reordering
        return packet

    for name, file, change in (("bf3-keyint29", "wrong.mp4", disorder), ("bf0-keyint12", "repeated.mkv", repeat)):
        path = remux(truths(name).path, tmp_path / file, change)
        assert prune(path, [5]).data == path.read_bytes()
    missing = write(Source("missing", "bframes=3:keyint=12", suffix=".avi"), tmp_path)
    Truth(missing).check([5, 40])


def test_parameter_sets_that_change_inside_the_stream(tmp_path, truths):
    """The second half of a stream has sets of its own; nothing of it may be decoded by the first half's."""
    first = write(Source("one", "repeat-headers=1:bframes=2:keyint=12:ref=1", suffix=".ts"), tmp_path)
    second = write(Source("two", "repeat-headers=1:bframes=3:keyint=12:ref=5:cabac=0", suffix=".ts"), tmp_path)
    with av.open(str(first)) as reader, av.open(str(second)) as more, av.open(str(tmp_path / "both.ts"), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0], opaque=True)
        for source, offset in ((reader, 0), (more, 100 * 3600)):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                    writer.mux_one(packet)
    truth = Truth(tmp_path / "both.ts", by_decord_too=False)  # it begins a whole transport stream somewhere inside
    assert len(truth.frames) == 2 * NUM_FRAMES
    assert {num_left for _, num_left in check_index_sets(truth)} == {2 * NUM_FRAMES}


@pytest.mark.parametrize("length_size", [2, 3])
def test_any_length_before_nal_units(truths, tmp_path, length_size):
    four = nal.Framing(4, ())

    def shorten(_, packet, __):
        units = [bytes(unit) for unit in four.units(memoryview(packet))]
        return copied(packet, nal.Framing(length_size, ()).pack(units))

    path = remux(truths("bf3-keyint12").path, tmp_path / "short.mp4", shorten)
    data = bytearray(path.read_bytes())
    data[data.index(b"avcC") + 8] = 0xFC | length_size - 1
    path.write_bytes(data)
    truth = Truth(path)
    assert truth.frames == truths("bf3-keyint12").frames
    check_index_sets(truth)
    assert truth.check([0])[1] == 1


def without_vui(sps):
    """A sequence parameter set without the number of pictures that wait for reordering."""
    bits = Bits(sps[1:])
    total = bits._left
    assert bits.u(8) in nal._CHROMA_PROFILES
    bits.u(16), bits.ue()
    assert bits.ue() == 1
    bits.ue(), bits.ue(), bits.u(1)
    assert not bits.u(1)
    bits.ue()
    assert bits.ue() == 0
    bits.ue(), bits.ue(), bits.u(1), bits.ue(), bits.ue(), bits.u(2)
    if bits.u(1):
        bits.ue(), bits.ue(), bits.ue(), bits.ue()
    assert bits.u(1)
    text = format(bits._value, f"0{total}b")[: total - bits._left - 1] + "01"
    raw = int(text + "0" * (-len(text) % 8), 2).to_bytes(-(-len(text) // 8), "big")
    for low in range(4):
        raw = raw.replace(b"\0\0" + bytes([low]), b"\0\0\3" + bytes([low]))
    return sps[:1] + raw


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("pyramid", ["none", "normal"])
def test_a_stream_without_its_number_of_reordered_pictures(tmp_path, suffix, pyramid):
    params = f"repeat-headers=1:bframes=3:b-adapt=0:keyint=12:b-pyramid={pyramid}"
    source = write(Source("whole", params, suffix=".ts"), tmp_path)
    annex_b = nal.Framing(0, ())

    def strip(_, packet, __):
        units = [bytes(unit).rstrip(b"\0") for unit in annex_b.units(memoryview(packet))]
        return copied(packet, annex_b.pack(without_vui(u) if u[0] & 31 == nal.H264_SPS else u for u in units))

    stripped = remux(source, tmp_path / "stripped.ts", strip)
    if suffix != ".ts":  # the container's own copy of the set comes from the stripped stream
        stripped = remux(stripped, tmp_path / f"stripped{suffix}")
    truth = Truth(stripped)
    check_index_sets(truth)
    assert truth.check([0])[1] == 1


def test_pictures_coded_as_fields_stay_whole(truths, tmp_path):
    source = truths("interlaced").path
    with av.open(str(source)) as container:
        framing = nal.framing(container.streams.video[0].codec_context.extradata, "h264")
    sequence = nal._Sequence.parse(framing.parameter_sets[0])
    assert not sequence.frames_only

    def set_field_flag(number, packet, _):
        units = [bytearray(unit) for unit in framing.units(memoryview(packet))]
        for unit in units:
            if number == 5 and unit[0] & 31 == nal.H264_SLICE:
                bits = Bits(bytes(unit[1:13]))
                total = bits._left
                bits.ue(), bits.ue(), bits.ue(), bits.u(sequence.frame_num_bits)
                place = total - bits._left
                unit[1 + place // 8] |= 128 >> place % 8
        return copied(packet, framing.pack(map(bytes, units)))

    path = remux(source, tmp_path / "fields.mp4", set_field_flag)
    assert prune(source, [7]).data != source.read_bytes()
    assert prune(path, [7]).data == path.read_bytes()


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("colours", [(2, 2, 2, 2), (2, 1, 1, 1), (1, 1, 1, 1), (1, 9, 9, 16)])
def test_colours_that_only_the_container_names(truths, tmp_path, suffix, colours):
    names = ("color_range", "colorspace", "color_primaries", "color_trc")
    attributes = dict(zip(names, colours, strict=True))
    Truth(remux(truths("bf2-keyint29").path, tmp_path / f"colours{suffix}", **attributes)).check([0, 40])


def test_a_rotated_file_stays_rotated(truths, tmp_path):
    data = bytearray(truths("bf2-keyint29").path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
    path = tmp_path / "rotated.mp4"
    path.write_bytes(data)
    Truth(path).check([0, 40])
    with av.open(io.BytesIO(prune(path, [0, 40]).data)) as container:
        assert abs(next(container.decode(video=0)).rotation) == 90


def test_errors_name_the_file(truths, tmp_path):
    path = truths("bf0-keyint12").path
    for wrong in ([NUM_FRAMES], [0, -1], [3, NUM_FRAMES + 9]):
        with pytest.raises(BitstreamError, match=rf"bf0-keyint12\.mp4: frame {wrong[-1]} lies outside"):
            prune(path, wrong)
    broken = tmp_path / "broken.mp4"
    for content in (b"", b"nothing like a video" * 100, path.read_bytes()[:300]):
        broken.write_bytes(content)
        with pytest.raises(BitstreamError, match=r"broken\.mp4: ") as caught:
            prune(broken, [0])
        assert isinstance(caught.value, UserError)
        with pytest.raises(BitstreamError, match="bytes in memory"):
            prune(content, [0])
    with pytest.raises(BitstreamError, match=r"missing\.mp4: "):
        prune(str(tmp_path / "missing.mp4"), [0])
    with pytest.raises(AssertionError):
        prune(path, [])


def test_frame_headers_that_show_not_one_frame():
    for check in (check_vp9, check_av1):
        with pytest.raises(NotUnderstood):
            check(memoryview(bytes([0b10000100, 0, 0, 0])), False)  # a VP9 frame that is not shown, no AV1 unit
    with pytest.raises(NotUnderstood, match="one coded picture"):
        check_mpeg4(memoryview(b"\0\0\1\xb6" + bytes(20) + b"\0\0\1\xb6" + bytes(20)))
    with pytest.raises(NotUnderstood, match="one coded picture"):
        check_mpeg4(memoryview(b"\0\0\1\xb6" + bytes(3)))
    with pytest.raises(NotUnderstood, match="past its packet"):
        list(nal.Framing(4, ()).units(memoryview(b"\0\0\0\x09abc")))


@pytest.mark.parametrize(
    "name", ["header_157_decodes_110.mp4", "negative_pts_header_98_decodes_95.mp4", "hevc_variable_frame_rate.mov"]
)
def test_awkward_clips(clips_folder, tmp_path, name):
    truth = linked(clips_folder / "awkward" / name, tmp_path)
    for clip, _ in check_index_sets(truth):
        assert len(clip.data) < truth.path.stat().st_size or "hevc" in name


def linked(path, folder):
    """A clip under a name beside which a test can write."""
    link = folder / path.name
    link.symlink_to(path)
    return Truth(link, not IS_DECORD2 or "hevc" not in path.name)


def test_a_genuine_clip_loses_two_thirds_of_its_packets(clips_folder, tmp_path):
    truth = linked(sorted((clips_folder / "ravdess").rglob("01-01-01-*.mp4"))[0], tmp_path)
    assert len(truth.frames) == 98
    clip, num_left = truth.check(frame_indices(98, 10))
    assert num_left <= 36
    assert len(clip.data) < 0.56 * truth.path.stat().st_size


@pytest.mark.slow
def test_genuine_clips(clips_folder, tmp_path):
    for path in sorted((clips_folder / "ravdess").rglob("*.mp4")):
        assert not any(clip.is_whole for clip, _ in check_index_sets(linked(path, tmp_path)))


def test_what_cannot_be_remuxed_passes_through_whole(clips_folder):
    for path in sorted((clips_folder / "crema-d").glob("*.flv")):
        indices = frame_indices(len(by_pyav(str(path))), 10)
        clip = prune(path, indices)
        assert clip.data == path.read_bytes()
        assert np.array_equal(clip.positions, indices)
        with pytest.raises(BitstreamError, match=path.name):
            prune(path, [1000])
