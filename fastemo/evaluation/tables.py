"""Reads a run's predictions.csv, which is untrusted like any input file."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastemo.corpus.clip import Clip

CLIP_COLUMNS = ("actor", "modality", "channel", "intensity", "statement", "repetition")
TEXT_COLUMNS = ("subject", "corpus")  # version 0.1.0 did not write them
_CLASSES = ("key", "label", "prediction")
_PROBABILITY = "probability_"
_NUMBER = re.compile(r"\d{0,9}", re.ASCII)
_SHARE = re.compile(r"[01](\.\d{1,17})?", re.ASCII)
_ROUNDING = 1e-6  # probabilities are written with six digits


@dataclass(frozen=True, kw_only=True)
class PredictionTable:
    """One model's predictions for a set of clips, one row per clip, sorted by key.

    Attributes:
        source: The file's path, for messages.
        keys: N clip keys.
        class_names: K of them.
        labels, predicted: int64 [N], positions in `class_names`.
        probabilities: float64 [N, K], rounded to six digits.
        takes: The same for both files of one performance: RAVDESS's name without the modality, else the key.
        people: Who is shown, as `Clip.person`; empty where unknown.
        actors, modalities: int64 [N], 0 where unknown.
    """

    source: str
    keys: tuple[str, ...]
    class_names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    takes: tuple[str, ...]
    people: tuple[str, ...]
    actors: np.ndarray
    modalities: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Boolean [N]."""
        return self.labels == self.predicted

    def at(self, rows: np.ndarray) -> PredictionTable:
        """The table of `rows`, int64 [M], in that order."""
        return replace(
            self,
            keys=tuple(self.keys[row] for row in rows),
            takes=tuple(self.takes[row] for row in rows),
            people=tuple(self.people[row] for row in rows),
            labels=self.labels[rows],
            predicted=self.predicted[rows],
            probabilities=self.probabilities[rows],
            actors=self.actors[rows],
            modalities=self.modalities[rows],
        )

    def prefixed(self, prefix: str) -> PredictionTable:
        """The same clips of other people, as those of another built-in corpus are."""
        keys, takes, people = (tuple(f"{prefix}{it}" for it in of) for of in (self.keys, self.takes, self.people))
        return replace(self, keys=keys, takes=takes, people=people)


def joined(tables: Sequence[PredictionTable]) -> PredictionTable:
    """Several tables as one, sorted by key: the folds of a model, or its seeds (each clip then counts once per seed).

    Raises:
        ValueError: No tables, or tables of different classes.
    """
    if not tables:
        raise ValueError("there are no predictions to join")
    first = tables[0]
    for table in tables[1:]:
        if table.class_names != first.class_names:
            raise ValueError(f"{first.source} and {table.source} have different classes")
    together = replace(
        first,
        keys=tuple(key for table in tables for key in table.keys),
        takes=tuple(take for table in tables for take in table.takes),
        people=tuple(person for table in tables for person in table.people),
        labels=np.concatenate([table.labels for table in tables]),
        predicted=np.concatenate([table.predicted for table in tables]),
        probabilities=np.concatenate([table.probabilities for table in tables]),
        actors=np.concatenate([table.actors for table in tables]),
        modalities=np.concatenate([table.modalities for table in tables]),
    )
    return together.at(np.argsort(together.keys, kind="stable"))


def read_predictions(path: Path) -> PredictionTable:
    """Read what `evaluate.write_predictions` wrote.

    Raises:
        ValueError: The file is not such a table; the message names the file and the line.
        OSError: The file is missing or unreadable.
    """
    rows: dict[str, _Row] = {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file, strict=True)
        try:
            class_names, has_texts = _class_names(next(reader, []))
            for cells in reader:
                row = _read_row(cells, class_names, has_texts)
                if row.key in rows:
                    raise ValueError(f"duplicate key {row.key!r}")
                rows[row.key] = row
            if not rows:
                raise ValueError("it has no clips")
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {max(reader.line_num, 1)}: not a table of predictions ({error})") from error
    ordered = [rows[key] for key in sorted(rows)]
    return PredictionTable(
        source=str(path),
        keys=tuple(row.key for row in ordered),
        class_names=class_names,
        labels=np.array([row.label for row in ordered]),
        predicted=np.array([row.predicted for row in ordered]),
        probabilities=np.array([row.probabilities for row in ordered]),
        takes=tuple(row.take for row in ordered),
        people=tuple(row.person for row in ordered),
        actors=np.array([row.actor for row in ordered]),
        modalities=np.array([row.modality for row in ordered]),
    )


class _Row(NamedTuple):
    key: str
    label: int
    predicted: int
    probabilities: list[float]
    take: str
    person: str
    actor: int
    modality: int


def _class_names(header: list[str]) -> tuple[tuple[str, ...], bool]:
    """The classes, and whether the columns of text are there."""
    has_texts = header[-len(TEXT_COLUMNS) :] == [*TEXT_COLUMNS]
    last = (*CLIP_COLUMNS, *TEXT_COLUMNS * has_texts)
    columns = header[len(_CLASSES) : len(header) - len(last)]
    names = tuple(column.removeprefix(_PROBABILITY) for column in columns)
    wanted = [*_CLASSES, *(_PROBABILITY + name for name in names), *last]
    if header != wanted or not names or "" in names or len(set(names)) < len(names):
        raise ValueError("its first line is not the header of predictions")
    return names, has_texts


def _read_row(cells: list[str], class_names: tuple[str, ...], has_texts: bool) -> _Row:
    """Parse one line. Raises `ValueError` for what no run writes."""
    num_texts = len(TEXT_COLUMNS) * has_texts
    if len(cells) != len(_CLASSES) + len(class_names) + len(CLIP_COLUMNS) + num_texts:
        raise ValueError(f"{len(cells)} cells, but the header has a different number")
    cells, texts = cells[: len(cells) - num_texts], cells[len(cells) - num_texts :]
    key, label, prediction = cells[: len(_CLASSES)]
    if not key:
        raise ValueError("the key is empty")
    for name in (label, prediction):
        if name not in class_names:
            raise ValueError(f"{name!r} is not one of the classes")
    shares = cells[len(_CLASSES) : -len(CLIP_COLUMNS)]
    if not all(map(_SHARE.fullmatch, shares)):
        raise ValueError("a probability is not a number from 0 to 1")
    probabilities = [float(share) for share in shares]
    if max(probabilities) > 1 or not math.isclose(sum(probabilities), 1, abs_tol=_ROUNDING * (1 + len(shares))):
        raise ValueError("the probabilities do not sum to 1")
    if probabilities[class_names.index(prediction)] < max(probabilities) - _ROUNDING:
        raise ValueError(f"{prediction!r} is predicted but is not the most probable")
    numbers = cells[-len(CLIP_COLUMNS) :]
    if not all(map(_NUMBER.fullmatch, numbers)):
        raise ValueError(f"one of {', '.join(CLIP_COLUMNS)} is not a number")
    actor, modality = (int(numbers[CLIP_COLUMNS.index(name)] or 0) for name in ("actor", "modality"))
    return _Row(
        key=key,
        label=class_names.index(label),
        predicted=class_names.index(prediction),
        probabilities=probabilities,
        # A name of RAVDESS has no "#" but before a segment.
        take=Clip(key=key, modality=modality, segment=key.rpartition("/")[2].partition("#")[2]).take,
        person=texts[0] if has_texts else str(actor or ""),
        actor=actor,
        modality=modality,
    )
