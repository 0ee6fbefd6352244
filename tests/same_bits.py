"""Two runs that have to end in the same bits: how they are trained, and how they are compared."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import empty_figures
from safetensors.torch import load_file

from fastemo.experiment.resume import resolve
from fastemo.experiment.run import run
from fastemo.models import fusion

TIMES = ("epoch_seconds", "clips_per_second", "data_wait_fraction")
SMALL = [
    *("--model.name", "early_cnn", "--model.pretrained", "false", "--seed", "3"),
    *("--video.size", "20", "--augment.crop_size", "16", "--video.num_frames", "2", "--store.tier", "disk"),
    *("--train.batch_size", "4", "--train.lr", "1e-3", "--train.deterministic", "true"),
    *("--train.early_stop_patience", "null"),
]


# Every key of a recipe that is off by default. Not at 16 pixels, where bf16 convolutions on single cells give NaN
# gradients on some processors.
RECIPE = [
    *("--video.size", "24", "--augment.crop_size", "20"),
    *("--model.name", "late_fusion", "--model.backbone", "test_resnet", "--model.drop_path", "0.1"),
    *("--video.stored_frames", "5", "--evaluate.views", "4"),
    *("--augment.color_jitter", "0.3", "--augment.random_erasing", "0.5", "--augment.mixup", "0.4"),
    *("--augment.cutmix", "1", "--train.optimizer", "adamw", "--train.schedule", "cosine"),
    *("--train.warmup_epochs", "0.5", "--train.label_smoothing", "0.1", "--train.class_weights", "balanced"),
    *("--train.oversample", "true", "--train.ema", "0.9", "--train.backbone_lr", "0.5"),
    *("--train.layer_decay", "0.8", "--train.freeze_epochs", "1"),
]


@empty_figures()
def trained(arguments):
    """A run's folder, of `early_cnn` with an eighth of its channels and with empty figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "_EARLY_WIDTHS", (8, 16, 32, 64))
        patch.setattr(fusion, "_EARLY_HIDDEN", 128)
        return run(*resolve(arguments))


def bits(run_dir):
    """All that must be equal: weights, the whole training state, metrics, predictions."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run_dir / "test.json").read_text())
    result["cost"] = {name: value for name, value in result["cost"].items() if name not in TIMES}
    return {
        "weights": {name: load_file(run_dir / "checkpoints" / name / "model.safetensors") for name in ("last", "best")},
        "state": load_file(run_dir / "checkpoints" / "last" / "state.safetensors"),
        "lines": [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
        "result": result,
        "predictions": (run_dir / "predictions.csv").read_text(),
    }


def assert_same_bits(one, other):
    for name in ("lines", "result", "predictions"):
        assert one[name] == other[name], name
    for tensors, others in (
        (one["weights"]["last"], other["weights"]["last"]),
        (one["weights"]["best"], other["weights"]["best"]),
        (one["state"], other["state"]),
    ):
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)
