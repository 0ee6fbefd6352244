"""Models learn, and an order-blind one only guesses between classes that differ in order alone."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, command, empty_figures, write_image

from fastemo.config import read_config
from fastemo.corpus.config import Difficulty, SyntheticConfig
from fastemo.corpus.synthetic.action_units import PAIRS
from fastemo.corpus.synthetic.synthesis import corpus_performances, render_frames
from fastemo.evaluation.compare import order_counts
from fastemo.experiment.run import run

RECIPE = [
    *("--config", str(REPOSITORY / "configs" / "quick.yaml"), "--video.size", "36", "--augment.crop_size", "32"),
    # The same arithmetic on every processor.
    *("--video.num_frames", "4", "--augment.enabled", "false", "--train.precision", "fp32", "--train.batch_size", "8"),
]


def takes(root, splits):
    """The built-in corpus's takes by one face in one light: what is left to learn is the expression.

    Images, for the coding of a video reveals the order: frames near a keyframe are better.
    """
    easy = Difficulty(identity=0, motion=0, light=0)
    config = SyntheticConfig(clips_per_actor=16, width=64, height=64, num_frames=4, difficulty=easy)
    for take in corpus_performances(config):
        for split in [name for name, actors in splits.items() if take.actor in actors]:
            folder = root / split / take.emotion_name / f"actor{take.actor:02d}_{take.stem}"
            folder.mkdir(parents=True)
            for number, frame in enumerate(render_frames(take, config)):
                write_image(folder / f"frame{number + 1:04d}.jpg", frame)
    return root


def trained(corpus, runs, *options):
    """The run's losses and its test."""
    run_dir = run(read_config([*RECIPE, "--corpus.root", str(corpus), "--runs_dir", str(runs), *options]))
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines], json.loads((run_dir / "test.json").read_text())


@pytest.mark.slow
def test_late_fusion_learns_yet_only_guesses_within_the_paired_classes(tmp_path):
    """The pairs show the same frames in opposite order, and a mean over time is blind to it."""
    corpus = takes(tmp_path / "takes", {"train": range(1, 13), "val": [24], "test": range(13, 24)})
    options = ["--model.name", "late_fusion", "--model.backbone", "resnet10t", "--train.epochs", "4"]
    losses, result = trained(corpus, tmp_path, *options)
    assert losses[-1] < 0.8 * losses[0]
    assert 0.4 < result["accuracy"] < 0.8  # chance is 0.125, the ceiling of a model blind to order 0.75
    right, swapped, _ = order_counts(np.array(result["confusion"]), list(result["per_class"]), PAIRS)
    assert right + swapped >= 75  # of 88: it knows the pairs from the rest ...
    assert 0.3 < right / (right + swapped) < 0.7  # ... and nothing within them: 75 guesses leave these bounds 1 in 2000


@pytest.mark.slow
def test_a_run_on_another_corpus_is_a_better_start_than_chance(tmp_path):
    """One epoch on other people and class names, from a run by the real command."""
    takes(tmp_path / "a", {"train": range(1, 9), "val": [9], "test": [10]})
    takes(tmp_path / "b", {"train": range(13, 21), "val": [21], "test": range(22, 25)})
    for folder in (tmp_path / "b").glob("*/*"):
        if folder.name == "calm":
            shutil.rmtree(folder)
        else:
            folder.rename(folder.with_name(f"class_{folder.name}"))
    model = ["--model.name", "late_fusion", "--model.backbone", "resnet10t"]
    new = ["--corpus.labels", "folder", "--train.epochs", "1", "--train.lr", "1e-4", "--train.schedule", "constant"]
    with empty_figures():
        trained(tmp_path / "a", tmp_path / "runs", *model, "--train.epochs", "4", "--name", "first")
        _, scratch = trained(tmp_path / "b", tmp_path / "runs", *model, *new)
    options = [*RECIPE, *model, *new, "--corpus.root", "b", "--model.weights", "runs/first", "--name", "tuned"]
    done = command(Path(sys.executable).parent / "fastemo", "train", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "84 of 86 tensors from runs/first; classifier new: 8 classes for 7\n" in done.stdout
    tuned = json.loads((tmp_path / "runs" / "tuned" / "test.json").read_text())
    assert tuned["accuracy"] > scratch["accuracy"] + 0.2
    assert tuned["accuracy"] > 0.4  # chance is 1 in 7
