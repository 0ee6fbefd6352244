"""`predict` and `stream`, the parts of their work each alone, and the loop that most projects write."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.common.inference.material import CONFIG, HOP, WINDOW, LongVideo
from benchmarks.common.measure import Pass, Stage, timed
from fastemo.corpus.manifest import Manifest
from fastemo.inference.prediction import Prediction
from fastemo.inference.runs import load, read_runs
from fastemo.machine import available_processors
from fastemo.video.augment import IMAGENET_MEAN, IMAGENET_STD, center_crop
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

LOOP_SECONDS = 60
_BATCH = 8  # clips
_MEAN, _STD = (np.array(it, np.float32) for it in (IMAGENET_MEAN, IMAGENET_STD))
_T, _SIZE, _CROP = CONFIG.video.num_frames, CONFIG.video.size, CONFIG.augment.crop_size


class Alone:
    """The two parts of the work, each alone with all processors: decoding, and the model on frames in memory."""

    def __init__(self, run: Path) -> None:
        [trained] = read_runs(run)
        self.model = trained.model(torch.device("cpu"))
        frames = np.random.default_rng(0).integers(0, 256, (_BATCH, _T, 3, _SIZE, _SIZE), dtype=np.uint8)
        self._batch = torch.from_numpy(frames)

    def decode(self, wanted: Sequence[tuple[Path, list[int]]]) -> None:
        """Prune, decode and resize frames of files, whose numbers are known; a thread for each processor."""
        decode = partial(decode_clip, spec=CONFIG.video.spec)
        with ThreadPoolExecutor(available_processors()) as pool:
            deque(pool.map(decode, *zip(*wanted, strict=True)), maxlen=0)

    @torch.inference_mode()
    def forward(self, num_frames: int) -> None:
        """Crop, normalise and run the model on at least so many frames, in batches of 8 clips."""
        for _ in range(0, num_frames, _BATCH * _T):
            torch.softmax(self.model(center_crop(self._batch, CONFIG.augment)), dim=1)


def file_stages(run: Path, manifest: Manifest) -> list[Stage]:
    """`predict` over a corpus's clips, and its two parts."""
    model, alone = load(run, device="cpu"), Alone(run)
    wanted = [
        (clip.file(manifest.root), frame_indices(clip.num_frames, _T, clip.first_frame).tolist())
        for clip in manifest.clips
    ]

    def predict(count: int) -> None:
        for found in model.predict([path for path, _ in wanted[:count]]):
            if found.error:
                raise ValueError(f"{Path(found.path).name}: {found.error}")

    def stage(name: str, title: str, work: Callable[[int], None]) -> Stage:
        return whole_stage(
            name, title, len(wanted), partial(work, len(wanted)), partial(work, min(_BATCH, len(wanted)))
        )

    return [
        stage("decode_files", "clips: decoding alone", lambda count: alone.decode(wanted[:count])),
        stage("forward_files", "clips: the model alone", lambda count: alone.forward(count * _T)),
        stage("predict", "clips: predict", predict),
    ]


def window_stages(run: Path, video: LongVideo) -> list[Stage]:
    """`stream` over a long video, its two parts, and the loop, which takes a part of the video.

    Each pass counts one window for each `HOP` seconds of video.
    """
    model, alone = load(run, device="cpu"), Alone(run)
    num_windows, few = round(video.seconds / HOP), video.parts[: available_processors()]
    windows_of_video = partial(model.stream, video.path, window=WINDOW, hop=HOP)

    def loop(seconds: float = LOOP_SECONDS) -> Pass:
        return timed(lambda: opencv_loop(alone.model, video, seconds))

    stream = partial(check_windows, windows_of_video, video)
    decode, forward = partial(alone.decode, video.parts), partial(alone.forward, video.num_needed)
    return [
        whole_stage("decode_windows", "windows: decoding alone", num_windows, decode, lambda: alone.decode(few)),
        whole_stage("forward_windows", "windows: the model alone", num_windows, forward, lambda: alone.forward(1)),
        whole_stage("stream", "windows: stream", num_windows, stream, lambda: next(windows_of_video())),
        Stage("loop", "windows: loop with OpenCV", loop, lambda: loop(WINDOW + 1)),
    ]


def check_windows(windows: Callable[[], Iterable[Prediction]], video: LongVideo) -> None:
    """Predict the windows of a video, of which each must have one prediction."""
    found = list(windows())
    if failed := next((it.error for it in found if it.error), None):
        raise ValueError(f"the joined video: {failed}")
    if len(found) != video.num_windows:
        raise ValueError(f"the joined video has {len(found)} windows and not {video.num_windows}")


def whole_stage(name: str, title: str, count: int, work: Callable[[], object], warm: Callable[[], object]) -> Stage:
    """A stage that counts so many clips or windows a pass."""

    def run() -> int:
        work()
        return count

    return Stage(name, title, lambda: timed(run), warm)


def in_rgb(frame: np.ndarray) -> np.ndarray:
    """OpenCV's frame or picture in RGB."""
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@torch.inference_mode()
def opencv_loop(
    model: torch.nn.Module,
    video: LongVideo,
    seconds: float,
    *,
    look: Callable[[np.ndarray], Any] = in_rgb,
    prepare: Callable[[Any], np.ndarray] | None = None,
) -> int:
    """The loop as most projects write it, over the first seconds of a video.

    OpenCV reads every frame; of each window, T frames are cropped, resized and normalised, and the model sees them.

    Args:
        look: What is kept of each frame, uint8 [H, W, 3] in BGR.
        prepare: That -> the model's input, float32 [H, W, 3]; by default of the centre square.
    """
    capture, prepare = cv2.VideoCapture(str(video.path)), prepare or _centred
    window, hop, read = round(WINDOW * video.rate), round(HOP * video.rate), 0
    frames: deque[Any] = deque(maxlen=window)
    while read < min(video.num_frames, round(seconds * video.rate)):
        is_read, frame = capture.read()
        if not is_read:
            raise ValueError(f"OpenCV reads only {read} frames of the joined video")
        frames.append(look(frame))
        read += 1
        if read < window or (read - window) % hop:
            continue
        clip = [prepare(frames[it]) for it in frame_indices(window, _T)]
        torch.softmax(model(torch.from_numpy(np.stack(clip)).permute(0, 3, 1, 2)[None]), dim=1)
    capture.release()
    return round(read / video.rate / HOP)


def normalised(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] in RGB -> float32."""
    return (picture.astype(np.float32) / 255 - _MEAN) / _STD


def _centred(frame: np.ndarray) -> np.ndarray:
    """The centre square, resized and cropped to the model's input: float32 [H, W, 3]."""
    height, width = frame.shape[:2]
    side, margin = min(height, width), (_SIZE - _CROP) // 2
    top, left = (height - side) // 2, (width - side) // 2
    small = cv2.resize(frame[top : top + side, left : left + side], (_SIZE, _SIZE))
    return normalised(small[margin : margin + _CROP, margin : margin + _CROP])
