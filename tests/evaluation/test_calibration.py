"""Calibration against a plain loop over the bins, and what is known of extreme models."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastemo.evaluation.calibration import calibration

CLIPS = st.lists(
    st.tuples(st.booleans(), st.one_of(st.floats(0, 1), st.integers(0, 10).map(lambda tenth: tenth / 10))),
    min_size=1,
    max_size=50,
)


@given(CLIPS, st.integers(1, 15))
@settings(max_examples=100, deadline=None)
def test_agrees_with_a_plain_loop(clips, num_bins):
    correct, confidence = zip(*clips, strict=True)
    found = calibration(correct, confidence, num_bins=num_bins)
    ece, counted = 0.0, 0
    assert len(found["bins"]) == found["num_bins"] == num_bins
    for m, row in enumerate(found["bins"], start=1):
        low, high = (m - 1) / num_bins, m / num_bins
        inside = [(right, sure) for right, sure in clips if (low < sure or m == 1) and sure <= high]
        assert (row["low"], row["high"], row["num_clips"]) == (low, high, len(inside))
        counted += len(inside)
        if inside:
            accuracy = sum(right for right, _ in inside) / len(inside)
            mean = math.fsum(sure for _, sure in inside) / len(inside)
            assert row["accuracy"] == pytest.approx(accuracy)
            assert row["confidence"] == pytest.approx(mean)
            ece += len(inside) / len(clips) * abs(accuracy - mean)
        else:
            assert row["accuracy"] is row["confidence"] is None
    assert counted == len(clips)
    assert found["ece"] == pytest.approx(ece)


def test_known_errors():
    assert calibration([True] * 4, [1.0] * 4)["ece"] == 0
    assert calibration([False] * 4, [1.0] * 4)["ece"] == 1
    assert calibration([True, True, True, False], [0.75] * 4)["ece"] == 0
    assert calibration([True, False], [0.9, 0.9])["ece"] == pytest.approx(0.4)


def test_a_probability_rounded_above_one_is_in_the_last_bin():
    assert calibration([True], [np.nextafter(1, 2)])["bins"][-1]["num_clips"] == 1
