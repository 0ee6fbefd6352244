"""Metrics agree with scikit-learn where it defines them, and with sums done by hand."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from fastemo.evaluation.metrics import accuracy_interval, compute_metrics, confusion

NAMES = ("neutral", "calm", "happy", "sad")
CLIPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def test_a_table_done_by_hand() -> None:
    labels = [0, 0, 0, 0, 1, 1, 2]
    predictions = [0, 0, 0, 1, 1, 0, 0]
    metrics = compute_metrics(labels, predictions, NAMES)
    assert metrics.confusion.tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert metrics.confusion.dtype == np.int64
    assert metrics.accuracy == 4 / 7
    assert metrics.uar == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    # F1 = 2 TP / (shown + predicted); sad is neither shown nor predicted.
    assert metrics.macro_f1 == pytest.approx((6 / 9 + 2 / 4 + 0) / 3)
    assert metrics.per_class == {"neutral": 0.75, "calm": 0.5, "happy": 0.0, "sad": None}
    assert metrics.num_clips == 7


def test_rows_are_shown_and_columns_predicted() -> None:
    assert confusion([0], [1], 2).tolist() == [[0, 1], [0, 0]]


def test_a_class_only_predicted_counts_in_f1_and_not_in_uar() -> None:
    metrics = compute_metrics([0, 0], [0, 3], NAMES)
    assert metrics.uar == 0.5
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 0) / 2)


@given(CLIPS)
@settings(max_examples=60, deadline=None)
def test_agrees_with_scikit_learn(clips: list[tuple[int, int]]) -> None:
    labels, predictions = map(list, zip(*clips, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = compute_metrics(labels, predictions, NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uar = balanced_accuracy_score(labels, predictions)
    assert metrics.accuracy == pytest.approx(accuracy_score(labels, predictions))
    assert metrics.uar == pytest.approx(uar)
    assert metrics.macro_f1 == pytest.approx(f1_score(labels, predictions, average="macro", zero_division=0))
    assert metrics.confusion.sum() == metrics.num_clips == len(clips)
    for index, name in enumerate(NAMES):
        of_class = [predicted == index for shown, predicted in clips if shown == index]
        assert metrics.per_class[name] == (sum(of_class) / len(of_class) if of_class else None)


def test_json_is_plain() -> None:
    written = json.loads(json.dumps(compute_metrics([0, 1], [0, 0], ("a", "b")).to_json(), allow_nan=False))
    assert written == {
        "accuracy": 0.5,
        "uar": 0.5,
        "macro_f1": pytest.approx(1 / 3),
        "per_class": {"a": 1.0, "b": 0.0},
        "confusion": [[1, 0], [1, 0]],
        "num_clips": 2,
    }


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "no clips"),
        ([0, 1], [0], "one number a clip"),
        ([[0]], [[0]], "one number a clip"),
        ([4], [0], r"labels range 4 \.\. 4, must be 0 \.\. 3"),
        ([0], [-1], r"predictions range -1"),
        ([0.5], [0], "labels are float64, must be integers"),
    ],
)
def test_what_cannot_be_measured_is_an_error(labels: list, predictions: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_metrics(labels, predictions, NAMES)


def test_interval_holds_the_accuracy_and_narrows_with_clips() -> None:
    few = accuracy_interval(np.arange(40) % 4 > 0, [f"take{i}" for i in range(40)])
    many = accuracy_interval(np.arange(1000) % 4 > 0, [f"take{i}" for i in range(1000)])
    assert 0 <= few[0] < many[0] < 0.75 < many[1] < few[1] <= 1
    # The normal approximation, good at 1000: 0.75 +- 1.96 sqrt(0.75 * 0.25 / 1000).
    assert many == pytest.approx((0.7232, 0.7768), abs=0.004)


def test_the_two_files_of_a_take_are_no_second_witness() -> None:
    correct = np.arange(100) % 3 > 0
    takes = [f"take{i}" for i in range(100)]
    once = accuracy_interval(correct, takes)
    assert accuracy_interval(np.repeat(correct, 2), list(np.repeat(takes, 2))) == once
    alone = accuracy_interval(np.repeat(correct, 2), [f"clip{i}" for i in range(200)])
    assert alone[1] - alone[0] < 0.85 * (once[1] - once[0])


def test_interval_is_repeatable_and_follows_its_level_and_seed() -> None:
    correct, takes = np.arange(50) % 2 == 0, [f"take{i // 2}" for i in range(50)]
    assert accuracy_interval(correct, takes) == (0.5, 0.5)
    takes = [f"take{i}" for i in range(50)]
    wide, narrow = accuracy_interval(correct, takes, level=0.99), accuracy_interval(correct, takes, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert accuracy_interval(correct, takes, seed=3) == accuracy_interval(correct, takes, seed=3)
    drawn = {accuracy_interval(correct, takes, seed=seed, num_resamples=7) for seed in range(5)}
    assert len(drawn) > 1


def test_interval_is_a_point_where_nothing_varies() -> None:
    assert accuracy_interval([True] * 5, list("abcde")) == (1.0, 1.0)
    assert accuracy_interval([True, False], ["one", "one"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("correct", "groups", "options", "message"),
    [
        ([], [], {}, "no clips"),
        ([True], ["a", "b"], {}, "one a clip"),
        ([True], ["a"], {"level": 1.0}, "between 0 and 1"),
        ([True], ["a"], {"num_resamples": 0}, "at least 1"),
    ],
)
def test_interval_errors(correct: list, groups: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_interval(correct, groups, **options)
