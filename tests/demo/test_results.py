"""What the page shows of predictions."""

from __future__ import annotations

import math

import pytest

from fastemo.demo.results import MOST_CHARTS, chart, result_html, series, shown_faces, summary, table
from fastemo.inference.prediction import Prediction
from fastemo.palette import SERIES

NAMES = ("calm", "happy", "<b>sad")


def found(start: float, *shares: float, face: int = 0, error: str | None = None) -> Prediction:
    probabilities = dict(zip(NAMES, shares, strict=True)) if shares else {}
    label = max(probabilities, key=probabilities.__getitem__) if shares else None
    times = {"start": start, "end": start + 2.0}
    return Prediction(path="a.mp4", label=label, probabilities=probabilities, face=face, error=error, **times)


def colours(marks) -> list[str]:
    from matplotlib.colors import to_hex

    return [to_hex(it.get_facecolor() if hasattr(it, "get_facecolor") else it.get_color()) for it in marks]


def test_one_prediction_has_a_bar_for_each_class():
    [axes] = chart([found(0, 0.2, 0.7, 0.1)], NAMES).axes
    assert [bar.get_width() for bar in axes.patches] == [0.2, 0.7, 0.1]
    assert colours(axes.patches) == [*SERIES[:3]]
    assert [it.get_text() for it in axes.texts] == ["20.0 %", "70.0 %", "10.0 %"]
    assert axes.get_xlim() == (0, 1)


def test_windows_have_a_line_for_each_class_with_gaps():
    windows = [found(0, 0.2, 0.7, 0.1), found(1, 0.3, 0.6, 0.1), found(2, error="damaged"), found(3, 0.5, 0.4, 0.1)]
    [axes] = chart(series(windows, 0), NAMES).axes
    calm, happy, _ = axes.lines
    assert colours(axes.lines) == [*SERIES[:3]]
    assert calm.get_xdata()[[0, 1, 3]].tolist() == [1.0, 2.0, 4.0]
    assert happy.get_ydata()[[0, 1, 3]].tolist() == [0.7, 0.6, 0.4]
    assert math.isnan(calm.get_ydata()[2])
    assert calm.get_markevery() == [3]  # alone between gaps, a line would not show it


def test_each_face_has_a_chart_and_the_rest_of_a_crowd_is_counted():
    crowd = [found(start, 0.2, 0.7, 0.1, face=face) for start in (0, 1) for face in range(1, 11)]
    crowd.append(found(2, 0.2, 0.7, 0.1, face=10))
    assert shown_faces(crowd) == [*range(1, MOST_CHARTS), 10]
    html = result_html(crowd, NAMES)
    assert html.count("<svg") == MOST_CHARTS
    assert "<h3>Face 10</h3>" in html
    assert "<h3>Face 9</h3>" not in html
    assert "2 more faces in the table below." in html
    assert [it is None for it in series(crowd, 1)] == [False, False, True]


def test_names_are_escaped_and_every_chart_can_be_read_aloud():
    html = result_html([found(0, 0.2, 0.1, 0.7)], NAMES)
    assert "<b>" not in html
    assert 'role="img"' in html
    assert "Probabilities; calm 20.0 %; happy 10.0 %; &lt;b&gt;sad 70.0 %" in html


def test_the_table_has_a_row_for_each_prediction():
    rows = table([found(0, 0.2, 0.7, 0.1, face=2), found(1.5, error="no face")])
    assert rows.count("<tr>") == 3
    assert "<td>0.00 – 2.00</td><td>2</td><td>happy 70 %</td>" in rows
    assert "<td>1.50 – 3.50</td><td></td><td>no face</td>" in rows
    assert "Face" not in table([found(0, 0.2, 0.7, 0.1)])


@pytest.mark.parametrize(
    ("predictions", "line"),
    [
        ([found(0, 0.2, 0.7, 0.1)], "a.mp4: happy 70 %"),
        ([found(0, 0.2, 0.7, 0.1), found(1, error="no face")], "a.mp4: 2 windows"),
        ([found(0, 0.2, 0.7, 0.1), found(1, error="x")], "a.mp4: 2 windows, 1 failed"),
        ([found(0, 0.2, 0.7, 0.1, face=face) for face in (1, 2)], "a.mp4: 1 window, 2 faces"),
    ],
)
def test_the_message_counts(predictions, line):
    assert summary("a.mp4", predictions) == line
