"""Models with temporal layers: R3D-18 (3D convolution) and CNN-RNN (recurrence).

Shapes: B clips, T frames, C = 3 channels, H x W pixels, F features.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from fastemo.models.config import Rnn
from fastemo.models.fusion import ClipModel, FrameModel, feature_width

_R3D18_FEATURES = 512


class R3D18(ClipModel):
    """Convolution over time and space, global average pooling, one Linear.

    Args:
        backbone: float [B, 3, T, H, W] -> features [B, 512].
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(_R3D18_FEATURES, num_classes)

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        return self.backbone(frames_BTCHW.transpose(1, 2))

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Float [B, T, 3, H, W] -> logits [B, num_classes]; on a CPU always in float32, whatever the precision set."""
        if frames_BTCHW.device.type != "cpu":
            return super().forward(frames_BTCHW)
        # On a CPU, bf16 conv3d gave NaN weight gradients at some shapes (benchmarks/LOG.md).
        with _without_autocast("cpu"):
            return super().forward(frames_BTCHW.float())


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
        with _without_autocast(features_BTF.device.type):
            hidden_BTF, _ = self.rnn(features_BTF.float())
        return hidden_BTF[:, -1]


def _without_autocast(kind: str) -> AbstractContextManager[object]:
    """Nothing where autocast is off, which keeps it out of exported graphs, and on `meta`, which computes nothing."""
    is_on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if is_on else nullcontext()
