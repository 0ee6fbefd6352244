"""Models without temporal layers: early fusion stacks the frames as channels, late fusion joins frame features.

Shapes: B clips, T frames, C = 3 channels, H x W pixels, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fastemo.models.config import Fusion, Stem

_EARLY_WIDTHS = (64, 128, 256, 512)
_EARLY_HIDDEN = 1024
_HEAD = "classifier"
# Layers of the networks of torchvision and transformers, in the form of timm's `group_matcher`.
_LAYERS = {
    "stem": r"^(?:stem|patch_embed|conv_proj|pos_encoding|videomae\.embeddings)",
    "blocks": [
        (r"^(?:layer|features\.)(\d+)\.(\d+)\.", None),
        (r"^(?:features|blocks|videomae\.encoder\.layer)\.(\d+)", (0,)),
        (r"^(?:norm|fc_norm|videomae\.layernorm)", (99999,)),
    ],
}


@dataclass(frozen=True)
class MapLayer:
    """The layer that makes a model's last maps: tokens [N, L, C], or maps [N, C, ..., h, w] or [N, ..., h, w, C].

    Attributes:
        num_prefix: Tokens before those of the grid, such as a class token.
        num_steps: Time steps of the tokens' grid; `None`: N is B * T, and each frame has a grid.
        is_channels_last: Of maps, whether they are [N, ..., h, w, C].
    """

    layer: nn.Module
    num_prefix: int = 0
    num_steps: int | None = None
    is_channels_last: bool = False

    def maps(self, output: Tensor, aspect: float) -> Tensor:
        """The layer's output as maps [N, C, h, w], or with time steps [N, C, t, h, w].

        Args:
            aspect: Height of the frames over their width.
        """
        if output.ndim > 3:
            return output.movedim(-1, 1) if self.is_channels_last else output
        tokens_NCL = output[:, self.num_prefix :].mT
        num_rows = round((tokens_NCL.shape[2] / (self.num_steps or 1) * aspect) ** 0.5)
        return tokens_NCL.unflatten(2, (num_rows, -1) if self.num_steps is None else (self.num_steps, num_rows, -1))


class ClipModel(nn.Module):
    """Base of all models: a clip's embedding, and the classifier that sees it.

    Attributes:
        classifier: Embedding [B, F] -> logits [B, num_classes].
    """

    classifier: nn.Module

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        """Float [B, T, 3, H, W] -> embedding [B, F]."""
        raise NotImplementedError

    def logits_and_embedding(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, T, 3, H, W] -> logits [B, num_classes] and embedding [B, F]."""
        embedding = self.embed(frames_BTCHW)
        return self.classifier(embedding), embedding

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Float [B, T, 3, H, W] -> logits [B, num_classes]."""
        return self.classifier(self.embed(frames_BTCHW))

    def backbone_layers(self) -> dict[str, int]:
        """Each pretrained weight's name, and how many layers it lies before the model's head; timm counts some to that.

        The layers are timm's, for its own models by their `group_matcher`. Empty for a model without a backbone.
        """
        from timm.models import group_parameters  # only training needs it, and it takes a second to load

        backbone: Any = getattr(self, "backbone", None)
        if backbone is None:
            return {}
        matcher = backbone.group_matcher() if hasattr(backbone, "group_matcher") else _LAYERS
        # timm's own models have their classifier as one more layer.
        named: Any = SimpleNamespace(named_parameters=lambda: [*backbone.named_parameters(), (_HEAD, None)])
        layers = group_parameters(named, matcher, reverse=True)
        last = layers.pop(_HEAD)
        return {f"backbone.{name}": last - layer for name, layer in layers.items()}

    def map_layer(self) -> MapLayer | None:
        """Where Grad-CAM finds the last maps; `None`: in the last output of a layer that has any."""
        return None

    def frame_weights(self, frames_BTCHW: Tensor) -> Tensor | None:
        """Each frame's share of the embedding, [B, T]; `None`: the model does not weight frames."""
        return None


class EarlyCNN(ClipModel):
    """Architecture 1 of Roy (2025): four convolution blocks on 3T channels, global average pooling, an MLP.

    Convolutions have a bias, as the plain `Conv2d` of Roy (2025) has.
    """

    def __init__(self, num_frames: int, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3 * num_frames
        for out_channels in _EARLY_WIDTHS:
            layers += [
                nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            in_channels = out_channels
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(in_channels, _EARLY_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(_EARLY_HIDDEN, num_classes),
        )

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        """Float [B, T, 3, H, W] with H, W >= 16 -> embedding [B, 512]."""
        return self.pool(self.blocks(frames_BTCHW.flatten(1, 2))).flatten(1)


class EarlyResNet18(ClipModel):
    """Architecture 2 of Roy (2025): ResNet-18 with a first convolution on 3T channels.

    Args:
        backbone: ResNet-18 on RGB, without classifier; its `conv1` is replaced.
        stem: `random` draws the new kernel (He, fan out, as in ResNet); `inflate` repeats the backbone's
            T times and divides by T, so a still clip gives the same features as one of its frames.
    """

    def __init__(self, backbone: nn.Module, num_frames: int, num_classes: int, *, stem: Stem) -> None:
        super().__init__()
        rgb = backbone.conv1
        assert isinstance(rgb, nn.Conv2d)
        conv = nn.Conv2d(3 * num_frames, rgb.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.stem = stem
        if stem == "inflate":
            with torch.no_grad():
                conv.weight.copy_(inflated(rgb.weight, num_frames))
        else:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        backbone.conv1 = conv
        self.backbone = backbone
        self.classifier = nn.Linear(feature_width(backbone), num_classes)

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        return self.backbone(frames_BTCHW.flatten(1, 2))

    def backbone_layers(self) -> dict[str, int]:
        """Without the first convolution if that is random."""
        own = "backbone.conv1.weight" if self.stem == "random" else None
        return {name: layer for name, layer in super().backbone_layers().items() if name != own}


class FrameModel(ClipModel):
    """Base of the models that encode each frame by itself: whoever uses them may encode a frame once for many clips.

    Attributes:
        backbone: float [N, 3, H, W] -> features [N, F].
    """

    backbone: nn.Module

    def map_layer(self) -> MapLayer | None:
        return timm_map_layer(self.backbone)

    def encode(self, frames_NCHW: Tensor) -> Tensor:
        """Float [N, 3, H, W] -> features [N, F], each frame by itself."""
        return self.backbone(frames_NCHW)

    def join(self, features_BTF: Tensor) -> Tensor:
        """Features of T frames [B, T, F] -> the clip's embedding, which the classifier takes."""
        raise NotImplementedError

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        return self.join(self._features(frames_BTCHW))

    def _features(self, frames_BTCHW: Tensor) -> Tensor:
        """[B, T, F], without copying the frames."""
        return self.encode(frames_BTCHW.flatten(0, 1)).unflatten(0, (-1, frames_BTCHW.shape[1]))


class LateFusion(FrameModel):
    """One backbone for every frame, features joined over time, one Linear.

    Args:
        backbone: float [N, 3, H, W] -> features [N, F].
        num_frames: T, which only `concat` needs: its Linear has T * F inputs.
        fusion: `mean`, `max` or `attention`, a mean with weights (order-blind), or `concat`.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, fusion: Fusion, num_frames: int | None) -> None:
        super().__init__()
        width = feature_width(backbone)
        if fusion == "concat":
            assert num_frames is not None
            width *= num_frames
        self.fusion = fusion
        self.backbone = backbone
        if fusion == "attention":
            # Without a bias, which the softmax would cancel.
            self.attention = nn.Linear(width, 1, bias=False)
        self.classifier = nn.Linear(width, num_classes)

    def join(self, features_BTF: Tensor) -> Tensor:
        if self.fusion == "mean":
            return features_BTF.mean(dim=1)
        if self.fusion == "attention":
            return (self._weights(features_BTF) * features_BTF).sum(dim=1)
        return features_BTF.amax(dim=1) if self.fusion == "max" else features_BTF.flatten(1)

    def _weights(self, features_BTF: Tensor) -> Tensor:
        """[B, T, 1], of sum 1 over the frames."""
        return self.attention(features_BTF).float().softmax(dim=1)

    def frame_weights(self, frames_BTCHW: Tensor) -> Tensor | None:
        return self._weights(self._features(frames_BTCHW))[..., 0] if self.fusion == "attention" else None


def inflated(kernel: Tensor, num_frames: int) -> Tensor:
    """An RGB kernel [F, 3, h, w] repeated T times and divided by T: [F, 3T, h, w], which sees the mean frame."""
    return kernel.repeat(1, num_frames, 1, 1) / num_frames


def feature_width(backbone: nn.Module) -> int:
    """F of a timm model without classifier; `num_features` is wrong where a head convolution widens it."""
    width = backbone.head_hidden_size
    assert isinstance(width, int)
    return width


def timm_map_layer(backbone: Any) -> MapLayer | None:
    """Of timm's transformers; `None` for its convolutional networks.

    Behind the last block's attention the tokens of a class token's grid have no gradient, so it is that block's input.
    """
    if hasattr(backbone, "num_prefix_tokens") and hasattr(backbone.blocks[-1], "norm1"):
        return MapLayer(backbone.blocks[-1].norm1, num_prefix=backbone.num_prefix_tokens)
    is_channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    return MapLayer(backbone.norm, is_channels_last=True) if is_channels_last else None
