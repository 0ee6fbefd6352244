"""Results by group: the groups share out the clips, the gaps are between the best and the worst of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from helpers import ravdess_clips
from hypothesis import given, settings
from hypothesis import strategies as st

from fastemo.corpus.clip import Clip
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.evaluation.groups import FIELDS, MOST_VALUES, gaps, group_metrics
from fastemo.evaluation.metrics import compute_metrics


def labels_of(clips: list[Clip]) -> np.ndarray:
    return np.array([EMOTIONS.index(clip.emotion) for clip in clips])


def predictions_for(clips: list[Clip], right: np.ndarray) -> np.ndarray:
    labels = labels_of(clips)
    return np.where(right, labels, (labels + 1) % 8)


CREMAD = [Clip(key=f"{actor}_DFA_ANG_XX.mp4", emotion="angry", actor=actor) for actor in (1001, 1002)]
CLIPS = [*ravdess_clips(9, 10, 23), *CREMAD]


@given(st.lists(st.tuples(st.integers(0, len(CLIPS) - 1), st.integers(0, 7)), min_size=1, max_size=80))
@settings(max_examples=40)
def test_groups_share_out_the_clips(rows):
    clips = [CLIPS[row] for row, _ in rows]
    labels, predicted = labels_of(clips), np.array([guess for _, guess in rows])
    found = group_metrics(labels, predicted, clips, 8)
    assert list(found) == list(FIELDS) == ["corpus", "subject", "actor", "gender", "intensity", "statement", "channel"]
    for field, of_field in found.items():
        known = [clip for clip in clips if FIELDS[field](clip)]
        assert sum(row["num_clips"] for row in of_field.values()) == len(known)
        for value, row in of_field.items():
            mine = np.array([FIELDS[field](clip) == value for clip in clips])
            expected = compute_metrics(labels[mine], predicted[mine], EMOTIONS)
            for name in ("num_clips", "accuracy", "uar", "macro_f1"):
                assert row[name] == pytest.approx(getattr(expected, name))


def test_groups_are_named_and_in_order():
    found = group_metrics(labels_of(CLIPS), labels_of(CLIPS), CLIPS, 8)
    assert list(found["actor"]) == ["9", "10", "23", "1001", "1002"]
    assert {value: row["num_clips"] for value, row in found["gender"].items()} == {"female": 60, "male": 120}
    assert {value: row["num_clips"] for value, row in found["intensity"].items()} == {"normal": 96, "strong": 84}
    assert list(found["statement"]) == ["kids", "dogs"]
    assert list(found["channel"]) == ["speech"]


def test_gender_and_statement_are_known_in_ravdess_alone():
    other = [replace(clip, statement=2, intensity=2) for clip in CREMAD]
    found = group_metrics(labels_of(other), labels_of(other), other, 8)
    assert found["gender"] == found["channel"] == {}
    assert (list(found["statement"]), list(found["intensity"])) == (["2"], ["strong"])
    assert [gap["by"] for gap in gaps(found, np.ones(2, dtype=bool), other)] == ["actor"]


def test_the_gap_is_between_the_best_and_the_worst_and_the_largest_comes_first():
    clips = ravdess_clips(1, 2, 3)
    right = np.array([clip.actor != 2 or clip.statement == 1 for clip in clips])
    right &= np.array([clip.actor != 3 or clip.repetition == 1 or clip.intensity == 1 for clip in clips])
    groups = group_metrics(labels_of(clips), predictions_for(clips, right), clips, 8)
    found = gaps(groups, right, clips)
    sizes = [row["gap"] for row in found]
    assert sizes == sorted(sizes, reverse=True)
    by = {row["by"]: row for row in found}
    assert set(by) == {"actor", "gender", "intensity", "statement"}  # there is one channel
    fields = ("best", "worst", "best_accuracy", "worst_accuracy", "gap")
    assert [by["actor"][name] for name in fields] == ["1", "2", 1, 0.5, 0.5]
    for row in found:
        accuracies = [group["accuracy"] for group in groups[row["by"]].values()]
        assert row["gap"] == max(accuracies) - min(accuracies) == row["best_accuracy"] - row["worst_accuracy"]
        assert groups[row["by"]][row["best"]]["accuracy"] == row["best_accuracy"]


def test_p_is_small_for_a_gap_that_is_there_and_large_for_none():
    clips = ravdess_clips(1, 2)
    right = np.array([clip.actor == 1 for clip in clips])
    right[:5] ^= True
    there = {row["by"]: row["p"] for row in gaps(_groups(clips, right), right, clips)}
    assert there["actor"] == there["gender"] < 0.001
    none = np.arange(len(clips)) % 2 == 0
    assert {row["by"]: row["p"] for row in gaps(_groups(clips, none), none, clips)}["actor"] == 1


def test_p_is_uniform_where_chance_alone_makes_gaps():
    clips = ravdess_clips(1, 2, 3, 4)
    rng = random.Random(0)
    p_values = []
    for _ in range(40):
        right = np.array([rng.random() < 0.5 for _ in clips])
        p_values.append(next(row["p"] for row in gaps(_groups(clips, right), right, clips) if row["by"] == "actor"))
    assert 0.35 < np.mean(p_values) < 0.65
    assert sum(p <= 0.05 for p in p_values) <= 6


def test_twins_count_as_one_take_in_a_gap():
    rng = np.random.default_rng(5)
    once, twice = ravdess_clips(1, 2), ravdess_clips(1, 2, modalities=(1, 2))
    right_take = {clip.take: rng.random() < (0.7 if clip.actor == 1 else 0.5) for clip in once}
    found = []
    for clips in (once, twice):
        right = np.array([right_take[clip.take] for clip in clips])
        found.append({row["by"]: (row["gap"], row["p"]) for row in gaps(_groups(clips, right), right, clips)})
    assert found[0] == found[1]


def _groups(clips: list[Clip], right: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
    return group_metrics(labels_of(clips), predictions_for(clips, right), clips, 8)


def test_a_tables_further_columns_are_fields():
    columns = [{"light": "dim", "age": "41"}, {"light": "dim"}, {"light": "bright", "gender": "diverse", "file": "a"}]
    clips = [
        Clip(key=f"{n}.mp4", emotion="happy", subject=f"P{n}", columns=json.dumps(columns[n % 3] | {"note": str(n)}))
        for n in range(MOST_VALUES + 1)
    ]
    labels = np.full(len(clips), 2)
    predicted = np.array([2 if n % 3 == 2 else 3 for n in range(len(clips))])
    found = group_metrics(labels, predicted, clips, 8)
    assert list(found) == [*FIELDS, "age", "file", "light"]  # every clip has a note of its own
    assert {name: row["num_clips"] for name, row in found["light"].items()} == {"bright": 17, "dim": 34}
    assert {name: row["accuracy"] for name, row in found["light"].items()} == {"bright": 1, "dim": 0}
    assert list(found["gender"]) == ["diverse"]  # the table's goes before what numbers give
    assert list(found["file"]) == ["a"]
    assert len(found["subject"]) == len(clips)
    (light,) = [row for row in gaps(found, labels == predicted, clips) if row["by"] == "light"]
    assert (light["best"], light["worst"], light["gap"]) == ("bright", "dim", 1)
