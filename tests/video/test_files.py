"""Every kind of file that people have: the frames that reach the model are those that Debian's ffmpeg shows.

Frames are compared by number, with `ffmpeg`'s own: upright, in the displayed shape, in its colours. The table of
docs/decoding.md is made here: `FASTEMO_WRITE_DOCS=1 pytest tests/video/test_files.py` writes it.
"""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import psnr, smooth_frame, write_image, write_video

from fastemo.corpus.manifest import scan
from fastemo.video.config import FrameSpec, VideoConfig
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices

WIDTH, HEIGHT, NUM_FRAMES = 160, 96, 12
LEAST_DB = 38
BACKENDS = ("pyav", "decord", "dali")
DOCUMENT = Path(__file__).parents[2] / "docs/decoding.md"
# Exif's number of the orientation -> the display matrix [a b c d]: x' = a x + c y, y' = b x + d y.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
TURNS = {2: "mirrored", 3: "180°", 4: "180°, mirrored", 5: "90°, mirrored", 6: "90°", 7: "270°, mirrored", 8: "270°"}
H264 = ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "6", "-pix_fmt", "yuv420p"]
MPEG2 = ["-c:v", "mpeg2video", "-q:v", "1", "-pix_fmt", "yuv420p"]


def coloured(matrix: str, full: bool, *more: str) -> list[str]:
    """Arguments for H.264 in a matrix and a range, both signalled."""
    out, names = ("full" if full else "limited"), {"bt2020": "bt2020nc", "bt601": "smpte170m"}
    convert = f"scale=out_color_matrix={matrix}:out_range={out}:flags=bilinear+accurate_rnd+full_chroma_int"
    signal = ["-colorspace", names.get(matrix, matrix), "-color_range", "pc" if full else "tv"]
    return ["-vf", convert, *H264, *signal, *more]


def hdr(transfer: str) -> list[str]:
    colours = f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc:log-level=0:qp=6"
    return ["-vf", "scale=out_color_matrix=bt2020", "-c:v", "libx265", "-preset", "ultrafast"] + [
        *["-x265-params", colours, "-pix_fmt", "yuv420p10le", "-colorspace", "bt2020nc"]
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
    "VP9, 4:4:4": (".webm", ["-c:v", "libvpx-vp9", "-crf", "4", "-b:v", "0", "-pix_fmt", "yuv444p", "-cpu-used", "8"]),
    "VP9, BT.709": (
        ".webm",
        ["-vf", "scale=out_color_matrix=bt709", "-c:v", "libvpx-vp9", "-crf", "4", "-b:v", "0", "-pix_fmt", "yuv420p"]
        + ["-colorspace", "bt709", "-cpu-used", "8"],
    ),
    "VP9, full range": (
        ".webm",
        ["-vf", "scale=out_range=full", "-c:v", "libvpx-vp9", "-crf", "4", "-b:v", "0", "-pix_fmt", "yuv420p"]
        + ["-color_range", "pc", "-cpu-used", "8"],
    ),
    "VP9, pixels 4:3": (
        ".webm",
        ["-vf", "setsar=4/3", "-c:v", "libvpx-vp9", "-crf", "4", "-b:v", "0", "-pix_fmt", "yuv420p", "-cpu-used", "8"],
    ),
    "alpha, VP9": (".webm", ["-c:v", "libvpx-vp9", "-crf", "4", "-b:v", "0", "-pix_fmt", "yuva420p", "-cpu-used", "8"]),
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


def turn(source: Path, path: Path, orientation: int) -> Path:
    """A copy of an MP4 or MOV with the display matrix of an orientation."""
    data = bytearray(source.read_bytes())
    a, b, c, d = (number << 16 for number in MATRICES[orientation])
    # Source: ISO/IEC 14496-12, 8.3.2: the matrix is 40 bytes behind the track header's version.
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


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
    found["90°, VP9"] = ffmpeg_turned(found["VP9, BT.709"], folder / "turned-vp9.mp4", 6)
    found["180°, mirrored, VP9"] = ffmpeg_turned(found["VP9, BT.709"], folder / "mirrored-vp9.mp4", 4)
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
    for codec, vpx in (("VP8", "libvpx"), ("VP9", "libvpx-vp9")):
        path = found[f"WebM without duration, {codec}"] = folder / f"live-{vpx}.webm"
        options = ["-c:v", vpx, "-crf", 4, "-b:v", "4M", "-cpu-used", 8, "-pix_fmt", "yuv420p", "-live", 1]
        path.write_bytes(ffmpeg("-i", source, *options, "-f", "webm", "pipe:1"))
    return root, found


def ffmpeg_turned(source: Path, path: Path, orientation: int) -> Path:
    return turn(remuxed(source, path), path, orientation)


@pytest.fixture(scope="module")
def scanned(files):
    root, found = files
    manifest = scan(root, labels="folder")
    assert not manifest.rejected, [(clip.key, clip.reason) for clip in manifest.rejected]
    by_key = {clip.key: clip for clip in manifest.clips}
    return manifest, {kind: by_key[f"happy/{path.name}"] for kind, path in found.items()}


def reference(path: Path, clip, spec: FrameSpec) -> np.ndarray:
    """uint8 [N, 3, h, w]: all frames of a file as ffmpeg shows them, then cropped and resized."""
    size = clip.width, clip.height
    left, top, width, height = spec.box(*size)
    out_width, out_height = spec.out_size(*size)
    steps = [] if clip.pixel_aspect == 1 else [f"scale={size[0]}:{size[1]}:flags=bicubic+accurate_rnd"]
    steps.append(f"crop={width}:{height}:{left}:{top}:exact=1")
    steps.append(f"scale={out_width}:{out_height}:flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp")
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
        decoder = loader._decoder
        why = {
            clip.key: "" for row, clip in enumerate(manifest.clips) if backend == "dali" and not decoder.by_dali(row)
        }
        why.update({key: reason for reason, keys in decoder.left_to_pyav.items() for key in keys})
    return frames, why


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_are_ffmpegs(scanned, backend):
    manifest, clips = scanned
    spec = FrameSpec(num_frames=5, size=64)
    frames, _ = loaded(manifest, backend, spec)
    bad = {}
    for kind, clip in clips.items():
        truth = reference(manifest.root / clip.key, clip, spec)
        assert len(truth) == clip.num_frames, kind
        wanted = frame_indices(clip.num_frames, spec.num_frames)
        least = min(psnr(frame, truth[index]) for frame, index in zip(frames[clip.key], wanted, strict=True))
        if least < LEAST_DB:
            bad[kind] = round(least, 1)
    assert bad == {}
