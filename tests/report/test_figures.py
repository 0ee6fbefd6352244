"""Figures: every mark where its value is, from any results and any names; each written to its folder and the page."""

from __future__ import annotations

import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastemo.report import drawing, figures
from fastemo.report.drawing import SERIES, svg
from fastemo.report.schema import Calibration, Cost, Epoch, Example, Result
from fastemo.report.view import Corpus, Part, Row, Run

AWKWARD = ("$\\frac{", "under_score", "a_name_" * 12, "50% & more", "$x$", "ünïcode", "", "plain")
SHARES = st.floats(0, 1)
SOME = settings(max_examples=25, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def style():
    with drawing.style():
        yield


def run_of(names=("calm", "sad"), confusion=((3, 1), (2, 2)), **others) -> Run:
    recalls = [line[place] / sum(line) if sum(line) else None for place, line in enumerate(confusion)]
    fields = {"accuracy": 0.5, "num_clips": 4, "per_class": dict(zip(names, recalls, strict=True))}
    history = others.pop("history", ())
    result = Result.model_construct(**fields, confusion=[list(line) for line in confusion], **others)
    return Run(name="run", result=result, history=history)


def row_of(number: int = 1, accuracy: float = 0.5, label: str = "row", **others) -> Row:
    return Row(number=number, label=label, settings={}, runs=[run_of()], accuracy=accuracy, **others)


def history_of(losses, accuracies) -> list[Epoch]:
    return [
        Epoch(epoch=epoch, train_loss=loss, val_loss=1.0, train_accuracy=accuracy, val_accuracy=accuracy)
        for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), start=1)
    ]


def texts(figure) -> set[str]:
    return {it.get_text() for it in figure.findobj(lambda artist: hasattr(artist, "get_text"))}


def told(figure) -> list[str]:
    """What the marks say, in order."""
    ids = [it.get_gid() for it in figure.findobj(lambda artist: (artist.get_gid() or "").startswith("words "))]
    return [it.split(" ", 2)[2] for it in ids]


class TestCurves:
    def test_the_first_best_epoch_is_marked(self):
        figure = figures.curves([run_of(history=history_of([2, 1, 0.5], [0.2, 0.6, 0.6]))])
        assert "best epoch 2" in texts(figure)
        loss, accuracy = figure.axes
        assert accuracy.get_ylim() == (0, 1)
        assert accuracy.get_lines()[0].get_ydata() == pytest.approx([0.2, 0.6, 0.6])
        assert loss.get_lines()[0].get_ydata() == pytest.approx([2, 1, 0.5])
        assert told(figure)[0] == "training loss from 2.00 to 0.50 in 3 epochs"

    def test_a_point_between_gaps_is_a_dot(self):
        line = figures.curves([run_of(history=history_of([1, None, 2, 1e12, 3, 3], [0.5] * 6))]).axes[0].get_lines()[0]
        assert line.get_markevery() == [0, 2]
        assert np.isnan(line.get_ydata()).tolist() == [False, True, False, True, False, False]

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(("history", "words"), [([], "no epochs yet"), ([Epoch(epoch=1)], "no finite values")])
    def test_nothing_to_draw_is_said(self, history, words):
        figure = figures.curves([run_of(history=history)])
        assert words in texts(figure)
        assert svg(figure, "", 1)

    def test_runs_differ_by_colour_and_can_be_toggled(self):
        runs = [replace(run_of(history=history_of([2, 1], [0.1, 0.2])), name=f"run {number}") for number in range(9)]
        figure = figures.curves(runs)
        lines = list(figure.axes[0].get_lines())
        assert [it.get_color() for it in lines[::2]] == [SERIES[number % 8] for number in range(9)]
        assert str(svg(figure, "", 1)).count('data-series="8"') == 4
        assert told(figure)[-1].startswith("run 8, validation accuracy")


class TestOfARun:
    @pytest.mark.filterwarnings("error")
    def test_confusion_shows_counts_and_shares(self):
        figure = figures.confusion(run_of(confusion=((30, 2), (0, 0))))
        assert {"30", "2", "calm", "sad", "True label", "Predicted label"} <= texts(figure)
        assert "0" not in texts(figure)
        assert told(figure) == ["calm, recognised: 30 of 32", "calm, predicted sad: 2 of 32"]
        depths = [it.get_alpha() for it in figure.artists]
        assert depths == pytest.approx([0.55 * 30 / 32, 0.55 * 2 / 32])

    @given(st.lists(st.integers(0, 99), min_size=2, max_size=9))
    @SOME
    def test_bars_are_as_long_as_they_say(self, hits):
        size = len(hits)
        counts = [
            [hit if i == j else 1 if j == (i + 1) % size else 0 for j in range(size)] for i, hit in enumerate(hits)
        ]
        names = [f"class {i}" for i in range(size)]
        figure = figures.per_class(run_of(names, counts))
        boxes = [it for it in figure.artists if hasattr(it, "get_width")]
        assert [it.get_width() for it in boxes] == pytest.approx([hit / (hit + 1) for hit in hits])
        assert f"chance {100 / size:.1f} %" in texts(figure)
        assert "no clip" in texts(figures.per_class(run_of(confusion=((4, 0), (0, 0)))))

    def test_reliability_is_on_the_diagonal_where_it_is_calibrated(self):
        bins = [(0.1, 0.1, 3), (0.9, 0.9, 30), (1.0, 0.2, 5), (None, None, 0)]
        shaped = [{"confidence": sure, "accuracy": right, "num_clips": count} for sure, right, count in bins]
        calibration = Calibration.model_validate({"ece": 0.1, "bins": shaped})
        figure = figures.reliability(run_of(confusion=((20, 0), (0, 18)), calibration=calibration))
        dots = [it for it in figure.artists if it.get_marker() == "o"]
        assert np.array([it.get_data() for it in dots])[..., 0] == pytest.approx(
            np.array([(0.1, 0.9), (0.9, 0.1), (1.0, 0.8)])
        )
        sizes = [it.get_markersize() for it in dots]
        assert sizes[0] < sizes[2] < sizes[1]
        assert "ECE 10.0 %, overconfident" in texts(figure)
        assert figures.reliability(run_of()) is None
        for before, words in ((0.1, "ECE 10.0 %, overconfident"), (0.25, "ECE 10.0 % (25.0 % uncalibrated), overconf")):
            of_run = run_of(calibration=calibration.model_copy(update={"ece_before": before}))
            assert any(it.startswith(words) for it in texts(figures.reliability(of_run)))


class TestOfRows:
    @given(st.lists(st.tuples(SHARES, SHARES, SHARES), min_size=1, max_size=4))
    @SOME
    def test_intervals_stand_at_their_values(self, shares):
        rows = []
        for number, three in enumerate(shares, start=1):
            low, value, high = sorted(three)
            rows.append(row_of(number, value, interval=(low, high), report=three[0]))
        (axes,) = figures.intervals(Part(title="", rows=rows)).axes
        for row, lines in zip(rows, np.reshape(np.array(axes.get_lines()[:-1], dtype=object), (-1, 3)), strict=True):
            bar, dot, mark = (list(line.get_xdata()) for line in lines)
            assert (bar, dot, mark) == (list(row.interval), [row.accuracy], [row.report])
        assert axes.get_xlim()[0] == 0

    def test_an_interval_in_words(self):
        part = Part(title="", rows=[row_of(accuracy=0.5, interval=(0.4, 0.6), report=0.604), row_of(2, 0.1)])
        figure = figures.intervals(part)
        assert set(told(figure)) == {"1. row: 50.0 % (40.0 % to 60.0 %), Roy (2025) 60.4 %", "2. row: 10.0 %"}
        assert {"chance 50.0 %", "Roy (2025), on RAVDESS"} <= texts(figure)
        assert figures.intervals(Part(title="", rows=[replace(row_of(), runs=())])) is None

    @given(st.lists(st.tuples(st.integers(0, 2**62), SHARES), min_size=2, max_size=6))
    @SOME
    def test_cost_further_right_is_more(self, values):
        rows = [row_of(i, y, cost=Cost(parameters=x, flops_per_clip=1)) for i, (x, y) in enumerate(values, start=1)]
        figure = figures.accuracy_by_cost(rows, "parameters", "parameters")
        (axes,) = figure.axes
        assert [it.get_xdata()[0] for it in axes.get_lines()] == [x for x, _ in values]
        assert all(axes.get_xlim()[0] <= x <= axes.get_xlim()[1] for x, _ in values)
        assert svg(figure, "", 1)
        assert figures.accuracy_by_cost(rows[:1], "parameters", "parameters") is None

    def test_rows_that_differ_in_frames_make_a_line(self):
        rows = [
            replace(row_of(accuracy=frames / 100), settings={"video.num_frames": frames, "augment.enabled": augmented})
            for frames, augmented in ((6, True), (16, True), (10, True), (6, False))
        ]
        figure = figures.accuracy_by_frames(Part(title="", rows=rows))
        (line,) = figure.axes[0].get_lines()
        assert (list(line.get_xdata()), line.get_label()) == ([6, 10, 16], "augmented")


class TestOfACorpus:
    def test_bars_are_as_high_as_they_count(self):
        counts = {"train": {"calm": 5, "sad": 0}, "val": {"calm": 1, "sad": 2}, "test": {"calm": 0, "sad": 3}}
        corpus = Corpus(
            title="", class_counts=counts, actor_counts={"train": {"1": 5, "30": 0}, "val": {"30": 3}, "test": {"2": 1}}
        )
        figure = figures.split_counts(corpus, "class_counts")
        assert [it.get_height() for it in figure.axes[0].patches] == [5, 0, 1, 2, 0, 3]
        assert [it.get_y() for it in figure.axes[0].patches] == [0, 0, 5, 0, 6, 2]
        assert told(figure)[2] == "calm: val 1"
        figure = figures.split_counts(corpus, "actor_counts")
        assert [it.get_text() for it in figure.axes[0].get_xticklabels()] == ["1", "2", "30"]
        assert "Actor (of 2 clips unknown)" in texts(figure)
        assert figures.split_counts(replace(corpus, actor_counts={}), "actor_counts") is None
        figure = figures.split_counts(replace(corpus, actor_counts={"train": {"P10": 5, "P9": 3}}), "actor_counts")
        assert [it.get_text() for it in figure.axes[0].get_xticklabels()] == ["P9", "P10"]
        assert "Person (of 3 clips unknown)" in texts(figure)


@pytest.mark.filterwarnings("error")
def test_names_are_printed_as_they_stand(tmp_path):
    run = run_of(AWKWARD, np.eye(8, dtype=int).tolist())
    made = figures.save_figures("run", run, tmp_path, "$\\frac{ _title_ " * 6)
    assert [path.name for path in made] == ["per_class_accuracy.png", "confusion_matrix.png"]
    for path in made:
        assert cv2.imread(str(path)).shape[1] > 800
    for draw in (figures.confusion, figures.per_class):
        figure = draw(run)
        assert {"$\\frac{", "$x$", "under_score"} <= texts(figure)
        assert max(len(it) for it in texts(figure) if it.startswith("a_name_")) <= 16
        assert "$\\frac{" in str(svg(figure, "", 1))


def test_misclassified_shows_the_errors_in_order(tmp_path):
    examples = []
    for number, kind in enumerate(("wrong", "wrong", "right")):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((20, 120, 3), (0, 0, 100 + 50 * number), np.uint8))
        fields = {"label": "sad", "prediction": "calm", "probability": 0.5, "frames": f"{number}.png"}
        examples.append(Example(key=f"clip{number}.mp4", kind=kind, **fields))
    figures.save_misclassified(tmp_path, examples)
    found = cv2.imread(str(tmp_path / "misclassified.png"))
    reds = [(found == (0, 0, 100 + 50 * number)).all(-1).any(1).nonzero()[0] for number in range(3)]
    assert reds[0].size
    assert reds[0].max() < reds[1].min()
    assert not reds[2].size
    figures.save_misclassified(tmp_path, [])
    assert cv2.imread(str(tmp_path / "misclassified.png")).size


def test_a_new_figure_is_one_function_and_one_line(tmp_path, monkeypatch):
    def takes(run):
        figure, _ = drawing.new_figure(1, left=0.5, bottom=0.5)
        return figure if run.result.num_clips else None

    table = {**figures.FIGURES, "run": {**figures.FIGURES["run"], "takes": (takes, "Takes")}}
    monkeypatch.setattr(figures, "FIGURES", table)
    assert tmp_path / "takes.png" in figures.save_figures("run", run_of(), tmp_path, "")
    assert "Takes" in [caption for _, _, caption in figures.drawn("run", run_of())]


def test_neither_pyplot_nor_torch_is_imported():
    code = "import sys, fastemo.report.page; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    assert command(sys.executable, "-c", code).stdout.strip() == "set()"
