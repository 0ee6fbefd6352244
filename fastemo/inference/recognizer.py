"""A trained model, ready for new videos."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import get_args, overload

import numpy as np
import torch

from fastemo.corpus.files.probe import holds_images
from fastemo.corpus.files.truncation import cut_off
from fastemo.errors import DecodeError, UserError
from fastemo.inference.files import Reader, array_clip
from fastemo.inference.live import LiveWindows, is_url, shown_name
from fastemo.inference.network import Known, Network, model_threads
from fastemo.inference.parts import decode_pool, file_parts
from fastemo.inference.prediction import Faces, Prediction, label_of, of_largest_face
from fastemo.inference.runs import TrainedRun
from fastemo.inference.windows import HOP_SECONDS, WINDOW_SECONDS, Plan, WindowClip, window_and_hop, window_clips
from fastemo.machine import available_processors
from fastemo.video.bitstream.pruning import BitstreamError

WHOLE_SECONDS = 10.0  # `predict_videos` takes longer files as windows
# Clips that go through the model together.
_CLIPS_ON_CPU, _CLIPS_ON_GPU = 8, 64
# Files read, or parts of a video decoded, ahead of the model, for each thread.
_AHEAD = 2


class Recognizer:
    """A trained model, or the mean of several of one configuration, ready for new videos.

    Files go the way of training: T frames spread evenly over the clip, decoded by the run's backend, upright, cropped,
    resized, cropped to the centre, normalised. Probabilities are calibrated by the run's temperature. On a CPU the
    model computes in fp32, on a GPU in the run's precision.

    Attributes:
        class_names: In the order of `Prediction.probabilities`.
        device: That of the model.
        precision: `fp32`, `bf16` or `fp16`.
        backend: What decodes whole files; PyAV decodes windows and live input.
        note: Why that is not the run's backend; empty if it is.
        min_confidence, faces: See `load`; without `video.crop: face`, `faces` is `None`.

    Raises:
        ValueError: `min_confidence` is not between 0 and 1, or `faces` does not fit the run.
        UserError: The face detector's weights are not available.
    """

    def __init__(
        self,
        runs: Sequence[TrainedRun],
        device: torch.device,
        *,
        min_confidence: float = 0.0,
        faces: Faces | None = None,
        face_weights: Path | None = None,
    ) -> None:
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must be from 0 to 1, not {min_confidence}")
        self.device, self.min_confidence, self._config = device, min_confidence, runs[0].config
        self.faces, self.spec = _faces(runs[0], faces), self._config.video.spec
        if self.faces is not None:
            from fastemo.inference import tracks  # imports OpenCV and SciPy
            from fastemo.video.faces.detector import weights_of_run

            detector = tracks.detector_for(self.faces, weights_of_run(self._config.faces.weights, face_weights))
            self._tracks = partial(tracks.FaceTracks, detector, self.spec, self.faces)
        self._networks = [Network(run, device) for run in runs]
        self.class_names, self.precision = runs[0].class_names, self._networks[0].speed.precision
        self._reader = Reader(self._config.video, device)
        self.backend, self.note = self._reader.backend, self._reader.note
        self._batch_size = _CLIPS_ON_CPU if device.type == "cpu" else _CLIPS_ON_GPU
        self._threads = available_processors()

    def __repr__(self) -> str:
        times = f"{len(self._networks)} x " * (len(self._networks) > 1)
        return (
            f"Recognizer({times}{self._config.model.name}, {len(self.class_names)} classes, "
            f"{self.spec.num_frames} frames a clip by {self.backend}, {self.precision} on {self.device})"
        )

    @overload
    def predict(self, source: Path | str) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, source: Iterable[Path | str]) -> Iterator[Prediction]: ...

    def predict(self, source: Path | str | Iterable[Path | str]) -> Prediction | Iterator[Prediction]:
        """Predict whole files, each as one clip: a video, a picture, or a folder of images `frame0001.jpg` ...

        Args:
            source: One file, or any number of them, which are read ahead and go through the model in batches.

        Returns:
            Its prediction, of several faces that of the largest; or one for each file, in their order, with `faces:
            all` one for each face. A file that fails has `error` set.

        Raises:
            UserError, OSError: The only file cannot be used, or shows no face; the message names it.
        """
        if not isinstance(source, str | Path):
            return self._predictions(source, None)
        found = of_largest_face([*self._predictions([source], None)])
        if found.error is not None:
            raise UserError(f"{found.path}: {found.error}")
        return found

    def predict_videos(
        self, paths: Iterable[Path | str], *, window: float | None = None, hop: float | None = None
    ) -> Iterator[Prediction]:
        """Predict files of any length, in their order, as `fastemo predict` does.

        Args:
            window: Seconds of a window; `None`: a file of up to 10 s is one clip, and longer ones have windows of 3 s.
            hop: Seconds from one window to the next; `None`: 0.5, or `window` if that is shorter.

        Raises:
            ValueError: `window` or `hop` is not positive, or `hop` is longer than `window`.
        """
        whole_up_to = WHOLE_SECONDS if window is None else 0.0
        make_plan = partial(Plan, *window_and_hop(window, hop), self.spec.num_frames, whole_up_to=whole_up_to)
        make_plan()  # raises before the first file is read
        return self._predictions(paths, make_plan)

    def stream(
        self, source: Path | str, *, window: float = WINDOW_SECONDS, hop: float = HOP_SECONDS
    ) -> Iterator[Prediction]:
        """Predict each window of a long video or a URL, in their order and in bounded memory.

        Windows begin at 0, `hop`, 2 `hop` ... seconds, and a frame belongs to a window if start <= time < end. Each
        frame that any window needs is decoded once; models that encode frames one by one encode it once. A URL is live:
        windows that come faster than the model are skipped (`LiveWindows` counts them).

        Raises:
            ValueError: `window` or `hop` is not positive, or `hop` is longer than `window`.
            UserError, OSError: The video cannot be read at all.
        """
        plan = Plan(window, hop, self.spec.num_frames)
        if isinstance(source, str) and is_url(source):
            return self._live(source, window, hop)
        return self._windows(Path(source), plan)

    def _live(self, url: str, window: float, hop: float) -> Iterator[Prediction]:
        with LiveWindows(url, self.spec, window=window, hop=hop) as windows:
            yield from self.predict_windows(windows, shown_name(url))

    def predict_frames(self, frames: np.ndarray) -> Prediction:
        """Predict frames in memory, which are one clip.

        Args:
            frames: uint8 [N, H, W, 3], RGB, upright; T of them are sampled evenly.

        Returns:
            Their prediction, of several faces that of the largest; without the face that the run crops, its `error` is
            `no face`.

        Raises:
            ValueError: The array has another shape or dtype, or no frames.
        """
        clips = self._of_faces(array_clip(frames, self.spec))
        return of_largest_face(self._of_clips([""] * len(clips), clips))

    def embed(self, source: Path | str | np.ndarray) -> np.ndarray:
        """What the classifier sees of a file or of frames as in `predict_frames`: float32 [features].

        Of several models their features follow each other. Errors are those of `predict` and `predict_frames`.
        """
        found = self.predict_frames(source) if isinstance(source, np.ndarray) else self.predict(source)
        if found.embedding is None:
            raise UserError(f"the frames cannot be embedded: {found.error}")
        return found.embedding

    def predict_windows(
        self,
        windows: Iterable[WindowClip],
        path: str,
        *,
        batch_size: int = 1,
        num_busy: Callable[[], int] = lambda: 1,
    ) -> Iterator[Prediction]:
        """Predict the windows of one video, in their order.

        Args:
            path: The video's name, for the predictions.
            batch_size: Windows, or faces of them, that go through the model together; 1: each as soon as it is there.
            num_busy: Processors that decode meanwhile, which a model on the CPU leaves to that.
        """
        with ExitStack() as stack:
            known: list[Known] | None = [{} for _ in self._networks]
            source = iter(windows)
            if self.faces is not None:
                tracks = self._tracks(pool=stack.enter_context(ThreadPoolExecutor(self._threads)))
                source = chain.from_iterable(map(tracks.clips, windows))
                known = None  # each window's crops are its own: no features are shared
            while batch := [*islice(source, batch_size)]:
                yield from self._of_clips([path] * len(batch), batch, known, num_busy=num_busy())
                first = next((clip.numbers[0] for clip in reversed(batch) if clip.numbers), 0)
                for features in known or ():  # those that later windows cannot hold
                    for name in [name for name in features if name[1] < first]:
                        del features[name]

    def _of_faces(self, clip: WindowClip) -> list[WindowClip]:
        """A whole file's clip, or that of each of its faces."""
        return [clip] if self.faces is None else self._tracks().clips(clip)

    def _of_clips(
        self,
        paths: Sequence[str],
        clips: Sequence[WindowClip],
        known: Sequence[Known] | None = None,
        *,
        num_busy: int = 0,
    ) -> list[Prediction]:
        """One prediction a clip; without features known before, each clip is taken for another video."""
        rows = [row for row, clip in enumerate(clips) if clip.error is None]
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        if rows:
            names = [paths[row] if known else str(row) for row in rows]
            shown = [clips[row] for row in rows]
            caches = known or [{} for _ in self._networks]
            with model_threads(num_busy):
                results = [it.predict(names, shown, cache) for it, cache in zip(self._networks, caches, strict=True)]
            probabilities = np.mean([result[0] for result in results], axis=0)
            embeddings = np.concatenate([result[1] for result in results], axis=1)
            found = dict(zip(rows, zip(probabilities, embeddings, strict=True), strict=True))
        both = enumerate(zip(paths, clips, strict=True))
        return [self._prediction(path, clip, found.get(row)) for row, (path, clip) in both]

    def _prediction(self, path: str, clip: WindowClip, found: tuple[np.ndarray, np.ndarray] | None) -> Prediction:
        if found is None or not np.isfinite(found[0]).all():
            error = clip.error or "the model's output is not a number"
            return Prediction(path=path, start=clip.start, end=clip.end, error=error)
        probabilities, embedding = found
        return Prediction(
            path=path,
            start=clip.start,
            end=clip.end,
            label=label_of(probabilities, self.class_names, self.min_confidence),
            probabilities=dict(zip(self.class_names, probabilities.tolist(), strict=True)),
            times=clip.times,
            embedding=embedding,
            face=clip.face,
            box=clip.box,
        )

    def _predictions(self, paths: Iterable[Path | str], make_plan: Callable[[], Plan] | None) -> Iterator[Prediction]:
        """Predictions of files, in their order, read ahead on threads; with `make_plan`, long ones as windows."""
        source = map(Path, paths)
        reading: deque[tuple[Path, Future[list[WindowClip] | None]]] = deque()
        with decode_pool(self._threads) as pool:

            def read_ahead() -> None:
                for path in islice(source, self._batch_size + _AHEAD * self._threads - len(reading)):
                    reading.append((path, pool.submit(self._read, path, make_plan)))

            read_ahead()
            while reading:
                path, future = reading.popleft()
                found = future.result()
                if found is None and make_plan is not None:
                    yield from self._windows(path, make_plan(), or_error=True)
                    read_ahead()
                    continue
                assert found is not None
                names, clips = [str(path)] * len(found), found
                while reading and len(clips) < self._batch_size and reading[0][1].done():
                    path, future = reading[0]
                    if (found := future.result()) is None:
                        break
                    reading.popleft()
                    names += [str(path)] * len(found)
                    clips += found
                read_ahead()
                yield from self._of_clips(names, self._reader.finished(clips), num_busy=pool.num_busy())

    def _read(self, path: Path, make_plan: Callable[[], Plan] | None) -> list[WindowClip] | None:
        """A file as one clip, or one a face, or why it is none; `None`: as windows."""
        most_seconds = math.inf if make_plan is None else make_plan().whole_up_to
        try:
            if not most_seconds and not holds_images(path):
                return None
            clip = self._reader.read(path, most_seconds)
            return None if clip is None else self._of_faces(clip)
        except (UserError, ValueError, OSError) as error:
            return [WindowClip(0.0, 0.0, error=_reason(error))]

    def _windows(self, path: Path, plan: Plan, *, or_error: bool = False) -> Iterator[Prediction]:
        """Predictions of a video's windows; with `or_error`, one that names the error of a video without windows."""
        try:
            if holds_images(path):
                raise UserError(f"{path}: pictures have no times, and so no windows: use predict")
            size = path.stat().st_size
            with decode_pool(self._threads) as pool, file_parts(path, self.spec, pool) as parts:
                windows = window_clips(parts, plan, ahead=_AHEAD * self._threads)
                first = next(windows, None)
                if first is None:
                    raise BitstreamError(path, "no frame decodes: the video stream has no packets")
                windows = chain([first], windows)
                yield from self.predict_windows(windows, str(path), batch_size=self._batch_size, num_busy=pool.num_busy)
            if cut := cut_off(path, size):
                yield Prediction(path=str(path), error=f"truncated: {cut}")
        except (UserError, OSError) as error:
            if not or_error:
                raise
            yield Prediction(path=str(path), error=_reason(error))


def _faces(run: TrainedRun, asked: Faces | None) -> Faces | None:
    crop = run.config.video.crop
    if asked not in (None, *get_args(Faces)):
        raise ValueError(f"faces must be {' or '.join(get_args(Faces))}, not '{asked}'")
    if crop == "face":
        return asked or "largest"
    if asked is not None:
        raise ValueError(
            f"faces {asked}: {run.folder} was trained on the crop {crop}, and a window has one prediction; to predict "
            f"faces, train a run with video.crop: face"
        )
    return None


def _reason(error: Exception) -> str:
    """An error without the file's name."""
    if isinstance(error, DecodeError):
        return f"frame {error.frame} does not decode: {error.reason}"
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
