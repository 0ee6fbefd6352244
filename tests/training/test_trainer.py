"""The loop: its arithmetic against a loop written out plainly, and its stopping."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training.fakes import FakeLoader

from fastemo.console import Console
from fastemo.machine import available_processors
from fastemo.training import processes
from fastemo.training.config import TrainConfig
from fastemo.training.progress import best_epoch_on_test
from fastemo.training.trainer import Trainer
from fastemo.video.augment import augment
from fastemo.video.config import AugmentConfig
from fastemo.video.loader import ClipBatch

AUGMENT = AugmentConfig(crop_size=8)


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 64, 16), nn.Tanh(), nn.Linear(16, 4))


def fit(config, train, model, tmp_path, val=None):
    trainer = Trainer(config, seed=5)
    trainer.prepare(model, len(train))
    trainer.fit(train, val or train, AUGMENT, tmp_path, Console(show=False))
    return trainer


def plain_loop(config, windows, model, epochs):
    """The same training, written out: what `Trainer` must equal."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    losses = []
    for epoch in range(1, epochs + 1):
        total = count = 0.0
        for window in windows:
            clips = sum(len(batch.keys) for batch in window)
            loss = 0.0
            for batch in window:
                x = augment(batch.frames, AUGMENT, batch.keys, seed=5, epoch=epoch)
                loss = loss + F.cross_entropy(model(x), batch.labels, reduction="sum")
            optimizer.zero_grad()
            (loss / clips).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            total, count = total + float(loss.detach()), count + clips
        losses.append(total / count)
    return losses


@pytest.mark.parametrize("accumulate_steps", [1, 2, 3])
def test_fit_equals_a_plain_loop(tmp_path, accumulate_steps):
    train = FakeLoader([4, 4, 4, 4, 3])
    recipe = {"epochs": 3, "lr": 1e-2, "clip_norm": 0.5, "schedule": "constant", "precision": "fp32"}
    config = TrainConfig(**recipe, accumulate_steps=accumulate_steps)
    model, reference = small_model(), small_model()
    trainer = fit(config, train, model, tmp_path)
    windows = [train.batches[i : i + accumulate_steps] for i in range(0, 5, accumulate_steps)]
    losses = plain_loop(config, windows, reference, 3)
    assert [row["train_loss"] for row in trainer.history] == pytest.approx(losses, abs=1e-6)
    for ours, theirs in zip(trainer.bare_model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_padding_weighs_nothing(tmp_path):
    padded, bare = FakeLoader([6], padding=2), FakeLoader([6])
    batch = bare.batches[0]
    bare.batches = [ClipBatch(batch.frames[:4], batch.labels[:4], batch.keys[:4], batch.is_padding[:4], num_global=4)]
    config = TrainConfig(epochs=2, lr=1e-2)
    one = fit(config, padded, small_model(), tmp_path / "padded", val=bare)
    other = fit(config, bare, small_model(), tmp_path / "bare")
    assert one.history[1]["train_loss"] == pytest.approx(other.history[1]["train_loss"], abs=1e-6)
    assert one.history[1]["train_accuracy"] == other.history[1]["train_accuracy"]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_precisions_agree_within_their_tolerance(tmp_path, precision):
    train = FakeLoader([8, 8])
    history = fit(TrainConfig(epochs=3, precision=precision), train, small_model(), tmp_path / "x").history
    losses = plain_loop(TrainConfig(), [[b] for b in train.batches], small_model(), 3)
    assert [row["train_loss"] for row in history] == pytest.approx(losses, abs=1e-6 if precision == "fp32" else 0.03)


def test_a_processor_that_would_emulate_bf16_computes_in_fp32_and_reports_it(monkeypatch):
    monkeypatch.setattr("fastemo.training.speed.bf16_is_fast_on_cpu", lambda: False)
    trainer = Trainer(TrainConfig(precision="bf16"), seed=0)
    assert trainer.speed.precision == "fp32"
    assert "fp32 instead of bf16" in trainer.speed.note
    assert not Trainer(TrainConfig(precision="fp32"), seed=0).speed.note


def test_a_cpus_processors_all_compute_whatever_the_launcher_says():
    torch.set_num_threads(1)
    Trainer(TrainConfig(), seed=0)
    assert torch.get_num_threads() == available_processors()


def scripted_fit(monkeypatch, tmp_path, accuracies, **options):
    """Train with validation accuracies as given."""
    train, left = FakeLoader([4]), iter(accuracies)

    def predict(loader, config):
        right = round(next(left) * 10)
        logits = np.zeros((10, 4), np.float32)
        logits[:right, 0] = logits[right:, 1] = 5
        return processes.Predictions(tuple(map(str, range(10))), np.zeros(10, np.int64), logits)

    trainer = Trainer(TrainConfig(**options), seed=0)
    monkeypatch.setattr(trainer, "predict", predict)
    trainer.prepare(small_model(), 1)
    trainer.fit(train, train, AUGMENT, tmp_path, Console(show=False))
    return trainer


def test_early_stopping_after_five_epochs_without_gain(monkeypatch, tmp_path):
    accuracies = [0.2, 0.5, 0.5, 0.4, 0.5, 0.3, 0.5, 0.9]
    trainer = scripted_fit(monkeypatch, tmp_path, accuracies)
    assert [row["val_accuracy"] for row in trainer.history] == pytest.approx(accuracies[:7])
    best, last = (json.loads((tmp_path / "checkpoints" / n / "info.json").read_text()) for n in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (2, 7)


def test_plateau_halves_the_rate_after_more_than_two_epochs_without_gain(monkeypatch, tmp_path):
    trainer = scripted_fit(monkeypatch, tmp_path, [0.5] * 9, epochs=9, early_stop_patience=None)
    assert [row["lr"] for row in trainer.history] == pytest.approx([1e-4] * 4 + [5e-5] * 3 + [2.5e-5] * 2)


def test_onecycle_ends_after_all_epochs(tmp_path):
    trainer = fit(TrainConfig(epochs=4, schedule="onecycle", lr=1e-2), FakeLoader([4, 4]), small_model(), tmp_path)
    rates = [row["lr"] for row in trainer.history]
    assert max(rates) == rates[1] or max(rates) == rates[2]
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-6


def test_the_best_epoch_on_test_is_the_first_of_the_highest_accuracy():
    rows = [
        {"epoch": i, "test_accuracy": it, "test_uar": it / 2, "test_confusion": [[i]]} for i, it in enumerate([1, 3, 3])
    ]
    assert best_epoch_on_test(rows) == {"epoch": 1, "accuracy": 3, "uar": 1.5, "confusion": [[1]]}
    assert best_epoch_on_test([{"epoch": 1, "val_accuracy": 0.5}]) is None


def test_metrics_lines_are_the_history(tmp_path):
    trainer = fit(TrainConfig(epochs=2), FakeLoader([4]), small_model(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == trainer.history
    names = "epoch train_loss train_accuracy val_loss val_accuracy val_uar lr epoch_seconds clips_per_second"
    assert list(lines[0]) == [*names.split(), "data_wait_fraction"]


def test_the_loop_never_reads_the_device_inside_a_step(tmp_path, monkeypatch):
    """Law 9: `.item()`, `.tolist()` and `.cpu()` are called once an epoch, whatever the number of steps."""
    calls = []

    def counting(name, original):
        def call(self, *args, **kwargs):
            # Adam reads its own step counters, which live on the CPU whatever the device.
            if "optim" not in Path(sys._getframe(1).f_code.co_filename).parts:
                calls.append(name)
            return original(self, *args, **kwargs)

        return call

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
    counts = []
    for steps in (2, 6):
        trainer = Trainer(TrainConfig(), seed=0)
        trainer.prepare(small_model(), steps)
        calls.clear()
        trainer._train_epoch(FakeLoader([4] * steps), AUGMENT, 1, lambda *args, **kwargs: None, tmp_path)
        counts.append(sorted(calls))
    assert counts[0] == counts[1] == ["tolist"]
