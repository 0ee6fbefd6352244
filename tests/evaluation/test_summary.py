"""A test's summary: on RAVDESS's counts exactly, and on a generated corpus with twins from the files on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ravdess_clips
from torch import nn

from fastemo.corpus.clip import Clip
from fastemo.corpus.config import SyntheticConfig
from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.protocol import Splits, split_clips
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.corpus.synthetic.synthesis import synthesize
from fastemo.evaluation.compare import compare, mean_interval, read_predictions
from fastemo.evaluation.evaluate import Predictions, predict, summarise, write_predictions
from fastemo.evaluation.metrics import compute_metrics
from fastemo.evaluation.probes import PROBES
from fastemo.video.config import AugmentConfig, VideoConfig
from fastemo.video.loader import ClipLoader

KEYS = {
    *("accuracy", "uar", "macro_f1", "per_class", "confusion", "num_clips", "num_takes", "loss"),
    *("intervals", "one_file_a_take", "calibration", "groups", "gaps"),
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


def test_actors_are_drawn_where_two_are_known(ravdess):
    clips = ravdess["kfold5"].test
    assert summarise(predictions_of(clips), clips, EMOTIONS)["intervals"]["actors"]["num_groups"] == 5
    one = tuple(clip for clip in clips if clip.actor == 2)
    assert summarise(predictions_of(one), one, EMOTIONS)["intervals"]["actors"] is None
    # Files without RAVDESS's names, the first of an unknown actor.
    nameless = tuple(Clip(key=f"clip{i}.mp4", emotion="sad", actor=i) for i in range(6))
    found = summarise(predictions_of(nameless), nameless, EMOTIONS)
    assert found["intervals"]["actors"] is None
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


class Untrained(nn.Module):
    """Weights that were drawn once, on the frames one after the other: order matters to it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(4 * 3 * 16, 8, generator=generator))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        coarse = nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1), 4)
        return (coarse.view(len(frames), -1) @ self.weights) / 10


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A generated corpus of RAVDESS's actors, two takes each as two files, and what protocol `report` makes of it."""
    config = SyntheticConfig(clips_per_actor=2, width=64, height=64, num_frames=6, twins=True)
    root = synthesize(tmp_path_factory.mktemp("twins") / "corpus", config, workers=1)
    return root, split_clips(scan(root), "report")


def summary_of(twins: tuple[Path, Splits], seed: int, folder: Path) -> dict[str, Any]:
    root, splits = twins
    video = VideoConfig(num_frames=4, size=32, backend="pyav")

    def predicted(order: str) -> Predictions:
        with ClipLoader(splits.test, root, splits.class_names, video, batch_size=3) as loader:
            return Predictions.joined([predict(Untrained(seed), loader, AugmentConfig(crop_size=32), order=order)])

    recorded = predicted("recorded")
    write_predictions(folder / f"{seed}.csv", recorded, splits.test, splits.class_names)
    return summarise(recorded, splits.test, splits.class_names, probes={name: predicted(name) for name in PROBES})


def test_a_generated_corpus_with_twins_from_its_files_to_the_comparison(twins, tmp_path):
    found = [summary_of(twins, seed, tmp_path) for seed in range(3)]
    tables = [read_predictions(tmp_path / f"{seed}.csv") for seed in range(3)]
    for result, table in zip(found, tables, strict=True):
        assert (result["num_clips"], result["num_takes"]) == (8, 4)
        assert result["intervals"]["takes"]["num_groups"] == result["one_file_a_take"]["num_clips"] == 4
        assert len(set(table.takes)) == 4
        assert set(result["groups"]["actor"]) == {"23", "24"}
        assert list(result["groups"]["gender"]) == ["female", "male"]
        assert list(result["probes"]) == list(PROBES)
        assert table.correct.mean() == result["accuracy"]
        json.dumps(result, allow_nan=False)
    (row,) = compare({"one": tables[:2], "other": tables[2:]})
    assert (row["num_clips"], row["num_takes"]) == (8, 4)
    assert row["only_a"] + row["only_b"] <= 4
    mean, low, high = mean_interval(tables)
    assert mean == pytest.approx(np.mean([result["accuracy"] for result in found]))
    assert low <= mean <= high
