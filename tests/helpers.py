"""Small real files for tests (videos whose pixels number their frames, sound, folders of images), and how many."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import pytest

from fastemo.corpus.clip import Clip
from fastemo.corpus.ravdess import Performance, speech_performances

REPOSITORY = Path(__file__).resolve().parent.parent
TRAIN = REPOSITORY / "fastemo" / "train.py"
NUMBER_BITS = 8
# Options of a run that takes seconds.
TINY_RUN = [
    *("--model.name", "early_cnn", "--train.epochs", "1", "--train.batch_size", "16", "--video.num_frames", "2"),
    *("--video.size", "36", "--augment.crop_size", "32"),
]
T = TypeVar("T")


def face_weights() -> Path:
    """Where the face detector's weights are, if they are anywhere."""
    default = REPOSITORY / "../shared/models/face_detection_yunet_2026may.onnx"
    return Path(os.environ.get("FASTEMO_FACE_WEIGHTS") or default).resolve()


def full_or(sample: T, full: T) -> T:
    """What a long test tries: `full` where FASTEMO_FULL=1 (`reliability.py --full` sets it), else a sample of it."""
    return full if os.environ.get("FASTEMO_FULL") == "1" else sample


@contextmanager
def empty_figures() -> Iterator[None]:
    """Runs in this process leave empty files for figures, whose drawing takes a third of a small run."""
    from fastemo.report import drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "write_figure", lambda _, path, title="": Path(path).touch())
        yield


def wait_until(holds: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.005)


def command(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that has ended, and what it printed."""
    env = os.environ | environment
    options = {"capture_output": True, "text": True, "errors": "surrogateescape", "timeout": 1700}
    return subprocess.run([str(word) for word in words], cwd=cwd, env=env, **options)


def files_of(run_dir: Path) -> set[str]:
    """A run folder's files but for the pictures that examples.json names; there are no others."""
    names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    named = json.loads((run_dir / "examples.json").read_text())["examples"]
    pictures = {example[kind] for example in named for kind in ("frames", "gradcam")}
    assert {name for name in names if name.startswith("examples/")} == pictures
    return names - pictures


def documents() -> list[Path]:
    """The README, then the pages of the documentation."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def documented_commands() -> list[str]:
    """The lines of the documents' shell blocks, each once."""
    texts = (path.read_text(encoding="utf-8") for path in documents())
    blocks = (block for text in texts for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return list(dict.fromkeys(line for block in blocks for line in block.splitlines() if line))


def documented_command(script: str) -> list[str]:
    """The arguments of the documented line that runs a script, without the installation before it, by this Python."""
    (line,) = (line.split(" && ")[-1] for line in documented_commands() if script in line)
    program, *words = line.split()
    assert program == "python"
    return [sys.executable, *words]


def refusal(*arguments: str) -> str:
    """The one line with which a configuration is refused."""
    from fastemo.config import read_config

    with pytest.raises(ValueError, match=r".") as raised:
        read_config(arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


def below(key: str, text: str) -> str:
    """YAML of one value, given as YAML itself, at a key with dots."""
    for part in reversed(key.split(".") if key else []):
        text = f"{{{part}: {text}}}"
    return text


def numbered_frame(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3]: eight upright stripes, white where the number has a 1, lowest bit leftmost."""
    assert 0 <= number < 1 << NUMBER_BITS
    bits = np.arange(width) * NUMBER_BITS // width
    row = np.where(number >> bits & 1, 235, 20).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def frame_number(frame: np.ndarray) -> int:
    """What `numbered_frame` wrote, from a uint8 [H, W, 3] frame that was encoded, scaled or both."""
    width = frame.shape[1]
    centres = ((np.arange(NUMBER_BITS) + 0.5) * width / NUMBER_BITS).astype(int)
    bright = frame[frame.shape[0] // 2, centres].mean(axis=-1) > 127
    return int((bright << np.arange(NUMBER_BITS)).sum())


@contextmanager
def same_priority() -> Iterator[None]:
    """SVT-AV1 gives root's thread that encodes real-time priority, which all that it starts later inherits.

    Two trainings that wait for each other then take the processors whole, and every other process stands still.
    """
    if not hasattr(os, "sched_getscheduler"):  # macOS
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


@same_priority()
def write_video(
    path: Path,
    num_frames: int = 12,
    width: int = 64,
    height: int = 48,
    *,
    codec: str = "libx264",
    pixel_format: str | None = None,
    rate: int | Fraction = 25,
    options: dict[str, str] | None = None,
    faststart: bool = False,
    silence: bool = False,
    draw: Callable[[int, int, int], np.ndarray] = numbered_frame,
) -> Path:
    """Encode numbered frames; the container follows from the file's extension.

    Args:
        path: The file; folders above it are made.
        num_frames: N, at most 256 with `numbered_frame`.
        width: Pixels, even.
        height: Pixels, even.
        codec: FFmpeg's name of the encoder.
        pixel_format: FFmpeg's name, by default 4:2:0 of 8 bits.
        rate: Frames a second.
        options: The encoder's own.
        faststart: MP4 and MOV: the index (`moov`) before the frames, not after them.
        silence: Add a silent AAC track.
        draw: (number, width, height) -> uint8 [H, W, 3].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = width, height
        stream.pix_fmt = pixel_format or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        sound = container.add_stream("aac", rate=48000) if silence else None
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw(number, width, height), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _mux_silence(container, sound, num_frames / float(rate))
    return path


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


def turn(source: Path, path: Path, orientation: int) -> Path:
    """A copy of an MP4 or MOV with the display matrix of an orientation."""
    data = bytearray(source.read_bytes())
    a, b, c, d = (number << 16 for number in MATRICES[orientation])
    # Source: ISO/IEC 14496-12, 8.3.2: the matrix is 40 bytes behind the track header's version.
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def noise_frame(number: int, width: int, height: int) -> np.ndarray:
    """Incompressible pixels, where a test wants a file with many bytes a frame."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_sound(path: Path, seconds: float = 0.5) -> Path:
    """A file with a silent AAC track and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        _mux_silence(container, container.add_stream("aac", rate=48000), seconds)
    return path


def write_images(folder: Path, num_frames: int, width: int = 64, height: int = 48, suffix: str = ".jpg") -> Path:
    """The layout of Roy (2025): `frame0001.jpg` and so on; image k + 1 holds number k."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_frames):
        write_image(folder / f"frame{number + 1:04d}{suffix}", numbered_frame(number, width, height))
    return folder


def write_image(path: Path, pixels: np.ndarray) -> Path:
    codec, pixel_format = ("png", "rgb24") if path.suffix.lower() == ".png" else ("mjpeg", "yuvj444p")
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt, encoder.time_base = pixel_format, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


def count_decoded(path: Path) -> int:
    """Frames of a full sequential decode, the truth that every other count is held to."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _mux_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    samples = np.zeros((1, 1024), dtype=np.float32)
    for block in range(max(1, round(seconds * 48000 / 1024))):
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, block * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8-range arrays, in dB; the one measure of how alike frames are."""
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ravdess_clip(performance: Performance) -> Clip:
    """The clip that a file of RAVDESS's name becomes, without the file."""
    names = ("actor", "modality", "channel", "intensity", "statement", "repetition")
    return Clip(
        key=f"Actor_{performance.actor:02d}/{performance.stem}.mp4",
        emotion=performance.emotion_name,
        num_frames=100,
        **{name: getattr(performance, name) for name in names},
    )


def ravdess_clips(*actors: int, modalities: tuple[int, ...] = (2,)) -> list[Clip]:
    """All speech of some actors: 60 clips for each and each modality."""
    takes = [
        take for actor in actors for modality in modalities for take in speech_performances(actor, modality=modality)
    ]
    return [ravdess_clip(take) for take in takes]


def write_noise_clip(path: Path, number: int, num_frames: int, width: int, height: int, **options) -> Path:
    """A video whose frames differ from each other and from those of every other number."""

    def draw(frame: int, width: int, height: int) -> np.ndarray:
        return np.roll(noise_frame(number, width, height) // 2, 2 * frame, axis=1)

    return write_video(path, num_frames, width, height, draw=draw, **options)


def decoded_clips(manifest, config) -> dict[str, np.ndarray]:
    """What the decoder of a VideoConfig, by default PyAV, gives of each clip: key -> uint8 [T, 3, h, w]."""
    from fastemo.video.decode import decode_clip
    from fastemo.video.sampling import frame_indices

    backend, found = config.backend.replace("auto", "pyav"), {}
    for clip in manifest.clips:
        indices = frame_indices(clip.num_frames, config.num_frames)
        spec = config.spec.at(clip.face_box)
        found[clip.key] = decode_clip(manifest.root / clip.key, indices, spec, backend=backend)
    return found


def check_epoch(loader, expected: dict[str, np.ndarray], epoch: int = 0) -> int:
    """Load an epoch and compare every clip to `expected`; returns the number of clips."""
    count = 0
    for batch in loader.epoch(epoch):
        for key, frames in zip(batch.keys, batch.frames.numpy(), strict=True):
            np.testing.assert_array_equal(frames, expected[key], err_msg=key)
            count += 1
    return count


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(folder: Path, handler: type[SimpleHTTPRequestHandler] = SimpleHTTPRequestHandler) -> Iterator[str]:
    """A folder over HTTP: its URL."""

    class Quiet(handler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def sent(path: Path, url: str, *more: str) -> Iterator[None]:
    """ffmpeg sends a video at its own speed; `more` are options for reading it."""
    if not shutil.which("ffmpeg"):
        assert not os.environ.get("CI"), "CI needs ffmpeg"
        pytest.skip("needs ffmpeg")
    words = ["ffmpeg", "-nostdin", "-v", "error", "-re", *more, "-i", path, "-c", "copy", "-f", "mpegts", url]
    with subprocess.Popen([str(word) for word in words]) as sender:
        try:
            yield
        finally:
            sender.terminate()


def smooth_frame(number: int, width: int, height: int, phase: float = 0.0) -> np.ndarray:
    """uint8 [H, W, 3]: coloured waves without hard edges; neighbouring frames are less than 35 dB alike."""
    y, x = np.mgrid[0:height, 0:width]
    red = np.sin(x / 17 + number / 3 + phase) * np.cos(y / 13)
    green, blue = np.cos(x / 29 - number / 4 + phase), np.sin((x + y) / 23 + number / 3 + phase)
    return (127 + 60 * np.stack([red, green, blue], axis=-1)).clip(0, 255).astype(np.uint8)
