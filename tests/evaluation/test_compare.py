"""Models compared: the tests agree with SciPy's and plain references, twins count once, other clips are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from fastemo.corpus.ravdess import EMOTIONS
from fastemo.corpus.synthetic.action_units import PAIRS
from fastemo.evaluation.compare import (
    PredictionTable,
    compare,
    holm,
    mcnemar,
    order_accuracy,
    order_counts,
    pooled,
)
from fastemo.evaluation.metrics import confusion
from fastemo.evaluation.tables import joined
from fastemo.evaluation.uncertainty import interval_of_mean

P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def table(correct: np.ndarray, *, twins: bool = False, source: str = "one") -> PredictionTable:
    """Clips of two classes; with twins, `correct` holds the audio-video file and then the video-only one of each."""
    count = len(correct)
    labels = np.arange(count) // (2 if twins else 1) % 2
    predicted = np.where(correct, labels, 1 - labels)
    return PredictionTable(
        source=source,
        keys=tuple(f"clip{i:04d}" for i in range(count)),
        class_names=("sad", "disgust"),
        labels=labels,
        predicted=predicted,
        probabilities=np.eye(2)[predicted],
        takes=tuple(f"take{i // (2 if twins else 1):04d}" for i in range(count)),
        actors=np.ones(count, dtype=np.int64),
        people=("1",) * count,
        modalities=np.array([i % 2 + 1 if twins else 2 for i in range(count)]),
    )


def drawn(seed: int, share: float, count: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=200)
def test_mcnemar_agrees_with_scipy(only_a, only_b):
    found = mcnemar(only_a, only_b)
    differing = only_a + only_b
    if differing == 0:
        assert found == 1
    elif differing < 25:
        assert found == binomtest(min(only_a, only_b), differing).pvalue
    else:
        corrected = max(abs(only_a - only_b) - 1, 0) ** 2 / differing
        assert found == pytest.approx(1 - chi2(1).cdf(corrected), abs=1e-12)
    assert found == mcnemar(only_b, only_a)
    assert 0 <= found <= 1


@given(P_VALUES)
@settings(max_examples=150)
def test_holm_agrees_with_a_plain_reference(p_values):
    """Step down: the k-th smallest p is rejected at level a where all up to it are below a / (m - k + 1)."""
    found = holm(p_values)
    m, order = len(p_values), sorted(range(len(p_values)), key=lambda i: p_values[i])
    for k, position in enumerate(order):
        expected = min(1.0, max((m - j) * p_values[order[j]] for j in range(k + 1)))
        assert found[position] == pytest.approx(expected)
        assert p_values[position] <= found[position] <= 1
    for level in (0.01, 0.05, 0.5):
        rejected = set()
        for k, position in enumerate(order):
            if p_values[position] * (m - k) > level:
                break
            rejected.add(position)
        assert {i for i, p in enumerate(found) if p <= level} == rejected


def test_every_pair_is_compared_once_and_corrected():
    models = {"a": [table(drawn(0, 0.9))], "b": [table(drawn(1, 0.6))], "c": [table(drawn(2, 0.55))]}
    rows = compare(models)
    assert [(row["a"], row["b"]) for row in rows] == list(combinations("abc", 2))
    assert set(rows[0]) == {
        *("a", "b", "num_clips", "num_takes", "only_a", "only_b", "p_mcnemar", "p_mcnemar_holm"),
        *("difference", "interval", "p_bootstrap", "p_bootstrap_holm"),
    }
    for kind in ("p_mcnemar", "p_bootstrap"):
        assert [row[f"{kind}_holm"] for row in rows] == holm([row[kind] for row in rows])
    for row in rows:
        a, b = models[row["a"]][0].correct, models[row["b"]][0].correct
        assert (row["num_clips"], row["num_takes"]) == (120, 120)
        assert (row["only_a"], row["only_b"]) == ((a & ~b).sum(), (b & ~a).sum())
        assert row["p_mcnemar"] == mcnemar(row["only_a"], row["only_b"])
        assert row["difference"] == pytest.approx(a.mean() - b.mean())
        assert row["interval"] == pytest.approx(
            interval_of_mean(a.astype(int) - b, models["a"][0].takes, num_resamples=10_000)
        )
    assert rows[0]["p_bootstrap_holm"] < 0.01
    assert rows[2]["p_bootstrap"] > 0.1
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_each_is_compared_with_a_reference_and_corrected_for_that():
    models = {name: [table(drawn(seed, 0.6 + 0.1 * seed))] for seed, name in enumerate("abc")}
    rows = compare(models, "b")
    assert [(row["a"], row["b"]) for row in rows] == [("a", "b"), ("c", "b")]
    assert [row["p_bootstrap_holm"] for row in rows] == holm([row["p_bootstrap"] for row in rows])
    all_pairs = {(row["a"], row["b"]): row for row in compare(models)}
    assert rows[0]["difference"] == all_pairs["a", "b"]["difference"]
    assert rows[1]["difference"] == -all_pairs["b", "c"]["difference"]


def test_known_people_are_resampled_too():
    """Each person's clips are all right or all wrong: over people the difference is less certain than over takes."""
    people = tuple(str(i // 20) for i in range(120))
    right = np.repeat([True, True, True, False, True, True], 20)
    models = {"a": [replace(table(right), people=people)], "b": [replace(table(drawn(0, 0.5)), people=people)]}
    (row,) = compare(models)
    difference = right.astype(int) - models["b"][0].correct
    assert row["interval_people"] == pytest.approx(interval_of_mean(difference, people, num_resamples=10_000))
    assert np.ptp(row["interval_people"]) > 1.5 * np.ptp(row["interval"])
    assert row["p_people"] == row["p_people_holm"] > row["p_bootstrap"]
    for others in (("", *people[1:]), tuple(str(i // 24) for i in range(120))):  # one unknown; only five
        (without,) = compare({"a": [replace(models["a"][0], people=others)], "b": models["b"]})
        assert not [key for key in without if "people" in key]


def test_the_other_way_round_is_the_same():
    a, b = table(drawn(0, 0.7)), table(drawn(1, 0.6))
    (one,), (other,) = compare({"a": [a], "b": [b]}), compare({"b": [b], "a": [a]})
    assert one["difference"] == -other["difference"]
    assert one["interval"] == pytest.approx([-bound for bound in other["interval"][::-1]])
    assert (one["p_bootstrap"], one["p_mcnemar"]) == (other["p_bootstrap"], other["p_mcnemar"])


def test_a_model_does_not_differ_from_itself():
    one = table(drawn(0, 0.7))
    (row,) = compare({"a": [one, one], "b": [one]})
    assert (row["difference"], row["interval"], row["p_bootstrap"], row["p_mcnemar"]) == (0, [0, 0], 1, 1)
    assert compare({}) == compare({"a": [one]}) == []


@pytest.mark.parametrize("seed", range(3))
def test_twins_count_as_one_take(seed):
    a, b = drawn(seed, 0.7), drawn(seed + 9, 0.6)
    (once,) = compare({"a": [table(a)], "b": [table(b)]})
    twice = [table(np.repeat(correct, 2), twins=True) for correct in (a, b)]
    (found,) = compare({"a": [twice[0]], "b": [twice[1]]})
    assert found.pop("num_clips") == 2 * once.pop("num_clips") == 240
    assert found == once
    assert pooled(twice[:1]) == {**pooled([table(a)]), "num_clips": 240}


def test_mcnemar_takes_the_video_only_file_of_a_take():
    audio_video_right = np.tile([True, False], 30)
    (row,) = compare({"a": [table(audio_video_right, twins=True)], "b": [table(~audio_video_right, twins=True)]})
    assert (row["only_a"], row["only_b"], row["difference"], row["num_takes"]) == (0, 30, 0, 30)


def test_several_seeds_are_averaged_and_mcnemar_takes_the_first():
    a, b = [drawn(seed, 0.8) for seed in range(3)], [drawn(seed + 5, 0.6) for seed in range(2)]
    takes = table(a[0]).takes
    (row,) = compare({"a": [table(x) for x in a], "b": [table(x) for x in b]})
    assert row["difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert (row["only_a"], row["only_b"]) == ((a[0] & ~b[0]).sum(), (b[0] & ~a[0]).sum())
    expected = interval_of_mean(np.mean(a, 0) - np.mean(b, 0), takes, num_resamples=10_000)
    assert row["interval"] == pytest.approx(expected)
    found, expected = pooled([table(x) for x in a]), interval_of_mean(np.mean(a, 0), takes, num_resamples=10_000)
    assert found["accuracy"] == pytest.approx(np.mean(a), abs=1e-12)
    assert found["intervals"]["accuracy"] == pytest.approx(expected, abs=1e-12)


def test_folds_are_pooled_by_hand():
    """Two classes, one person per fold.

    Fold of A: three sad clips, two of them right, one calm clip, right: accuracy 3/4, UAR (2/3 + 1) / 2 = 5/6.
    Fold of B: a sad clip, right, and a calm clip, wrong: accuracy 1/2, UAR (1 + 0) / 2 = 1/2.
    Pooled: sad 3 of 4, calm 1 of 2: accuracy 4/6 (not 5/8, the mean of the folds), UAR (3/4 + 1/2) / 2 = 5/8 (not 2/3);
    F1 of sad is 2 * 3 / (4 + 4), of calm 2 * 1 / (2 + 2): macro F1 5/8.
    """
    labels, predicted = np.array([0, 0, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 0, 0])
    both = replace(table(labels == predicted), labels=labels, predicted=predicted, people=(*"AAAABB",))
    one, other = both.at(np.arange(4)), both.at(np.arange(4, 6))
    assert joined([other, one]).people == both.people
    found = pooled([joined([other, one])])
    assert [found[name] for name in ("accuracy", "uar", "macro_f1")] == pytest.approx([2 / 3, 5 / 8, 5 / 8])
    assert (found["num_clips"], found["num_people"]) == (6, 2)
    # A quarter of the resamples are A twice, a quarter are B twice: these are the ends.
    people = found["intervals"]["actors"]
    assert people["num_groups"] == 2
    assert people["accuracy"] == pytest.approx([1 / 2, 3 / 4])
    assert people["uar"] == pytest.approx([1 / 2, 5 / 6])
    # A second seed that is always right: the mean of each figure and of each resample.
    seeds = pooled([both, replace(both, predicted=labels)])
    assert (seeds["accuracy"], seeds["uar"]) == pytest.approx((5 / 6, 13 / 16))
    assert seeds["intervals"]["actors"]["accuracy"] == pytest.approx([3 / 4, 7 / 8])
    assert seeds["num_clips"] == 6
    unknown = pooled([replace(both, people=(*"AAAAB", ""))])
    assert (unknown["num_people"], unknown["intervals"]["actors"]) == (None, None)
    assert unknown["intervals"]["takes"] == found["intervals"]["takes"]


def test_p_and_interval_say_the_same():
    for seed in range(12):
        (row,) = compare({"a": [table(drawn(seed, 0.65))], "b": [table(drawn(seed + 50, 0.55))]})
        outside = row["interval"][0] > 0 or row["interval"][1] < 0
        assert outside == (row["p_bootstrap"] <= 0.05) or abs(row["p_bootstrap"] - 0.05) < 0.02


def test_other_clips_labels_or_classes_are_refused():
    one = table(drawn(0, 0.5, 10))
    others = [
        (replace(one, source="two", keys=(*one.keys[:-1], "else")), "one and two .* only one has 'clip0009'"),
        (replace(one, source="two", labels=1 - one.labels), "one and two have different labels for 'clip0000'"),
        (replace(one, source="two", modalities=one.modalities - 1), "different modalities for 'clip0000'"),
        (replace(one, source="two", class_names=("sad", "calm")), "one and two have different classes"),
    ]
    for other, message in others:
        for call in (lambda t: compare({"a": [one], "b": [t]}), lambda t: pooled([one, t])):
            with pytest.raises(ValueError, match=message):
                call(other)
    with pytest.raises(ValueError, match="model b has no predictions"):
        compare({"a": [one], "b": []})
    with pytest.raises(ValueError, match="no predictions"):
        pooled([])


EIGHT = replace(
    table(np.ones(400, dtype=bool)),
    class_names=EMOTIONS,
    labels=np.random.default_rng(1).integers(0, 8, 400),
    predicted=np.random.default_rng(2).integers(0, 8, 400),
)


def test_order_is_counted_as_by_a_plain_loop():
    right = swapped = elsewhere = 0
    for label, predicted in zip(EIGHT.labels, EIGHT.predicted, strict=True):
        of_pairs = [pair for pair in PAIRS if EMOTIONS[label] in pair]
        right += sum(label == predicted for _ in of_pairs)
        swapped += sum(label != predicted and EMOTIONS[predicted] in pair for pair in of_pairs)
        elsewhere += sum(EMOTIONS[predicted] not in pair for pair in of_pairs)
    found = order_accuracy(EIGHT, PAIRS)
    assert (found["right"], found["swapped"], found["elsewhere"]) == (right, swapped, elsewhere)
    assert order_counts(confusion(EIGHT.labels, EIGHT.predicted, 8), EMOTIONS, PAIRS) == (right, swapped, elsewhere)
    assert found["accuracy"] == right / (right + swapped)
    assert found["interval"][0] < found["accuracy"] < found["interval"][1]
    assert json.loads(json.dumps(found)) == found


def test_order_counts_twins_as_one_take():
    correct = drawn(7, 0.8)
    once = order_accuracy(table(correct), PAIRS)
    twice = order_accuracy(table(np.repeat(correct, 2), twins=True), PAIRS)
    assert (once["accuracy"], once["interval"]) == (twice["accuracy"], twice["interval"])
    assert twice["right"] == 2 * once["right"]


def test_no_clip_of_a_pair_has_no_order():
    neither = replace(EIGHT, labels=np.zeros(400, dtype=int))
    elsewhere = replace(EIGHT, labels=np.full(400, EMOTIONS.index("sad")), predicted=np.zeros(400, dtype=int))
    for predictions, pairs in ((neither, PAIRS), (elsewhere, PAIRS), (EIGHT, ()), (EIGHT, (("sad", "bored"),))):
        assert order_accuracy(predictions, pairs) is None
