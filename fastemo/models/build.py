"""Builds the models: ImageNet-normalised float [B, T, C, H, W] -> logits [B, classes]."""

from __future__ import annotations

from collections.abc import Callable

import timm

from fastemo.models.config import ModelConfig
from fastemo.models.fusion import ClipModel, EarlyCNN, EarlyResNet18, LateFusion
from fastemo.models.temporal import CNNRNN, R3D18
from fastemo.models.weights import KINETICS, RESNET18, load_weights, r3d18_backbone, timm_backbone


def check_backbone(config: ModelConfig) -> None:
    """Raises:
    ValueError: timm has no model of the name `config.backbone`.
    """
    if not timm.is_model(config.backbone):
        raise ValueError(
            f"model.backbone is '{config.backbone}', must be one of timm.list_models(), "
            "such as resnet18, resnet50 or mobilenetv3_small_100"
        )


def pretrained_backbone(config: ModelConfig) -> str | None:
    """The backbone whose pretrained weights `build_model` loads, as `fetch_backbone` takes it; `None`: none."""
    if not config.pretrained or config.weights is not None or config.name == "early_cnn":
        return None
    if config.name == "r3d18":
        return KINETICS
    name = "resnet18" if config.name == "early_resnet18" else config.backbone
    return RESNET18 if name == "resnet18" else name


def build_model(
    config: ModelConfig, num_classes: int, *, same_classes: bool = False, say: Callable[[str], None] = lambda _: None
) -> ClipModel:
    """Build the model that `config` names, in float32 on the CPU; random weights follow torch's global seed.

    Args:
        same_classes: The run that `config.weights` names has the same classes: its classifier is loaded.
        say: Gets the message about what was loaded from `config.weights`.

    Raises:
        WeightsUnavailable: Pretrained weights are requested, but not cached and cannot be downloaded.
        FileNotFoundError: `config.weights` does not exist.
        ValueError: timm has no such backbone, `num_frames` is None for a model that is built for one T, or
            `config.weights` does not fit.
    """
    check_backbone(config)
    model = _build(config, num_classes, pretrained=config.pretrained and config.weights is None)
    if config.weights is not None:
        inflate = config.name == "early_resnet18" and config.stem == "inflate"
        say(load_weights(model, config.weights, same_classes=same_classes, inflate=inflate))
    return model


def _build(config: ModelConfig, num_classes: int, *, pretrained: bool) -> ClipModel:
    if config.name == "r3d18":
        return R3D18(r3d18_backbone(pretrained=pretrained), num_classes)
    if config.name == "early_cnn":
        return EarlyCNN(_num_frames(config), num_classes, dropout=config.dropout)
    if config.name == "early_resnet18":
        num_frames = _num_frames(config)
        resnet18 = timm_backbone("resnet18", pretrained=pretrained)
        return EarlyResNet18(resnet18, num_frames, num_classes, stem=config.stem)
    joined_frames = _num_frames(config) if (config.name, config.fusion) == ("late_fusion", "concat") else None
    backbone = timm_backbone(config.backbone, pretrained=pretrained)
    if config.name == "late_fusion":
        return LateFusion(backbone, num_classes, fusion=config.fusion, num_frames=joined_frames)
    return CNNRNN(backbone, num_classes, rnn=config.rnn, hidden=config.rnn_hidden, norm=config.rnn_norm)


def _num_frames(config: ModelConfig) -> int:
    if config.num_frames is None:
        which = "late_fusion with fusion: concat" if config.name == "late_fusion" else config.name
        raise ValueError(f"model.num_frames is None, but {which} needs the number of frames per clip")
    return config.num_frames
