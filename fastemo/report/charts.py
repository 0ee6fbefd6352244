"""Charts as inline SVG: text in the page's own colour, series in its variables --c1 .. --c4, each with words for it.

A chart is at most 440 units wide and drawn at about that many pixels, so that its letters stay readable on a phone.
Nothing is drawn by a script, and every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fastemo.report import svg
from fastemo.report.svg import CHARACTER, WIDTH, Frame

_NAME_CHARACTERS = 58


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its interval, both 0 .. 1, and what it is held beside."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    reference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mark of a scatter chart: `number` stands in it, `label` is told on hovering."""

    number: int
    label: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series of (x, y); None leaves a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int
    dashed: bool = False
    dots: bool = False


def percent(share: float, digits: int = 1) -> str:
    """`62.1 %`."""
    return f"{100 * share:.{digits}f} %"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{number * step:.15g}") for number in range(first, math.floor(high / step + 1e-9) + 1)]


def intervals(rows: Sequence[Interval], *, alt: str, chance: float | None = None, reference: str = "") -> Markup:
    """A dot and a bar for each row, its name above; a diamond for what it is held beside."""
    shown = [chance, *(it for row in rows for it in (row.value, row.high, row.reference))]
    high = max((it for it in shown if it is not None), default=1.0)
    limit = min(1.0, math.ceil(high * 10 + 0.3) / 10)
    step, top, bottom = 34.0, 14.0, 40.0
    frame = Frame(
        left=14,
        right=WIDTH - 18,
        top=top,
        bottom=top + step * len(rows),
        low_x=0,
        high_x=limit,
        low_y=0,
        high_y=1,
    )
    parts = [svg.x_axis(frame, [(tick, f"{100 * tick:.0f} %") for tick in ticks(0, limit, 5)])]
    if chance is not None:
        x = frame.x(chance)
        parts.append(svg.line(x, frame.top, x, frame.bottom, "chance"))
        parts.append(svg.text(x, frame.top - 3, f"chance {percent(chance)}", anchor="start" if x < 90 else "middle"))
    for number, row in enumerate(rows):
        y = frame.top + step * number + 24
        name = row.label if len(row.label) <= _NAME_CHARACTERS else f"{row.label[: _NAME_CHARACTERS - 1]}…"
        told = f"{row.label}: {percent(row.value)}"
        mark = ""
        if row.low is not None and row.high is not None:
            told += f" ({percent(row.low)} to {percent(row.high)})"
            mark += svg.line(frame.x(row.low), y, frame.x(row.high), y, "bar c1")
        if row.reference is not None:
            told += f", {reference} {percent(row.reference)}"
            mark += svg.diamond(frame.x(row.reference), y)
        mark += svg.tag("circle", cx=frame.x(row.value), cy=y, r=5, class_="dot f1")
        parts.append(svg.text(8, y - 10, name, anchor="start", class_="t halo"))
        parts.append(svg.tag("g", svg.tag("title", escape(told)) + mark))
    if reference and any(row.reference is not None for row in rows):
        y = frame.bottom + 34
        parts += [svg.diamond(frame.left + 6, y - 4), svg.text(frame.left + 18, y, reference, anchor="start")]
    else:
        bottom = 24
    return svg.drawing(frame.bottom + bottom, alt, parts)


def panel(
    lines: Sequence[Line],
    *,
    alt: str,
    title: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    as_percent: bool = False,
    width: float = WIDTH,
    height: float = 190.0,
    x_ticks: Sequence[float] | None = None,
) -> Markup:
    """Lines over one pair of axes, their names in a row below the title."""
    drawn = [(x, y) for line in lines for x, y in line.points if y is not None and math.isfinite(y)]
    if not drawn:
        return svg.drawing(40, alt, [svg.text(8, 24, f"{title}: no finite values", anchor="start")], width=width)
    low_x, high_x = min(x for x, _ in drawn), max(x for x, _ in drawn)
    low_y, high_y = y_range or _padded([y for _, y in drawn])
    margin = 0.5 if low_x == high_x else 0.03 * (high_x - low_x)
    frame = Frame(
        left=46,
        right=width - 10,
        top=42,
        bottom=height - 38,
        low_x=low_x - margin,
        high_x=high_x + margin,
        low_y=low_y,
        high_y=high_y,
    )
    shown = x_ticks or sorted({tick for tick in ticks(low_x, high_x, 5) if tick == round(tick)} or {low_x})
    marks = [(tick, f"{100 * tick:.0f} %" if as_percent else f"{tick:g}") for tick in ticks(low_y, high_y)]
    parts = [
        svg.x_axis(frame, [(tick, f"{tick:g}") for tick in shown], x_label),
        svg.y_axis(frame, marks),
        svg.text(8, 14, title, anchor="start", class_="t strong"),
        svg.legend([(line.name, line.colour, line.dashed) for line in lines], 30, width),
        *(_drawn_line(line, frame, as_percent) for line in lines),
    ]
    return svg.drawing(height, alt, parts, width=width)


def scatter(
    points: Sequence[Point], *, alt: str, x_label: str, y_range: tuple[float, float], log_x: bool = True
) -> Markup:
    """Numbered marks, accuracy upwards; x by its logarithm, where all are above zero."""
    log_x = log_x and all(point.x > 0 for point in points)
    xs = [math.log10(point.x) if log_x else point.x for point in points]
    low, high = _padded(xs, 0.12)
    height = 260.0
    frame = Frame(
        left=46,
        right=WIDTH - 14,
        top=14,
        bottom=height - 40,
        low_x=low,
        high_x=high,
        low_y=y_range[0],
        high_y=y_range[1],
    )
    shown = _log_ticks(low, high) if log_x else [(tick, short(tick)) for tick in ticks(low, high)]
    parts = [
        svg.x_axis(frame, shown, x_label),
        svg.y_axis(frame, [(tick, f"{100 * tick:.0f} %") for tick in ticks(*y_range)]),
    ]
    for point, place in zip(points, xs, strict=True):
        x, y = frame.x(place), frame.y(point.y)
        mark = svg.tag("circle", cx=x, cy=y, r=9, class_="mark") + svg.text(x, y + 4, str(point.number), class_="t in")
        parts.append(svg.tag("g", svg.tag("title", escape(f"{point.number}: {point.label}")) + mark))
    return svg.drawing(height, alt, parts)


def bars(values: Mapping[str, float | None], *, alt: str, notes: Mapping[str, str] | None = None) -> Markup:
    """A bar of 0 .. 1 for each name; None has none. `notes` stand behind the percentage."""
    step, left = 24.0, 8 + CHARACTER * min(16, max((len(name) for name in values), default=0))
    frame = Frame(
        left=left + 8,
        right=WIDTH - 100,
        top=6,
        bottom=6 + step * len(values),
        low_x=0,
        high_x=1,
        low_y=0,
        high_y=1,
    )
    parts = [svg.x_axis(frame, [(tick, f"{100 * tick:.0f} %") for tick in (0, 0.25, 0.5, 0.75, 1)])]
    for number, (name, value) in enumerate(values.items()):
        y = frame.top + step * number
        shown = name if len(name) <= 16 else f"{name[:15]}…"
        parts.append(svg.text(left, y + 16, shown, anchor="end"))
        note = f"  {notes[name]}" if notes and name in notes else ""
        if value is None:
            parts.append(svg.text(frame.left + 4, y + 16, f"no clip{note}", anchor="start"))
            continue
        parts.append(
            svg.tag("rect", x=frame.left, y=y + 4, width=frame.x(value) - frame.left, height=step - 8, class_="f1")
        )
        parts.append(svg.text(frame.right + 8, y + 16, f"{percent(value, 0)}{note}", anchor="start"))
    return svg.drawing(frame.bottom + 24, alt, parts)


def columns(groups: Mapping[str, Mapping[str, int]], *, alt: str, x_label: str = "") -> Markup:
    """Stacked columns of counts: by series (a colour each), then by name, in the order in which they first come."""
    names = list(dict.fromkeys(name for counts in groups.values() for name in counts))
    totals = [sum(counts.get(name, 0) for counts in groups.values()) for name in names]
    height, is_narrow = 230.0, len(names) > 12
    high = ticks(0, max(totals, default=1) * 1.12 or 1)[-1] or 1
    frame = Frame(
        left=46,
        right=WIDTH - 8,
        top=34,
        bottom=height - (44 if is_narrow else 66),
        low_x=0,
        high_x=len(names) or 1,
        low_y=0,
        high_y=max(high, *totals, 1),
    )
    every = 1 if len(names) <= 26 else math.ceil(len(names) / 26)
    parts = [
        svg.y_axis(frame, [(tick, short(tick)) for tick in ticks(0, frame.high_y)]),
        svg.legend([(name, number + 1, False) for number, name in enumerate(groups)], 14, WIDTH),
    ]
    for position, name in enumerate(names):
        x, base = frame.x(position + 0.12), 0
        told = ", ".join(f"{series} {counts.get(name, 0)}" for series, counts in groups.items())
        stack = ""
        for number, counts in enumerate(groups.values(), start=1):
            count = counts.get(name, 0)
            top = frame.y(base + count)
            wide = frame.x(0.76) - frame.x(0)
            stack += svg.tag("rect", x=x, y=top, width=wide, height=frame.y(base) - top, class_=f"f{number}")
            base += count
        parts.append(svg.tag("g", svg.tag("title", escape(f"{name}: {told}")) + stack))
        middle = frame.x(position + 0.5)
        if is_narrow:
            if position % every == 0:
                parts.append(svg.text(middle, frame.bottom + 15, name[:3], class_="t small"))
        else:
            parts.append(svg.slanted(middle, frame.bottom + 12, name if len(name) <= 12 else f"{name[:11]}…"))
    if x_label:
        parts.append(svg.text((frame.left + frame.right) / 2, height - 8, x_label))
    return svg.drawing(height, alt, parts)


def reliability(bins: Sequence[tuple[float, float, int]], *, alt: str) -> Markup:
    """Accuracy over confidence, of (confidence, accuracy, clips) in each bin that holds clips: the larger, the more."""
    height = 300.0
    frame = Frame(left=46, right=306, top=12, bottom=height - 40, low_x=0, high_x=1, low_y=0, high_y=1)
    marks = [(tick, f"{100 * tick:.0f} %") for tick in (0, 0.25, 0.5, 0.75, 1)]
    most = max((count for _, _, count in bins), default=1)
    path = svg.path((frame.x(sure), frame.y(right)) for sure, right, _ in bins)
    parts = [
        svg.x_axis(frame, marks, "confidence"),
        svg.y_axis(frame, marks),
        svg.line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "chance"),
        svg.tag("polyline", points=path, class_="line c1"),
    ]
    for sure, right, count in bins:
        told = f"{count} clips: confidence {percent(sure)}, right {percent(right)}"
        radius = 3 + 6 * math.sqrt(count / most)
        mark = svg.tag("circle", cx=frame.x(min(1, sure)), cy=frame.y(right), r=radius, class_="dot f1")
        parts.append(svg.tag("g", svg.tag("title", escape(told)) + mark))
    # As wide as the others, so that its letters are as large.
    return svg.drawing(height, alt, parts)


def short(value: float) -> str:
    """`11.2 M`: three digits and what they count."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = share * (high - low) or 0.1 * abs(low) or 0.5
    return low - pad, high + pad


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Decades, and 2 and 5 between them where there are few."""
    factors = (1,) if high - low > 3 else (1, 3) if high - low > 1.5 else (1, 2, 5)
    powers = range(math.floor(low), math.ceil(high) + 1)
    places = [(math.log10(factor) + power, factor * 10.0**power) for power in powers for factor in factors]
    found = [(place, short(value)) for place, value in places if low <= place <= high]
    return found or [((low + high) / 2, short(10 ** ((low + high) / 2)))]


def _drawn_line(line: Line, frame: Frame, as_percent: bool) -> str:
    """A polyline for each stretch without a gap; a stretch of one point is a dot."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is None or not math.isfinite(y):
            stretches.append([])
        else:
            stretches[-1].append((frame.x(x), frame.y(min(max(y, frame.low_y), frame.high_y))))
    found = ""
    for stretch in filter(None, stretches):
        dashes = " dashed" if line.dashed else ""
        found += svg.tag("polyline", points=svg.path(stretch), class_=f"line c{line.colour}{dashes}")
        if line.dots or len(stretch) == 1:
            found += "".join(svg.tag("circle", cx=x, cy=y, r=4, class_=f"dot f{line.colour}") for x, y in stretch)
    finite = [y for _, y in line.points if y is not None and math.isfinite(y)]
    last = f"{percent(finite[-1])}" if finite and as_percent else f"{finite[-1]:.3g}" if finite else "no value"
    return svg.tag("g", svg.tag("title", escape(f"{line.name}, last {last}")) + found)
