"""A study file -> cells: every combination once, equal configurations once, and what is wrong with its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY

from fastemo.experiment.study.grid import read_study, with_folder

PART = {"name": "one", "base": {"model.pretrained": False}, "grid": {"model.name": ["early_cnn", "late_fusion"]}}


@pytest.fixture
def study_file(tmp_path):
    def write(**content: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps({"name": "made", "parts": [PART], **content}))
        return path

    return write


class TestCells:
    def test_a_grid_is_every_combination_in_order(self, study_file):
        grid = {"model.name": ["early_cnn", "late_fusion"], "video.num_frames": [2, 3]}
        study = read_study(study_file(parts=[{"name": "one", "grid": grid}]))
        shown = [(cell.config.model.name, cell.config.video.num_frames) for cell in study.cells]
        assert shown == [("early_cnn", 2), ("early_cnn", 3), ("late_fusion", 2), ("late_fusion", 3)]
        assert [row.label for row in study.parts[0].rows] == [f"{name}, {number} frames" for name, number in shown]

    def test_cells_are_listed_and_multiplied_by_the_grid(self, study_file):
        part = {
            "name": "one",
            "cells": [{"model": {"name": "early_cnn"}}, {"model.name": "r3d18", "train.epochs": 5}],
            "grid": {"augment.enabled": [True, False]},
        }
        study = read_study(study_file(parts=[part]))
        configs = [cell.config for cell in study.cells]
        assert [(it.model.name, it.train.epochs, it.augment.enabled) for it in configs] == [
            *(("early_cnn", 100, True), ("early_cnn", 100, False)),
            *(("r3d18", 5, True), ("r3d18", 5, False)),
        ]
        assert study.parts[0].rows[2].label == "r3d18, 5 epochs, augmented"

    def test_base_of_the_part_goes_over_base_of_the_study(self, study_file):
        base = {"model.pretrained": False, "train": {"epochs": 3, "lr": "1e-3"}}
        part = {**PART, "base": {"train.epochs": 4}}
        (cell, _) = read_study(study_file(base=base, parts=[part])).cells
        assert (cell.config.train.epochs, cell.config.train.lr, cell.config.model.pretrained) == (4, 1e-3, False)

    def test_seeds_and_folds_make_one_row(self, study_file):
        part = {**PART, "grid": {**PART["grid"], "corpus.fold": [0, 1]}}
        study = read_study(study_file(base={"corpus.protocol": "kfold5"}, seeds=[3, 4], parts=[part]))
        assert len(study.cells) == 8
        by_name = {cell.name: cell.config for cell in study.cells}
        for row in study.parts[0].rows:
            members = [(by_name[name].corpus.fold, by_name[name].seed) for name in row.cells]
            assert sorted(members) == [(0, 3), (0, 4), (1, 3), (1, 4)]
        assert [row.label for row in study.parts[0].rows] == ["early_cnn", "late_fusion"]

    @pytest.mark.parametrize(("protocol", "arguments"), [("kfold5", []), ("loso", ["--corpus.protocol", "kfold5"])])
    def test_all_folds_are_those_of_the_protocol(self, study_file, protocol, arguments):
        part = {**PART, "grid": {**PART["grid"], "corpus.fold": [*range(5)]}}
        listed = read_study(study_file(base={"corpus.protocol": "kfold5"}, parts=[part]))
        found = read_study(study_file(base={"corpus.protocol": protocol, "corpus.fold": "all"}), arguments)
        assert [cell.name for cell in found.cells] == [cell.name for cell in listed.cells]
        assert found.parts == listed.parts
        (one, _) = read_study(
            study_file(base={"corpus": {"protocol": "kfold5", "fold": "all"}}), ["--corpus.fold=3"]
        ).cells
        assert one.config.corpus.fold == 3

    def test_a_run_may_start_from_the_run_of_an_earlier_part(self, study_file, tmp_path):
        start = {"name": "start", "base": {"model.name": "late_fusion", "seed": 5}}
        tuned = {"name": "tuned", "base": {"model.weights": "part:start"}, "grid": {"train.freeze_epochs": [0, 1]}}
        one, *others = read_study(study_file(parts=[start, tuned])).cells
        assert [(it.start, str(it.config.model.weights)) for it in others] == [(one.name, f"cells/{one.name}")] * 2
        assert one.start is None
        assert with_folder(others[0], tmp_path / "cells").model.weights == tmp_path / "cells" / one.name
        (longer, *changed) = read_study(study_file(parts=[{**start, "grid": {"train.epochs": [3]}}, tuned])).cells
        assert longer.name != one.name
        assert {it.name for it in changed}.isdisjoint(it.name for it in others), "they start from other weights"

    def test_seeds_of_the_built_in_corpus_make_one_row(self, study_file):
        part = {**PART, "grid": {"model.name": ["early_cnn"], "corpus.synthetic.seed": [1, 2, 3]}}
        (row,) = read_study(study_file(parts=[part])).parts[0].rows
        assert len(row.cells) == 3

    def test_a_run_that_tests_each_epoch_is_another(self, study_file):
        names, same, others = (
            {
                cell.name
                for cell in read_study(study_file(), [f"--train.test_every_epoch={value}"] if value else []).cells
            }
            for value in ("", "false", "true")
        )
        assert names == same
        assert not names & others

    def test_equal_configurations_of_two_parts_are_one_cell(self, study_file):
        other = {"name": "two", "base": {"model.pretrained": False}, "cells": [{"model.name": "early_cnn"}]}
        study = read_study(study_file(parts=[PART, other]))
        assert len(study.cells) == 2
        assert study.parts[1].rows[0].cells == study.parts[0].rows[0].cells

    def test_only_the_clip_store_makes_no_other_cell(self, study_file):
        path = study_file()
        names = [cell.name for cell in read_study(path).cells]
        assert [cell.name for cell in read_study(path, ["--store.tier", "none"]).cells] == names
        assert not set(names) & {cell.name for cell in read_study(path, ["--train.lr", "2e-4"]).cells}
        assert not set(names) & {cell.name for cell in read_study(path, ["--corpus.root=/else"]).cells}

    def test_options_hold_for_every_cell(self, study_file):
        cells = read_study(study_file(), ["--train.epochs=2", "--corpus.root", "/data"]).cells
        assert {(cell.config.train.epochs, str(cell.config.corpus.root)) for cell in cells} == {(2, "/data")}
        assert cells[0].settings["train.epochs"] == 2

    def test_an_option_may_go_over_a_cells_own_value_where_cells_stay_apart(self, study_file):
        part = {"name": "one", "cells": [{"model.name": "early_cnn"}, {"model.name": "r3d18", "train.epochs": 5}]}
        study = read_study(study_file(parts=[part]), ["--train.epochs", "1"])
        assert [cell.config.train.epochs for cell in study.cells] == [1, 1]
        assert [row.label for row in study.parts[0].rows] == ["early_cnn", "r3d18, 1 epochs"]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({"parts": []}, [], "parts is empty"),
        ({"parts": 3}, [], "parts must be a list, not 3"),
        ({"parts": [3]}, [], "part 1 must hold keys and values"),
        ({"parts": [{"grid": {}}]}, [], "part 1 needs the key name"),
        ({"parts": [PART, PART]}, [], "two parts have the same name"),
        ({"parts": [{**PART, "cell": []}]}, [], "part 1 has the unknown key 'cell'"),
        ({"parts": [{**PART, "grid": {"model.nme": ["a"]}}]}, [], "part one: unknown key model.nme"),
        ({"parts": [{**PART, "grid": {"model.name": "early_cnn"}}]}, [], "model.name must be a list of values"),
        ({"parts": [{**PART, "grid": {"model.name": []}}]}, [], "part one has an empty list of values"),
        ({"parts": [{**PART, "base": {"train.epochs": [1]}}]}, [], "train.epochs must not be a list of values"),
        ({"base": {"train.lr": "fast"}}, [], "part one: train.lr must be float, not fast"),
        ({"base": {"runs_dir": "x"}}, [], "runs_dir is set by the study"),
        ({"base": {"train": {"lr": 1}, "train.lr": 2}}, [], "base sets train.lr twice"),
        ({"seeds": []}, [], "seeds must be different numbers, at least one"),
        ({"seeds": [1, 1]}, [], "seeds must be different numbers, at least one"),
        ({"name": "a/b"}, [], "name must be letters"),
        ({"title": "x"}, [], "the study has the unknown key 'title'"),
        ({}, ["--model.name", "r3d18"], "--model.name cannot be set for all runs: part one compares"),
        ({}, ["--runs_dir", "x"], "--runs_dir is set by the study"),
        ({}, ["--train.lr"], "--train.lr needs a value"),
        ({}, ["train.lr", "1"], "train.lr is not an option"),
        ({}, ["--train.lr=1", "--train.lr=2"], "--train.lr is given twice"),
        ({}, ["--train.lrr=1"], "part one: unknown key train.lrr"),
        (
            {"base": {"corpus.fold": "all"}},
            [],
            "part one: corpus.fold all needs a corpus.protocol whose folds are known",
        ),
        ({}, ["--corpus.fold=all", "--corpus.protocol=loso"], "list those of loso, such as [0, 1, 2]"),
        ({"seeds": list(range(1001))}, [], "more than 1000 runs"),
        ({"parts": [{**PART, "compare": "last"}]}, [], "compare must be one of all, first, not 'last'"),
        (
            {"parts": [PART, {**PART, "name": "two", "base": {"model.weights": "part:one"}}]},
            [],
            "part two: model.weights part:one must name an earlier part that has one run, not 2",
        ),
        (
            {"parts": [{**PART, "base": {"model.weights": "part:two"}}]},
            [],
            "part one: model.weights part:two must name an earlier part that has one run, not 0",
        ),
    ],
)
def test_what_is_wrong_is_named(study_file, content, arguments, message):
    path = study_file(**content)
    with pytest.raises(ValueError, match="^" + str(path)) as caught:
        read_study(path, arguments)
    assert message in str(caught.value)


def test_a_file_that_is_no_study(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_study(tmp_path / "none.yaml")
    path = tmp_path / "study.yaml"
    for text, message in (
        ("", "must hold keys"),
        ("- 1", "must hold keys"),
        ("a: &x 1\nb: *x", "alias"),
        ("a: !!python/name:os.system", "tag"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_study(path)


class TestShipped:
    """Every study file that comes with the project."""

    def test_each_is_read(self):
        num_cells = {"report": 45, "quick": 11, "recipes": 79, "kfold5": 25, "ablation": 39, "cross_validation": 5}
        studies = {path.stem: read_study(path) for path in (REPOSITORY / "configs/study").iterdir()}
        assert {name: len(study.cells) for name, study in studies.items()} == num_cells
        assert all(study.name == name and study.description for name, study in studies.items())

    def test_report_is_table_4(self):
        frames, small, large = read_study(REPOSITORY / "configs/study/report.yaml").parts
        assert [(row.settings["video.num_frames"], row.settings["augment.enabled"]) for row in frames.rows] == [
            (number, augmented) for number in (6, 10, 16) for augmented in (False, True)
        ]
        assert [row.settings["model.name"] for row in small.rows] == [row.settings["model.name"] for row in large.rows]
        assert len(small.rows) == 5
