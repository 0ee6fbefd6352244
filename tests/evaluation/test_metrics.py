"""Metrics agree with scikit-learn where it defines them, and with sums done by hand."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from fastemo.evaluation.metrics import compute_metrics

NAMES = ("neutral", "calm", "happy", "sad")
CLIPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def test_a_table_done_by_hand():
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


@given(CLIPS)
@settings(max_examples=60)
def test_agrees_with_scikit_learn(clips):
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
    np.testing.assert_array_equal(metrics.confusion, confusion_matrix(labels, predictions, labels=range(4)))
    assert metrics.confusion.sum() == metrics.num_clips == len(clips)
    for index, name in enumerate(NAMES):
        of_class = [predicted == index for shown, predicted in clips if shown == index]
        assert metrics.per_class[name] == (sum(of_class) / len(of_class) if of_class else None)
