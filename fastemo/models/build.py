"""Builds the models: ImageNet-normalised float [B, T, C, H, W] -> logits [B, classes]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import timm
import torch
from torch import nn

from fastemo.errors import UserError, one_line
from fastemo.models.config import ModelConfig
from fastemo.models.fusion import ClipModel, EarlyCNN, EarlyResNet18, LateFusion
from fastemo.models.pretrained import (
    NATIVE,
    RESNET18,
    Source,
    timm_backbone,
    torchvision_backbone,
    transformers_backbone,
    videomae_architecture,
)
from fastemo.models.temporal import CNNRNN, FrameTransformer, TemporalShift
from fastemo.models.video import VIDEO_BACKBONES, VideoMAE, VideoModel, check_transformers, set_drop_path
from fastemo.models.weights import load_weights

_TORCHVISION = ("video", "r3d18")
_MOST_FRAMES, _MOST_PIXELS = 64, 512


def with_architecture(config: ModelConfig) -> ModelConfig:
    """The configuration with the `architecture` of a `videomae`, if there is such a backbone.

    Raises:
        ValueError: There is none.
        UserError: A package, or the hub's configuration of the backbone, is missing.
    """
    backbone = config.backbone_name
    if config.name in _TORCHVISION:
        if backbone not in VIDEO_BACKBONES:
            raise ValueError(f"model.backbone is '{backbone}', must be one of {', '.join(VIDEO_BACKBONES)} for video")
    elif config.name == "videomae":
        assert backbone is not None
        check_transformers()
        return replace(config, architecture=config.architecture or videomae_architecture(backbone))
    elif backbone is not None and not timm.is_model(backbone):
        raise ValueError(
            f"model.backbone is '{backbone}', must be one of timm.list_models(), "
            "such as resnet18, resnet50 or mobilenetv3_small_100"
        )
    return config


def checked(config: ModelConfig) -> ModelConfig:
    """`with_architecture`, if the model can take clips of `num_frames` frames of `size` pixels.

    Raises:
        ValueError, UserError: As `with_architecture` raises them, or the model cannot take such clips; the message
            names the nearest that it can.
    """
    config = with_architecture(config)
    if (error := _refusal(config)) is None:
        return config
    if _refusal(replace(config, **NATIVE)):
        if (error := _refusal(config, "cpu")) is None:  # some of timm's look at values, which `meta` has not
            return config
        raise ValueError(f"{_title(config)} cannot be used: {one_line(error)}") from error
    nearest = {
        "video.num_frames": _nearest(config, "num_frames", _MOST_FRAMES),
        "augment.crop_size": _nearest(config, "size", _MOST_PIXELS),
    }
    asked = {"video.num_frames": config.num_frames, "augment.crop_size": config.size}
    told = [f"the nearest {key} is {found}" for key, found in nearest.items() if found not in (None, asked[key])]
    raise ValueError(
        f"{_title(config)} cannot take clips of {config.num_frames} frames of {config.size} pixels: "
        f"{' and '.join(told) or one_line(error)}"
    ) from error


def _title(config: ModelConfig) -> str:
    return config.name if config.backbone_name is None else f"{config.name} with model.backbone {config.backbone_name}"


def _refusal(config: ModelConfig, device: str = "meta") -> Exception | None:
    """Why the model cannot take its clips, found on the meta device, which computes nothing; `None`: it can."""
    assert config.num_frames is not None
    assert config.size is not None
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = _build(config, 2, pretrained=False).to(device).eval()
            model(torch.zeros(1, config.num_frames, 3, config.size, config.size, device=device))
    except UserError:
        raise
    except Exception as error:  # of torch, or of the library
        return error
    return None


def _nearest(config: ModelConfig, field: str, most: int) -> int | None:
    """The value of a field nearest to its own with which the model can take clips, the other field being native."""
    own = getattr(config, field)
    nearest = sorted(range(1, most + 1), key=lambda value: (abs(value - own), -value))
    return next((it for it in nearest if _refusal(replace(config, **NATIVE | {field: it})) is None), None)


def pretrained_backbone(config: ModelConfig) -> Source | None:
    """The pretrained weights that `build_model` loads; `None`: none."""
    name = config.backbone_name
    if not config.pretrained or config.weights is not None or name is None:
        return None
    if config.name in _TORCHVISION:
        return Source("torchvision", name)
    if config.name == "videomae":
        return Source("transformers", name)
    return Source("timm", RESNET18 if name == "resnet18" else name)


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
        ValueError, UserError: As `with_architecture` raises them, `num_frames` or `size` is None for a model that is
            built for one, or `config.weights` does not fit.
    """
    config = with_architecture(config)
    model = _build(config, num_classes, pretrained=config.pretrained and config.weights is None)
    if config.weights is not None:
        inflate = config.name == "early_resnet18" and config.stem == "inflate"
        say(load_weights(model, config.weights, same_classes=same_classes, inflate=inflate))
    return model


def _build(config: ModelConfig, num_classes: int, *, pretrained: bool) -> ClipModel:
    if config.name == "early_cnn":
        return EarlyCNN(_needed(config, "num_frames"), num_classes, dropout=config.dropout)
    backbone = _backbone(config, pretrained=pretrained)
    match config.name:
        case "early_resnet18":
            return EarlyResNet18(backbone, _needed(config, "num_frames"), num_classes, stem=config.stem)
        case "late_fusion":
            joined_frames = _needed(config, "num_frames") if config.fusion == "concat" else None
            return LateFusion(backbone, num_classes, fusion=config.fusion, num_frames=joined_frames)
        case "cnn_lstm":
            return CNNRNN(backbone, num_classes, rnn=config.rnn, hidden=config.rnn_hidden, norm=config.rnn_norm)
        case "frame_transformer":
            return FrameTransformer(backbone, num_classes)
        case "tsm":
            return TemporalShift(backbone, num_classes, shift=config.shift)
        case "videomae":
            return VideoMAE(backbone, num_classes)
        case _:
            return VideoModel(backbone, num_classes)


def _backbone(config: ModelConfig, *, pretrained: bool) -> nn.Module:
    name = config.backbone_name
    assert name is not None
    if config.name == "videomae" or name == "mvit_v2_s":
        clip = {field: _needed(config, field) for field in NATIVE}
    else:
        clip = NATIVE
    if config.name in _TORCHVISION:
        backbone = torchvision_backbone(name, pretrained=pretrained, **clip)
        has_drop_path = config.drop_path is None or set_drop_path(backbone, config.drop_path)
    elif config.name == "videomae":
        assert config.architecture is not None
        backbone = transformers_backbone(name, config.architecture, pretrained=pretrained, **clip)
        has_drop_path = config.drop_path is None
    else:
        try:
            return timm_backbone(name, pretrained=pretrained, size=config.size, drop_path=config.drop_path)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            has_drop_path = False
    if not has_drop_path:
        raise ValueError(f"model.drop_path {config.drop_path} needs a backbone with drop path, which {name} has not")
    return backbone


def _needed(config: ModelConfig, field: str) -> int:
    """Raises:
    ValueError: The field is not set.
    """
    value: int | None = getattr(config, field)
    if value is None:
        which = "late_fusion with fusion: concat" if config.name == "late_fusion" else _title(config)
        raise ValueError(f"model.{field} is None, but {which} is built for one")
    return value
