"""Predictions -> what the page shows of them: a chart for each face, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from fastemo.inference.output.captions import by_window, caption
from fastemo.inference.prediction import NO_FACE, Prediction
from fastemo.report import drawing
from fastemo.report.drawing import SERIES, describe, shorten
from fastemo.report.words import counted, percent

MOST_CHARTS = 8  # of a crowd the faces that are seen longest
_MOST_CHARACTERS = 14  # of a class's name


def result_html(found: Sequence[Prediction], class_names: Sequence[str]) -> Markup:
    """Charts and table of a video's predictions, of which at least one has not failed."""
    faces = shown_faces(found)
    parts = []
    with drawing.style():
        for number, face in enumerate(faces):
            title = f"Face {face}" if face else "Probabilities"
            figure = chart(series(found, face), class_names)
            parts.append(Markup("<h3>{}</h3>").format(title) + drawing.svg(figure, title, number))
    if hidden := len({it.face for it in found if it.label is not None}) - len(faces):
        parts.append(Markup("<p>{}</p>").format(f"{counted(hidden, 'more face')} in the table below."))
    return Markup().join([*parts, table(found)])


def summary(name: str, found: Sequence[Prediction]) -> str:
    """One line: of a clip its prediction, of windows and faces their number."""
    known = [it for it in found if it.label is not None]
    if len(found) == 1:
        return f"{name}: {caption(known[0])}"
    faces = len({it.face for it in known if it.face})
    failed = len([it for it in found if it.error not in (None, NO_FACE)])
    counts = [counted(len(by_window(found)), "window"), counted(faces, "face") if faces else ""]
    return f"{name}: {', '.join(filter(None, [*counts, f'{failed} failed' if failed else '']))}"


def shown_faces(found: Sequence[Prediction]) -> list[int]:
    """The numbers of the faces with a chart, in order; 0 alone where the run does not crop faces."""
    faces = [it.face for it in found if it.label is not None]
    longest = sorted(set(faces), key=lambda face: (-faces.count(face), face))
    return sorted(longest[:MOST_CHARTS])


def series(found: Sequence[Prediction], face: int) -> list[Prediction | None]:
    """A face's prediction in each window of the video; `None`: it has none there."""
    windows = by_window(found)
    return [next((it for it in window if it.face == face and it.probabilities), None) for window in windows]


def chart(row: Sequence[Prediction | None], class_names: Sequence[str]) -> Figure:
    """One prediction as a bar for each class; several as a line for each class over time."""
    known = [it for it in row if it is not None]
    return _bars(known[0], class_names) if len(known) == 1 else _lines(row, class_names)


def _bars(prediction: Prediction, class_names: Sequence[str]) -> Figure:
    figure, [axes] = drawing.new_figure(0.35 + 0.24 * len(class_names), left=1.2, bottom=0.3, right=0.5, top=0.05)
    for place, name in enumerate(class_names):
        share = prediction.probabilities[name]
        [bar] = axes.barh(place, share, 0.7, color=SERIES[place % len(SERIES)])
        describe(bar, f"{name} {percent(share)}")
        axes.text(share + 0.01, place, percent(share), va="center")
    axes.set_yticks(range(len(class_names)), [shorten(name, _MOST_CHARACTERS) for name in class_names])
    axes.set_ylim(len(class_names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    drawing.percent_axis(axes, "x")
    return figure


def _lines(row: Sequence[Prediction | None], class_names: Sequence[str]) -> Figure:
    rows_of_legend = math.ceil(len(class_names) / 4)
    bottom = 0.5 + 0.18 * rows_of_legend
    figure, [axes] = drawing.new_figure(2.1 + bottom, left=0.55, bottom=bottom)
    times = [math.nan if it is None else (it.start + it.end) / 2 for it in row]
    # A point between gaps is a dot.
    there = {place for place, it in enumerate(row) if it is not None}
    look: Any = {"markersize": 4, "markevery": [it for it in sorted(there) if not {it - 1, it + 1} & there]}
    for number, name in enumerate(class_names):
        shares = [math.nan if it is None else it.probabilities[name] for it in row]
        colour, label = SERIES[number % len(SERIES)], shorten(name, _MOST_CHARACTERS)
        (line,) = axes.plot(times, shares, "o-", color=colour, label=label, **look)
        describe(line, f"{name}: at most {percent(np.nanmax(shares))}")
    axes.set_xlabel("Time (s)")
    drawing.percent_axis(axes, "y")
    figure.legend(loc="lower left", bbox_to_anchor=(0.02, 0), ncols=4, borderaxespad=0, columnspacing=1, handlelength=1)
    return figure


def table(found: Sequence[Prediction]) -> Markup:
    """A row for each prediction: its window, its face if the run crops faces, and its label or error."""
    has_faces = any(it.face for it in found)
    row = Markup("<tr><td>{}</td>{}<td>{}</td></tr>")
    cell = Markup("<td>{}</td>")
    rows = [
        row.format(f"{it.start:.2f} – {it.end:.2f}", cell.format(it.face or "") if has_faces else "", caption(it))
        for it in found
    ]
    head = Markup('<th scope="col">Seconds</th>{}<th scope="col">Prediction</th>').format(
        Markup('<th scope="col">Face</th>') if has_faces else ""
    )
    return Markup(
        '<h3>Predictions</h3><div class="scroll" tabindex="0" role="region" aria-label="Predictions">'
        "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(head, Markup().join(rows))
