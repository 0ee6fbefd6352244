"""Figures: written whole, from any history and any names, and showing what they were given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import command
from matplotlib import image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fastemo.report import figures
from fastemo.report.figures import (
    BLUE,
    VERMILLION,
    Misclassified,
    save_confusion,
    save_curves,
    save_misclassified,
    save_per_class,
)

AWKWARD = ("$\\frac{", "under_score", "a_name_" * 12, "50% & more", "$x$", "ünïcode", "", "plain")


def ink(path: Path, colour: str) -> int:
    """Pixels within a little of `colour`."""
    pixels = image.imread(path)[..., :3]
    return int((np.abs(pixels - np.array(to_rgb(colour))).max(axis=-1) < 0.02).sum())


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))}


@pytest.fixture
def drawn(monkeypatch):
    """The figures handed to the writer, in order."""
    caught: list[Figure] = []
    write = figures.write_figure

    def keep(figure: Figure, path: Path) -> None:
        caught.append(figure)
        write(figure, path)

    monkeypatch.setattr(figures, "write_figure", keep)
    return caught


def rows(num_epochs: int) -> list[dict]:
    return [
        {
            "epoch": epoch,
            "train_loss": 2.0 / epoch,
            "train_accuracy": 0.1 * epoch,
            "val_loss": 1.0,
            "val_accuracy": {1: 0.2, 2: 0.6, 3: 0.6}.get(epoch, 0.3),
        }
        for epoch in range(1, num_epochs + 1)
    ]


def test_curves_mark_the_first_best_epoch(tmp_path, drawn):
    save_curves(rows(5), tmp_path / "curves.png")
    assert "best epoch 2" in texts(drawn[0])
    assert "best 60.0 %" in texts(drawn[0])
    accuracy = drawn[0].axes[1]
    assert accuracy.get_ylim() == (0, 100)
    assert accuracy.get_lines()[0].get_ydata() == pytest.approx([10, 20, 30, 40, 50])
    assert ink(tmp_path / "curves.png", BLUE) > 200
    assert ink(tmp_path / "curves.png", VERMILLION) > 200


def test_one_epoch_is_visible(tmp_path):
    save_curves(rows(1), tmp_path / "curves.png")
    assert ink(tmp_path / "curves.png", BLUE) > 20


@pytest.mark.filterwarnings("error")
def test_curves_without_validation_or_finite_loss(tmp_path, drawn):
    history = [
        {"epoch": 1, "train_loss": float("nan"), "train_accuracy": 0.1, "val_loss": None, "val_accuracy": None},
        {"epoch": 2, "train_loss": float("inf"), "train_accuracy": 0.2},
    ]
    save_curves(history, tmp_path / "curves.png")
    assert "no finite values" in texts(drawn[0])
    assert not any("best" in text for text in texts(drawn[0]))
    save_curves([], tmp_path / "curves.png")
    assert "no epochs yet" in texts(drawn[1])


@pytest.mark.filterwarnings("error")
def test_confusion_shows_counts_readably(tmp_path, drawn):
    save_confusion([[30, 2], [0, 0]], ("calm", "sad"), tmp_path / "confusion.png", "test")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["30", "2", "0", "0"]
    assert axes.texts[0].get_color() == "white"
    assert axes.texts[1].get_color() != "white"
    shares = np.asarray(axes.images[0].get_array())
    assert shares == pytest.approx(np.array([[93.75, 6.25], [0, 0]]))
    assert axes.get_ylabel() == "Shown"
    assert axes.get_xlabel() == "Predicted"


def test_per_class_has_numbers_chance_and_gaps(tmp_path, drawn):
    values = {"calm": 0.256, "sad": 1.0, "angry": None, "happy": 0.0}
    save_per_class(values, tmp_path / "bars.png", "test")
    assert {"26", "100", "0", "no clips", "chance 25.0 %"} <= texts(drawn[0])
    assert [bar.get_height() for bar in drawn[0].axes[0].patches] == pytest.approx([25.6, 100, 0])
    assert drawn[0].axes[0].get_ylim() == (0, 100)


@pytest.mark.filterwarnings("error")
def test_names_are_printed_as_they_stand(tmp_path, drawn):
    save_confusion(np.eye(8, dtype=int), AWKWARD, tmp_path / "confusion.png", "$\\frac{ _title_ " * 6)
    save_per_class(dict.fromkeys(AWKWARD, 0.5), tmp_path / "bars.png", "$\\frac{ _title_ " * 6)
    example = Misclassified("$\\frac{.mp4", np.zeros((6, 3, 8, 8), np.uint8), "$\\frac{", "$_{", 0.5)
    save_misclassified([example], tmp_path / "sheet.png")
    for figure in drawn[:2]:
        assert {"$\\frac{", "$x$", "under_score"} <= texts(figure)
    long_ones = [text for text in texts(drawn[0]) if text.startswith("a_name_")]
    assert len(long_ones) == 1
    assert len(long_ones[0]) <= 24


def sheet_of(count: int, height: int = 8, width: int = 8) -> list[Misclassified]:
    return [
        Misclassified(f"clip{i}.mp4", np.full((6, 3, height, width), 20 * i, np.uint8), "sad", "calm", 0.5)
        for i in range(count)
    ]


def test_misclassified_shows_the_first_eight_in_order(tmp_path, drawn):
    save_misclassified(sheet_of(10), tmp_path / "sheet.png")
    shades = [int(np.asarray(axes.images[0].get_array()).flat[0]) for axes in drawn[0].axes]
    assert shades == [20 * row for row in range(8) for _ in range(6)]
    titles = [part.get_suptitle() for part in drawn[0].subfigs]
    assert all(f"clip{i}.mp4" in title for i, title in enumerate(titles))
    assert "true: sad" in titles[0]
    assert "predicted: calm (50 %)" in titles[0]


def test_misclassified_frames_keep_their_channels(tmp_path):
    frames = np.zeros((6, 3, 40, 70), np.uint8)
    frames[:, 0] = 255
    save_misclassified([Misclassified("a", frames, "sad", "calm", 0.5)], tmp_path / "sheet.png")
    assert ink(tmp_path / "sheet.png", "#FF0000") > 6 * 60 * 100


def test_nothing_misclassified_is_said(tmp_path, drawn):
    save_misclassified([], tmp_path / "sheet.png")
    assert "no misclassified clips" in texts(drawn[0])
    assert (tmp_path / "sheet.png").stat().st_size > 0


@pytest.mark.parametrize(("shape", "dtype"), [((5, 3, 4, 4), np.uint8), ((6, 3, 4, 4), np.float32)])
def test_frames_of_another_kind_are_an_error(shape, dtype):
    with pytest.raises(ValueError, match=r"must be uint8 \(6, 3, h, w\)"):
        Misclassified("a", np.zeros(shape, dtype), "sad", "calm", 0.5)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def torn(self: Figure, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        save_misclassified([], path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_neither_pyplot_nor_torch_is_imported():
    code = "import sys, fastemo.report.figures; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    result = command(sys.executable, "-c", code)
    assert result.stdout.strip() == "set()"
