"""Every kind of file that people have: the frames that reach the model are those that Debian's ffmpeg shows.

Frames are compared by number, with `ffmpeg`'s own: upright, in the displayed shape, in its colours. The table of
docs/decoding.md is made here: `FASTEMO_WRITE_DOCS=1 pytest tests/video/test_files.py` writes it.
"""

import os
import shutil
import struct
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import psnr, smooth_frame, turn, write_image, write_sound, write_video
from PIL import Image, ImageOps

from fastemo.corpus.manifest import scan
from fastemo.corpus.prepare import describe
from fastemo.errors import DecodeError
from fastemo.inference.files import read_clip
from fastemo.inference.parts import file_parts
from fastemo.inference.windows import Plan, window_clips
from fastemo.video import decode
from fastemo.video.bitstream import pruning
from fastemo.video.config import FrameSpec, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices

WIDTH, HEIGHT, NUM_FRAMES = 160, 96, 12
LEAST_DB = 38
SPEC = FrameSpec(num_frames=5, size=64)
BACKENDS = ("pyav", "decord", "dali")
DOCUMENT = Path(__file__).parents[2] / "docs/decoding.md"
TURNS = {2: "mirrored", 3: "180°", 4: "180°, mirrored", 5: "90°, mirrored", 6: "90°", 7: "270°, mirrored", 8: "270°"}
H264 = ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "6", "-pix_fmt", "yuv420p"]
VP9 = ["-c:v", "libvpx-vp9", "-crf", "4", "-b:v", "0", "-cpu-used", "8", "-pix_fmt", "yuv420p"]
MPEG2 = ["-c:v", "mpeg2video", "-q:v", "1", "-pix_fmt", "yuv420p"]


def coloured(matrix: str, full: bool, *more: str) -> list[str]:
    """Arguments for H.264 in a matrix and a range, both signalled."""
    out, names = ("full" if full else "limited"), {"bt2020": "bt2020nc", "bt601": "smpte170m"}
    convert = f"scale=out_color_matrix={matrix}:out_range={out}:flags=bilinear+accurate_rnd+full_chroma_int"
    signal = ["-colorspace", names.get(matrix, matrix), "-color_range", "pc" if full else "tv"]
    return ["-vf", convert, *H264, *signal, *more]


def hdr(transfer: str) -> list[str]:
    colours = f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc:log-level=0:qp=6"
    return [
        *["-vf", "scale=out_color_matrix=bt2020", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", colours],
        *["-pix_fmt", "yuv420p10le", "-colorspace", "bt2020nc"],
    ]


# Kind -> (suffix, ffmpeg's arguments for making it from frames without loss).
MADE = {
    "square pixels": (".mp4", H264),
    "pixels 2:1": (".mp4", ["-vf", "setsar=2/1", *H264]),
    "pixels 1:2": (".mov", ["-vf", "setsar=1/2", *H264]),
    "pixels 4:3": (".mkv", ["-vf", "setsar=4/3", *H264]),
    "pixels 16:15, DV of 720x576": (".dv", ["-vf", "scale=720:576,setsar=16/15", "-target", "pal-dv", "-an"]),
    "BT.601, limited": (".mp4", coloured("bt601", False)),
    "BT.601, full": (".mp4", coloured("bt601", True)),
    "BT.709, limited": (".mp4", coloured("bt709", False)),
    "BT.709, full": (".mkv", coloured("bt709", True)),
    "BT.2020, limited": (".mp4", coloured("bt2020", False)),
    "BT.2020, full": (".mkv", coloured("bt2020", True)),
    "BT.2020, 10 bits, PQ": (".mp4", hdr("smpte2084")),
    "BT.2020, 10 bits, HLG": (".mkv", hdr("arib-std-b67")),
    "4:2:0, 10 bits": (".mp4", coloured("bt709", False, "-pix_fmt", "yuv420p10le")),
    "4:2:2": (".mp4", coloured("bt709", False, "-pix_fmt", "yuv422p")),
    "4:2:2, 10 bits": (".mov", coloured("bt709", False, "-pix_fmt", "yuv422p10le")),
    "4:4:4": (".mp4", coloured("bt709", False, "-pix_fmt", "yuv444p")),
    "VP9, 4:4:4": (".webm", [*VP9[:-1], "yuv444p"]),
    "VP9, BT.709": (".webm", ["-vf", "scale=out_color_matrix=bt709", *VP9, "-colorspace", "bt709"]),
    "VP9, full range": (".webm", ["-vf", "scale=out_range=full", *VP9, "-color_range", "pc"]),
    "VP9, pixels 4:3": (".webm", ["-vf", "setsar=4/3", *VP9]),
    "alpha, VP9": (".webm", [*VP9[:-1], "yuva420p"]),
    "alpha, ProRes 4444": (".mov", ["-c:v", "prores_ks", "-profile:v", "4", "-pix_fmt", "yuva444p10le"]),
    "alpha, PNG": (".mov", ["-c:v", "png", "-pix_fmt", "rgba"]),
    "Motion JPEG": (".mov", ["-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj420p"]),
    "Motion JPEG, AVI": (".avi", ["-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj422p"]),
    "interlaced, MPEG-2": (".ts", [*MPEG2, "-flags", "+ilme+ildct", "-top", "1"]),
    "interlaced, H.264": (".mts", [*H264, "-x264opts", "tff=1"]),
    "fragmented": (".mp4", [*H264, "-movflags", "frag_keyframe+empty_moov", "-g", "4"]),
    "variable rate": (".mkv", ["-vf", "setpts='(N+gt(N,4)*7)/25/TB'", "-fps_mode", "vfr", *H264]),
    "1 frame": (".mp4", ["-frames:v", "1", *H264]),
    "2 frames": (".mp4", ["-frames:v", "2", *H264]),
    "MPEG-1": (".mpg", ["-c:v", "mpeg1video", "-q:v", "1"]),
    "MPEG-2": (".mpeg", MPEG2),
    "DVD": (".vob", MPEG2),
    "M4V": (".m4v", H264),
    "3GP": (".3gp", ["-c:v", "mpeg4", "-q:v", "1"]),
    "3G2": (".3g2", H264),
    "transport stream": (".ts", H264),
    "AVCHD": (".m2ts", H264),
    "Windows Media": (".wmv", ["-c:v", "wmv2", "-q:v", "1"]),
    "ASF": (".asf", ["-c:v", "msmpeg4", "-q:v", "1"]),
    "Theora": (".ogv", ["-c:v", "libtheora", "-q:v", "10"]),
    "MXF": (".mxf", MPEG2),
    "GIF": (".gif", ["-vf", "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"]),
    "AVI": (".avi", ["-c:v", "mpeg4", "-q:v", "1", "-bf", "2"]),
    "Flash": (".flv", ["-c:v", "flv1", "-q:v", "1"]),
}


def ffmpeg(*arguments: object) -> bytes:
    done = subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)], capture_output=True, check=False
    )
    assert done.returncode == 0, (arguments, done.stderr.decode()[-2000:])
    return done.stdout


def vivid_frame(number: int, width: int, height: int) -> np.ndarray:
    """Saturated, so that a wrong matrix or range shows; no two quarters alike, so that a wrong turn does."""
    return (1.5 * (smooth_frame(number, width, height).astype(int) - 127) + 127).clip(0, 255).astype(np.uint8)


def remuxed(source: Path, path: Path) -> Path:
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0], opaque=True)
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder and kind -> path, all in one folder."""
    if not shutil.which("ffmpeg"):
        assert not os.environ.get("CI"), "CI needs ffmpeg"
        pytest.skip("needs ffmpeg")
    root = tmp_path_factory.mktemp("files")
    folder = root / "happy"
    folder.mkdir()
    source = write_video(
        root.parent / "source.mov", NUM_FRAMES, WIDTH, HEIGHT, codec="png", pixel_format="rgb24", draw=vivid_frame
    )
    found = {}
    for number, (kind, (suffix, arguments)) in enumerate(MADE.items()):
        found[kind] = folder / f"{number:02d}{suffix}"
        ffmpeg("-i", source, *arguments, found[kind])
    plain = found["square pixels"]
    for orientation, name in TURNS.items():
        mp4 = turn(plain, folder / f"turned{orientation}.mp4", orientation)
        found[f"{name}, MP4"] = mp4
        found[f"{name}, MOV"] = turn(remuxed(plain, mp4.with_suffix(".mov")), mp4.with_suffix(".mov"), orientation)
        found[f"{name}, MKV"] = remuxed(mp4, mp4.with_suffix(".mkv"))
    found["90°, pixels 2:1"] = turn(found["pixels 2:1"], folder / "turned-wide.mp4", 6)
    found["90°, VP9"] = turn(remuxed(found["VP9, BT.709"], folder / "turned-vp9.mp4"), folder / "turned-vp9.mp4", 6)
    found["180°, mirrored, VP9"] = turn(
        remuxed(found["VP9, BT.709"], folder / "mirrored-vp9.mp4"), folder / "mirrored-vp9.mp4", 4
    )
    small = folder.parent.parent / "small.mkv"
    ffmpeg("-i", source, "-vf", "negate,scale=80:48", *H264, small)
    found["several videos"] = folder / "several.mkv"
    ffmpeg("-i", small, "-i", plain, "-map", 0, "-map", 1, "-c", "copy", found["several videos"])
    picture = write_image(folder.parent.parent / "cover.png", vivid_frame(99, 200, 200))
    found["cover picture"] = folder / "cover.mp4"
    ffmpeg(
        *("-i", picture, "-i", plain, "-map", 0, "-map", 1, "-c", "copy", "-disposition:v:0", "attached_pic"),
        found["cover picture"],
    )
    for codec, options in (("VP8", ["-c:v", "libvpx", "-crf", 4, "-b:v", "4M", "-pix_fmt", "yuv420p"]), ("VP9", VP9)):
        path = found[f"WebM without duration, {codec}"] = folder / f"live-{codec}.webm"
        path.write_bytes(ffmpeg("-i", source, *options, "-live", 1, "-f", "webm", "pipe:1"))
    return root, found


@pytest.fixture(scope="module")
def scanned(files):
    root, found = files
    manifest = scan(root, labels="folder")
    assert not manifest.rejected, [(clip.key, clip.reason) for clip in manifest.rejected]
    by_key = {clip.key: clip for clip in manifest.clips}
    return manifest, {kind: by_key[f"happy/{path.name}"] for kind, path in found.items()}


def reference(path: Path, clip, spec: FrameSpec, wrong: str = "") -> np.ndarray:
    """uint8 [N, 3, h, w]: all frames of a file as ffmpeg shows them, then cropped and resized."""
    size = clip.width, clip.height
    left, top, width, height = spec.box(*size)
    out_width, out_height = spec.out_size(*size)
    steps = [] if clip.pixel_aspect == 1 else [f"scale={size[0]}:{size[1]}:flags=bicubic+accurate_rnd"]
    steps.append(f"crop={width}:{height}:{left}:{top}:exact=1")
    steps.append(f"scale={out_width}:{out_height}:flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp")
    steps[-1] += f":{wrong}" if wrong else ""
    output = ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    data = ffmpeg("-i", path, "-vf", ",".join(steps), *output)
    return np.frombuffer(data, np.uint8).reshape(-1, out_height, out_width, 3).transpose(0, 3, 1, 2)


def loaded(manifest, backend: str, spec: FrameSpec) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Key -> the frames that the loader gives, and for those that another backend decoded the reason."""
    config = VideoConfig(num_frames=spec.num_frames, crop=spec.crop, size=spec.size, backend=backend)
    frames: dict[str, np.ndarray] = {}
    with ClipLoader(manifest.clips, manifest.root, manifest.class_names, config, batch_size=8) as loader:
        for batch in loader.epoch():
            frames.update(zip(batch.keys, batch.frames.numpy(), strict=True))
        why = {key: reason for reason, keys in loader._decoder.left_to_pyav.items() for key in keys}
    return frames, why


@pytest.fixture(scope="module")
def outcomes(scanned):
    """Backend -> the frames of every file, and why another backend decoded it."""
    manifest, _ = scanned
    return {backend: loaded(manifest, backend, SPEC) for backend in BACKENDS}


@pytest.fixture(scope="module")
def truth(scanned):
    """Kind -> all frames, by ffmpeg."""
    manifest, clips = scanned
    return {kind: reference(manifest.root / clip.key, clip, SPEC) for kind, clip in clips.items()}


def least_psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    wanted = frame_indices(len(truth), len(frames))
    return min(psnr(frame, truth[index]) for frame, index in zip(frames, wanted, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_are_ffmpegs(scanned, outcomes, truth, backend):
    frames, _ = outcomes[backend]
    for kind, clip in scanned[1].items():
        assert len(truth[kind]) == clip.num_frames, kind
        assert least_psnr(frames[clip.key], truth[kind]) >= LEAST_DB, kind


def test_prediction_samples_what_training_samples(scanned):
    """Every kind of file as one clip, and in windows: the bytes that the loader gives."""
    manifest, clips = scanned
    for kind, clip in clips.items():
        path = manifest.root / clip.key
        whole = decode_clip(path, range(clip.num_frames), SPEC)
        found = read_clip(path, SPEC)
        wanted = frame_indices(clip.num_frames, SPEC.num_frames)
        assert found.numbers == tuple(wanted), kind
        assert np.array_equal(np.stack([found.frames[number] for number in found.numbers]), whole[wanted]), kind
        with file_parts(path, SPEC) as parts:
            windows = list(window_clips(parts, Plan(0.4, 0.2, SPEC.num_frames), ahead=1))
        assert windows[-1].numbers[-1] == clip.num_frames - 1, kind
        for window in windows:
            assert window.error is None, (kind, window.error)
            assert all(np.array_equal(window.frames[number], whole[number]) for number in window.numbers), kind


def test_the_measure_sees_a_wrong_frame_turn_matrix_and_range(scanned, truth):
    frames = truth["square pixels"]
    assert max(psnr(one, other) for one, other in pairwise(frames)) < LEAST_DB
    for kind, clip in scanned[1].items():
        if clip.orientation > 1:
            assert psnr(truth[kind], truth["square pixels"]) < LEAST_DB - 10, kind
    clip = scanned[1]["BT.709, limited"]
    path = scanned[0].root / clip.key
    for wrong in ("in_color_matrix=bt601", "in_range=full"):
        assert psnr(reference(path, clip, SPEC, wrong), truth["BT.709, limited"]) < LEAST_DB, wrong


def table(clips, outcomes) -> str:
    """One row a kind; turned files whose outcomes are the same share one."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for kind, clip in clips.items():
        reasons = [outcomes[backend][1].get(clip.key) for backend in ("decord", "dali")]
        cells = ["yes" if reason is None else f"by PyAV: {reason}" for reason in reasons]
        turn, container = kind.rsplit(", ", 1) if ", " in kind else (kind, "")
        if turn in TURNS.values() and container in ("MP4", "MOV", "MKV"):
            rows.setdefault(("MP4, MOV, MKV", *cells), []).append(turn)
        else:
            rows[(f"{clip.codec}, {Path(clip.key).suffix}", *cells, kind)] = [kind]
    lines = [f"| {'; '.join(dict.fromkeys(kinds))} | {' | '.join(row[:3])} |" for row, kinds in rows.items()]
    return "\n".join(["| kind | file | decord | DALI on a CPU |", "| --- | --- | --- | --- |", *lines])


def test_the_table_of_the_documentation_is_this_one(scanned, outcomes):
    begin, end = "<!-- files: begin -->\n\n", "\n\n<!-- files: end -->"
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(begin)
    written, after = rest.split(end)
    made = table(scanned[1], outcomes)
    if os.environ.get("FASTEMO_WRITE_DOCS"):
        DOCUMENT.write_text(f"{before}{begin}{made}{end}{after}", "utf-8")
    else:
        assert written == made


@pytest.mark.parametrize("crop", ["full", "squash", "head"])
def test_other_crops_are_of_the_displayed_picture(scanned, crop):
    manifest, clips = scanned
    chosen = [clip for clip in clips.values() if clip.orientation > 1 or clip.pixel_aspect != 1]
    assert len(chosen) == 7 * 3 + 8
    for clip in chosen:
        spec = FrameSpec(num_frames=2, crop=crop, size=64)
        expected = reference(manifest.root / clip.key, clip, spec)
        for backend in ("pyav", "dali") if clip.codec == "vp9" else ("pyav",):
            frames, why = loaded(replace(manifest, clips=(clip,)), backend, spec)
            assert frames[clip.key].shape[1:] == expected.shape[1:]
            assert least_psnr(frames[clip.key], expected) >= LEAST_DB, (clip.key, backend)
            if backend == "dali" and crop == "full" and clip.orientation == 6:
                assert "lying on its side" in why[clip.key]


def test_the_manifest_says_how_a_picture_is_stored(scanned):
    manifest, clips = scanned
    for orientation, name in TURNS.items():
        for container in ("MP4", "MOV", "MKV"):
            clip = clips[f"{name}, {container}"]
            size = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
            assert (clip.orientation, clip.width, clip.height) == (orientation, *size)
    sizes = {kind: (clip.width, clip.height) for kind, clip in clips.items() if clip.pixel_aspect != 1}
    assert sizes == {
        "pixels 2:1": (320, 96),
        "pixels 1:2": (80, 96),
        "pixels 4:3": (213, 96),
        "pixels 16:15, DV of 720x576": (768, 576),
        "VP9, pixels 4:3": (213, 96),
        "90°, pixels 2:1": (96, 320),
    }
    summary = describe(manifest)
    for part in (
        "24 clips turned or mirrored to be upright",
        "6 clips with pixels",
        "2 clips HDR, without tone mapping",
    ):
        assert part in summary
    assert {kind: clip.hdr for kind, clip in clips.items() if clip.hdr} == {
        "BT.2020, 10 bits, PQ": "PQ",
        "BT.2020, 10 bits, HLG": "HLG",
    }


def test_only_files_that_nobody_can_show_are_rejected(files, tmp_path):
    _, found = files
    plain, folder = found["square pixels"], tmp_path / "happy"
    folder.mkdir()
    write_sound(folder / "sound.mp4")
    ffmpeg(
        *("-i", plain, "-c", "copy", "-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "0" * 32),
        *("-encryption_kid", "1" * 32, folder / "encrypted.mp4"),
    )
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    parts = []
    for size in ("160:96", "96:64"):
        parts.append(ffmpeg("-i", plain, "-vf", f"scale={size}", *H264, "-f", "mpegts", "pipe:1"))
    (folder / "sizes.ts").write_bytes(b"".join(parts))
    manifest = scan(tmp_path, labels="folder")
    assert not manifest.clips
    reasons = {Path(clip.key).name: clip.reason for clip in manifest.rejected}
    assert reasons.pop("sizes.ts").startswith("frame 12 is 96x64, earlier ones 160x96")
    assert reasons == {
        "sound.mp4": "no video stream",
        "encrypted.mp4": "it is encrypted",
        "noise.mp4": "unreadable: Invalid data found when processing input",
    }


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path, orientation):
    folder = tmp_path / "train/happy/clip"
    folder.mkdir(parents=True)
    for number in (1, 2):
        path = write_image(folder / f"frame000{number}.jpg", vivid_frame(number, 96, 64))
        tiff = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 274, 3, 1, orientation, 0, 0)
        exif = b"Exif\0\0" + tiff
        data = path.read_bytes()
        path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    manifest = scan(tmp_path)
    (clip,) = manifest.clips
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    assert (clip.orientation, clip.height, clip.width) == (orientation, *upright.shape[1:])
    assert psnr(decode_clip(folder, [0, 1], None)[1], upright) > LEAST_DB
    given = {backend: loaded(manifest, backend, FrameSpec(num_frames=2, crop="full", size=32)) for backend in BACKENDS}
    for backend, (frames, why) in given.items():
        assert np.array_equal(frames[clip.key], given["pyav"][0][clip.key])
        assert why == ({clip.key: "images"} if backend == "dali" else {})


def decords_exceptions() -> list[type[Exception]]:
    import decord

    kinds = [kind for kind in vars(decord._ffi.base).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return [*kinds, RuntimeError, IndexError, StopIteration, ValueError, TypeError, OSError]


@pytest.mark.parametrize("place", ["__init__", "next"])
@pytest.mark.parametrize("kind", decords_exceptions(), ids=lambda kind: kind.__name__)
def test_whatever_decord_raises_is_a_decode_error_and_pyavs_work(files, monkeypatch, kind, place):
    import decord

    def fail(*arguments, **options):
        raise kind("[12:34:56] /source/video_reader.cc:285: [BytesIO] it is broken")

    _, found = files
    monkeypatch.setattr(decord.VideoReader, place, fail)
    monkeypatch.setattr(decord.VideoReader, "__del__", lambda self: None)
    with pytest.raises(DecodeError, match="frame 3 does not decode: decord: it is broken"):
        decode_clip(found["square pixels"], [3, 4], SPEC, backend="decord")
    manifest = scan(found["square pixels"].parent, labels="folder")
    manifest = replace(manifest, clips=(*manifest.clips, *manifest.unlabelled)[:1])
    clips = [replace(clip, emotion="happy") for clip in manifest.clips]
    frames, why = loaded(replace(manifest, clips=tuple(clips)), "decord", SPEC)
    assert why == {clips[0].key: "decord: it is broken"}
    assert np.array_equal(
        frames[clips[0].key], loaded(replace(manifest, clips=tuple(clips)), "pyav", SPEC)[0][clips[0].key]
    )


def avs_exceptions() -> list[type[Exception]]:
    return [
        kind for kind in vars(av.error).values() if isinstance(kind, type) and issubclass(kind, av.error.FFmpegError)
    ]


@pytest.mark.parametrize("kind", avs_exceptions(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", ["prune", "open", "reformat"])
def test_whatever_pyav_raises_is_a_decode_error(files, monkeypatch, kind, place):
    def fail(*arguments, **options):
        raise kind(1, "it is broken")

    _, found = files
    if place == "prune":
        monkeypatch.setattr(pruning, "prune_packets", fail)
    elif place == "open":
        clip = pruning.prune(found["square pixels"], [3, 4])
        monkeypatch.setattr(decode, "prune", lambda *_, **__: clip)
        monkeypatch.setattr(decode.av, "open", fail)
    else:
        monkeypatch.setattr(decode.ToRGB, "__call__", fail)
    with pytest.raises(DecodeError, match=r"frame 3 does not decode: .*it is broken"):
        decode_clip(found["square pixels"], [3, 4], SPEC)
