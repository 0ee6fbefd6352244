"""Models with temporal layers on timm's backbones: recurrence, a transformer, shifted features.

Shapes: B clips, T frames, N = B * T, C channels, H x W pixels, F features.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastemo.models.config import Rnn, Shift
from fastemo.models.fusion import ClipModel, FrameModel, MapLayer, feature_width, timm_map_layer

_WIDTH, _HEADS, _LAYERS = 256, 4, 2  # of the frame transformer
# timm's residual blocks, and the layer that their residual branches begin with.
_BRANCHES = {
    "BasicBlock": "conv1",
    "Bottleneck": "conv1",
    "DepthwiseSeparableConv": "conv_dw",
    "InvertedResidual": "conv_pw",
    "EdgeResidual": "conv_exp",
    "UniversalInvertedResidual": "dw_start",
}


class CNNRNN(FrameModel):
    """One backbone for every frame, a one-layer LSTM or GRU over them, one Linear on its last hidden state.

    Args:
        backbone: float [N, 3, H, W] -> features [N, F].
        rnn: Type of the recurrent layer.
        hidden: Its hidden size.
        norm: LayerNorm on the features before it.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, rnn: Rnn, hidden: int, norm: bool) -> None:
        super().__init__()
        width = feature_width(backbone)
        self.backbone = backbone
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[rnn](width, hidden, batch_first=True)
        self.classifier = nn.Linear(hidden, num_classes)

    def join(self, features_BTF: Tensor) -> Tensor:
        features_BTF = self.norm(features_BTF)
        # Under CUDA's autocast cuDNN's RNNs compute in fp16 even if bf16 is requested, and without loss scaling the
        # gradients of early frames vanish (torch's AutocastRNN.cpp). float32 costs little compared to the backbone.
        with without_autocast(features_BTF.device.type):
            hidden_BTF, _ = self.rnn(features_BTF.float())
        return hidden_BTF[:, -1]


class FrameTransformer(FrameModel):
    """One backbone for every frame, two transformer encoder layers over T features and a class token, one Linear on it.

    The layers normalise first and have 4 heads on 256 features. Positions are sines and cosines, so that any T runs.
    Source: Vaswani et al. (2017), "Attention Is All You Need"; the class token: Dosovitskiy et al. (2021), "An Image is
    Worth 16x16 Words".

    Args:
        backbone: float [N, 3, H, W] -> features [N, F].
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Sequential(nn.LayerNorm(width := feature_width(backbone)), nn.Linear(width, _WIDTH))
        self.class_token = nn.Parameter(torch.zeros(_WIDTH))
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, 4 * _WIDTH, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, _LAYERS, nn.LayerNorm(_WIDTH), enable_nested_tensor=False)
        self.classifier = nn.Linear(_WIDTH, num_classes)

    def join(self, features_BTF: Tensor) -> Tensor:
        tokens_BTF = self.project(features_BTF)
        tokens_BTF = tokens_BTF + positions(tokens_BTF.shape[1], tokens_BTF)
        class_token_B1F = self.class_token.expand(tokens_BTF.shape[0], 1, -1)
        return self.encoder(torch.cat([class_token_B1F.to(tokens_BTF.dtype), tokens_BTF], dim=1))[:, 0]


def positions(num_frames: int, like: Tensor) -> Tensor:
    """Sines and cosines of positions 0 .. T-1: [T, F], in `like`'s dtype and on its device.

    Source: Vaswani et al. (2017), section 3.5.
    """
    width = like.shape[-1]
    steps = torch.arange(num_frames, device=like.device, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10_000) / width))
    return torch.stack([(steps * rates).sin(), (steps * rates).cos()], dim=2).flatten(1).to(like.dtype)


class TemporalShift(ClipModel):
    """TSM: a 2D backbone whose residual branches see part of the neighbouring frames' features; features averaged.

    Before every residual branch an eighth of the channels comes from the next frame and an eighth from the previous
    one, or, for video as it arrives, an eighth from the previous one alone. It has no parameters, and the weights' keys
    are timm's.
    Source: Lin, Gan, Han (2019), "TSM: Temporal Shift Module for Efficient Video Understanding".

    Args:
        backbone: float [N, 3, H, W] -> features [N, F]: timm's ResNets, MobileNets and EfficientNets.
        shift: `both` or `online`.

    Raises:
        ValueError: The backbone has no residual branches of these kinds.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, shift: Shift) -> None:
        super().__init__()
        self.backbone, self.shift = backbone, shift
        self._num_frames = 1  # of the clips in the backbone
        branches = [
            getattr(block, _BRANCHES[type(block).__name__])
            for block in backbone.modules()
            if type(block).__name__ in _BRANCHES and getattr(block, "has_skip", True)
        ]
        if not branches:
            raise ValueError(
                "model.backbone must be a ResNet, MobileNet or EfficientNet of timm for tsm, such as resnet18, "
                "mobilenetv3_small_100, mobilenetv4_conv_small or efficientnet_lite0"
            )
        for layer in branches:
            layer.register_forward_pre_hook(self._before_branch)
        self.classifier = nn.Linear(feature_width(backbone), num_classes)

    def map_layer(self) -> MapLayer | None:
        return timm_map_layer(self.backbone)

    def _before_branch(self, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return shifted(inputs[0], self._num_frames, is_online=self.shift == "online")

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        self._num_frames = frames_BTCHW.shape[1]
        features_NF = self.backbone(frames_BTCHW.flatten(0, 1))
        return features_NF.unflatten(0, (-1, frames_BTCHW.shape[1])).mean(dim=1)


def shifted(features_NCHW: Tensor, num_frames: int, *, is_online: bool) -> Tensor:
    """[N, C, H, W] of clips of T frames, with an eighth of the channels of each neighbouring frame; 0 without one."""
    # Channels last in the shape, too, where they are in memory: `cat` and `pad` would change the layout.
    is_last = features_NCHW.is_contiguous(memory_format=torch.channels_last)
    features = features_NCHW.permute(0, 2, 3, 1) if is_last else features_NCHW
    features, axis = features.unflatten(0, (-1, num_frames)), 4 if is_last else 2
    num_channels, steps = features.shape[axis], (1,) if is_online else (-1, 1)
    part = max(1, num_channels // 8)
    # Split rather than sliced: the gradient is one copy, not a sum of whole tensors.
    *moving, staying = features.split([part] * len(steps) + [num_channels - len(steps) * part], dim=axis)
    moved = [F.pad(it, (0, 0) * 3 + (step, -step)) for it, step in zip(moving, steps, strict=True)]
    features = torch.cat([*moved, staying], dim=axis).flatten(0, 1)
    return features.permute(0, 3, 1, 2) if is_last else features


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Nothing where autocast is off, which keeps it out of exported graphs, and on `meta`, which computes nothing."""
    is_on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if is_on else nullcontext()
