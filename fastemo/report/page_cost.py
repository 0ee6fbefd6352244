"""What accuracy costs, how it came about over the epochs, and how it depends on the number of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastemo.report import charts
from fastemo.report.charts import percent, short
from fastemo.report.page_blocks import Block, Cell, Charts, Column, Figure, Fold, Section, Table, Text
from fastemo.report.page_data import Part, Row, Tested
from fastemo.report.page_results import number_cell, numbered, share_cell

_PANEL_WIDTH = 218.0
_OPEN_CURVES = 24
_FRAMES_KEYS = ("video.num_frames", "model.num_frames", "name", "runs_dir", "resume")

_SCATTERS: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None]], ...] = (
    ("seconds an epoch", "seconds of an epoch", lambda cost: cost["epoch_seconds"]),
    ("floating-point operations a clip", "operations of a clip's way forward", lambda cost: cost["flops_per_clip"]),
    ("parameters", "parameters", lambda cost: cost["parameters"]),
)


def curves(parts: Sequence[Part]) -> Section | None:
    """Loss and accuracy by epoch of every run."""
    figures, seen = [], set()
    for _, rows in numbered(parts):
        for number, row in rows:
            for tested in row.tested:
                if tested.history and tested.name not in seen:
                    seen.add(tested.name)
                    figures.append(_curve(f"{number}. {row.label}", tested, is_one_of_many=len(row.tested) > 1))
    if not figures:
        return None
    blocks: list[Block] = [Charts(figures=figures[:_OPEN_CURVES])]
    if rest := figures[_OPEN_CURVES:]:
        blocks.append(
            Fold(title=f"The other {len(rest)} runs", summary="", blocks=[Charts(figures=rest)], is_open=False)
        )
    return Section(id="curves", title="Training curves", blocks=blocks)


def _curve(label: str, tested: Tested, *, is_one_of_many: bool) -> Figure:
    if is_one_of_many:
        fold = tested.result.get("fold")
        label += f", seed {tested.result.get('seed')}" + (f", fold {fold}" if fold else "")
    panels = []
    for what, title in (("loss", "Loss"), ("accuracy", "Accuracy")):
        lines = [
            charts.Line(
                name=name,
                points=[(row["epoch"], row[f"{split}_{what}"]) for row in tested.history],
                colour=colour,
                dashed=split == "train",
            )
            for split, name, colour in (("train", "train", 2), ("val", "validation", 1))
        ]
        is_share = what == "accuracy"
        panels.append(
            charts.panel(
                lines,
                alt=f"{label}, {what} by epoch: {_trend(lines, is_share)}",
                title=title,
                x_label="epoch",
                y_range=(0, 1) if is_share else None,
                as_percent=is_share,
                width=_PANEL_WIDTH,
            )
        )
    return Figure(charts=panels, caption=label)


def _trend(lines: Sequence[charts.Line], is_share: bool) -> str:
    told = []
    for line in lines:
        finite = [y for _, y in line.points if y is not None]
        shown = [percent(y) if is_share else f"{y:.2f}" for y in finite]
        told.append(f"{line.name} from {shown[0]} to {shown[-1]}" if shown else f"{line.name} without a value")
    return f"{', '.join(told)} in {len(lines[0].points)} epochs"


def cost(parts: Sequence[Part]) -> Section | None:
    rows = [(number, row) for _, of in numbered(parts) for number, row in of if row.tested and row.values["cost"]]
    blocks: list[Block] = []
    if rows:
        blocks = [
            Text(
                text="Speed is the median of the epochs after the first, as trained on the machine above; runs that "
                "shared it slowed each other down."
            ),
            _cost_table(rows),
            Charts(figures=[figure for what in _SCATTERS if (figure := _scatter(rows, *what))]),
        ]
    if lines := _by_frames(parts):
        blocks.append(Charts(figures=lines))
    return Section(id="cost", title="Accuracy and cost", blocks=blocks) if blocks else None


def _cost_table(rows: Sequence[tuple[int, Row]]) -> Table:
    lines = []
    for number, row in rows:
        it = row.values["cost"]
        speed, seconds = it["clips_per_second"], it["epoch_seconds"]
        lines.append(
            [
                Cell(text=f"{number}. {row.label}", sort=number),
                share_cell(row.values["accuracy"]),
                number_cell(it["parameters"], short(it["parameters"])),
                number_cell(it["flops_per_clip"], short(it["flops_per_clip"])),
                number_cell(speed, "" if speed is None else f"{speed:.1f}"),
                number_cell(seconds, "" if seconds is None else f"{seconds:.1f}"),
            ]
        )
    return Table(
        caption="What a row costs",
        columns=[
            Column(name="Row", is_number=False),
            Column(name="Accuracy"),
            Column(name="Parameters"),
            Column(name="FLOPs a clip", hint="forward; a multiply-add is two"),
            Column(name="Clips/s", hint="in training"),
            Column(name="Epoch, s"),
        ],
        rows=lines,
    )


def _scatter(
    rows: Sequence[tuple[int, Row]], x_label: str, words: str, value_of: Callable[[dict[str, Any]], float | None]
) -> Figure | None:
    points = [
        charts.Point(
            number=number, label=f"{row.label}, {percent(row.values['accuracy'])}, {short(value)}", x=value, y=y
        )
        for number, row in rows
        if (value := value_of(row.values["cost"])) is not None and (y := row.values["accuracy"]) is not None
    ]
    if len(points) < 2:
        return None
    told = "; ".join(f"row {point.number}: {percent(point.y)} at {short(point.x)}" for point in points)
    high = min(1.0, max(point.y for point in points) + 0.1)
    chart = charts.scatter(
        points, x_label=x_label, y_range=(0, high), alt=f"Accuracy against {words}, a number a row: {told}"
    )
    return Figure(charts=[chart], caption=f"Accuracy against {words}; the numbers are the rows'.")


def _by_frames(parts: Sequence[Part]) -> list[Figure]:
    """A chart for each part with rows that differ in the number of frames."""
    figures = []
    for part in parts:
        series: dict[str, dict[int, float]] = {}
        for row in part.rows:
            frames = row.settings.get("video.num_frames")
            if not row.tested or row.values["accuracy"] is None or type(frames) is not int:
                continue
            series.setdefault(_without_frames(row, part), {})[frames] = row.values["accuracy"]
        series = {name: points for name, points in series.items() if len(points) > 1}
        if not series:
            continue
        lines = [
            charts.Line(name=name, points=sorted(points.items()), colour=position % 4 + 1, dots=True)
            for position, (name, points) in enumerate(series.items())
        ]
        told = "; ".join(
            f"{line.name}: " + ", ".join(f"{percent(y or 0)} at {x:g}" for x, y in line.points) for line in lines
        )
        high = max(y for points in series.values() for y in points.values())
        chart = charts.panel(
            lines,
            alt=f"{part.title}, accuracy by number of frames: {told}",
            title="Accuracy by number of frames",
            x_label="frames a clip",
            y_range=(0, min(1.0, high + 0.1)),
            as_percent=True,
            height=240,
            x_ticks=sorted({x for points in series.values() for x in points}),
        )
        figures.append(Figure(charts=[chart], caption=part.title))
    return figures


def _without_frames(row: Row, part: Part) -> str:
    """What else sets a row apart in its part."""
    others = {key: value for key, value in row.settings.items() if key not in _FRAMES_KEYS}
    differing = [key for key in others if len({repr(it.settings.get(key)) for it in part.rows}) > 1]
    words = {"augment.enabled": ("not augmented", "augmented")}
    told = [
        words[key][bool(row.settings[key])] if key in words else str(row.settings[key])
        for key in differing
        if not key.startswith(("store.", "train.checkpoint"))
    ]
    return ", ".join(told) or row.tested[0].model
