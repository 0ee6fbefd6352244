"""Intervals by bootstrap: groups are drawn whole, twins count as one take, the truth lies inside as often as stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastemo.evaluation.metrics import compute_metrics
from fastemo.evaluation.uncertainty import (
    first_file_per_take,
    group_members,
    group_sums,
    interval_of_mean,
    resample,
    score_intervals,
)

NAMES = ("neutral", "calm", "happy", "sad")
CLIPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def some_table(seed: int, num_clips: int = 120, right: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Labels in turn, a share of them predicted right and the others anyhow."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_clips) % 4
    return labels, np.where(rng.random(num_clips) < right, labels, rng.integers(0, 4, num_clips))


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def test_a_resample_is_groups_drawn_whole_and_added_up():
    member, num_groups = group_members(["b", "a", "b", "c"])
    assert (member.tolist(), num_groups) == ([1, 0, 1, 2], 3)
    sums = group_sums(member, num_groups, [[1, 10], [1, 20], [1, 40], [1, 80]])
    assert sums.tolist() == [[1, 20], [2, 50], [1, 80]]
    rng = np.random.default_rng(7)
    expected = [rng.multinomial(3, [1 / 3] * 3) @ sums for _ in range(50)]
    np.testing.assert_array_equal(resample(sums, num_resamples=50, seed=7), expected)


def test_blocks_of_draws_change_nothing(monkeypatch):
    sums = np.random.default_rng(0).integers(0, 9, size=(11, 2, 2))
    whole = resample(sums, num_resamples=100)
    monkeypatch.setattr("fastemo.evaluation.uncertainty._DRAWS_AT_ONCE", 77)
    np.testing.assert_array_equal(resample(sums, num_resamples=100), whole)


@given(CLIPS, st.integers(0, 5))
@settings(max_examples=40)
def test_intervals_agree_with_metrics_of_clips_drawn_one_by_one(clips, seed):
    labels, predicted = map(np.array, zip(*clips, strict=True))
    takes = [f"take{i // 2:03d}" for i in range(len(labels))]
    found = score_intervals(labels, predicted, takes, 4, num_resamples=20, seed=seed)
    number, num_takes = group_members(takes)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(20):
        times = rng.multinomial(num_takes, np.full(num_takes, 1 / num_takes))
        rows = np.repeat(np.arange(len(labels)), times[number])
        drawn.append(compute_metrics(labels[rows], predicted[rows], NAMES))
    for name, interval in found.items():
        expected = np.quantile([getattr(metrics, name) for metrics in drawn], [0.025, 0.975])
        assert interval == pytest.approx(tuple(expected))


@given(CLIPS)
@settings(max_examples=40)
def test_twins_of_every_clip_change_no_interval(clips):
    labels, predicted = map(np.array, zip(*clips, strict=True))
    takes = names("take", len(labels))
    once = score_intervals(labels, predicted, takes, 4, num_resamples=200)
    twice = score_intervals(np.repeat(labels, 2), np.repeat(predicted, 2), np.repeat(takes, 2), 4, num_resamples=200)
    assert set(once) == {"accuracy", "uar", "macro_f1"}
    assert twice == once


def test_same_input_same_interval():
    labels, predicted = some_table(0)
    takes = names("take", 120)
    found = score_intervals(labels, predicted, takes, 4)
    order = np.random.default_rng(1).permutation(120)
    assert score_intervals(labels[order], predicted[order], [takes[i] for i in order], 4) == found
    assert score_intervals(labels, predicted, takes, 4, seed=1) != found


def test_accuracy_is_one_number_by_either_way():
    labels, predicted = some_table(4)
    takes = [f"take{i // 2}" for i in range(120)]
    both = score_intervals(labels, predicted, takes, 4)["accuracy"]
    assert both == interval_of_mean(labels == predicted, takes)


@pytest.mark.parametrize("twins", [1, 2])
def test_the_truth_lies_inside_as_often_as_promised(twins):
    """300 tests of 100 takes by a model that is right 70 % of the time: some 95 % of the intervals hold 0.7."""
    rng = np.random.default_rng(11)
    takes = list(np.repeat(names("take", 100), twins))
    inside = 0
    for _ in range(300):
        low, high = interval_of_mean(np.repeat(rng.random(100) < 0.7, twins), takes, num_resamples=400)
        inside += low <= 0.7 <= high
    assert 0.90 <= inside / 300 <= 0.985


def test_of_twins_the_video_only_file_is_taken():
    takes = ["x", "y", "x", "z", "w", "w"]
    assert first_file_per_take(takes, [1, 1, 2, 0, 2, 1]).tolist() == [1, 2, 3, 4]


def test_interval_holds_the_accuracy_and_narrows_with_clips():
    few, many = (interval_of_mean(np.arange(count) % 4 > 0, names("take", count)) for count in (40, 1000))
    assert 0 <= few[0] < many[0] < 0.75 < many[1] < few[1] <= 1
    # The normal approximation, good at 1000: 0.75 +- 1.96 sqrt(0.75 * 0.25 / 1000).
    assert many == pytest.approx((0.7232, 0.7768), abs=0.004)


def test_interval_follows_its_level_and_seed():
    correct, takes = np.arange(50) % 2 == 0, names("take", 50)
    wide, narrow = interval_of_mean(correct, takes, level=0.99), interval_of_mean(correct, takes, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert interval_of_mean(correct, takes, seed=3) == interval_of_mean(correct, takes, seed=3)
    assert len({interval_of_mean(correct, takes, seed=seed, num_resamples=7) for seed in range(5)}) > 1


def test_interval_is_a_point_where_nothing_varies():
    assert interval_of_mean([True] * 5, list("abcde")) == (1.0, 1.0)
    assert interval_of_mean([True, False], ["one", "one"]) == (0.5, 0.5)
