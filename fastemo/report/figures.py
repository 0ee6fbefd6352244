"""All figures: each is a PNG in the folder of a run or a corpus, and an SVG on the page.

A figure is a function of what it shows, which returns None if there is nothing to draw, and a line of `FIGURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Transform

from fastemo.corpus.folds import by_number
from fastemo.report import drawing
from fastemo.report.drawing import PAGE, RULE, SERIES, SOFT, describe, shorten
from fastemo.report.schema import Epoch, Example
from fastemo.report.view import Corpus, Part, Row, Run
from fastemo.report.words import percent, short

_NAME, _MOST_NAMED = 16, 15  # characters, ticks
_SPLITS = (("train", "training", "--"), ("val", "validation", "-"))


def curves(runs: Sequence[Run]) -> Figure:
    """Loss and accuracy by epoch: of one run, training and validation by colour; of several, one colour per run."""
    figure, panels = drawing.new_figure(4.3, left=0.55, bottom=0.7, top=0.25, rows=2)
    is_one = len(runs) == 1
    shown = zip(panels, ("loss", "accuracy"), strict=True)
    for (number, run), (axes, what), (split, name, dashes) in product(enumerate(runs), shown, _SPLITS):
        ys = _finite(run.history, f"{split}_{what}")
        there = [place for place, y in enumerate(ys) if not math.isnan(y)]
        if not there:
            continue
        # A point between gaps is a dot.
        dots = [it for it in there if not {it - 1, it + 1} & set(there)]
        colour = SERIES[split == "train"] if is_one else SERIES[number % len(SERIES)]
        look: Any = {"color": colour, "markersize": 4, "markevery": dots}
        (line,) = axes.plot([row.epoch for row in run.history], ys, f"o{dashes}", label=name, **look)
        told = [f"{y:.2f}" if what == "loss" else percent(y) for y in (ys[there[0]], ys[there[-1]])]
        words = f"{name} {what} from {told[0]} to {told[1]} in {len(ys)} epochs"
        describe(line, words if is_one else f"{run.name}, {words}", None if is_one else number)
    for axes, title in zip(panels, ("Loss (cross-entropy)", "Accuracy"), strict=True):
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if not axes.lines:
            words = "no finite values" if any(run.history for run in runs) else "no epochs yet"
            axes.text(0.5, 0.5, words, ha="center", va="center", color=SOFT, transform=axes.transAxes)
    drawing.percent_axis(panels[1], "y")
    panels[1].set_xlabel("Epoch")
    if is_one and panels[1].lines:
        known = {row.epoch: row.val_accuracy for row in runs[0].history if row.val_accuracy is not None}
        for axes in panels if known else ():
            best = max(known, key=lambda epoch: known[epoch])
            axes.axvline(best, color=SOFT, linestyle=":", label=f"best epoch {best}")
        figure.legend(*panels[1].get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.1, 0), ncols=3)
    return figure


def _finite(history: Sequence[Epoch], key: str) -> list[float]:
    """A value of every epoch, NaN if there is none to draw."""
    values = [getattr(row, key) for row in history]
    return [math.nan if it is None or not abs(it) < 1e9 else it for it in values]


def confusion(run: Run) -> Figure:
    """Clips by true and predicted label; a cell's colour is its share of the row, every cell has its number."""
    names, counts = run.class_names, run.result.confusion
    size, letters = len(names), min(9.0, 80 / len(names))
    margin = 0.35 + drawing.CHARACTER * min(_NAME, max(map(len, names)))
    figure, grid = drawing.new_grid(size, size, 4.4, left=margin, bottom=0.15 + 0.75 * margin)
    text = partial(figure.text, transform=grid, size=letters)
    for row, (name, line) in enumerate(zip(names, counts, strict=True)):
        text(-0.1, row + 0.5, shorten(name, _NAME), ha="right", va="center")
        text(row + 0.7, size + 0.1, shorten(name, _NAME), ha="right", va="top", rotation=40)
        for column, count in enumerate(line):
            if count:
                what = "recognised" if row == column else f"predicted {names[column]}"
                told = f"{name}, {what}: {count} of {sum(line)}"
                _box(figure, grid, column, row, told, alpha=0.55 * count / sum(line))
                weight = "bold" if row == column else "normal"
                text(column + 0.5, row + 0.5, str(count), ha="center", va="center", weight=weight)
    figure.text(0.01, 0.6, "True label", rotation=90, color=SOFT, va="center")
    figure.text(0.6, 0.01, "Predicted label", color=SOFT, ha="center")
    return figure


def per_class(run: Run) -> Figure:
    """Recall of every class, and chance."""
    recalls = run.result.per_class
    size, left = len(recalls), 0.15 + drawing.CHARACTER * min(_NAME, max(map(len, recalls)))
    figure, grid = drawing.new_grid(1, size, 0.24 * size + 0.4, left=left, right=0.95, bottom=0.05, top=0.35)
    for row, ((name, recall), line) in enumerate(zip(recalls.items(), run.result.confusion, strict=True)):
        told = "no clip" if recall is None else f"{percent(recall, 0)} of {sum(line)}"
        figure.text(-0.02, row + 0.5, shorten(name, _NAME), ha="right", va="center", transform=grid)
        figure.text(1.02, row + 0.5, told, va="center", transform=grid)
        _box(figure, grid, 0, row, f"{name} {told}", width=recall or 0)
    _line(figure, grid, [run.chance] * 2, [0, size], color=SERIES[1], linestyle="--")
    figure.text(run.chance, -0.2, f"chance {percent(run.chance)}", color=SERIES[1], transform=grid)
    return figure


def reliability(run: Run) -> Figure | None:
    """Accuracy over confidence, of each bin with clips: a dot's size is their number."""
    found = run.result.calibration
    bins = [(it.confidence or 0, it.accuracy or 0, it.num_clips) for it in found.bins if it.num_clips] if found else []
    if not found or not bins:
        return None
    figure, grid = drawing.new_grid(1, 1, 3.3, left=0.7, right=0.7, bottom=0.5, top=0.3)
    for share in (0, 0.5, 1):
        _line(figure, grid, [share, share], [0, 1], color=RULE, linewidth=0.8)
        _line(figure, grid, [0, 1], [share, share], color=RULE, linewidth=0.8)
        figure.text(share, 1.03, percent(share, 0), color=SOFT, ha="center", va="top", transform=grid)
        figure.text(-0.02, 1 - share, percent(share, 0), color=SOFT, ha="right", va="center", transform=grid)
    _line(figure, grid, [0, 1], [1, 0], color=SOFT, linestyle="--")
    _line(figure, grid, [sure for sure, _, _ in bins], [1 - right for _, right, _ in bins], color=SERIES[0])
    for sure, right, count in bins:
        size = 4 + 10 * math.sqrt(count / run.result.num_clips) if run.result.num_clips else 4
        dot = _line(figure, grid, [sure], [1 - right], color=SERIES[0], marker="o", markersize=size)
        describe(dot, f"confidence {percent(sure)}, correct {percent(right)}: {count} clips")
    lean = "overconfident" if sum((sure - right) * count for sure, right, count in bins) > 0 else "underconfident"
    before = "" if found.ece_before in (None, found.ece) else f" ({percent(found.ece_before)} uncalibrated)"
    figure.text(0, -0.03, f"ECE {percent(found.ece)}{before}, {lean}", weight="bold", transform=grid)
    figure.text(0.5, 1.15, "Confidence", ha="center", va="top", transform=grid)
    figure.text(0.01, 0.5, "Accuracy", rotation=90, va="center")
    return figure


def _box(figure: Figure, grid: Transform, x: float, y: float, words: str, width: float = 1, alpha: float = 1) -> None:
    box = Rectangle((x, y + 0.04), width, 0.92, color=SERIES[0], alpha=alpha, linewidth=0, transform=grid)
    describe(figure.add_artist(box), words)


def _line(figure: Figure, grid: Transform, xs: Sequence[float], ys: Sequence[float], **shape: Any) -> Any:
    return figure.add_artist(Line2D(xs, ys, transform=grid, **shape))


def intervals(part: Part) -> Figure | None:
    """Accuracy with its 95 % interval by row, with chance and the reference study."""
    rows = [row for row in part.rows if row.runs]
    if not rows:
        return None
    figure, (axes,) = drawing.new_figure(0.36 * len(rows) + 0.6, left=0.15, right=0.25, bottom=0.3, top=0.3)
    for place, row in enumerate(rows):
        low, high = row.interval or (row.accuracy, row.accuracy)
        spread = f" ({percent(low)} to {percent(high)})" if row.interval else ""
        beside = "" if row.report is None else f", Roy (2025) {percent(row.report)}"
        told = f"{row.name}: {percent(row.accuracy)}{spread}{beside}"
        shapes: list[Any] = [
            ([low, high], {"linewidth": 2.5}),
            ([row.accuracy], {"marker": "o", "markeredgecolor": PAGE}),
        ]
        if row.report is not None:
            label = "" if axes.get_legend_handles_labels()[1] else "Roy (2025), on RAVDESS"
            shape = {"marker": "D", "color": SERIES[1], "markerfacecolor": PAGE, "linestyle": "", "label": label}
            shapes.append(([row.report], shape))
        for xs, shape in shapes:
            describe(axes.plot(xs, [place] * len(xs), **{"color": SERIES[0], "markersize": 7, **shape})[0], told)
        name = axes.text(0.02, place - 0.3, shorten(row.name, 54), va="bottom", transform=axes.get_yaxis_transform())
        name.set_bbox({"facecolor": PAGE, "edgecolor": "none", "pad": 1})
    chance = rows[0].runs[0].chance
    axes.axvline(chance, color=SOFT, linestyle="--", label=f"chance {percent(chance)}")
    figure.legend(loc="upper left", bbox_to_anchor=(0.02, 1), ncols=2, borderaxespad=0)
    axes.set(ylim=(len(rows) - 0.7, -0.8), yticks=[])
    drawing.percent_axis(axes, "x", min(1.0, axes.dataLim.xmax + 0.05))
    return figure


def accuracy_by_frames(part: Part) -> Figure | None:
    """Accuracy over the number of frames, of rows that differ only in it."""
    lines = {name: sorted(points.items()) for name, points in part.by_frames().items() if len(points) > 1}
    if not lines:
        return None
    below = 0.18 * len(lines)
    figure, (axes,) = drawing.new_figure(2.7 + below, left=0.55, bottom=0.5 + below, top=0.15)
    for number, (name, points) in enumerate(lines.items()):
        xs, ys = zip(*points, strict=True)
        (line,) = axes.plot(xs, ys, "o-", color=SERIES[number % len(SERIES)], label=shorten(name, 50))
        describe(line, f"{name}: " + ", ".join(f"{percent(y)} with {x}" for x, y in points))
    axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    axes.set_xlabel("Frames per clip")
    drawing.percent_axis(axes, "y", min(1.0, axes.dataLim.ymax + 0.1))
    figure.legend(loc="lower left", bbox_to_anchor=(0.02, 0), borderaxespad=0)
    return figure


def accuracy_by_cost(rows: Sequence[Row], key: str, label: str) -> Figure | None:
    """Accuracy over the cost of each row, marked by its number."""
    found = [(row, x) for row in rows if row.cost and (x := getattr(row.cost, key)) is not None]
    if len(found) < 2:
        return None
    figure, (axes,) = drawing.new_figure(2.8, left=0.55, bottom=0.5, right=0.25)
    for row, x in found:
        dot = axes.plot(x, row.accuracy, "o", markersize=13, color=SERIES[0], markeredgecolor=PAGE)[0]
        describe(dot, f"{row.name}: {percent(row.accuracy)} at {short(x)}")
        axes.text(x, row.accuracy, str(row.number), color=PAGE, ha="center", va="center", size=8, weight="bold")
    low, high = min(x for _, x in found), max(x for _, x in found)
    if 0 < 5 * low < high:
        axes.set(xscale="log", xlim=(0.7 * low, 1.4 * high))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        pad = max(0.12 * (high - low), 0.1 * high) or 1
        axes.set_xlim(low - pad, high + pad)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.set_xlabel(label[0].upper() + label[1:])
    drawing.percent_axis(axes, "y", min(1.0, axes.dataLim.ymax + 0.15))
    return figure


def split_counts(corpus: Corpus, key: str) -> Figure | None:
    """Clips by class or person, with the splits stacked."""
    counts = getattr(corpus, key)
    is_actors = key == "actor_counts"
    names = list(counts.get("train", ()))
    if is_actors:
        names = sorted({name for of in counts.values() for name in of}, key=by_number)
    if not names:
        return None
    are_numbers = all(name.isdecimal() for name in names)
    below = 0.5 if are_numbers else 0.15 + 0.6 * drawing.CHARACTER * min(_NAME, max(map(len, names)))
    figure, (axes,) = drawing.new_figure(2.1 + below, left=0.65, bottom=below, top=0.35)
    base = np.zeros(len(names), dtype=np.int64)
    for colour, (split, of) in zip(SERIES, counts.items(), strict=False):
        values = np.array([of.get(name, 0) for name in names])
        bars = axes.bar(range(len(names)), values, 0.75, base, color=colour, label=split)
        for name, value, bar in zip(names, values, bars, strict=True):
            describe(bar, f"{name}: {split} {value}")
        base = base + values
    step = math.ceil(len(names) / _MOST_NAMED)
    tilt: Any = {} if are_numbers else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(0, len(names), step), [shorten(str(it), _NAME) for it in names[::step]], **tilt)
    num_unknown = sum(sum(of.values()) for of in corpus.class_counts.values()) - sum(base)
    unknown = f" (of {num_unknown} clips unknown)" if num_unknown else ""
    axes.set(ylabel="Clips", xlabel=f"{'Actor' if are_numbers else 'Person'}{unknown}" if is_actors else "")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    return figure


_COSTS = {"epoch_seconds": "seconds per epoch", "flops_per_clip": "FLOPs per clip", "parameters": "parameters"}
# By kind: a run, several runs, the rows of a table, all rows of a page, a corpus. The names are those of the PNGs.
FIGURES: Mapping[str, Mapping[str, tuple[Callable[[Any], Figure | None], str]]] = {
    "run": {
        "per_class_accuracy": (per_class, "Recall: share of each class's clips predicted correctly"),
        "confusion_matrix": (confusion, "Confusion matrix in clips; the deeper, the larger the share of the row"),
        "reliability": (reliability, "Accuracy by confidence; the dashed line is perfect calibration"),
    },
    "runs": {"curves": (curves, "Loss and accuracy by epoch; training dashed, validation solid")},
    "part": {"intervals": (intervals, "Accuracy, 95 % interval by bootstrap over takes")},
    "frames": {"accuracy_by_frames": (accuracy_by_frames, "Accuracy by number of frames")},
    "rows": {
        key: (partial(accuracy_by_cost, key=key, label=name), f"Accuracy by {name}; the numbers are the rows'")
        for key, name in _COSTS.items()
    },
    "corpus": {
        "class_distribution": (partial(split_counts, key="class_counts"), "Clips by class and split"),
        "actor_counts": (partial(split_counts, key="actor_counts"), "Clips by actor and split"),
    },
}


def drawn(kind: str, subject: Any) -> Iterator[tuple[str, Figure, str]]:
    """Name, figure and caption of each figure of a kind that has something to draw, within `style()`."""
    for name, (draw, caption) in FIGURES[kind].items():
        if (figure := draw(subject)) is not None:
            yield name, figure, caption


def save_figures(kind: str, subject: Any, folder: Path, title: str) -> list[Path]:
    """Write each figure of a kind as a PNG; return their paths."""
    with drawing.style():
        made = {folder / f"{name}.png": figure for name, figure, _ in drawn(kind, subject)}
        for path, figure in made.items():
            drawing.write_figure(figure, path, title)
    return list(made)


def save_misclassified(folder: Path, examples: Sequence[Example]) -> None:
    """Write `misclassified.png` to a run's folder: the frames of its most confident errors."""
    rows = []
    for it in examples:
        if it.kind == "wrong":
            words = shorten(f"{it.label} predicted as {it.prediction} ({percent(it.probability, 0)})", 50)
            frames = np.asarray(cv2.imread(str(folder / it.frames)))[..., ::-1]
            rows.append((f"{words}   {shorten(it.key, 26, keep_end=True)}", frames))
    with drawing.style():
        figure = drawing.strips(rows or [("no misclassified clips", np.full((1, 10, 3), 255))])
        drawing.write_figure(figure, folder / "misclassified.png")
