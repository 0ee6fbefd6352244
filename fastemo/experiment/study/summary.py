"""Results of a study's finished runs: each test, the mean of each row, and rows compared on the same clips."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastemo.corpus.synthetic.action_units import PAIRS
from fastemo.evaluation.compare import compare, order_accuracy, pooled
from fastemo.evaluation.metrics import scores
from fastemo.evaluation.tables import PredictionTable, joined, read_predictions
from fastemo.experiment.study.grid import Cell, Part, Row, Study
from fastemo.report.published import report_accuracy

_TEST_KEYS = (
    "accuracy",
    "uar",
    "macro_f1",
    "num_clips",
    "num_takes",
    "per_class",
    "confusion",
    "one_file_a_take",
    "probes",
)
_HEAD_KEYS = ("protocol", "corpus", "epoch", "cost")
# A model has learned if its last training loss is below this share of the first epoch's and of equal probabilities'.
_LEARNED_BELOW = 0.95
_LATER_KEYS = ("subjects", "best_epoch_on_test")  # not of every run and version
_ROW_KEYS = (
    *("has_learned", "accuracy", "uar", "macro_f1", "interval", "intervals", "num_folds", "num_clips", "num_people"),
    *("best_epoch_on_test", "order", "probes", "cost"),
)


def cell_result(folder: Path) -> dict[str, Any]:
    """A finished run folder's entry in `study.json`.

    Raises:
        ValueError: A file of it is damaged; the message names it.
    """
    path = folder / "test.json"
    try:
        test = json.loads(path.read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [json.loads(line).get("train_loss") for line in lines]
        told = {name: test[name] for name in (*_TEST_KEYS, *_HEAD_KEYS)}
        interval = list(test["intervals"]["accuracy"])
        has_learned = _has_learned(losses, len(test["per_class"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); move the folder away to repeat the run") from error
    told |= {name: test[name] for name in _LATER_KEYS if name in test}
    return {**told, "interval": interval, "epochs": len(lines), "has_learned": has_learned}


def _has_learned(losses: Sequence[float | None], num_classes: int) -> bool | None:
    """Whether the training loss of an epoch fell, from that of equal probabilities and of the first epoch."""
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses) or not known:
        return None
    return known[-1] < _LEARNED_BELOW * min([math.log(num_classes), *known[:-1][:1]])


def parts_result(study: Study, out: Path, finished: set[str]) -> list[dict[str, Any]]:
    """Each part's rows and their comparisons, from the finished runs.

    Args:
        finished: Names of runs; a row counts if all of its runs are among them.
    """
    cells = {cell.name: cell for cell in study.cells}
    return [_part(part, cells, out, finished) for part in study.parts]


def _part(part: Part, cells: dict[str, Cell], out: Path, finished: set[str]) -> dict[str, Any]:
    tables = {row.label: _tables(row, cells, out) for row in part.rows if finished.issuperset(row.cells)}
    rows = [_row(row, cells, tables.get(row.label), out) for row in part.rows]
    found: dict[str, Any] = {"name": part.name, "title": part.title, "rows": rows}
    found |= {"comparisons": [], "order_comparisons": [], "comparison_note": None}
    try:
        reference = part.rows[0].label if part.compare == "first" else None
        found["comparisons"] = compare(tables, reference)
        if all(row["order"] for row in rows if row["accuracy"] is not None):
            paired = {name: [_paired(it) for it in of] for name, of in tables.items()}
            found["order_comparisons"] = compare(paired, reference)
    except ValueError as error:
        found["comparison_note"] = str(error)
    return found


def _tables(row: Row, cells: dict[str, Cell], out: Path) -> list[PredictionTable]:
    """A table for each seed, its folds and corpora joined."""

    corpora = {cells[name].config.corpus.synthetic.seed for name in row.cells}

    def read(name: str) -> PredictionTable:
        # Messages name the run, not its folder.
        table = replace(read_predictions(out / "cells" / name / "predictions.csv"), source=name)
        # Another seed of the built-in corpus draws other people, whose clips have the same names.
        return table.prefixed(f"{cells[name].config.corpus.synthetic.seed}/") if len(corpora) > 1 else table

    return [joined([*map(read, names)]) for names in _by_seed(row, cells)]


def _by_seed(row: Row, cells: dict[str, Cell]) -> list[list[str]]:
    """The names of a row's runs: those of a seed are its folds."""
    found: dict[int, list[str]] = {}
    for name in row.cells:
        found.setdefault(cells[name].config.seed, []).append(name)
    return [*found.values()]


def _row(row: Row, cells: dict[str, Cell], tables: Sequence[PredictionTable] | None, out: Path) -> dict[str, Any]:
    config = cells[row.cells[0]].config
    found: dict[str, Any] = {"label": row.label, "settings": row.settings, "cells": list(row.cells)}
    kind: dict[str, object] = {"backbone": config.model.backbone, "fusion": config.model.fusion}
    found["report"] = report_accuracy(config.model.name, config.video.num_frames, config.augment.enabled, **kind)
    if tables is None:
        return {**found, **dict.fromkeys(_ROW_KEYS), "accuracies": []}
    results = {name: cell_result(out / "cells" / name) for name in row.cells}
    first, measured = results[row.cells[0]], pooled(tables)
    learned = [it["has_learned"] for it in results.values()]
    # Only the built-in corpus has classes that differ only in frame order; seeds and folds are pooled.
    order = order_accuracy(joined(tables), PAIRS) if config.corpus.root is None else None
    return {
        **found,
        **measured,
        "has_learned": None if None in learned else all(learned),
        "num_folds": len(_by_seed(row, cells)[0]),
        "accuracies": [float(table.correct.mean()) for table in tables],
        "interval": measured["intervals"]["accuracy"],
        "best_epoch_on_test": _best_on_test([[results[name] for name in names] for names in _by_seed(row, cells)]),
        "order": order,
        "probes": first["probes"],
        "cost": first["cost"],
    }


def _best_on_test(by_seed: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float] | None:
    """Accuracy and UAR if each run's epoch were chosen on its test split: its folds pooled, the mean over the seeds."""
    if not all("best_epoch_on_test" in result for folds in by_seed for result in folds):
        return None
    measured = scores([np.sum([it["best_epoch_on_test"]["confusion"] for it in folds], axis=0) for folds in by_seed])
    return {"accuracy": float(measured.accuracy.mean()), "uar": float(measured.uar.mean())}


def _paired(table: PredictionTable) -> PredictionTable:
    """The clips of classes that show the same frames in opposite order."""
    names = {name for pair in PAIRS for name in pair}
    rows = np.flatnonzero([table.class_names[label] in names for label in table.labels])
    return table.at(rows)
