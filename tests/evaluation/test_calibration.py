"""Calibration against a plain loop over the bins, what is known of extreme models, and temperatures known before."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastemo.evaluation.calibration import HIGHEST, LOWEST, calibration, fit_temperature, temperature_of
from fastemo.evaluation.evaluate import Predictions

CLIPS = st.lists(
    st.tuples(st.booleans(), st.one_of(st.floats(0, 1), st.integers(0, 10).map(lambda tenth: tenth / 10))),
    min_size=1,
    max_size=50,
)


@given(CLIPS, st.integers(1, 15))
@settings(max_examples=100)
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


def drawn(num_clips: int, num_classes: int, seed: int = 0):
    """Logits, and labels drawn with the probabilities that they give."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (num_clips, num_classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(1)


@pytest.mark.parametrize("temperature", [0.25, 0.8, 1, 1.7, 4])
@pytest.mark.parametrize("num_classes", [2, 8])
def test_a_known_temperature_is_recovered(temperature, num_classes):
    logits, labels = drawn(40_000, num_classes)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


@given(st.integers(2, 9), st.integers(1, 60), st.floats(0.1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_no_other_temperature_has_a_lower_cross_entropy(num_classes, num_clips, scale, seed):
    logits, labels = drawn(num_clips, num_classes, seed)
    logits *= scale

    def loss(temperature):
        powers = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
        targets = np.eye(num_classes)[labels]
        if (logits.argmax(1) == labels).all():
            targets = (1 + num_clips * targets) / (num_clips + num_classes)
        assert np.allclose(targets.sum(1), 1)
        return -(targets * np.log(np.maximum(powers / powers.sum(1, keepdims=True), 1e-300))).sum(1).mean()

    found = fit_temperature(logits, labels)
    assert LOWEST <= found <= HIGHEST
    assert all(loss(found) <= loss(other) * (1 + 1e-4) + 1e-6 for other in [1, *np.geomspace(LOWEST, HIGHEST, 50)])


@pytest.mark.parametrize("num_clips", [8, 80, 8000])
def test_a_split_without_an_error_gives_the_temperature_of_the_smoothed_targets(num_clips):
    labels = np.arange(num_clips) % 8
    found = fit_temperature(10 * np.eye(8)[labels], labels)
    # Where every clip's softmax is its target, (N + 1) to 1: 10 / T = log(N + 1).
    assert found == pytest.approx(10 / math.log(num_clips + 1), rel=1e-3)
    assert found > LOWEST


def test_without_a_better_temperature_it_is_1():
    assert fit_temperature(np.zeros((5, 3)), np.zeros(5, int)) == 1
    assert fit_temperature(np.full((5, 1), 3.0), np.zeros(5, int)) == 1


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.empty((0, 3)), [], "no clips"),
        ([[0.0, math.nan]], [0], "not a finite number"),
        ([[0.0, math.inf]], [0], "not a finite number"),
        ([[0.0, 1.0]], [0, 1], "one row and one number per clip"),
        ([0.0, 1.0], [0, 1], "one row and one number per clip"),
    ],
)
def test_what_has_no_temperature_is_an_error(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


@given(st.floats(LOWEST, HIGHEST), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_temperature_changes_no_prediction(temperature, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (20, 5)).astype(np.float32)
    logits[:10, 4] = np.nextafter(logits[:10].max(1), np.float32(np.inf))  # the highest by the least that there is
    predictions = Predictions(tuple(map(str, range(20))), rng.integers(0, 5, 20), logits)
    scaled = replace(predictions, temperature=temperature)
    assert scaled.predicted.tolist() == predictions.predicted.tolist()
    assert scaled.correct.tolist() == predictions.correct.tolist()
    powers = np.exp(logits.astype(np.float64) / temperature)
    np.testing.assert_allclose(scaled.probabilities, powers / powers.sum(1, keepdims=True), rtol=1e-9)
    rows = np.array([3, 1])
    assert scaled.at(rows).probabilities.tolist() == scaled.probabilities[rows].tolist()


def test_a_runs_temperature(tmp_path):
    assert temperature_of(tmp_path) == 1, "it is not finished"
    path = tmp_path / "test.json"
    for content, expected in (({"accuracy": 1}, 1), ({"temperature": 1.37}, 1.37), ({"temperature": 2}, 2)):
        path.write_text(json.dumps(content))
        assert temperature_of(tmp_path) == expected


@pytest.mark.parametrize("value", ["0", "-1.5", "NaN", "Infinity", "1e999", "9" * 5000, "null", "true", '"1"', "[1]"])
def test_a_temperature_that_is_none_is_refused_by_file_and_key(tmp_path, value):
    (tmp_path / "test.json").write_text(f'{{"temperature": {value}}}')
    with pytest.raises(
        ValueError, match=r"test\.json: temperature must be a finite number above 0, not .{1,60}; restore"
    ):
        temperature_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "test.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"test\.json is damaged, restore or delete it"):
        temperature_of(tmp_path)
