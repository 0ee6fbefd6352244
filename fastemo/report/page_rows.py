"""What a row of the results says beyond its accuracy: its runs put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fastemo.evaluation.compare import compare, mean_interval
from fastemo.evaluation.tables import PredictionTable, joined
from fastemo.evaluation.uncertainty import first_file_per_take
from fastemo.report.page_data import Part, Row, Settings, Tested

_NO_DIFFERENCE = ("name", "runs_dir", "resume", "model.num_frames")
_ORDER_BLIND_FUSIONS = ("mean", "max")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of a row: means over its runs; clips and takes of one seed, all folds together."""

    uar: float
    macro_f1: float
    num_clips: int
    num_takes: int | None
    epochs: float | None
    num_seeds: int
    num_folds: int


def counts_of(row: Row) -> Counts:
    results = [tested.result for tested in row.tested]
    seeds = {result.get("seed") for result in results}
    of_one_seed = [result for result in results if result.get("seed") == results[0].get("seed")]
    takes = [result["num_takes"] for result in of_one_seed]
    epochs = [result["epochs"] for result in results if result.get("epochs")]
    return Counts(
        uar=fmean(result["uar"] for result in results),
        macro_f1=fmean(result["macro_f1"] for result in results),
        num_clips=sum(result["num_clips"] for result in of_one_seed),
        num_takes=None if None in takes else sum(takes),
        epochs=fmean(epochs) if epochs else None,
        num_seeds=len(seeds),
        num_folds=len(of_one_seed),
    )


def per_class_of(row: Row) -> dict[str, float | None]:
    """Recall by class, mean over the row's runs in which the class has clips."""
    names = dict.fromkeys(name for tested in row.tested for name in tested.class_names)
    found: dict[str, float | None] = {}
    for name in names:
        known = [it for tested in row.tested if (it := tested.result["per_class"].get(name)) is not None]
        found[name] = fmean(known) if known else None
    return found


def chance_of(tested: Tested) -> float:
    return 1 / len(tested.class_names)


def one_file_of(row: Row) -> tuple[float, list[float] | None, int] | None:
    """Accuracy, interval and clips by one file a take; None where no take counts twice."""
    found = [tested.result["one_file_a_take"] for tested in row.tested]
    if not found or None in found:
        return None
    num_clips = sum(it["num_clips"] for it in found) // max(1, counts_of(row).num_seeds)
    if len(found) == 1:
        intervals = found[0]["intervals"]
        return found[0]["accuracy"], intervals["accuracy"] if intervals else None, num_clips
    try:
        tables = [
            table.at(first_file_per_take(table.takes, table.modalities.tolist())) for table in seeds_of(row) or ()
        ]
        accuracy, low, high = mean_interval(tables)
    except ValueError:  # no predictions, or seeds tested on other clips
        return fmean(it["accuracy"] for it in found), None, num_clips
    return accuracy, [low, high], num_clips


def seeds_of(row: Row) -> list[PredictionTable] | None:
    """A table of predictions for each seed, its folds joined; None where a run has none."""
    by_seed: dict[int | None, list[PredictionTable]] = {}
    for tested in row.tested:
        if tested.table is None:
            return None
        by_seed.setdefault(tested.result.get("seed"), []).append(tested.table)
    return [joined(folds) for folds in by_seed.values()]


def is_order_blind(tested: Tested) -> bool:
    """Whether a model's answer is the same in whatever order it sees the frames: an average or maximum over them."""
    return tested.model == "late_fusion" and tested.settings.get("model.fusion", "mean") in _ORDER_BLIND_FUSIONS


def compared(title: str, rows: Sequence[Row]) -> Part:
    """Runs held beside each other, with paired tests where they tell of the same clips."""
    tables: Mapping[str, list[PredictionTable]] = {row.label: found for row in rows if (found := seeds_of(row))}
    if len(rows) < 2:
        return Part(title=title, rows=tuple(rows))
    if len(tables) < len(rows):
        return Part(title=title, rows=tuple(rows), note="A run has no predictions.csv, so runs cannot be compared.")
    try:
        return Part(title=title, rows=tuple(rows), comparisons=tuple(compare(tables)))
    except ValueError as error:
        return Part(title=title, rows=tuple(rows), note=f"The runs cannot be compared: {error}.")


def labels_of(runs: Sequence[Tested]) -> list[str]:
    """A name for each run that tells it from the others: model, frames, and the settings in which they differ."""
    differing = _differing([tested.settings for tested in runs])
    labels = []
    for tested in runs:
        told = [tested.model, *([f"{tested.num_frames} frames"] if tested.num_frames else [])]
        augmented = tested.settings.get("augment.enabled")
        told += [] if augmented is None else ["augmented" if augmented else "not augmented"]
        told += [f"{key} {tested.settings.get(key)}" for key in differing]
        labels.append(", ".join(told))
    named = [
        f"{label} ({tested.name})" if labels.count(label) > 1 else label
        for label, tested in zip(labels, runs, strict=True)
    ]
    return [f"{label}, {number}" if named.count(label) > 1 else label for number, label in enumerate(named, start=1)]


def _differing(settings: Sequence[Settings]) -> list[str]:
    """Keys whose values differ, but for those that a label tells anyway or that change no result."""
    told = (*_NO_DIFFERENCE, "model.name", "video.num_frames", "augment.enabled")
    keys: dict[str, Any] = dict.fromkeys(key for it in settings for key in it if key not in told)
    return [key for key in keys if not key.startswith("store.") and len({repr(it.get(key)) for it in settings}) > 1][:4]
