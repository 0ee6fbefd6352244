"""The clips that a benchmark reads: real ones, or generated ones like RAVDESS's, repeated to the length of a pass."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.common.results import REPOSITORY
from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.corpus.clip import Clip
from fastemo.corpus.config import Difficulty, SyntheticConfig
from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.synthetic.encode import FRAME_RATE, KEYFRAME_INTERVAL, encode_clip
from fastemo.corpus.synthetic.synthesis import render_frames
from fastemo.machine import available_processors, cache_folder, replacing

MOST_CLIPS = ravdess.NUM_ACTORS * 60  # RAVDESS's speech takes
# Increase when a change below produces different files of the same shape.
_VERSION = 2
_LEAST_SIDE = 64  # pixels; NVDEC's minimum is 48


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Properties of generated clips; the defaults are RAVDESS's.

    Attributes:
        width, height: Pixels.
        num_frames: Frames per clip, at 30000/1001 per second.
        bit_rate: Maximum bits per second.
        num_renders: Number of different clips.
    """

    width: int = 1280
    height: int = 720
    num_frames: int = 100
    bit_rate: int = 8_000_000
    num_renders: int = 8


SMALL = Shape(width=320, height=180, num_frames=100, bit_rate=500_000)
TINY = Shape(width=320, height=180, num_frames=40, bit_rate=500_000, num_renders=4)


@dataclass(frozen=True)
class Corpus:
    """The files that everything in one run reads.

    Attributes:
        manifest: Links to clips.
        description: For the results: their source, without paths of this machine.
    """

    manifest: Manifest
    description: dict[str, Any]


def genuine_folder() -> Path | None:
    """Folder of real RAVDESS clips, if any: below `FASTEMO_CLIPS`, or beside the repository."""
    folder = Path(os.environ.get("FASTEMO_CLIPS") or REPOSITORY / "../shared/clips") / "ravdess"
    return folder.resolve() if folder.is_dir() else None


def generated_folder(shape: Shape, console: Console) -> Path:
    """Folder of generated clips, created once and cached."""
    digest = hashlib.blake2b(f"{_VERSION} {shape}".encode(), digest_size=6).hexdigest()
    target = cache_folder() / "benchmark" / f"{shape.width}x{shape.height}-{digest}"
    if not target.is_dir():
        console.say(f"generating {shape.num_renders} clips of {shape.width}x{shape.height}, {shape.num_frames} frames")
        target.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(shape.num_renders, available_processors())) as pool:
        list(pool.map(partial(_make_clip, target, shape), range(shape.num_renders)))
    return target


def lay_out(folder: Path, num_clips: int, target: Path, description: dict[str, Any]) -> Corpus:
    """Link `num_clips` of a folder's clips, spread evenly or repeated, below `target`.

    Raises:
        ValueError: The folder does not exist, or holds no usable video.
    """
    found = scan(folder)
    clips = found.clips + found.unlabelled
    if not clips:
        reasons = "; ".join(f"{clip.key}: {clip.reason}" for clip in found.rejected[:3])
        raise ValueError(f"{folder} holds no usable video{f' ({reasons})' if reasons else ''}")
    if len(clips) > num_clips:
        clips = tuple(clips[i * len(clips) // num_clips] for i in range(num_clips))
    seconds = sum(clip.duration_seconds for clip in clips)
    frames = [clip.num_frames for clip in clips]
    return Corpus(
        _linked(folder, [clips[number % len(clips)] for number in range(num_clips)], target),
        {
            **description,
            "clips_a_pass": num_clips,
            "different_clips": len(clips),
            "codecs": sorted({clip.codec for clip in clips}),
            "frame_sizes": sorted({f"{clip.width}x{clip.height}" for clip in clips}),
            "frames_a_clip": [min(frames), max(frames)],
            "megabits_a_second": round(sum(clip.size_bytes for clip in clips) * 8e-6 / seconds, 2) if seconds else None,
        },
    )


def _linked(folder: Path, clips: Sequence[Clip], target: Path) -> Manifest:
    """One link per clip, in a numbered folder, with a RAVDESS name; unlabelled clips get the classes in turn."""
    rows = []
    for number, clip in enumerate(clips):
        source = (folder / clip.key).resolve()
        try:
            take = ravdess.parse_stem(source.stem)
        except ValueError:
            take = ravdess.speech_performances(1)[8 * number % 60]
        key = f"{number:04d}/{take.stem}{source.suffix}"
        (target / key).parent.mkdir(parents=True)
        (target / key).symlink_to(source)
        rows.append(replace(clip, key=key, status="clip", reason="", emotion=take.emotion_name))
    return Manifest.of(target, rows)


def choose(argument: str, num_clips: int, target: Path, console: Console, *, quick: bool = False) -> Corpus:
    """The corpus of the option `--corpus`.

    Args:
        argument: A folder; `generated`; or `auto`: real clips if there are any, else generated ones.
        quick: `auto` means small generated ones.
    """
    genuine = None if quick else genuine_folder()
    if argument == "auto" and genuine is not None:
        return lay_out(genuine, num_clips, target, {"kind": "genuine RAVDESS clips"})
    if argument in ("auto", "generated"):
        shape = TINY if quick else Shape()
        about = {"kind": "generated", "shape": asdict(shape)}
        return lay_out(generated_folder(shape, console), num_clips, target, about)
    folder = Path(argument)
    return lay_out(folder, num_clips, target, {"kind": "given", "name": folder.resolve().name})


def pass_length(batch_size: int, at_least: int = 28) -> int:
    """Clips per pass: whole batches, equally many for each worker of any peer (the JPEG-frame baseline has four)."""
    step = batch_size * math.lcm(available_processors(), 4)
    return min(-(-at_least // step) * step, MOST_CLIPS)


def stored_corpus(num_clips: int, num_frames: int, size: int, target: Path) -> Manifest:
    """Clips that decode quickly, to fill a store of realistic size: links to one small clip of T frames."""
    side = max(_LEAST_SIDE, size + size % 2)
    source = target.parent / f"{target.name}-source"
    source.mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)
    encode_clip(source / "0.mp4", frames, rate_factor=30, silent_sound=False)
    (clip,) = scan(source).unlabelled
    return _linked(source, [clip] * num_clips, target)


def _make_clip(folder: Path, shape: Shape, number: int) -> None:
    """Write one clip atomically, unless it exists: a face that moves and speaks.

    It has RAVDESS's stream structure and encoder settings: CABAC, deblocking, two B-frames, a realistic bit rate, and
    a silent stereo AAC track.
    """
    take = ravdess.speech_performances(number % ravdess.NUM_ACTORS + 1)[7 * number % 60]
    path = folder / f"{take.stem}.mp4"
    if path.exists():
        return
    # With this much noise x264 actually uses 8 Mb/s at 1280x720.
    noisy = Difficulty(noise=2)
    config = SyntheticConfig(width=shape.width, height=shape.height, num_frames=shape.num_frames, difficulty=noisy)
    parameters = (
        f"keyint={KEYFRAME_INTERVAL}:min-keyint={KEYFRAME_INTERVAL}:scenecut=0:open-gop=0:bframes=2:b-adapt=0:"
        f"b-pyramid=none:threads=1:lookahead-threads=1:"
        f"vbv-maxrate={shape.bit_rate // 1000}:vbv-bufsize={shape.bit_rate // 1000}"
    )
    options = {"preset": "veryfast", "profile": "high", "x264-params": parameters}
    with replacing(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, "yuv420p"
        stream.bit_rate = shape.bit_rate
        stream.codec_context.thread_count = 1
        silence = container.add_stream("aac", rate=48000, layout="stereo")
        for frame in render_frames(take, config):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
        samples = -(-round(shape.num_frames / FRAME_RATE * 48000) // 1024) * 1024
        sound = av.AudioFrame.from_ndarray(np.zeros((2, samples), np.float32), "fltp", "stereo")
        sound.sample_rate, sound.pts = 48000, 0
        container.mux(silence.encode(sound))
        container.mux(silence.encode(None))
