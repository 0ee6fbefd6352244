"""Folds pooled: a study's rows, its table in the terminal and its page, from finished runs written by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import command
from study_folder import QUIET, cells_of, parsed

from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.evaluation.evaluate import Predictions, summarise, write_predictions
from fastemo.evaluation.tables import joined, read_predictions
from fastemo.experiment.study.grid import read_study
from fastemo.experiment.study.runner import run_study
from fastemo.experiment.study.summary import parts_result
from fastemo.report.page import write_page

NAMES = ("sad", "calm")
# By fold: person, label, prediction. Fold 0 of 4 clips: accuracy 3/4, UAR (2/3 + 1) / 2; fold 1 of 2 clips: 1/2, 1/2.
FOLDS = (
    [("A", 0, 0), ("A", 0, 0), ("A", 0, 1), ("A", 1, 1)],
    [("B", 0, 0), ("B", 1, 0)],
)
# Confusions of the best epochs on test: together sad 4 of 4, calm 1 of 2.
BEST = ([[3, 0], [0, 1]], [[1, 0], [1, 0]])


def write_fold(
    folder: Path, rows: list[tuple[str, int, int]], best: list[list[int]] | None, losses=(0.7, 0.5), **head: object
) -> None:
    clips = [Clip(key=f"{person}{i}.mp4", subject=person) for i, (person, _, _) in enumerate(rows)]
    labels, predicted = (np.array(column) for column in list(zip(*rows, strict=True))[1:])
    predictions = Predictions(tuple(it.key for it in clips), labels, np.eye(2, dtype=np.float32)[predicted])
    test = {"protocol": "kfold5", "corpus": "/mine", "epoch": 1, "cost": None, **head, "probes": None}
    if best is not None:
        test["best_epoch_on_test"] = {"epoch": 2, "accuracy": 1.0, "uar": 1.0, "confusion": best}
    folder.mkdir(parents=True)
    write_predictions(folder / "predictions.csv", predictions, clips, NAMES)
    lines = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "test.json").write_text(json.dumps({**summarise(predictions, clips, NAMES), **test}))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    part = {"name": "one", "base": {"model.name": "early_cnn"}, "grid": {"corpus.fold": [0, 1]}}
    path = tmp_path / "study.yaml"
    base = {"model.pretrained": False, "corpus.protocol": "kfold5", "video.num_frames": 2}
    path.write_text(json.dumps({"name": "made", "base": base, "parts": [part]}))
    return path


def test_a_rows_figures_are_those_of_one_confusion_matrix(source, tmp_path, capsys):
    made, out = read_study(source), tmp_path / "out"
    for cell, rows, best in zip(made.cells, FOLDS, BEST, strict=True):
        write_fold(out / "cells" / cell.name, rows, best, subjects="shared", fold=cell.config.corpus.fold)
    (part,) = run_study(made, source, out, Console())["parts"]
    (row,) = part["rows"]
    # Sad 3 of 4 and calm 1 of 2 over both folds.
    assert (row["accuracy"], row["uar"]) == pytest.approx((4 / 6, (3 / 4 + 1 / 2) / 2))
    assert (row["num_folds"], row["num_clips"], row["num_people"]) == (2, 6, 2)
    assert row["interval"] == row["intervals"]["takes"]["accuracy"]
    assert row["intervals"]["actors"]["accuracy"] == pytest.approx([1 / 2, 3 / 4])
    assert row["best_epoch_on_test"] == pytest.approx({"accuracy": 5 / 6, "uar": (1 + 1 / 2) / 2})
    shown = capsys.readouterr().out
    for text in ("66.7%", "50.0% to 75.0%", "62.5%", "optimistic", "83.3%"):
        assert text in shown
    assert "note: People are in several splits: the accuracy is not for unseen subjects." in shown
    write_page([out], tmp_path / "page.html", QUIET, corpus_root=tmp_path)
    tree = parsed((tmp_path / "page.html").read_text())
    (cells,) = cells_of(tree.section("results").all("table")[0])
    low, high = row["interval"]
    assert cells[1] == f"66.7 %{100 * low:.1f} to {100 * high:.1f} %"
    assert cells[2:5] == ["50.0 to 75.0 %UAR 50.0 to 83.3 %; 2 people", "83.3 %UAR 75.0 %", "62.5 %"]
    (recalls,) = cells_of(tree.section("classes").all("table")[0])
    assert recalls[1:] == ["75 %", "50 %"]
    assert tree.text.count("the accuracy is not for unseen subjects") == 3, "with the finding, the table and the model"


def test_other_built_in_corpora_are_other_people(tmp_path):
    """Two corpora whose clips have the same names are pooled, and two recipes compared with the first."""
    part = {"name": "one", "compare": "first", "grid": {"train.lr": [1, 2, 3], "corpus.synthetic.seed": [1, 2]}}
    source, out = tmp_path / "study.yaml", tmp_path / "out"
    source.write_text(json.dumps({"name": "made", "base": {"model.name": "early_cnn"}, "parts": [part]}))
    made = read_study(source)
    for number, cell in enumerate(made.cells):
        write_fold(out / "cells" / cell.name, [("A", 0, 0), ("B", 1, int(number > 1))], None)
    (part,) = run_study(made, source, out, QUIET)["parts"]
    assert [len(row["cells"]) for row in part["rows"]] == [2, 2, 2]
    assert [(row["num_clips"], row["num_people"]) for row in part["rows"]] == [(4, 4)] * 3
    assert [row["accuracy"] for row in part["rows"]] == [0.5, 1, 1]
    assert [(it["a"], it["b"]) for it in part["comparisons"]] == [
        (part["rows"][i]["label"], part["rows"][0]["label"]) for i in (1, 2)
    ]


@pytest.mark.parametrize(
    ("losses", "has_learned"),
    [((0.7, 0.5), True), ((0.7, 0.68), False), ((1.2, 0.67), False), ((0.3, 0.29), False), ((0.7, None), None)],
)
def test_a_row_whose_training_loss_did_not_fall_says_so(source, tmp_path, losses, has_learned):
    """With two classes the loss of equal probabilities is 0.69."""
    made, out = read_study(source), tmp_path / "out"
    for cell, rows in zip(made.cells, FOLDS, strict=True):
        write_fold(out / "cells" / cell.name, rows, None, losses if rows is FOLDS[1] else (0.7, 0.5))
    (row,) = run_study(made, source, out, QUIET)["parts"][0]["rows"]
    assert row["has_learned"] is has_learned
    write_page([out], tmp_path / "page.html", QUIET, corpus_root=tmp_path)
    text = parsed((tmp_path / "page.html").read_text()).section("results").text
    assert ("did not learn: the training loss did not fall" in text) == (has_learned is False)


def test_a_fold_that_is_missing_leaves_the_row_without_figures(source, tmp_path):
    made, out = read_study(source), tmp_path / "out"
    write_fold(out / "cells" / made.cells[0].name, FOLDS[0], None)
    (part,) = parts_result(made, out, {made.cells[0].name})
    assert part["rows"][0]["accuracy"] is None
    write_fold(out / "cells" / made.cells[1].name, FOLDS[1], BEST[1])
    (part,) = parts_result(made, out, {cell.name for cell in made.cells})
    (row,) = part["rows"]
    assert row["accuracy"] == pytest.approx(4 / 6)
    assert row["best_epoch_on_test"] is None, "a fold without it"


@pytest.mark.slow
def test_the_command_pools_folds_and_tells_the_best_epoch_on_test(source, few_clips, tmp_path):
    small = ["--video.size", "20", "--augment.crop_size", "16", "--train.epochs", "2"]
    words = [*small, "--corpus.root", few_clips, "--train.test_every_epoch", "true", "--out", out := tmp_path / "out"]
    done = command(sys.executable, "-m", "fastemo.cli", "study", source, *words)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((out / "study.json").read_text())["parts"][0]["rows"]
    table = joined([read_predictions(out / "cells" / name / "predictions.csv") for name in row["cells"]])
    assert (row["num_folds"], row["num_clips"], row["num_people"]) == (2, len(table.keys), 10)
    assert row["accuracy"] == pytest.approx(table.correct.mean())
    tests = [json.loads((out / "cells" / name / "test.json").read_text()) for name in row["cells"]]
    hits = sum(np.trace(it["best_epoch_on_test"]["confusion"]) for it in tests)
    assert row["best_epoch_on_test"]["accuracy"] == pytest.approx(hits / len(table.keys))
    for text in (f"{row['accuracy']:.1%}", f"{row['uar']:.1%}", "UAR", "optimistic"):
        assert text in done.stdout
