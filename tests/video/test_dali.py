"""DALI against PyAV: on the CPU with the codecs that DALI has there, on a GPU with NVDEC's."""

import platform
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
from doubles import RecordingTransfer
from helpers import REPOSITORY, command, psnr, smooth_frame, turn, write_video
from mutations import box

from fastemo.corpus.manifest import scan
from fastemo.errors import DecodeError
from fastemo.machine import resident_memory
from fastemo.video import backends, dali
from fastemo.video import loader as loader_module
from fastemo.video.assembly import _is_the_clips
from fastemo.video.backends import Decoder, decodes, refused_size
from fastemo.video.bitstream import source as source_module
from fastemo.video.bitstream.pruning import PrunedClip, prune
from fastemo.video.bitstream.source import Source
from fastemo.video.config import CROPS, FrameSpec, StoreConfig, VideoConfig
from fastemo.video.dali import DaliDecoder, DaliUnavailable, capabilities, why_unavailable
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices
from fastemo.video.tiers import CachedClips

if (sys.platform, platform.machine()) != ("linux", "x86_64"):  # there its absence fails: it is a dependency
    pytest.importorskip("nvidia.dali", reason="DALI is a dependency on Linux x86-64 only")

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NUM_FRAMES = 40
FAST_VPX = {"deadline": "realtime", "cpu-used": "8", "b": "2M", "g": "10"}
# PSNR in dB: what the chroma's upsampling leaves. Law 1 asks for 38.
FLOOR = {"vp8": 50, "vp9": 50, "mjpeg": 46}


def write_vpx(path: Path, num_frames: int = NUM_FRAMES, size=(160, 90), codec="libvpx-vp9", draw=smooth_frame) -> Path:
    return write_video(path, num_frames, *size, codec=codec, options=FAST_VPX, draw=draw)


def tagged_video(path: Path, codec: str, matrix: int, colour_range: int, pixel_format="yuv420p", **options) -> Path:
    """Twelve frames of 320x192, converted by a matrix to a range, and marked as such in the stream."""
    with av.open(str(path), "w") as container:
        options |= FAST_VPX if "vpx" in codec else {"crf": "18"}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 192, pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, colour_range
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(smooth_frame(number, 320, 192), format="rgb24")
            frame = frame.reformat(format=pixel_format, dst_colorspace=matrix, dst_color_range=colour_range)
            frame.colorspace, frame.color_range = matrix, colour_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def source(
    path: Path, num_samples: int, *, num_frames: int = NUM_FRAMES, size=(160, 90), pruned: bool = True
) -> Source:
    indices = frame_indices(num_frames, num_samples)
    clip = prune(path, indices) if pruned else PrunedClip(path.read_bytes(), indices)
    return Source(path, tuple(indices.tolist()), clip, *size)


def decoder(spec: FrameSpec, *, size=(160, 90), device: torch.device = CPU, **options) -> DaliDecoder:
    return DaliDecoder(spec, device, frame_size=spec.out_size(*size), **{"num_threads": 2, **options})


def frames_of(tested: DaliDecoder, clips: list[Source]) -> torch.Tensor:
    """All of the clips decode."""
    frames, errors = tested.decode(clips)
    assert not errors
    return frames


def assert_as_pyavs(frames: torch.Tensor, clips: list[Source], spec: FrameSpec, floor: float = FLOOR["vp9"]) -> None:
    """Each frame of each clip is like PyAV's, by its PSNR in dB."""
    assert frames.dtype == torch.uint8
    for number, clip in enumerate(clips):
        expected = decode_clip(clip.path, clip.indices, spec, backend="pyav")
        assert frames[number].shape == expected.shape
        for one, other in zip(frames[number].cpu().numpy(), expected, strict=True):
            assert psnr(one, other) >= floor, clip.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dali")


@pytest.fixture(scope="module")
def videos(folder):
    """Five VP9 files of 160x90 that look different."""
    return [write_vpx(folder / f"clip{i}.mp4", draw=partial(smooth_frame, phase=i)) for i in range(5)]


@pytest.fixture(scope="module")
def by_codec(folder, videos):
    return {
        "vp9": videos[0],
        "vp8": write_vpx(folder / "vp8.webm", codec="libvpx"),
        "mjpeg": write_video(folder / "mjpeg.mkv", NUM_FRAMES, 160, 90, codec="mjpeg", draw=smooth_frame),
    }


@pytest.mark.parametrize("codec", sorted(backends.CODECS_CPU))
@pytest.mark.parametrize("crop", CROPS)
def test_frames_are_pyavs(by_codec, codec, crop):
    for num_samples, face in ((1, (100, 50, 40, 44)), (7, (3, 60, 22, 30)), (60, (40, 0, 20, 24))):
        spec = FrameSpec(num_frames=num_samples, crop=crop, size=48).at(face)
        clip = replace(source(by_codec[codec], num_samples), face=face)
        assert_as_pyavs(frames_of(decoder(spec), [clip]), [clip], spec, FLOOR[codec])


@pytest.mark.parametrize("matrix", [1, 2, 5, 7, 9])
@pytest.mark.parametrize("colour_range", [1, 2])
@pytest.mark.parametrize(
    ("device", "codec", "name", "floor"),
    [
        (CPU, "libvpx-vp9", "clip.webm", FLOOR["vp9"]),
        pytest.param(CUDA, "libx264", "clip.mp4", 38, marks=pytest.mark.cuda),
    ],
)
def test_colours_are_those_of_the_streams_own_matrix_and_range(
    tmp_path, matrix, colour_range, device, codec, name, floor
):
    path = tagged_video(tmp_path / name, codec, matrix, colour_range)
    spec = FrameSpec(num_frames=5, size=96)
    clip = source(path, 5, num_frames=12, size=(320, 192))
    assert clip.matrix == matrix
    assert_as_pyavs(frames_of(decoder(spec, size=(320, 192), device=device), [clip]), [clip], spec, floor)


def test_a_header_seen_before_tells_the_matrix_without_decoding(tmp_path, monkeypatch):
    path = tagged_video(tmp_path / "clip.mp4", "libx264", 1, 1)
    assert source(path, 5, num_frames=12, size=(320, 192)).matrix == 1
    data = prune(path, np.array([0])).data
    mdat = box(data, b"mdat")
    damaged = PrunedClip(data[: mdat.body] + bytes(mdat.end - mdat.body) + data[mdat.end :], np.array([0]))
    assert Source(path, (0,), damaged, 320, 192).matrix == 1
    monkeypatch.setattr(source_module, "_colours_by_header", {})
    with pytest.raises(DecodeError):
        Source(path, (0,), damaged, 320, 192)


def test_pruned_and_whole_files_give_the_same_bytes(videos):
    spec = FrameSpec(num_frames=5, size=48)
    pruned, whole = (source(videos[0], 5, pruned=pruned) for pruned in (True, False))
    assert len(pruned.clip.data) < len(whole.clip.data)
    frames = frames_of(decoder(spec), [pruned, whole])
    assert torch.equal(frames[0], frames[1])


@pytest.mark.parametrize("wanted", [[39, 3, 3, 0, 20], [39, 3, 2, 0, 20]])
def test_positions_come_in_the_order_asked_for(videos, wanted):
    spec = FrameSpec(num_frames=5, size=48)
    wanted = np.array(wanted)
    clip = Source(videos[0], tuple(wanted.tolist()), prune(videos[0], wanted), 160, 90)
    frames = frames_of(decoder(spec), [clip])
    ascending, order = np.unique(wanted, return_inverse=True)
    expected = decode_clip(videos[0], ascending, spec, backend="pyav")[order]
    assert psnr(frames[0].numpy(), expected) >= FLOOR["vp9"]


def test_sizes_and_numbers_of_frames_mix_in_a_batch(folder, videos):
    spec = FrameSpec(num_frames=30, size=48)
    clips = [source(videos[0], 30)]
    for num_frames, size in ((20, (96, 72)), (50, (320, 180)), (1, (72, 96))):
        path = write_vpx(folder / f"{size[0]}x{size[1]}.mp4", num_frames, size)
        clips.append(source(path, 30, num_frames=num_frames, size=size))
    assert_as_pyavs(frames_of(decoder(spec), clips), clips, spec)


def counting(feed, sizes: list[int]):
    """What DALI is fed with, and of how many clips each time."""

    def fed():  # without arguments, which DALI would fill
        batch = feed()
        sizes.append(len(batch[0]))
        return batch

    return fed


def test_a_pipeline_that_cannot_be_built_is_reported(videos, monkeypatch):
    tested = decoder(FrameSpec(num_frames=3, size=48))
    monkeypatch.setattr(tested, "_feed", lambda one, two: None)
    with pytest.raises(DaliUnavailable):
        tested.decode([source(videos[0], 3)])


def test_full_size_frames_in_flight_are_bounded(videos, monkeypatch):
    spec = FrameSpec(num_frames=3, size=48)
    clips = [source(path, 3) for path in videos]
    expected, _ = decoder(spec).decode(clips)
    for room in (1, 2 * 2 * 3 * 160 * 90 * 3):  # not even for one clip; for one in each of two micro-batches
        monkeypatch.setattr(dali, "_CPU_BYTES", room)
        bounded = decoder(spec)
        sizes: list[int] = []
        monkeypatch.setattr(bounded, "_feed", counting(bounded._feed, sizes))
        assert torch.equal(frames_of(bounded, clips), expected)
        assert sizes == [1] * 5


def damaged(kind: str, path: Path) -> Source:
    good = source(path, 5)
    if kind == "stream":
        data = good.clip.data[:3000] + bytes(800) + good.clip.data[3800:]
        return Source(path, good.indices, PrunedClip(data, good.clip.positions), 160, 90)
    if kind == "position":
        return Source(path, good.indices, PrunedClip(good.clip.data, good.clip.positions + NUM_FRAMES), 160, 90)
    assert kind == "codec"  # that DALI has no decoder for on a CPU
    other = write_video(path.with_name("h264.mp4"), NUM_FRAMES, 160, 90)
    return source(other, 5)


@pytest.mark.parametrize("kind", ["stream", "position", "codec"])
def test_a_clip_that_fails_is_named_and_the_others_are_whole(videos, kind):
    spec = FrameSpec(num_frames=5, size=48)
    good, bad = [source(path, 5) for path in videos], damaged(kind, videos[2])
    expected, _ = decoder(spec).decode(good)
    tested = decoder(spec, max_batch=2)
    for place in range(5):
        clips = [*good[:place], bad, *good[place + 1 :]]
        frames, errors = tested.decode(clips)
        assert list(errors) == [place]
        assert isinstance(errors[place], DecodeError)
        assert str(bad.path) in str(errors[place])
        assert "DALI: " in str(errors[place])
        assert "\n" not in str(errors[place])
        others = [i for i in range(5) if i != place]
        assert torch.equal(frames[others], expected[others])
        assert not frames[place].any()
    assert torch.equal(frames_of(tested, good), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError], ids=["interrupt", "torch"])
def test_what_ends_a_call_is_no_clips_error_and_leaves_nothing_behind(videos, monkeypatch, error):
    spec = FrameSpec(num_frames=5, size=48)
    clips = [source(path, 5) for path in videos]
    tested = decoder(spec, max_batch=1)
    expected, _ = tested.decode(clips)
    with monkeypatch.context() as patch:
        patch.setattr(tested, "_hand_over", Mock(side_effect=error("CUDA error")))
        with pytest.raises(error, match=r"^CUDA error$"):
            tested.decode(clips[::-1])
    assert torch.equal(tested.decode(clips)[0], expected)


def test_what_cannot_be_read_or_changed_its_size_is_no_source(videos):
    clip = source(videos[0], 5).clip
    broken = {"garbage": b"\1\2" * 5000, "cut": clip.data[:2000], "header": clip.data[:-100], "empty": b""}
    for data in broken.values():
        with pytest.raises(DecodeError, match=f"{videos[0].name}: frame 7 does not decode"):
            Source(videos[0], (7,), PrunedClip(data, clip.positions), 160, 90)
    with pytest.raises(DecodeError, match="160x90, but 90x160 in the manifest; the file changed after the scan"):
        Source(videos[0], (7,), clip, 90, 160)


def test_a_clips_bytes_depend_on_nothing_but_the_clip(videos, by_codec):
    spec = FrameSpec(num_frames=10, size=48)
    clip, others = source(videos[0], 10), [source(path, 10) for path in (*videos[1:], *by_codec.values())]
    expected = decoder(spec, num_threads=1).decode([clip])[0][0]
    for num_threads in (1, 3):
        for clips in ([clip] * 3, [*others, clip], [clip, *others], [others[0], clip, others[1]]):
            frames = frames_of(decoder(spec, num_threads=num_threads, max_batch=3), clips)
            for i in (i for i, each in enumerate(clips) if each is clip):
                assert torch.equal(frames[i], expected)


def test_calls_from_several_threads_take_turns(videos):
    spec = FrameSpec(num_frames=5, size=48)
    clips = [source(path, 5) for path in videos]
    shared = decoder(spec, max_batch=2)
    expected, _ = shared.decode(clips)
    with ThreadPoolExecutor(4) as pool:
        for turn, frames in enumerate(pool.map(lambda k: frames_of(shared, clips[k:] + clips[:k]), range(4))):
            assert torch.equal(frames, expected.roll(-turn, 0))


def test_frames_outlive_the_decoder_and_no_clips_are_no_frames(videos):
    spec = FrameSpec(num_frames=5, size=48)
    closing = decoder(spec)
    assert closing.decode([])[0].shape == (0, 5, 3, 48, 48)
    first, _ = closing.decode([source(videos[0], 5)])
    kept = first.clone()
    closing.decode([source(videos[1], 5)])
    closing.close()
    assert torch.equal(first, kept)
    assert torch.equal(closing.decode([source(videos[0], 5)])[0], kept)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow(videos):
    spec = FrameSpec(num_frames=10, size=48)
    clips = [source(path, 10) for path in videos]
    tested = decoder(spec, max_batch=2)
    for _ in range(20):
        tested.decode(clips)
    before = resident_memory()
    for _ in range(60):
        tested.decode(clips)
    # Three hundred clips of ten frames: 130 MB as decoded, 20 MB as handed over.
    assert resident_memory() - before < 16 << 20


HIDDEN = """
import sys

sys.modules[HIDE] = None
import torch
from fastemo.video import dali
from fastemo.video.config import FrameSpec
print(dali.why_unavailable())
print(dali.capabilities()["dali"])
try:
    dali.DaliDecoder(FrameSpec(), torch.device("cpu"), frame_size=(128, 128))
except dali.DaliUnavailable as error:
    print(error)
"""


@pytest.mark.parametrize("hidden", ["nvidia", "nvidia.dali", "nvidia.dali.backend"])
def test_without_dali_the_module_imports_and_reports_what_to_do(hidden):
    program = HIDDEN.replace("HIDE", repr(hidden))
    done = command(sys.executable, "-c", program, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert len(shown) == 3
    assert len(set(shown)) == 1
    if hidden == "nvidia.dali.backend":
        assert "is installed but cannot be imported" in shown[0]
    elif (sys.platform, platform.machine()) == ("linux", "x86_64"):
        assert shown[0].startswith("DALI is not installed: pip install nvidia-dali-cuda120")


def test_devices(monkeypatch):
    assert why_unavailable() is None
    assert why_unavailable(CPU) is None
    assert "not on meta" in str(why_unavailable(torch.device("meta")))
    monkeypatch.setattr(dali, "_nvcuvid", lambda: "no such file")
    with pytest.raises(DaliUnavailable, match="NVDEC's library is missing"):
        DaliDecoder(FrameSpec(), CUDA, frame_size=(128, 128))
    found = capabilities()
    assert found["libnvcuvid"] == "no such file"
    assert str(found["dali"])[0].isdigit()


def test_what_dali_is_handed():
    for codec in ("h264", "hevc", "mpeg4"):
        assert decodes(codec, ".mp4", CUDA)
        assert not decodes(codec, ".mp4", CPU)
    assert decodes("vp8", ".webm", CUDA)
    for codec in ("vp8", "vp9", "mjpeg"):
        assert decodes(codec, ".WEBM", CPU)
    wrong_on_an_h100 = [("vp9", ".mp4"), ("mjpeg", ".mp4"), ("av1", ".mp4")]
    for codec, suffix in (*wrong_on_an_h100, ("h264", ".ts"), ("h264", ""), ("vp6f", ".flv")):
        assert not decodes(codec, suffix, CUDA)
    assert not decodes("vp9", ".mp4", torch.device("mps"))


ENCODERS = {
    "h264": ("libx264", {"g": "12", "bf": "2", "crf": "18"}),
    "hevc": ("libx265", {"g": "12", "bf": "2", "crf": "18", "x265-params": "log-level=none"}),
    "vp8": ("libvpx", FAST_VPX),
    "mpeg4": ("mpeg4", {"g": "12", "b": "2M"}),
}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("CUDA allocation failed: can't allocate 4 GB", torch.OutOfMemoryError, "out of memory: DALI: CUDA allocation"),
        ("cuvidCreateDecoder: CUDA_ERROR_OUT_OF_MEMORY", torch.OutOfMemoryError, "CUDA_ERROR_OUT_OF_MEMORY"),
        ("CUDA runtime API error cudaErrorMemoryAllocation (2)", torch.OutOfMemoryError, "cudaErrorMemoryAllocation"),
        ("CUDA runtime API error cudaErrorIllegalAddress (700)", RuntimeError, "CUDA failed: DALI: CUDA runtime"),
        ("CUDA error: an illegal memory access was encountered", RuntimeError, "CUDA failed"),
    ],
)
def test_what_is_no_clips_fault_is_raised_as_what_it_is(videos, monkeypatch, text, kind, message):
    """Taken for the clip's, good clips would be dropped one after the other."""
    tested = decoder(FrameSpec(num_frames=3, size=48))
    with monkeypatch.context() as patch:
        error = RuntimeError(
            f"Error when executing Mixed operator decoders__Video encountered:\n{text}\nC++ context: x"
        )
        patch.setattr(tested, "_build", lambda: Mock(run=Mock(side_effect=error)))
        with pytest.raises(kind, match=re.escape(message)) as caught:
            tested.decode([source(videos[0], 3)])
    assert not isinstance(caught.value, DecodeError)
    assert not _is_the_clips(caught.value)
    assert not tested.decode([source(videos[0], 3)])[1]


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1280, 720), None),
        ((720, 1280), None),
        ((320, 180), "320x180 is not a multiple of 16"),
        ((1920, 1080), "1920x1080 is not a multiple of 16"),
        ((1280, 714), "1280x714 is not a multiple of 16"),
        ((128, 160), "128x160 is too small for NVDEC"),
    ],
)
def test_sizes_that_dali_gets_wrong_on_a_gpu_are_pyavs(size, reason):
    assert refused_size(*size, CUDA) == reason
    assert refused_size(*size, CPU) is None


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv422p", "yuv444p", "gray", "gbrp"])
def test_pixel_formats_but_8_bits_and_420_are_pyavs(videos, pixel_format):
    clip = source(videos[0], 3)
    object.__setattr__(clip, "pixel_format", pixel_format)
    taken = pixel_format in ("yuv420p", "yuvj420p")
    assert clip.refused_format == (None if taken else f"pixel format {pixel_format}, not 8 bits and 4:2:0")


@pytest.mark.parametrize(("pixel_format", "profile"), [("yuv420p10le", "high10"), ("yuv444p", "high444")])
def test_a_files_own_pixel_format_is_seen(tmp_path, pixel_format, profile):
    path = tagged_video(tmp_path / "clip.mp4", "libx264", 1, 1, pixel_format, profile=profile)
    for _ in range(2):  # the second time by the header alone
        found = source(path, 3, num_frames=12, size=(320, 192))
        assert found.pixel_format == pixel_format


def test_colours_are_turned_to_the_bit_as_sums_of_products(monkeypatch):
    pixels = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    red, green, blue = pixels.float().unbind(3)
    monkeypatch.setattr(dali, "_TURNED_CPU", 2 * 64 * 64 * 3)
    for matrix, luma in dali._LUMA.items():
        turn = dali._to_rgb(*luma) @ np.linalg.inv(dali._to_rgb(red=0.299, blue=0.114))
        rows = [row[0] * red + row[1] * green + row[2] * blue for row in turn.tolist()]
        expected = torch.stack(rows, dim=3).round().clamp(0, 255).to(torch.uint8)
        turned = pixels.clone()
        dali._from_bt601(turned, matrix)
        assert torch.equal(turned, expected)


def test_a_micro_batch_is_turned_at_once_for_each_matrix(tmp_path, monkeypatch):
    spec, matrices = FrameSpec(num_frames=15, size=48), (1, 5, 1, 9, 1)  # 12 frames: three come twice
    paths = [tagged_video(tmp_path / f"{i}.webm", "libvpx-vp9", m, 1) for i, m in enumerate(matrices)]
    clips = [source(path, 15, num_frames=12, size=(320, 192)) for path in paths]
    tested, calls, turn = decoder(spec, size=(320, 192)), [], dali._from_bt601
    alone = torch.cat([tested.decode([clip])[0] for clip in clips])
    monkeypatch.setattr(dali, "_from_bt601", lambda pixels, m: (calls.append((m, len(pixels))), turn(pixels, m)))
    frames = frames_of(tested, clips)
    assert calls == [(1, 36), (9, 12)]
    assert torch.equal(frames, alone)
    calls.clear()
    assert torch.equal(tested.decode([clips[0]] * 4)[0], alone[:1].expand(4, -1, -1, -1, -1))
    assert calls == [(1, 48)]


def labelled(folder: Path, *codecs: str):
    """The scanned folder, and its clips of these codecs as clips of one emotion."""
    manifest = scan(folder)
    clips = [clip for clip in manifest.unlabelled if clip.codec in codecs]
    return manifest, [replace(clip, status="clip", emotion="calm") for clip in clips]


def test_clips_that_dali_refuses_are_pyavs_and_counted(videos, monkeypatch):
    """What pruning leaves whole goes to PyAV as well: its timestamps, which DALI goes by, may be wrong."""
    manifest, clips = labelled(videos[0].parent, "vp9")
    clips = clips[:4]
    by_size, by_format, whole = (manifest.root / clip.key for clip in clips[:3])

    def pruned_clip(path, indices, _anchor):
        return (
            PrunedClip(path.read_bytes(), np.array(indices), is_whole=True) if path == whole else prune(path, indices)
        )

    real = Decoder.by_dali

    def by_dali(self, row):
        reason = "size" if self.clips[row].key == by_size.name and self._uses_dali else None
        return not self._leave_to_pyav(row, reason) and real(self, row)

    monkeypatch.setattr("fastemo.video.backends.pruned_clip", pruned_clip)
    monkeypatch.setattr(Source, "refused_format", property(lambda self: "format" if self.path == by_format else None))
    monkeypatch.setattr(Decoder, "by_dali", by_dali)
    configs = (VideoConfig(num_frames=3, size=48, backend=backend) for backend in ("dali", "pyav"))
    dalis, pyavs = (ClipLoader(clips, manifest.root, ["calm"], config, batch_size=4) for config in configs)
    pruned, prune_row = [], Decoder.prune
    monkeypatch.setattr(Decoder, "prune", lambda self, row: (pruned.append(row), prune_row(self, row))[1])
    with dalis, pyavs:
        for epoch in range(2):
            (ours,), (theirs,) = dalis.epoch(epoch), pyavs.epoch(epoch)
            assert torch.equal(ours.frames[:3], theirs.frames[:3])
            assert psnr(ours.frames.numpy(), theirs.frames.numpy()) >= 50
        assert dalis.left_to_pyav == {"format": 1, "size": 1, "a stream that pruning leaves whole": 1}
        assert pyavs.left_to_pyav == {}
    assert sorted(pruned) == [1, 2, 3, 3], "what was refused once is not pruned for DALI again"


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.cuda)], ids=str)
def test_a_loaders_frames_are_pyavs_whatever_the_file(tmp_path, device):
    """Codecs, sizes and depths that DALI takes, and those that are PyAV's."""
    for codec, size in product((*ENCODERS.values(), ("libsvtav1", {"preset": "12"})), ((320, 192), (320, 180))):
        path = tmp_path / f"{codec[0]}-{size[1]}.{'mkv' if codec[0] == 'libvpx' else 'mp4'}"
        write_video(path, 24, *size, codec=codec[0], options=codec[1], draw=smooth_frame)
    write_vpx(tmp_path / "vp9.mp4", 24, (1280, 720))
    write_video(tmp_path / "mjpeg.mkv", 24, 320, 192, codec="mjpeg", draw=smooth_frame)
    tagged_video(tmp_path / "ten_bits.mp4", "libx264", 1, 1, "yuv420p10le", profile="high10")
    plain = write_video(tmp_path / "plain.mp4", 24, 320, 192, draw=smooth_frame)
    wide = write_video(tmp_path / "wide.mp4", 24, 320, 192, options={"x264-params": "sar=4/3"}, draw=smooth_frame)
    for orientation in (2, 6):
        turn(plain, tmp_path / f"turned{orientation}.mp4", orientation)
    turn(wide, tmp_path / "turned-wide.mp4", 8)
    manifest = scan(tmp_path)
    clips = [replace(clip, status="clip", emotion="calm") for clip in manifest.unlabelled]
    assert len(clips) == 18
    for crop, num_frames in (("center", 1), ("squash", 5), ("center", 30)):
        config = VideoConfig(num_frames=num_frames, size=64, crop=crop)
        loaders = [
            ClipLoader(clips, manifest.root, ["calm"], replace(config, backend=it), batch_size=18, device=device)
            for it in ("dali", "pyav")
        ]
        with loaders[0] as dalis, loaders[1] as pyavs:
            (ours,), (theirs,) = dalis.epoch(), pyavs.epoch()
            for key, *frames in zip(ours.keys, ours.frames.cpu().numpy(), theirs.frames.cpu().numpy(), strict=True):
                assert min(map(psnr, *frames)) >= 38, key


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_what_dali_decoded_is_cached_after_its_batch_is_handed_over(videos, tmp_path, monkeypatch, tier):
    monkeypatch.setattr(loader_module, "Transfer", RecordingTransfer)
    manifest, clips = labelled(videos[0].parent, "vp9", "h264")
    config = VideoConfig(num_frames=3, size=48, backend="dali")
    arrived, keep = threading.Event(), CachedClips.keep

    def cache_late(self, row, frames):
        assert arrived.wait(60), "a batch waits until it is cached"
        keep(self, row, frames)

    monkeypatch.setattr(CachedClips, "keep", cache_late)
    store = StoreConfig(tier=tier, root=tmp_path / "store")
    with ClipLoader(clips, manifest.root, ["calm"], config, batch_size=2, store=store) as loader:
        batches = [(arrived.set(), batch.frames.clone())[1] for batch in loader.epoch(0)]
        monkeypatch.setattr(Decoder, "decode_on_device", None)
        monkeypatch.setattr(Decoder, "decode", None)
        for batch, frames in zip(loader.epoch(1), batches, strict=True):
            assert torch.equal(batch.frames, frames)
        loader.transfer.check_over()


def test_an_error_while_clips_are_cached_is_raised(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(loader_module, "Transfer", RecordingTransfer)
    manifest, clips = labelled(videos[0].parent, "vp9")

    monkeypatch.setattr(CachedClips, "keep", Mock(side_effect=RuntimeError("no more handles")))
    config, store = VideoConfig(num_frames=3, size=48, backend="pyav"), StoreConfig(tier="memory", root=tmp_path)
    with (
        ClipLoader(clips, manifest.root, ["calm"], config, batch_size=8, store=store) as loader,
        pytest.raises(RuntimeError, match="no more handles"),
    ):
        [*loader.epoch(0)]


@pytest.mark.cuda
def test_on_a_gpu_real_clips_are_pyavs(clips_folder):
    manifest = scan(clips_folder / "ravdess")
    assert manifest.clips
    for crop in CROPS:
        spec = FrameSpec(num_frames=10, crop=crop)
        clips = [
            source(manifest.root / clip.key, 10, num_frames=clip.num_frames, size=(clip.width, clip.height))
            for clip in manifest.clips
        ]
        tested = decoder(spec, size=(1280, 720), device=CUDA, num_threads=None)
        assert_as_pyavs(frames_of(tested, clips), clips, spec, 38)


@pytest.mark.cuda
def test_on_a_gpu_a_clip_that_fails_is_named_and_memory_does_not_grow(tmp_path):
    path = write_video(tmp_path / "clip.mp4", NUM_FRAMES, 320, 192, options={"bf": "2"}, draw=smooth_frame)
    spec = FrameSpec(num_frames=10, size=96)
    good = source(path, 10, size=(320, 192))
    bad = Source(path, good.indices, PrunedClip(good.clip.data, good.clip.positions + NUM_FRAMES), 320, 192)
    tested = decoder(spec, size=(320, 192), device=CUDA, max_batch=4, num_threads=None)
    with torch.cuda.stream(torch.cuda.Stream()):
        expected = tested.decode([good])[0][0]
        for place in range(9):
            frames, errors = tested.decode([bad if i == place else good for i in range(9)])
            assert list(errors) == [place]
            assert all(torch.equal(frames[i], expected) for i in range(9) if i != place)
        free, _ = torch.cuda.mem_get_info()
        for _ in range(50):
            assert torch.equal(frames_of(tested, [good] * 9)[8], expected)
        assert free - torch.cuda.mem_get_info()[0] < 64 << 20
