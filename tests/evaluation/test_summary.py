"""A test's summary, on RAVDESS's counts exactly."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ravdess_clips

from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.protocol import split_clips
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.evaluation.evaluate import Predictions, summarise
from fastemo.evaluation.metrics import compute_metrics

KEYS = {
    *("accuracy", "uar", "macro_f1", "per_class", "confusion", "num_clips", "num_takes", "loss", "chance"),
    *("intervals", "one_file_a_take", "temperature", "calibration", "groups", "gaps"),
}


def predictions_of(clips: tuple[Clip, ...], *, twins_differ: float = 0.0, seed: int = 0) -> Predictions:
    """Logits by take, the same for both files but for a share of the audio-video ones."""
    ordered = sorted(clips, key=lambda clip: clip.key)
    labels = np.array([EMOTIONS.index(clip.emotion) for clip in ordered])
    logits = []
    for clip, label in zip(ordered, labels, strict=True):
        rng = random.Random(f"{seed} {clip.take}")
        row = [rng.gauss(2.0 * (k == label), 1.5) for k in range(8)]
        if clip.modality == 1 and random.Random(clip.take).random() < twins_differ:
            row = row[::-1]
        logits.append(row)
    return Predictions(tuple(clip.key for clip in ordered), labels, np.array(logits, dtype=np.float32))


@pytest.fixture(scope="module")
def ravdess():
    """The 2880 speech videos by name, both files of each take."""
    manifest = Manifest.of(Path("ravdess"), ravdess_clips(*range(1, 25), modalities=(1, 2)))
    return {name: split_clips(manifest, name) for name in ("report", "speech", "kfold5")}


def test_one_file_a_take_is_what_protocol_speech_reports(ravdess):
    both = summarise(predictions_of(ravdess["report"].test, twins_differ=0.3), ravdess["report"].test, EMOTIONS)
    alone = summarise(predictions_of(ravdess["speech"].test), ravdess["speech"].test, EMOTIONS)
    assert alone["one_file_a_take"] is None
    assert both["one_file_a_take"]["accuracy"] != both["accuracy"]
    for name in ("accuracy", "uar", "macro_f1", "num_clips"):
        assert both["one_file_a_take"][name] == alone[name]
    assert both["one_file_a_take"]["intervals"]["accuracy"] == alone["intervals"]["accuracy"]


def test_it_is_plain_json_with_the_keys_promised(ravdess):
    clips = ravdess["report"].test
    found = summarise(predictions_of(clips, twins_differ=0.3), clips, EMOTIONS)
    assert set(found) == KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["num_clips"], found["num_takes"]) == (240, 120)
    intervals = found["intervals"]
    assert (intervals["level"], intervals["resampled"]) == (0.95, "takes")
    assert intervals["takes"]["num_groups"] == found["one_file_a_take"]["num_clips"] == 120
    assert intervals["actors"]["num_groups"] == 2
    assert intervals["accuracy"] == intervals["takes"]["accuracy"]
    for by in ("takes", "actors"):
        for name in ("accuracy", "uar", "macro_f1"):
            low, high = intervals[by][name]
            assert low <= found[name] <= high
    assert sum(row["num_clips"] for row in found["calibration"]["bins"]) == 240


def test_a_temperature_changes_calibration_and_loss_alone(ravdess):
    clips = ravdess["speech"].test
    raw = predictions_of(clips)
    before, after = (summarise(it, clips, EMOTIONS) for it in (raw, replace(raw, temperature=2.0)))
    assert (before["temperature"], after["temperature"]) == (1, 2)
    assert before["calibration"]["ece_before"] == before["calibration"]["ece"]
    assert after["calibration"]["ece_before"] == before["calibration"]["ece"] != after["calibration"]["ece"]
    assert after["loss"] == pytest.approx(replace(raw, logits=raw.logits / 2).loss)
    for name in KEYS - {"temperature", "calibration", "loss"}:
        assert before[name] == after[name], name


def test_actors_are_drawn_where_two_are_known(ravdess):
    clips = ravdess["kfold5"].test
    assert summarise(predictions_of(clips), clips, EMOTIONS)["intervals"]["actors"]["num_groups"] == 5
    one = tuple(clip for clip in clips if clip.actor == 2)
    assert summarise(predictions_of(one), one, EMOTIONS)["intervals"]["actors"] is None
    # Files without RAVDESS's names, the first of an unknown actor.
    nameless = tuple(Clip(key=f"clip{i}.mp4", emotion="sad", actor=i) for i in range(6))
    found = summarise(predictions_of(nameless), nameless, EMOTIONS)
    assert found["intervals"]["actors"] is None
    named = tuple(replace(clip, subject=f"S{number % 3}") for number, clip in enumerate(nameless))
    assert summarise(predictions_of(named), named, EMOTIONS)["intervals"]["actors"]["num_groups"] == 3
    assert found["groups"]["gender"] == {}
    assert list(found["groups"]["actor"]) == ["1", "2", "3", "4", "5"]


def test_probes_are_reported_beside_the_order_recorded(ravdess):
    clips = ravdess["speech"].test
    recorded = predictions_of(clips)
    other = Predictions(recorded.keys, recorded.labels, np.roll(recorded.logits, 1, axis=1))
    # The first clip could not be read this time.
    partly = recorded.at(np.arange(1, len(recorded.keys)))
    found = summarise(recorded, clips, EMOTIONS, probes={"reversed": other, "frozen": recorded, "shuffled": partly})
    assert set(found) == {*KEYS, "probes"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    frozen, shuffled, backwards = (found["probes"][name] for name in ("frozen", "shuffled", "reversed"))
    assert frozen == {
        "accuracy": found["accuracy"],
        "interval": found["intervals"]["accuracy"],
        "agreement": 1,
        "difference": 0,
        "difference_interval": [0, 0],
    }
    assert (shuffled["agreement"], shuffled["accuracy"]) == (1, partly.correct.mean())
    assert backwards["agreement"] == 0
    assert backwards["accuracy"] == compute_metrics(other.labels, other.predicted, EMOTIONS).accuracy
    assert backwards["difference"] == pytest.approx(backwards["accuracy"] - found["accuracy"])
    low, high = backwards["difference_interval"]
    assert low < backwards["difference"] < high < 0
