"""Small networks of every kind, for the tests that hold all models to the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.video import VideoResNet, resnet
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d

from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.models.fusion import ClipModel

RESNET = {"backbone": "test_resnet"}  # one block a stage
MOBILENET = {"backbone": "mobilenetv3_small_050"}
TINY_VIDEOMAE = json.dumps(
    {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "num_frames": 4,
    }
)
# `model.name`, and after a hyphen the variant -> options. A model's first is what its other tests take.
NETWORKS = {
    "early_cnn": {},
    "early_resnet18": {},
    "late_fusion": RESNET,
    "late_fusion-concat": {**RESNET, "fusion": "concat"},
    "late_fusion-max": {**RESNET, "fusion": "max"},
    "late_fusion-attention": {**RESNET, "fusion": "attention"},
    "late_fusion-vit": {"backbone": "test_vit"},
    "cnn_lstm": {**RESNET, "rnn_hidden": 16},
    "cnn_lstm-gru": {**RESNET, "rnn": "gru", "rnn_hidden": 16, "rnn_norm": True},
    "frame_transformer": MOBILENET,
    "tsm": RESNET,
    "tsm-online": {**MOBILENET, "shift": "online"},
    "tsm-mobilenetv4": {"backbone": "mobilenetv4_conv_small_035"},
    "tsm-efficientnet": {"backbone": "efficientnet_lite0"},
    "r3d18": {},
    "video": {"backbone": "r2plus1d_18"},
    "video-mc3_18": {"backbone": "mc3_18"},
    "video-s3d": {"backbone": "s3d"},
    "video-swin3d_t": {"backbone": "swin3d_t"},
    "video-swin3d_s": {"backbone": "swin3d_s"},
    "video-mvit_v2_s": {"backbone": "mvit_v2_s"},
    "videomae": {"architecture": TINY_VIDEOMAE},
}
_RESNETS = {
    "r3d_18": ([resnet.Conv3DSimple] * 4, resnet.BasicStem),
    "mc3_18": ([resnet.Conv3DSimple] + [resnet.Conv3DNoTemporal] * 3, resnet.BasicStem),
    "r2plus1d_18": ([resnet.Conv2Plus1D] * 4, resnet.R2Plus1dStem),
}
_get_model = torchvision.models.get_model


def _shallow(name: str, **options: object) -> nn.Module:
    """torchvision's model with fewer blocks, by its own constructor."""
    if name in _RESNETS:
        conv, stem = _RESNETS[name]
        return VideoResNet(resnet.BasicBlock, conv, [1, 1, 1, 1], stem)
    if name.startswith("swin3d"):
        return SwinTransformer3d(
            patch_size=[2, 4, 4], embed_dim=24, depths=[1, 2, 1, 1], num_heads=[1, 2, 3, 6], window_size=[8, 7, 7]
        )
    if name == "mvit_v2_s":
        # Channels in and out, heads, and strides in space of queries, keys and values.
        stages = [(24, 48, 1, 1, 8), (48, 96, 2, 2, 4), (96, 96, 2, 2, 2), (96, 96, 2, 1, 2)]
        blocks = [
            MSBlockConfig(heads, before, after, [3, 3, 3], [3, 3, 3], [1, query, query], [1, key, key])
            for before, after, heads, query, key in stages
        ]
        return MViT(
            spatial_size=(224, 224),
            temporal_size=16,
            block_setting=blocks,
            residual_pool=True,
            residual_with_cls_embed=False,
            rel_pos_embed=True,
            proj_after_attn=True,
        )
    return _get_model(name, **options)


@contextmanager
def shallow_networks() -> Iterator[None]:
    """Within it torchvision's video networks are shallow, but for S3D."""
    with patch.object(torchvision.models, "get_model", _shallow):
        yield


def network(variant: str, num_frames: int | None = 6, size: int | None = 48) -> ClipModel:
    """A network of `NETWORKS` for 8 classes, with the weights of seed 0."""
    torch.manual_seed(0)
    options = {"num_frames": num_frames, "size": size, "pretrained": False, **NETWORKS[variant]}
    with shallow_networks():
        return build_model(ModelConfig(name=variant.partition("-")[0], **options), 8)


def with_statistics(model: nn.Module, frames: Tensor) -> nn.Module:
    """With those of the frames in batch normalisation: without any, a deep network hardly depends on its input."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        model.train()(frames)
    return model.eval()
