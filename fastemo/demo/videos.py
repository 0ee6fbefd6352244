"""The videos of the page: each predicted and deleted, its results kept until they are replaced."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock

import av
import av.error

from fastemo.corpus.files.probe import CONTAINERS_ONLY, holds_images
from fastemo.demo.results import result_html, summary
from fastemo.errors import UserError
from fastemo.inference.output.annotate import annotate
from fastemo.inference.output.writers import writer_of
from fastemo.inference.prediction import NO_FACE, Prediction
from fastemo.inference.recognizer import Recognizer

MAX_BYTES = 500 * 2**20
MAX_SECONDS = 600.0


@dataclass(frozen=True)
class Result:
    """What the page shows of a video.

    Attributes:
        message: One line.
        html: Charts and table; empty, as the files are, if there is no prediction.
    """

    message: str
    html: str = ""
    annotated: Path | None = None
    table: Path | None = None


class Videos:
    """Predicts one video at a time.

    Args:
        folder: Of all files; those of a session, which is one open page, are in a folder of their own.
        window, hop: As `Recognizer.predict_videos` takes them.
    """

    def __init__(
        self, model: Recognizer, folder: Path, *, window: float | None = None, hop: float | None = None
    ) -> None:
        self.model, self.folder = model, folder
        self._window, self._hop = window, hop
        self._results: dict[str, Path] = {}
        self._one, self._stopped = Lock(), Event()

    def predict(self, video: Path, session: str, on_progress: Callable[[float | None, str], None]) -> Result:
        """Predict a video, which is deleted then; its results replace those of the session's last one.

        Args:
            on_progress: Called with the share that is done, where it is known, and what is being done.
        """
        with self._one:
            if self._stopped.is_set():
                return Result("stopped")
            self.forget(session)
            self._results[session] = folder = Path(tempfile.mkdtemp(dir=self.folder))
            try:
                return self._result(video, folder, on_progress)
            except (ValueError, UserError, OSError) as error:
                self.forget(session)
                reason = str(getattr(error, "strerror", None) or error).replace(str(video), video.name)
                return Result(" ".join(reason.split()))
            finally:
                video.unlink(missing_ok=True)

    def forget(self, session: str) -> None:
        """Delete the results of a session; its prediction, if one is being made, ends."""
        if folder := self._results.pop(session, None):
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        """From now on no prediction begins, and the one being made has ended."""
        self._stopped.set()
        with self._one:
            pass

    def _result(self, video: Path, folder: Path, on_progress: Callable[[float | None, str], None]) -> Result:
        def advance(seconds: float, what: str) -> None:
            if self._stopped.is_set() or not folder.is_dir():
                raise UserError("stopped")
            if max(seconds, total) > MAX_SECONDS:
                raise UserError(f"{video.name} is longer than {MAX_SECONDS / 60:.0f} minutes")
            on_progress(min(seconds / total, 1.0) if total else None, what)

        if holds_images(video):
            raise UserError(f"{video.name} is a picture: only videos are taken here")
        total = duration_seconds(video)
        advance(0.0, "Predicting")
        found: list[Prediction] = []
        for prediction in self.model.predict_videos([video], window=self._window, hop=self._hop):
            found.append(replace(prediction, path=video.name))
            advance(prediction.end, "Predicting")
        if all(it.label is None for it in found):
            error = found[0].error if found else "no frame"
            raise UserError(f"{video.name}: {'no face was found' if error == NO_FACE else error}")
        total = total or found[-1].end
        annotated, table = folder / "annotated.mp4", folder / f"{video.stem}.csv"
        annotate(video, found, self.model.class_names, annotated, lambda done, _: advance(done, "Drawing"))
        with writer_of(table, self.model.class_names, has_faces=self.model.faces is not None) as writer:
            for prediction in found:
                writer.write(prediction)
        return Result(
            summary(video.name, found), result_html(found, self.model.class_names), annotated=annotated, table=table
        )


def duration_seconds(video: Path) -> float:
    """By its header; 0 if it does not say, or the file is no video."""
    try:
        with av.open(str(video.absolute()), options=CONTAINERS_ONLY) as container:
            return (container.duration or 0) / av.time_base
    except (av.error.FFmpegError, UnicodeError):
        return 0.0
