"""Models learn, and only those that see the order of frames tell apart what differs in order alone."""

import json
from pathlib import Path

import pytest

from fastemo.config import read_config
from fastemo.corpus.synthetic import Difficulty, SyntheticConfig, synthesize
from fastemo.run import run

REPOSITORY = Path(__file__).resolve().parent.parent
QUICK = ["--config", str(REPOSITORY / "configs" / "quick.yaml")]


def losses(run_dir):
    return [json.loads(line)["train_loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def easy_corpus(tmp_path_factory):
    """One face, one light, no noise: what is left to learn is the expression."""
    nothing = Difficulty(identity=0, timing=0, motion=0, light=0, noise=0)
    config = SyntheticConfig(clips_per_actor=8, width=128, height=72, num_frames=12, difficulty=nothing)
    return synthesize(tmp_path_factory.mktemp("easy") / "corpus", config, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["early_cnn"],
        ["early_resnet18"],
        ["late_fusion"],
        ["r3d18"],
        ["cnn_lstm", "--model.rnn_norm", "true", "--train.lr", "3e-4"],
    ],
    ids=lambda options: options[0],
)
def test_the_loss_of_each_model_falls_from_scratch(options, easy_corpus, tmp_path):
    small = ["--video.size", "36", "--augment.crop_size", "32", "--video.num_frames", "4", "--augment.enabled", "false"]
    recipe = ["--train.batch_size", "16", "--train.epochs", "8", "--runs_dir", str(tmp_path)]
    corpus = ["--corpus.root", str(easy_corpus)]
    fallen = losses(run(read_config([*QUICK, *corpus, *small, *recipe, "--model.name", *options])))
    assert fallen[-1] < 0.8 * fallen[0]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_late_fusion_learns_yet_only_guesses_within_the_paired_classes(tmp_path):
    """The pairs show the same frames in opposite order, and a mean over time is blind to it."""
    run_dir = run(
        read_config([*QUICK, "--model.name", "late_fusion", "--train.epochs", "6", "--runs_dir", str(tmp_path)])
    )
    result = json.loads((run_dir / "test.json").read_text())
    assert 0.3 < result["accuracy"] < 0.733  # chance is 0.125, the ceiling of a model blind to order 0.733
    names, confusion = list(result["per_class"]), result["confusion"]
    right = swapped = 0
    for one, other in (("surprised", "fearful"), ("sad", "disgust")):
        i, j = names.index(one), names.index(other)
        right += confusion[i][i] + confusion[j][j]
        swapped += confusion[i][j] + confusion[j][i]
    assert right + swapped >= 24  # it knows the pairs from the rest ...
    assert 0.3 < right / (right + swapped) < 0.7  # ... and nothing within them
