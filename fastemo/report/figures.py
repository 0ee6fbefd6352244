"""Figures of a run as PNGs: curves, confusion, per-class bars, sheets of what was misread.

Drawn on matplotlib's Agg canvas through objects, so nothing global is touched and threads may draw at once.
Colours: Okabe & Ito (2008), "Color Universal Design", told apart by colour-blind readers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from fastemo.machine import replacing

BLUE, VERMILLION, GREY, INK = "#0072B2", "#D55E00", "#767676", "#222222"
DPI = 150
MAX_MISCLASSIFIED = 8
_SHEET_FRAMES = 6
_NAME_LENGTH = 24
_CHARACTERS_PER_INCH = 8.5


@dataclass(frozen=True)
class Misclassified:
    """One clip and what was made of it.

    Attributes:
        key: The clip's key.
        frames: uint8 [6, 3, h, w] RGB, in the order of time.
        true_name: What was shown.
        predicted_name: What was predicted.
        probability: The model's probability for its prediction, 0 .. 1.

    Raises:
        ValueError: `frames` has another dtype or shape.
    """

    key: str
    frames: NDArray[np.uint8]
    true_name: str
    predicted_name: str
    probability: float

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[:2] != (_SHEET_FRAMES, 3):
            raise ValueError(f"frames are {self.frames.dtype} {shape}, must be uint8 ({_SHEET_FRAMES}, 3, h, w)")


def save_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss and accuracy over the epochs, the epoch of the best validation accuracy marked.

    Args:
        history: Rows of `metrics.jsonl`: `epoch`, `train_loss`, `train_accuracy`, and `val_loss`,
            `val_accuracy`, which may be missing or None. Accuracies in 0 .. 1. A value that is not finite
            leaves a gap.
        path: PNG to write.
    """
    figure = new_figure(10, 4)
    panels = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    series = {name: _column(history, name) for name in ("train_loss", "val_loss")}
    series |= {name: 100 * _column(history, name) for name in ("train_accuracy", "val_accuracy")}
    for axes, what in zip(panels, ("loss", "accuracy"), strict=True):
        _draw_pair(axes, epochs, series[f"train_{what}"], series[f"val_{what}"])
        axes.set_title("Loss" if what == "loss" else "Accuracy", color=INK, loc="left", fontweight="bold")
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[0].set_ylabel("Cross-entropy")
    _percent_axis(panels[1])
    validation = series["val_accuracy"]
    if np.isfinite(validation).any():
        best = int(np.nanargmax(validation))
        for axes, what in zip(panels, ("val_loss", "val_accuracy"), strict=True):
            _mark_best(axes, epochs[best], series[what][best], label=f"best epoch {epochs[best]}")
        panels[1].set_title(f"best {validation[best]:.1f} %", color=GREY, loc="right", fontsize=10)
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
        else:
            say(axes, "no finite values" if history else "no epochs yet")
    write_figure(figure, path)


def save_confusion(counts: ArrayLike, class_names: Sequence[str], path: Path, title: str) -> None:
    """Draw a confusion matrix: a cell's number is its clips, its colour its share of the row.

    Args:
        counts: Integer [K, K], rows what was shown, columns what was predicted.
        class_names: K names.
        path: PNG to write.
        title: Printed above, as it stands.
    """
    table = np.asarray(counts)
    totals = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, totals, out=np.zeros(table.shape), where=totals > 0)
    size = len(class_names)
    side = max(4.5, 0.72 * size + 1.6)
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(100, decimals=0))
    bar.set_label("Share of the row", color=INK)
    bar.outline.set_visible(False)
    names = [shorten(name) for name in class_names]
    axes.set_xticks(range(size), names, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(size), names, parse_math=False)
    axes.set_xlabel("Predicted")
    axes.set_ylabel("Shown")
    write_title(figure, axes, title)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    # White lines between the cells keep neighbours of one colour apart.
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for (row, column), count in np.ndenumerate(table):
        colour = "white" if shares[row, column] > 0.55 else INK if count else "#8C8C8C"
        weight = "bold" if row == column else "normal"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontweight=weight)
    write_figure(figure, path)


def save_per_class(per_class: Mapping[str, float | None], path: Path, title: str) -> None:
    """Draw the accuracy of every class (0 .. 1, None without clips) as bars with chance as a line."""
    figure = new_figure(max(5.5, 0.95 * len(per_class) + 1), 4)
    axes = figure.subplots()
    for place, value in enumerate(per_class.values()):
        if value is None:
            axes.text(place, 1.5, "no clips", ha="center", va="bottom", color=GREY, fontsize=9)
        else:
            axes.bar(place, 100 * value, width=0.7, color=BLUE)
            # A number above a full bar would run into the title.
            inside = value > 0.92
            height, colour = 100 * value + (-1.5 if inside else 1), "white" if inside else INK
            side = "top" if inside else "bottom"
            axes.text(place, height, f"{100 * value:.0f}", ha="center", va=side, color=colour)
    chance = 100 / max(1, len(per_class))
    axes.axhline(chance, color=VERMILLION, linestyle="--", linewidth=1.5, label=f"chance {chance:.1f} %")
    axes.set_xticks(
        range(len(per_class)),
        [shorten(name) for name in per_class],
        rotation=25,
        ha="right",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.set_xlim(-0.6, max(1, len(per_class)) - 0.4)
    write_title(figure, axes, title)
    clean(axes)
    _percent_axis(axes)
    # Above the axes: a bar may reach any height within them.
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    write_figure(figure, path)


def save_misclassified(examples: Sequence[Misclassified], path: Path) -> None:
    """Draw a sheet of frames, one row a clip in the given order, the first `MAX_MISCLASSIFIED` of them."""
    shown = examples[:MAX_MISCLASSIFIED]
    if not shown:
        figure = new_figure(9, 1.6)
        axes = figure.subplots()
        axes.set_axis_off()
        say(axes, "no misclassified clips")
        write_figure(figure, path)
        return
    aspects = [example.frames.shape[2] / example.frames.shape[3] for example in shown]
    heights = [1.5 * min(aspect, 2.0) + 0.4 for aspect in aspects]
    figure = new_figure(9.6, sum(heights))
    rows = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, example in zip(rows, shown, strict=True):
        part.suptitle(
            f"true: {shorten(example.true_name)}     predicted: {shorten(example.predicted_name)}"
            f" ({100 * example.probability:.0f} %)     {shorten(example.key, 56, keep_end=True)}",
            parse_math=False,
            fontsize=9.5,
            color=INK,
            x=0.01,
            ha="left",
        )
        for axes, frame in zip(part.subplots(1, _SHEET_FRAMES), example.frames, strict=True):
            axes.imshow(frame.transpose(1, 2, 0))
            axes.set_axis_off()
    write_figure(figure, path)


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """White, laid out by its contents, drawn by Agg."""
    figure = Figure(figsize=(width_inches, height_inches), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all."""
    with replacing(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=DPI)


def _column(history: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """One number a row, NaN where there is none to draw."""
    values = [row.get(name) for row in history]
    return np.array([v if v is not None and math.isfinite(v) else np.nan for v in values], dtype=np.float64)


def _draw_pair(axes: Axes, epochs: list[int], train: ArrayLike, validation: ArrayLike) -> None:
    for name, values, colour, marker in (
        ("training", train, BLUE, "o"),
        ("validation", validation, VERMILLION, "s"),
    ):
        if np.isfinite(values).any():
            # Markers, so that one epoch alone is seen; small, so that a hundred do not hide the line.
            axes.plot(epochs, values, color=colour, linewidth=1.8, marker=marker, markersize=3, label=name)
    clean(axes)


def _mark_best(axes: Axes, epoch: int, value: float, *, label: str) -> None:
    axes.axvline(epoch, color=GREY, linestyle=":", linewidth=1.2, label=label)
    if math.isfinite(value):
        axes.plot([epoch], [value], marker="o", markersize=9, markerfacecolor="none", color=INK)


def clean(axes: Axes) -> None:
    """Pale lines behind the data, and no frame around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("Accuracy (%)")


def write_title(figure: Figure, axes: Axes, title: str) -> None:
    """Wrapped to the figure's width, every character as it stands."""
    # Not wrap=True: matplotlib measures a wrapped text as mathematics even with parse_math off.
    lines = textwrap.wrap(title, int(_CHARACTERS_PER_INCH * (figure.get_figwidth() - 2)))
    axes.set_title("\n".join(lines), parse_math=False, color=INK, loc="left", fontweight="bold")


def say(axes: Axes, words: str) -> None:
    """Words in the place of data that there is none of."""
    axes.text(0.5, 0.5, words, ha="center", va="center", color=GREY, fontsize=12, transform=axes.transAxes)


def shorten(name: str, length: int = _NAME_LENGTH, *, keep_end: bool = False) -> str:
    """A name of at most `length` characters, its beginning or its end."""
    if len(name) <= length:
        return name
    return "…" + name[-length + 1 :] if keep_end else name[: length - 1] + "…"
