"""Law 1: frame k of a sample is frame i_k of a full sequential decode, whatever the backend."""

import sys

import av
import decord
import numpy as np
import pytest
from helpers import command, psnr, write_video

from fastemo.corpus.manifest import scan
from fastemo.errors import DecodeError
from fastemo.video.config import CROPS, FrameSpec
from fastemo.video.decode import decode_clip, decoder_name
from fastemo.video.sampling import frame_indices

# decord 0.6 decodes VP6 as FFmpeg did in 2018, which drifts from today's by rounding (dB). decord2 3.4 gives up
# (EAGAIN) where HEVC's decoder has several frames ready.
IS_DECORD2 = not decord.__version__.startswith("0.")
DRIFTING = {} if IS_DECORD2 else {"vp6f": 48.0}


def full_decode(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).transpose(0, 3, 1, 2)


def real_clips(folder):
    manifest = scan(folder)
    return [(manifest.root / clip.key, clip) for clip in manifest.clips + manifest.unlabelled]


def decode_by_decord(path, clip, indices, spec):
    """Frames, or none where decord2 gives up on HEVC and says so."""
    try:
        return decode_clip(path, indices, spec, backend="decord")
    except DecodeError as error:
        if IS_DECORD2 and clip.codec == "hevc" and "does not decode: decord: " in str(error):
            return None
        raise


@pytest.mark.slow
def test_both_backends_give_the_frames_of_a_full_decode_on_real_clips(clips_folder):
    """To the bit before resizing, and alike after it."""
    clips = real_clips(clips_folder)
    assert len(clips) == 13
    for path, clip in clips:
        for crop in CROPS:
            spec, indices = FrameSpec(num_frames=3, crop=crop), frame_indices(clip.num_frames, 3)
            one, other = decode_clip(path, indices, spec), decode_by_decord(path, clip, indices, spec)
            if other is not None:
                assert one.shape == other.shape
                assert min(psnr(a, b) for a, b in zip(one, other, strict=True)) >= 38, (path, crop)
        full = full_decode(path)
        assert len(full) == clip.num_frames
        for num_samples in (1, 2, 6, 10, 16, 200):
            indices = frame_indices(clip.num_frames, num_samples)
            assert np.array_equal(decode_clip(path, indices, None, backend="pyav"), full[indices]), path
            by_decord = decode_by_decord(path, clip, indices, None)
            if by_decord is None:
                continue
            if clip.codec in DRIFTING:
                assert psnr(by_decord, full[indices]) > DRIFTING[clip.codec]
            else:
                assert np.array_equal(by_decord, full[indices]), path


def test_decords_name_is_that_of_what_is_loaded():
    """decord's metadata says 0.6.0 where decord2 was installed over it."""
    name = decoder_name("decord")
    assert f"decord {decord.__version__} with libavcodec " in name
    assert "decord" not in decoder_name("pyav")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", num_frames=40, width=96, height=54)


def test_a_torch_that_is_loaded_after_a_decode_works(video):
    """Loaded before it, decord's libraries took over its BLAS calls and ended the process at the first."""
    code = f"from fastemo.video.decode import decode_clip; decode_clip({str(video)!r}, [0], None, backend='decord')"
    done = command(sys.executable, "-c", f"{code}; import torch; print(torch.ones(64, 64) @ torch.ones(64, 1))")
    assert done.stdout.startswith("tensor([[64.]"), done.stderr


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_made_clip_is_exact(video, backend):
    full = full_decode(video)
    for wanted in ([0], [39], [0, 0, 7, 7, 8, 39], list(range(40)), [28, 29, 30]):
        assert np.array_equal(decode_clip(video, wanted, None, backend=backend), full[wanted])


def test_resize_is_antialiased_and_close_to_torchs(video):
    import torch
    import torch.nn.functional as F

    full = torch.from_numpy(full_decode(video)[:4].copy()).float()
    left = (96 - 54) // 4 * 2
    expected = F.interpolate(full[..., left : left + 54], (18, 18), mode="bilinear", antialias=True)
    got = decode_clip(video, [0, 1, 2, 3], FrameSpec(num_frames=4, size=18))
    assert psnr(got, expected.round().numpy()) > 32  # chroma is resized before the colour matrix here, after it there


@pytest.mark.parametrize(
    ("crop", "size", "shape"),
    [("full", 27, (27, 48)), ("squash", 20, (20, 20)), ("center", 20, (20, 20)), ("head", 20, (20, 20))],
)
def test_crops_have_their_size(video, crop, size, shape):
    spec = FrameSpec(num_frames=2, crop=crop, size=size)
    assert decode_clip(video, [0, 5], spec).shape == (2, 3, *shape)
    assert spec.out_size(96, 54) == shape[::-1]
    assert FrameSpec(crop=crop, size=size).out_size(54, 96) == ((size, 48) if crop == "full" else (size, size))


def test_boxes_are_centred_even_and_inside():
    assert FrameSpec(crop="center").box(1280, 720) == (280, 0, 720, 720)
    assert FrameSpec(crop="squash").box(1280, 720) == (0, 0, 1280, 720)
    for crop in ("center", "head"):
        for width, height in ((1280, 720), (720, 1280), (97, 55), (5, 400), (4, 4), (2, 2), (1, 1)):
            left, top, w, h = FrameSpec(crop=crop).box(width, height)
            assert 0 <= left <= width - w
            assert 0 <= top <= height - h
            assert w > 0
            assert (w == h and not (left | top | w) % 2) or min(width, height) < 4


def test_head_box_holds_the_head_of_genuine_clips(clips_folder):
    """Everything that is not background above the shoulders lies inside; measured as HEAD_SIDE's comment says."""
    left, top, width, height = FrameSpec(crop="head").box(1280, 720)
    assert top + height >= 605 + 20
    for path in sorted((clips_folder / "ravdess").rglob("*.mp4"))[:3]:
        frames = decode_clip(path, [0, 45, 90], None).transpose(0, 2, 3, 1).astype(int)
        background = np.median(frames[:, :10, :100].reshape(-1, 3), 0)
        is_person = (np.abs(frames - background).max(-1) > 60)[:, :480]
        columns = np.flatnonzero(is_person.sum((0, 1)) > 30)
        rows = np.flatnonzero(is_person.sum((0, 2)) > 30)
        assert left < columns[0] < columns[-1] < left + width
        assert rows[0] >= top


def test_a_wanted_frame_that_does_not_come_names_file_and_frame(video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing like a video" * 100)
    for backend in ("pyav", "decord"):
        with pytest.raises(DecodeError, match=r"clip\.mp4: frame 50 "):
            decode_clip(video, [3, 50], None, backend=backend)
        with pytest.raises(DecodeError, match=r"broken\.mp4: frame 0 "):
            decode_clip(broken, [0, 1], None, backend=backend)
    with pytest.raises(DecodeError, match=r"missing\.mp4"):
        decode_clip(tmp_path / "missing.mp4", [0], None)


def test_a_colon_in_a_relative_path_is_no_protocol(video, tmp_path, monkeypatch):
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "clip.mp4").write_bytes(video.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert scan("a:b").unlabelled[0].num_frames == 40
    for backend in ("pyav", "decord"):
        assert decode_clip("a:b/clip.mp4", [1], None, backend=backend).shape == (1, 3, 54, 96)
