"""Reads the folders of runs, evaluations and studies for a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from fastemo.config import config_leaves
from fastemo.evaluation.compare import compare
from fastemo.evaluation.tables import read_predictions
from fastemo.json_files import read_json, read_json_lines
from fastemo.report import schema
from fastemo.report.published import report_accuracy
from fastemo.report.view import AUGMENTED, FRAMES, MODEL, Part, Row, Run, differing_keys, setting_words
from fastemo.yaml_files import load_yaml

_LOGGED_COMMAND = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) command: (.{1,4000})")
_EVALUATED = ("test", "val", "train", "all")


@dataclass
class Found:
    """The contents of the folders.

    Attributes:
        runs: Runs outside the studies.
        tested: All finished runs.
        unfinished: Unfinished runs of studies.
        retests: Later evaluations, with their labels.
    """

    studies: list[schema.StudyFile] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    tested: list[Run] = field(default_factory=list)
    unfinished: list[schema.StudyRun] = field(default_factory=list)
    retests: list[tuple[str, Run]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row for part in self.parts for row in part.rows]

    @cached_property
    def models(self) -> list[tuple[str, Run]]:
        """The first run of every row, each run once, and every later evaluation."""
        chosen: dict[str, tuple[str, Run]] = {}
        for part in self.parts:
            where = f" ({part.title})" if len(self.parts) > 1 else ""
            for row in part.rows:
                for run in row.runs[:1]:
                    chosen.setdefault(str(run.folder or run.name), (f"{row.name}{where}", run))
        return [*chosen.values(), *self.retests]


def read_folders(folders: Sequence[Path]) -> Found:
    """Read any number of finished run folders, evaluation folders and study folders; each once.

    Raises:
        ValueError: A folder is none of these, is not finished, or holds a damaged file; the message names it.
    """
    found, numbers = Found(), count(1)
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            raise ValueError(f"fastemo page needs a finished run or a study folder: there is no folder {folder}")
        if (folder / "study.json").is_file():
            _read_study(folder, found, numbers, has_others=len(folders) > 1)
        elif (path := _evaluation_file(folder)) is not None:
            parent = folder.resolve().parent.parent
            found.retests.append(_retest(parent.name, _read_run(folder, path, _settings_of(parent))))
        else:
            found.runs.append(_read_run(folder, folder / "test.json", _settings_of(folder)))
    found.tested += found.runs
    found.retests += [it for run in found.tested for it in _retests(run)]
    if found.runs:
        found.parts.append(_runs_part(found.runs, numbers))
    return found


def _settings_of(folder: Path) -> Mapping[str, Any]:
    """A run's configuration by dotted key; empty if it has none that can be read."""
    path = folder / "config.yaml"
    try:
        content = load_yaml(path) if path.is_file() else None
        return dict(config_leaves(content)) if isinstance(content, dict) else {}
    except ValueError:
        return {}


def _read_run(folder: Path, path: Path, settings: Mapping[str, Any]) -> Run:
    """A finished run or an evaluation, with its results in `path`."""
    if not path.is_file():
        raise ValueError(
            f"fastemo page needs a finished run, an evaluation or a study folder: {folder} holds no test.json; finish "
            f"an interrupted run with fastemo train --resume {folder}"
        )
    names = ("metrics.jsonl", "examples.json", "predictions.csv", "log.txt")
    history, examples, predictions, log = (folder / name if (folder / name).is_file() else None for name in names)
    epochs = read_json_lines(history, schema.Epoch) if history else []
    result = read_json(path, schema.Result)
    logged = _LOGGED_COMMAND.match(log.read_bytes()[:5000].decode("utf-8", "replace")) if log else None
    return Run(
        name=folder.resolve().name,
        folder=folder,
        result=result.model_copy(update={"epochs": len(epochs) or result.epochs}),
        settings=settings,
        history=epochs,
        examples=read_json(examples, schema.Examples).examples if examples else None,
        table=read_predictions(predictions) if predictions else None,
        date=logged and logged[1],
        command=logged and logged[2],
    )


def _evaluation_file(folder: Path) -> Path | None:
    """The results file of an evaluation folder; None if it is another folder."""
    if not folder.is_dir() or (folder / "config.yaml").exists():
        return None
    found = [folder / f"{split}.json" for split in _EVALUATED]
    return next((path for path in found if path.is_file()), None)


def _retests(run: Run) -> Iterator[tuple[str, Run]]:
    """The later evaluations in a run folder."""
    below = run.folder / "evaluation" if run.folder else None
    for folder in sorted(below.iterdir()) if below and below.is_dir() else ():
        if path := _evaluation_file(folder):
            yield _retest(run.name, _read_run(folder, path, run.settings))


def _retest(name: str, again: Run) -> tuple[str, Run]:
    """`RUN on the split val`, `RUN on FOLDER`, and the evaluation."""
    return f"{name} on {again.result.corpus or f'the split {again.result.split or again.name}'}", again


def _read_study(folder: Path, found: Found, numbers: Iterator[int], *, has_others: bool) -> None:
    """Add a study folder; of a finished run without a folder, only what `study.json` holds."""
    path = folder / "study.json"
    file = read_json(path, schema.StudyFile)
    runs: dict[str, Run] = {}
    for it in file.cells:
        place, settings, order = folder / it.folder, it.settings or {}, it.result and it.result.order
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path}: the folder {it.folder!a} of a run leads out of the study; correct the path")
        if it.status == "finished" and (place / "test.json").is_file():
            run = _read_run(place, place / "test.json", {**settings, **_settings_of(place)})
            runs[it.name] = replace(run, name=it.name, result=run.result.model_copy(update={"order": order}))
        elif it.status == "finished" and it.result:
            result = it.result.model_copy(update={"seed": it.seed})
            runs[it.name] = Run(name=it.name, result=result, settings=settings)
        else:
            found.unfinished.append(it)
    parts = [_part(part, runs, numbers) for part in file.parts]
    if runs and not parts:
        rows = [_row(run, name, numbers) for name, run in runs.items()]
        note = "The study has no summary yet: the same command resumes it."
        parts = [Part(title="Finished runs", rows=rows, note=note)]
    # Titles of studies may be the same.
    found.parts += [replace(it, title=f"{file.name}: {it.title}") for it in parts] if has_others else parts
    found.studies.append(file)
    found.tested += runs.values()


def _part(part: schema.StudyPart, runs: Mapping[str, Run], numbers: Iterator[int]) -> Part:
    rows = []
    for it in part.rows:
        of_row = [runs[name] for name in it.cells if name in runs]
        is_whole = it.accuracy is not None and 0 < len(of_row) == len(it.cells)
        shown = {name: getattr(it, name) for name in type(it).model_fields if name != "cells"}
        rows.append(Row(number=next(numbers), runs=of_row if is_whole else (), **shown))
    return Part(
        title=part.title or part.name,
        rows=rows,
        comparisons=part.comparisons or (),
        order_comparisons=part.order_comparisons or (),
        note=part.comparison_note,
    )


def _row(run: Run, label: str, numbers: Iterator[int]) -> Row:
    """One run as a line of the results."""
    result, augmented = run.result, run.settings.get(AUGMENTED)
    kind = {name: run.settings.get(f"model.{name}") for name in ("backbone", "fusion")}
    return Row(
        number=next(numbers),
        label=label,
        settings=run.settings,
        runs=[run],
        accuracy=result.accuracy,
        interval=run.interval,
        uar=result.uar,
        macro_f1=result.macro_f1,
        intervals=result.intervals,
        best_epoch_on_test=result.best_epoch_on_test,
        report=report_accuracy(run.model, run.num_frames or 0, augmented, **kind)
        if isinstance(augmented, bool)
        else None,
        order=result.order,
        probes=result.probes,
        cost=result.cost,
    )


def _runs_part(runs: Sequence[Run], numbers: Iterator[int]) -> Part:
    """Several runs, with paired tests if they were tested on the same clips."""
    rows = [_row(run, label, numbers) for run, label in zip(runs, _labels(runs), strict=True)]
    if len(rows) < 2:
        return Part(title="Run", rows=rows)
    try:
        if not all(row.tables for row in rows):
            raise ValueError("a run has no predictions.csv")
        found = [schema.Comparison.model_construct(**it) for it in compare({row.label: row.tables for row in rows})]
        return Part(title="Runs", rows=rows, comparisons=found)
    except ValueError as error:
        return Part(title="Runs", rows=rows, note=f"The runs cannot be compared: {error}.")


def _labels(runs: Sequence[Run]) -> list[str]:
    """A unique name for each run: model, frames, and the settings in which they differ."""
    differing = differing_keys([run.settings for run in runs], MODEL, FRAMES, AUGMENTED)[:4]
    labels = []
    for run in runs:
        frames, augmented = run.num_frames, run.settings.get(AUGMENTED)
        told = [f"{frames} frames" if frames else "", "" if augmented is None else setting_words(AUGMENTED, augmented)]
        told += [f"{key} {run.settings.get(key)}" for key in differing]
        labels.append(", ".join(filter(None, [run.model, *told])))
    named = [f"{it} ({run.name})" if labels.count(it) > 1 else it for it, run in zip(labels, runs, strict=True)]
    return [f"{it}, {number}" if named.count(it) > 1 else it for number, it in enumerate(named, start=1)]
