"""The data of figures and the page: runs, rows, tables, studies and corpora."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from fastemo.evaluation.compare import pooled
from fastemo.evaluation.tables import PredictionTable, joined
from fastemo.evaluation.uncertainty import first_file_per_take
from fastemo.report.schema import (
    BestOnTest,
    Comparison,
    Cost,
    Epoch,
    Example,
    Intervals,
    Order,
    Probe,
    Resampled,
    Result,
)

MODEL, FRAMES, AUGMENTED = "model.name", "video.num_frames", "augment.enabled"
_NO_DIFFERENCE = ("name", "runs_dir", "resume", "model.num_frames", "train.trackers")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model as it was tested: a run, a run of a study, or a later evaluation.

    Attributes:
        name: Of the folder, or the study's name for it.
        folder: Folder of its files; None if only `study.json` lists it.
        settings: The configuration by dotted key, as far as it is known.
        examples: None without `examples.json`.
        table: `predictions.csv`; None without that file.
        command, date: From the log.
    """

    name: str
    result: Result
    folder: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Epoch] = ()
    examples: Sequence[Example] | None = None
    table: PredictionTable | None = field(default=None, repr=False)
    command: str | None = None
    date: str | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.result.per_class)

    @property
    def chance(self) -> float:
        """1 / the number of classes that have clips; worked out here, as version 0.1.0's files lack it."""
        return 1 / max(1, sum(recall is not None for recall in self.result.per_class.values()))

    @property
    def model(self) -> str:
        return str(self.settings.get(MODEL) or self.result.model or self.name)

    @property
    def num_frames(self) -> int | None:
        found = self.settings.get(FRAMES)
        return found if type(found) is int else None

    @property
    def interval(self) -> Sequence[float] | None:
        return self.result.intervals.accuracy if self.result.intervals else self.result.interval

    @property
    def is_order_blind(self) -> bool:
        """Whether the model is invariant to frame order: it averages over frames or takes their maximum."""
        return self.model == "late_fusion" and self.settings.get("model.fusion", "mean") != "concat"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the results: one run, or a configuration's folds pooled, and the mean of its seeds.

    Attributes:
        number: Position on the page.
        runs: Empty if one is not finished.
        accuracy: Not None if there are runs.
        uar, macro_f1: None in studies of version 0.1.0, which did not pool them: then the mean over the runs.
        report: Accuracy of the reference study.
        has_learned: Whether the training loss of every run fell; None: not recorded.
    """

    number: int
    label: str
    settings: Mapping[str, Any]
    runs: Sequence[Run]
    accuracy: Any
    has_learned: bool | None = None
    interval: Sequence[float] | None = None
    uar: float | None = None
    macro_f1: float | None = None
    intervals: Intervals | None = None
    best_epoch_on_test: BestOnTest | None = None
    report: float | None = None
    order: Order | None = None
    probes: Mapping[str, Probe] | None = None
    cost: Cost | None = None

    @property
    def name(self) -> str:
        return f"{self.number}. {self.label}"

    @property
    def over_people(self) -> Resampled | None:
        """Intervals over people, if they are known."""
        return self.intervals.actors if self.intervals else None

    def mean(self, key: str) -> float | None:
        """Mean over the runs' results that have this key."""
        found = [it for run in self.runs if (it := getattr(run.result, key)) is not None]
        return fmean(found) if found else None

    @property
    def folds(self) -> list[Result]:
        """The results of one seed."""
        return [run.result for run in self.runs if run.result.seed == self.runs[0].result.seed]

    @property
    def recalls(self) -> dict[str, float | None]:
        """Recall by class over the clips of all runs; None without a clip."""
        clips: Counter[str] = Counter()
        hits: Counter[str] = Counter()
        for run in self.runs:
            for place, (name, line) in enumerate(zip(run.class_names, run.result.confusion, strict=True)):
                clips[name] += sum(line)
                hits[name] += line[place]
        return {name: hits[name] / count if count else None for name, count in clips.items()}

    @cached_property
    def tables(self) -> list[PredictionTable]:
        """Predictions of each seed, with folds joined; empty if a run has none."""
        by_seed: dict[int | None, list[PredictionTable]] = {}
        for run in self.runs:
            if run.table is None:
                return []
            by_seed.setdefault(run.result.seed, []).append(run.table)
        return [joined(folds) for folds in by_seed.values()]

    @cached_property
    def one_file(self) -> tuple[float, Sequence[float] | None, int] | None:
        """Accuracy, interval and clips with one file per take; None if no take counts twice."""
        found = [it for run in self.runs if (it := run.result.one_file_a_take) is not None]
        if not found or len(found) < len(self.runs):
            return None
        num_clips = sum(it.num_clips for it in found) * len(self.folds) // len(found)
        if len(found) == 1:
            return found[0].accuracy, found[0].intervals.accuracy if found[0].intervals else None, num_clips
        try:
            tables = [it.at(first_file_per_take(it.takes, it.modalities.tolist())) for it in self.tables]
            found_pooled = pooled(tables)
        except ValueError:  # no predictions, or seeds tested on other clips
            return fmean(it.accuracy for it in found), None, num_clips
        return found_pooled["accuracy"], found_pooled["intervals"]["accuracy"], num_clips


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one table; `note` gives the reason if they are not compared."""

    title: str
    rows: Sequence[Row]
    comparisons: Sequence[Comparison] = ()
    order_comparisons: Sequence[Comparison] = ()
    note: str | None = None

    @property
    def runs(self) -> list[Run]:
        """Runs with a history, named by their row, and by seed and fold if a row has several."""
        found = []
        for row in self.rows:
            for run in row.runs:
                seed = f", seed {run.result.seed}, fold {run.result.fold or 0}" if len(row.runs) > 1 else ""
                found += [replace(run, name=row.name + seed)] if run.history else []
        return found

    def by_frames(self) -> dict[str, dict[int, float]]:
        """Accuracy by number of frames, of rows that differ only in it, by their other settings."""
        differing = differing_keys([row.settings for row in self.rows], FRAMES)
        found: dict[str, dict[int, float]] = {}
        for row in self.rows:
            if row.runs and type(frames := row.settings.get(FRAMES)) is int:
                told = [setting_words(key, row.settings.get(key)) for key in differing]
                found.setdefault(", ".join(told) or row.runs[0].model, {})[frames] = row.accuracy
        return found


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus as a run saw it.

    Attributes:
        class_counts: Clips by split, then by emotion.
        actor_counts: Clips by split, then by person, if known.
        pictures: Example frames by emotion, and the crop drawn on a frame, if available.
        notes: Notes for the reader, such as why there are no pictures.
    """

    title: str
    class_counts: Mapping[str, Mapping[str, int]]
    actor_counts: Mapping[str, Mapping[str, int]]
    pictures: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()


def differing_keys(settings: Sequence[Mapping[str, Any]], *told: str) -> list[str]:
    """Keys whose values differ, except for those in `told` or without effect on the result."""
    keys = dict.fromkeys(key for it in settings for key in it if key not in (*_NO_DIFFERENCE, *told))
    return [
        key
        for key in keys
        if not key.startswith(("store.", "train.checkpoint")) and len({repr(it.get(key)) for it in settings}) > 1
    ]


def setting_words(key: str, value: Any) -> str:
    return ("augmented" if value else "not augmented") if key == AUGMENTED else str(value)
