"""Files of predictions: tables, JSON, subtitles and embeddings."""

from __future__ import annotations

import csv
import html
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fastemo.errors import UserError
from fastemo.inference.output.captions import captions, handover, valid, window_of
from fastemo.inference.prediction import Prediction
from fastemo.machine import replacing

_PROBABILITY = "probability_"
_FACE = ("face", "left", "top", "width", "height")
_ROW_GROUP = 1000  # rows of a Parquet file that are written at once


class Writer(ABC):
    """A file that predictions are written to as they come; valid, with what there is, once the context is left."""

    @abstractmethod
    def write(self, prediction: Prediction) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def writer_of(path: Path, class_names: Sequence[str], *, has_faces: bool = False) -> Writer:
    """Open a file in the format of its suffix; one that exists is replaced.

    Tables (.csv, .parquet) have the columns path, start, end, label, `probability_<class>` for each class, and error;
    JSON has one object a prediction, in a list (.json) or one a line (.jsonl); subtitles (.srt, .vtt) show each window
    of one video around its centre, with a line for each of its faces. Times are in seconds.

    Args:
        has_faces: Whether tables and JSON also have `face`, its number, and its box: `left`, `top`, `width`, `height`
            in pixels.

    Raises:
        ValueError: Another suffix.
        UserError: .parquet without pyarrow.
        OSError: The file cannot be created.
    """
    check_format(path)
    return _WRITERS[path.suffix.lower()](path, class_names, has_faces)


def check_format(path: Path, *, several: bool = False) -> None:
    """Raises:
    ValueError: No format has this suffix, or none for several videos.
    """
    if several and path.suffix.lower() in (".srt", ".vtt"):
        raise ValueError(f"{path}: subtitles hold one video: choose .csv or .jsonl, or ask about one")
    if path.suffix.lower() not in _WRITERS:
        raise ValueError(f"{path}: the format follows from the suffix, one of {', '.join(_WRITERS)}")


class FeatureWriter(Writer):
    """Embeddings, collected and written when the context is left, to an .npz without pickled objects.

    Arrays: `embedding` float32 [N, features], `path` and `label` str [N], `start` and `end` float64 [N], in seconds,
    `face` int64 [N], 0 where the run does not crop faces. Failed predictions are left out.

    Raises:
        ValueError: Another suffix.
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() != ".npz":
            raise ValueError(f"{path}: embeddings are written to a file ending in .npz")
        with tempfile.TemporaryFile(dir=path.parent):  # before any work
            pass
        self._path = path
        self._embeddings: list[np.ndarray] = []
        self._rows: list[tuple[str, float, float, str, int]] = []

    def write(self, prediction: Prediction) -> None:
        if prediction.embedding is not None and prediction.label is not None:
            self._embeddings.append(prediction.embedding)
            times = prediction.start, prediction.end
            self._rows.append((valid(prediction.path), *times, valid(prediction.label), prediction.face))

    def close(self) -> None:
        paths, starts, ends, labels, faces = zip(*self._rows, strict=True) if self._rows else ((),) * 5
        with replacing(self._path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                embedding=np.array(self._embeddings, np.float32).reshape(len(self._rows), -1 if self._rows else 0),
                path=np.array(paths, np.str_),
                start=np.array(starts, np.float64),
                end=np.array(ends, np.float64),
                label=np.array(labels, np.str_),
                face=np.array(faces, np.int64),
            )


class _TextWriter(Writer):
    def __init__(self, path: Path, class_names: Sequence[str], has_faces: bool) -> None:
        self._path, self._class_names, self._has_faces = path, class_names, has_faces
        # Flushed after each line; lines end as they are written.
        self._file = path.open("w", encoding="utf-8", newline="", buffering=1)
        self._begin()

    def _begin(self) -> None:
        """Write what comes before the first prediction."""

    def close(self) -> None:
        self._file.close()


class _Csv(_TextWriter):
    def _begin(self) -> None:
        columns = _columns(self._class_names, self._has_faces)
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._writer.writeheader()

    def write(self, prediction: Prediction) -> None:
        row = _row(prediction, self._class_names, self._has_faces)
        row |= {name: f"{row[name]:.3f}" for name in ("start", "end")}
        row |= {
            name: f"{value:.6f}" for name, value in row.items() if name.startswith(_PROBABILITY) and value is not None
        }
        self._writer.writerow(row)


class _Jsonl(_TextWriter):
    def write(self, prediction: Prediction) -> None:
        self._file.write(f"{self._object(prediction)}\n")

    def _object(self, prediction: Prediction) -> str:
        row = _row(prediction, (), self._has_faces)
        row["probabilities"] = {valid(name): round(float(it), 6) for name, it in prediction.probabilities.items()}
        row["times"] = [round(float(it), 6) for it in prediction.times]
        row["error"] = row.pop("error")
        return json.dumps(row, ensure_ascii=False, allow_nan=False)


class _Json(_Jsonl):
    def _begin(self) -> None:
        self._before = "\n"
        self._file.write("[")

    def write(self, prediction: Prediction) -> None:
        before, self._before = self._before, ",\n"
        self._file.write(before + self._object(prediction))  # at once, so that an interruption leaves valid JSON

    def close(self) -> None:
        if not self._file.closed:
            self._file.write("\n]\n")
        super().close()


class _Srt(_TextWriter):
    """One cue is held back: its end depends on the next window."""

    _point = ","

    def _begin(self) -> None:
        self._last: list[Prediction] = []  # of one window
        self._start, self._count = 0.0, 0

    def write(self, prediction: Prediction) -> None:
        last, since = self._last, self._start
        if not last:
            self._start = prediction.start
        if not last or window_of(last[0]) == window_of(prediction):
            last.append(prediction)
            return
        if prediction.path != last[0].path:
            raise ValueError(
                f"{self._path}: subtitles hold one video, and {prediction.path} is a second one: "
                "choose .csv or .jsonl, or one file a video"
            )
        end, start = handover(last[0], prediction)
        self._last, self._start = [prediction], start
        self._cue(last, since, end)

    def close(self) -> None:
        if self._last and not self._file.closed:
            last, self._last = self._last, []
            self._cue(last, self._start, last[0].end)
        super().close()

    def _cue(self, window: Sequence[Prediction], start: float, end: float) -> None:
        shown, hidden = self._clock(start), self._clock(end)
        if shown < hidden:  # a file that failed has no duration
            self._count += 1
            lines = "\n".join(map(self._text, captions(window)))
            self._file.write(f"{self._head()}{shown} --> {hidden}\n{lines}\n\n")

    def _head(self) -> str:
        return f"{self._count}\n"

    def _text(self, line: str) -> str:
        return line.replace("-->", "→")

    def _clock(self, seconds: float) -> str:
        whole, milliseconds = divmod(round(seconds * 1000), 1000)
        minutes, second = divmod(whole, 60)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}{self._point}{milliseconds:03d}"


class _Vtt(_Srt):
    _point = "."

    def _begin(self) -> None:
        super()._begin()
        self._file.write("WEBVTT\n\n")

    def _head(self) -> str:
        return ""

    def _text(self, line: str) -> str:
        return html.escape(line, quote=False)


class _Parquet(Writer):
    def __init__(self, path: Path, class_names: Sequence[str], has_faces: bool) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise UserError(f"{path}: .parquet needs pyarrow: pip install 'fastemo[parquet]'") from error
        self._class_names, self._has_faces, self._rows = class_names, has_faces, list[dict[str, Any]]()
        self._table_of = pyarrow.Table.from_pylist
        types = dict.fromkeys(("start", "end", *_probabilities(class_names)), pyarrow.float64())
        types |= dict.fromkeys(_FACE, pyarrow.int64())
        columns = _columns(class_names, has_faces)
        self._schema = pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in columns])
        self._file = path.open("wb")
        self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema)

    def write(self, prediction: Prediction) -> None:
        self._rows.append(_row(prediction, self._class_names, self._has_faces))
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        with self._file:
            if self._writer.is_open:
                self._flush()
                self._writer.close()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._writer.write_table(self._table_of(rows, self._schema))


def _probabilities(class_names: Sequence[str]) -> list[str]:
    return [valid(f"{_PROBABILITY}{name}") for name in class_names]


def _columns(class_names: Sequence[str], has_faces: bool) -> list[str]:
    return ["path", "start", "end", *_FACE * has_faces, "label", *_probabilities(class_names), "error"]


def _row(prediction: Prediction, class_names: Sequence[str], has_faces: bool) -> dict[str, Any]:
    """Column -> text, number or None, for a table of these classes."""
    shares = [prediction.probabilities.get(name) for name in class_names]
    face = [prediction.face, *prediction.box] if prediction.box else [None] * len(_FACE)
    return {
        "path": valid(prediction.path),
        "start": round(float(prediction.start), 3),
        "end": round(float(prediction.end), 3),
        **(dict(zip(_FACE, face, strict=True)) if has_faces else {}),
        "label": None if prediction.label is None else valid(prediction.label),
        **{
            name: None if share is None else round(float(share), 6)
            for name, share in zip(_probabilities(class_names), shares, strict=True)
        },
        "error": None if prediction.error is None else valid(prediction.error),
    }


_WRITERS: dict[str, Callable[[Path, Sequence[str], bool], Writer]] = {
    ".csv": _Csv,
    ".json": _Json,
    ".jsonl": _Jsonl,
    ".srt": _Srt,
    ".vtt": _Vtt,
    ".parquet": _Parquet,
}
