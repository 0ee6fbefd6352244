"""The networks that `epoch_time.py` measures and the documentation lists: `model.name` or `name:backbone`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastemo.models.config import ModelConfig


@dataclass(frozen=True)
class Network:
    """A line of the documentation's table.

    Attributes:
        what: What it is.
        trained_on: Data of its pretrained weights.
        is_slow: Whether two cores train it at a few clips/s: its epochs are shorter.
    """

    what: str
    trained_on: str = "ImageNet"
    is_slow: bool = False


_KINETICS = "Kinetics-400"
NETWORKS = {
    "early_cnn": Network("early fusion: a small 2D CNN on the 3T channels of all frames", "-"),
    "early_resnet18": Network("early fusion: ResNet-18 on 3T channels"),
    "late_fusion": Network("ResNet-18 on each frame; features averaged over time"),
    "r3d18": Network("R3D-18, a 3D ResNet", _KINETICS, is_slow=True),
    "cnn_lstm": Network("ResNet-18 on each frame; then an LSTM"),
    "tsm": Network("ResNet-18 on each frame, its features shifted in time; averaged"),
    "frame_transformer": Network("ResNet-18 on each frame; then a transformer of two layers"),
    "video": Network("R(2+1)D-18: convolutions over space, then over time", _KINETICS, is_slow=True),
    "videomae": Network("VideoMAE-S, a transformer over space and time", _KINETICS, is_slow=True),
    "late_fusion:mobilenetv3_small_100": Network("MobileNetV3-small on each frame; averaged"),
    "late_fusion:mobilenetv4_conv_small": Network("MobileNetV4-small on each frame; averaged"),
    "late_fusion:efficientnet_lite0": Network("EfficientNet-Lite0 on each frame; averaged"),
    "cnn_lstm:mobilenetv3_small_100": Network("MobileNetV3-small on each frame; then an LSTM"),
    "tsm:mobilenetv3_small_100": Network("MobileNetV3-small, its features shifted in time; averaged"),
    "video:mc3_18": Network("MC3-18: 3D convolutions, then 2D ones", _KINETICS, is_slow=True),
    "video:s3d": Network("S3D: a 3D Inception network with separate convolutions", _KINETICS, is_slow=True),
    "video:swin3d_t": Network("Video Swin, tiny: attention in windows of space and time", _KINETICS, is_slow=True),
    "video:swin3d_s": Network("Video Swin, small", _KINETICS, is_slow=True),
    "video:mvit_v2_s": Network("MViTv2-S: attention at several scales", _KINETICS, is_slow=True),
}


def config_of(network: str, **options: Any) -> ModelConfig:
    """The model's configuration, without pretrained weights."""
    name, _, backbone = network.partition(":")
    return ModelConfig(name=name, backbone=backbone or None, pretrained=False, **options)  # type: ignore[arg-type]
