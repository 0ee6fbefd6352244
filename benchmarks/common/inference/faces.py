"""Faces: the loader and the search for boxes, `stream` of a run that crops them, and the loops that projects write."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch

from benchmarks.common.inference.material import CONFIG, HOP, WINDOW, LongVideo
from benchmarks.common.inference.stages import (
    LOOP_SECONDS,
    Alone,
    check_windows,
    in_rgb,
    normalised,
    opencv_loop,
    whole_stage,
)
from benchmarks.common.measure import Pass, Stage, timed
from benchmarks.common.stages import cold_stage
from fastemo.console import Console
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.synthetic.encode import encode_clip
from fastemo.inference.runs import load
from fastemo.machine import available_processors
from fastemo.video.config import VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.faces.boxes import with_faces
from fastemo.video.faces.detector import FaceDetector
from fastemo.video.sampling import frame_indices

FACE_VIDEO: VideoConfig = replace(CONFIG.video, crop="face")
_T, _CROP = CONFIG.video.num_frames, CONFIG.augment.crop_size
_SIDE = 320  # pixels, of the picture in which the loops look for faces
_BATCH = 8  # clips


def face_weights(path: Path | None, folder: Path) -> Path:
    """The detector's weights as a file, which OpenCV's own interface takes; downloaded ones are written to `folder`.

    Raises:
        UserError: They are not available.
    """
    data = FaceDetector(path).weights
    found = folder / "detector.onnx"
    found.write_bytes(data)
    return found


def face_stages(run: Path, manifest: Manifest, video: LongVideo, weights: Path, stack: ExitStack) -> list[Stage]:
    """Of clips: decoding alone, the search for their boxes, and the cold loader with both crops. Of the long video:
    `stream`, and the loop with the faces of each window's frames and with those of every frame.
    """
    find = partial(_find, manifest, weights)
    boxed = find()
    model, alone = load(run, device="cpu"), Alone(run)
    wanted = [
        (clip.file(manifest.root), frame_indices(clip.num_frames, _T, clip.first_frame).tolist())
        for clip in manifest.clips
    ]
    few = Manifest.of(manifest.root, manifest.clips[: available_processors()])
    windows = partial(model.stream, video.path, window=WINDOW, hop=HOP)

    def cold(name: str, title: str, clips: Manifest, config: VideoConfig) -> Stage:
        return replace(cold_stage(clips, config, _BATCH, "cpu", stack), name=name, title=title)

    def loop(every: bool, seconds: float = LOOP_SECONDS) -> Pass:
        return timed(lambda: opencv_face_loop(alone.model, video, seconds, weights, every=every))

    count, num_windows = len(wanted), round(video.seconds / HOP)
    return [
        whole_stage(
            "decode_for_faces", "faces: decoding alone", count, partial(alone.decode, wanted),
            partial(alone.decode, wanted[:2]),
        ),
        whole_stage("find_faces", "faces: finding the boxes", count, find, partial(_find, few, weights)),
        cold("loader_center", "faces: loader, no store, crop center", manifest, CONFIG.video),
        cold("loader_face", "faces: loader, no store, crop face", boxed, FACE_VIDEO),
        whole_stage(
            "stream_faces", "windows: stream, faces", num_windows, partial(check_windows, windows, video),
            lambda: next(windows()),
        ),
        Stage(
            "loop_faces", "windows: loop with OpenCV, faces of each window's frames", partial(loop, False),
            lambda: loop(False, WINDOW + 1),
        ),
        Stage(
            "loop_every_face", "windows: loop with OpenCV, faces of every frame", partial(loop, True),
            lambda: loop(True, WINDOW + 1),
        ),
    ]  # fmt: skip


def _find(manifest: Manifest, weights: Path) -> Manifest:
    """Find the boxes of all clips, none of which is cached."""
    with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", FASTEMO_CACHE=folder):
        return with_faces(manifest, FACE_VIDEO, weights, Console(show=False))


def opencv_face_loop(model: torch.nn.Module, video: LongVideo, seconds: float, weights: Path, *, every: bool) -> int:
    """`opencv_loop` with faces, found by YuNet at 320 pixels in every frame or in the T frames of each window.

    The largest face of a frame is cropped.
    """
    net = cv2.FaceDetectorYN.create(str(weights), "", (_SIDE, _SIDE), 0.7)

    def look(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return frame, _face(net, frame) if every else None

    def prepare(seen: tuple[np.ndarray, np.ndarray | None]) -> np.ndarray:
        frame, box = seen
        return _cropped(frame, box if every else _face(net, frame))

    return opencv_loop(model, video, seconds, look=look, prepare=prepare)


def _face(net: cv2.FaceDetectorYN, frame: np.ndarray) -> np.ndarray | None:
    """The largest face's box, float [4], if there is one."""
    scale = _SIDE / frame.shape[1]
    small = cv2.resize(frame, None, fx=scale, fy=scale)
    net.setInputSize(small.shape[1::-1])
    _, found = net.detect(small)
    return None if found is None else max(found, key=lambda row: row[2] * row[3])[:4] / scale


def _cropped(frame: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """The square around a face, or the centre square, as the model's input: float32 [H, W, 3]."""
    height, width = frame.shape[:2]
    middle, side = (width / 2, height / 2), float(height)
    if box is not None:
        middle, side = (box[0] + box[2] / 2, box[1] + box[3] / 2), min(1.5 * max(box[2:]), height)
    left = int(np.clip(middle[0] - side / 2, 0, width - side))
    top = int(np.clip(middle[1] - side / 2, 0, height - side))
    crop = frame[top : top + int(side), left : left + int(side)]
    return normalised(in_rgb(cv2.resize(crop, (_CROP, _CROP))))


def two_people(manifest: Manifest, path: Path) -> Path:
    """A video of the size of the first clip, with the middles of two clips side by side."""
    halves = []
    for clip in (manifest.clips[0], manifest.clips[-1]):
        count = min(it.num_frames for it in manifest.clips)
        frames = decode_clip(clip.file(manifest.root), range(count), None).transpose(0, 2, 3, 1)
        width = frames.shape[2] // 4 * 2
        left = (frames.shape[2] - width) // 2
        halves.append(frames[:, :, left : left + width])
    encode_clip(path, np.concatenate(halves, axis=2), rate_factor=20, silent_sound=False)
    return path
