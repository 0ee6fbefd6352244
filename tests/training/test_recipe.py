"""The keys of a recipe: the arithmetic of each against a reference, and what they refuse."""

import math
import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from networks import network
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from timm.optim import param_groups_layer_decay
from torch import nn
from training.fakes import FakeLoader, clip_batch

from fastemo.config import read_config
from fastemo.console import Console
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.training.recipe.averaging import WeightAverage
from fastemo.training.recipe.optimizer import make_optimizer, make_scheduler, parameter_groups
from fastemo.training.recipe.recipe import Recipe, balanced_weights, soft_labels
from fastemo.training.trainer import Trainer
from fastemo.video.config import AugmentConfig
from fastemo.video.loader import ClipBatch, Partners

AUGMENT = AugmentConfig(crop_size=32, rotation_degrees=0)


def recipe(model=None, counts=None, **options):
    return Recipe(TrainConfig(**options), model or nn.Linear(2, 2), counts, is_alone=True)


def rates(config, model, updates):
    """The rate of every group before each update and after the last."""
    optimizer = make_optimizer(config, model, fused=False)
    scheduler = make_scheduler(config, optimizer, updates)
    found = []
    for _ in range(updates + 1):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_rises_in_a_line_and_falls_to_0():
    expected = [0.1, 0.2, 0.3] + [0.2 * (1 + math.cos(math.pi * i / 9)) for i in range(10)]
    found = rates(TrainConfig(schedule="cosine", warmup_epochs=1.5, epochs=6, lr=0.4), nn.Linear(1, 1), 12)
    assert [rate for (rate,) in found] == pytest.approx(expected)
    without = rates(TrainConfig(schedule="cosine", epochs=2, lr=1.0), nn.Linear(1, 1), 8)
    reference = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 8)
    for (rate,) in without:
        assert rate == pytest.approx(reference.param_groups[0]["lr"], abs=1e-12)
        reference.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["plateau", "onecycle", "cosine", "constant"])
def test_every_schedule_keeps_the_ratio_of_the_groups(schedule):
    config = TrainConfig(schedule=schedule, backbone_lr=0.25, lr=0.1, epochs=4, plateau_patience=0)
    optimizer = make_optimizer(config, network("late_fusion"), fused=False)
    scheduler = make_scheduler(config, optimizer, 12)
    for _ in range(12):
        head, backbone = (group["lr"] for group in optimizer.param_groups)
        assert backbone == pytest.approx(head / 4)
        optimizer.step()
        scheduler.step(*([0.5] if schedule == "plateau" else []))
    assert schedule == "constant" or optimizer.param_groups[0]["lr"] != 0.1


def scales(config, model):
    """Each weight's share of the rate, by name."""
    names = {id(weights): name for name, weights in model.named_parameters()}
    groups = parameter_groups(config, model)
    assert groups[0].get("lr", config.lr) == config.lr, "the first group's rate is logged"
    found = {names[id(it)]: group["lr"] / config.lr for group in groups for it in group["params"]}
    assert found.keys() == set(names.values())
    return found


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050", "test_vit", "test_efficientnet"])
def test_layers_decay_as_timms(backbone):
    """With timm's own classifier, whose rate is ours."""
    theirs = timm.create_model(backbone, num_classes=8)
    names = {id(weights): name for name, weights in theirs.named_parameters()}
    groups = param_groups_layer_decay(theirs, layer_decay=0.7, weight_decay_exclude_1d=False)
    expected = {names[id(it)]: group["lr_scale"] for group in groups for it in group["params"]}
    size = 160 if backbone == "test_vit" else None
    ours = build_model(ModelConfig(name="late_fusion", backbone=backbone, pretrained=False, size=size), 8)
    found = scales(TrainConfig(layer_decay=0.7), ours)
    assert found.pop("classifier.weight") == found.pop("classifier.bias") == 1
    for name, scale in found.items():
        assert scale == pytest.approx(expected[name.removeprefix("backbone.")]), name
    assert len({*found.values()}) > 3
    halved = scales(TrainConfig(layer_decay=0.7, backbone_lr=0.5), ours)
    assert all(halved[name] == pytest.approx(scale / 2) for name, scale in found.items())


@pytest.mark.parametrize(
    ("variant", "first", "last"),
    [
        ("r3d18", "stem.0.weight", "layer4.0.conv1.0.weight"),
        ("video-s3d", "features.0.0.0.weight", "features.15.branch0.0.weight"),
        ("video-swin3d_t", "patch_embed.proj.weight", "norm.weight"),
        ("video-mvit_v2_s", "conv_proj.weight", "norm.weight"),
        ("videomae", "videomae.embeddings.patch_embeddings.projection.weight", "fc_norm.weight"),
    ],
)
def test_layers_of_other_libraries_decay_from_the_last_to_the_first(variant, first, last):
    model = network(variant)
    found = model.backbone_layers()
    assert found.keys() == {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
    assert found[f"backbone.{last}"] == min(found.values()) == 1
    assert found[f"backbone.{first}"] == max(found.values()) > 1


def test_a_random_stem_is_no_backbone():
    random, inflated = (
        build_model(ModelConfig(name="early_resnet18", num_frames=2, stem=stem, pretrained=False), 8)
        for stem in ("random", "inflate")
    )
    assert inflated.backbone_layers().keys() - random.backbone_layers().keys() == {"backbone.conv1.weight"}


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_optimisers_are_torchs(kind):
    def step(optimizer, model):
        for number in (1, 2):
            optimizer.zero_grad()
            (model(torch.arange(6.0).view(3, 2) / number) ** 2).sum().backward()
            optimizer.step()
        return torch.cat([weights.detach().flatten() for weights in model.parameters()])

    torch.manual_seed(0)
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(model.state_dict())
    ours = make_optimizer(TrainConfig(optimizer=kind, lr=0.1, weight_decay=0.2), model, fused=False)
    options = {"lr": 0.1, "weight_decay": 0.2}
    reference = {
        "adam": lambda weights: torch.optim.Adam(weights, **options),
        "adamw": lambda weights: torch.optim.AdamW(weights, **options),
        "sgd": lambda weights: torch.optim.SGD(weights, momentum=0.9, nesterov=True, **options),
    }[kind](other.parameters())
    assert torch.equal(step(ours, model), step(reference, other))


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_clips_is_the_mixture_of_their_losses(smoothing, is_weighted):
    counts = np.array([4, 2, 1, 5])
    options = {"label_smoothing": smoothing, "class_weights": "balanced" if is_weighted else "none"}
    loss = recipe(counts=counts, **options)
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    own, others, shares = torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0]), torch.tensor([0.25, 0.5, 1.0])
    frames = torch.zeros(3, 1, 3, 2, 2, dtype=torch.uint8)
    batch = clip_batch(frames, own, ["a", "b", "c"])
    mixed = ClipBatch(frames, own, batch.keys, batch.is_padding, 3, Partners(frames, batch.keys, own, others))
    targets = soft_labels(mixed, shares, 4)
    torch.testing.assert_close(
        targets, shares[:, None] * F.one_hot(own, 4) + (1 - shares)[:, None] * F.one_hot(others, 4)
    )
    apart = shares * loss.losses(logits, own) + (1 - shares) * loss.losses(logits, others)
    torch.testing.assert_close(loss.losses(logits, targets), apart)
    assert torch.equal(soft_labels(batch, None, 4), own)
    # Written out, for whole labels.
    weights = torch.from_numpy(balanced_weights(counts)) if is_weighted else torch.ones(4)
    smooth = (1 - smoothing) * F.one_hot(own, 4) + smoothing / 4
    written = -(smooth * weights * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(loss.losses(logits, own), written)


def test_balanced_weights_are_scikit_learns_and_1_on_average():
    counts = np.array([4, 2, 1, 5])
    labels = np.repeat(np.arange(4), counts)
    assert balanced_weights(counts) == pytest.approx(compute_class_weight("balanced", classes=np.arange(4), y=labels))
    weights = balanced_weights(np.array([3, 0, 1]))
    assert weights == pytest.approx([4 / 6, 0, 2])
    assert (weights * [3, 0, 1]).sum() == pytest.approx(4)


def test_the_average_follows_its_formula_and_comes_and_goes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average, decay = WeightAverage(model, 0.6), 0.6
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in range(1, 20):
        model(torch.randn(4, 2))
        for weights in model.parameters():
            weights.data.add_(torch.randn_like(weights))
        average.update()
        now = min(decay, (1 + update) / (10 + update))
        for name, value in model.state_dict().items():
            expected[name] = now * expected[name] + (1 - now) * value if value.is_floating_point() else value.clone()
    assert decay < 20 / 29  # it was reached
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_use():
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name])
        assert not torch.equal(model[0].weight, own["0.weight"])
    for found in (model.state_dict(), average.state_dict()["weights"]):
        assert all(torch.equal(found[name], own[name]) for name in own)
    for name, value in average.weights.items():
        torch.testing.assert_close(value, expected[name])
    again = WeightAverage(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), 0.6)
    again.load_state_dict(average.state_dict(), average.weights)
    assert all(torch.equal(again.weights[name], value) for name, value in average.weights.items() if "num" not in name)


def fitted(tmp_path, model, loader=None, **options):
    train = loader or FakeLoader([4, 4], pixels=32)
    trainer = Trainer(TrainConfig(lr=1e-2, speed="fp32", schedule="constant", **options), seed=0)
    trainer.prepare(model, len(train))
    trainer.fit(train, train, AUGMENT, tmp_path, Console(show=False))
    return trainer


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_frozen_backbone_stays_as_it_is_and_is_trained_afterwards(tmp_path, monkeypatch, world_size):
    """Two processes drop the gradients of frozen weights, which each of theirs must have; here one does as two do."""
    monkeypatch.setattr(
        "fastemo.training.trainer.Recipe", lambda *them, is_alone: Recipe(*them, is_alone=world_size == 1)
    )
    model = network("late_fusion")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = fitted(tmp_path / "frozen", model, epochs=2, freeze_epochs=2).bare_model.state_dict()
    changed = {name for name, value in frozen.items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    other = fitted(tmp_path / "longer", network("late_fusion"), epochs=3, freeze_epochs=2).bare_model.state_dict()
    assert all(not torch.equal(other[name], before[name]) for name in before if value_is_weight(name))


def value_is_weight(name):
    return name.endswith(("conv1.weight", "running_mean"))


def test_what_is_saved_and_evaluated_is_the_average(tmp_path):
    trainer = fitted(tmp_path, network("late_fusion"), epochs=2, ema=0.5)
    saved = load_file(tmp_path / "checkpoints" / "last" / "model.safetensors")
    own = trainer.bare_model.state_dict()
    assert not torch.equal(saved["classifier.weight"], own["classifier.weight"])
    trainer.load_weights(saved)
    assert trainer.predict(FakeLoader([4, 4], pixels=32), AUGMENT).loss == pytest.approx(
        trainer.history[-1]["val_loss"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--train.optimizer lion", "train.optimizer must be .*adam.*adamw.*sgd"),
        ("--train.warmup_epochs 1", "train.warmup_epochs needs train.schedule cosine, not plateau"),
        (
            "--train.schedule cosine --train.warmup_epochs 3 --train.epochs 3",
            "train.warmup_epochs 3 must be below train.epochs 3",
        ),
        ("--train.label_smoothing 1", "train.label_smoothing must be at least 0 and below 1, not 1"),
        ("--train.ema 1", "train.ema must be at least 0 and below 1, not 1"),
        ("--train.layer_decay 0", "train.layer_decay must be above 0 and at most 1, not 0"),
        ("--train.backbone_lr 0", "train.backbone_lr must be above 0 and finite, not 0"),
        ("--train.freeze_epochs -1", "train.freeze_epochs must be at least 0 and finite, not -1"),
        (
            "--model.name early_cnn --train.layer_decay 0.9",
            "train.layer_decay needs a model with a backbone, which early_cnn has not",
        ),
        ("--model.drop_path 1", "model.drop_path is 1.0, must be at least 0 and below 1, or null"),
        ("--augment.mixup -1", "augment.mixup must be at least 0 and finite, not -1"),
        ("--augment.color_jitter 2", "augment.color_jitter must be 0 to 1, not 2"),
        ("--augment.random_erasing 2", "augment.random_erasing must be a probability from 0 to 1, not 2"),
        ("--augment.mixup 0.2 --store.tier none", "augment.mixup reads each clip a second time.*--store.tier"),
        ("--augment.cutmix 1 --store.tier none", "augment.cutmix reads each clip a second time.*--store.tier"),
        ("--video.stored_frames 30", "multiple of 9 for video.num_frames 10, such as 28 or 37, not 30"),
        ("--video.stored_frames 9", "such as 10 or 19, not 9"),
        ("--evaluate.views 0", "evaluate.views must be at least 1, not 0"),
        ("--evaluate.views 3", "evaluate.views 3 needs video.stored_frames"),
    ],
)
def test_what_has_no_meaning_is_refused_by_key(options, message):
    with pytest.raises(ValueError, match=message):
        read_config(options.split())


def test_drop_path_where_the_backbone_has_it():
    def probabilities(**options):
        model = build_model(ModelConfig(pretrained=False, **options), 8)
        return [
            getattr(it, "drop_prob", None) or getattr(it, "p", 0)
            for it in model.modules()
            if type(it).__name__ in ("DropPath", "StochasticDepth")
        ]

    for options in (
        {"name": "late_fusion"},
        {"name": "tsm", "backbone": "mobilenetv3_small_050"},
        {"name": "video", "backbone": "swin3d_t"},
    ):
        found = probabilities(**options, drop_path=0.2)
        assert found == sorted(found)
        assert found[-1] == pytest.approx(0.2, abs=0.02)
        assert not any(probabilities(**options, drop_path=0.0))
    assert max(probabilities(name="video", backbone="swin3d_t")) == pytest.approx(0.1)
    for options, name in (
        ({"name": "r3d18"}, "r3d_18"),
        ({"name": "late_fusion", "backbone": "vgg11"}, "vgg11"),
        ({"name": "videomae"}, "videomae"),
    ):
        message = f"model.drop_path 0.1 needs a backbone with drop path, which .*{re.escape(name)}.* has not"
        with pytest.raises(ValueError, match=message):
            build_model(ModelConfig(pretrained=False, drop_path=0.1, num_frames=16, size=224, **options), 8)
