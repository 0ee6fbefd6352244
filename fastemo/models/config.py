"""Configuration of the model, checked when it is created."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

ModelName = Literal["early_cnn", "early_resnet18", "late_fusion", "r3d18", "cnn_lstm"]
Fusion = Literal["mean", "concat", "max"]
Rnn = Literal["lstm", "gru"]
Stem = Literal["random", "inflate"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One of the five models of Roy (2025) and its variants; options of other models have no effect.

    Attributes:
        name: `early_cnn`, `early_resnet18`, `late_fusion`, `r3d18` or `cnn_lstm`.
        num_frames: T, frames per clip. The early models and `fusion: concat` are built for one T; a run
            uses `video.num_frames`.
        pretrained: Start from ImageNet (2D) or Kinetics-400 (3D) weights. `early_cnn` never does.
        weights: Weights to start from instead, whatever `pretrained` says: a run folder (its best checkpoint), `latest`
            (the newest finished run), a checkpoint's folder or `model.safetensors`, or a `.safetensors`, `.pt` or
            `.pth` file with a state dict of timm's key names (for `r3d18` torchvision's; for ResNet-18 both are the
            same), whose classifier is dropped.
            A run may be of another model with the same backbone; its classifier is loaded if its classes are the same.
        backbone: timm model of `late_fusion` and `cnn_lstm`, with or without a tag.
        fusion: How `late_fusion` joins the T frame features.
        rnn: Recurrent layer of `cnn_lstm`.
        rnn_hidden: Hidden size of the recurrent layer.
        rnn_norm: LayerNorm on the frame features before the recurrent layer. Not in Roy (2025); training without
            pretrained weights needs it.
        stem: First convolution of `early_resnet18`, on 3T channels: `random` as in Roy (2025), or `inflate`, the
            pretrained RGB kernel repeated T times and divided by T, which initially sees the mean frame.
        dropout: Dropout probability after the hidden fully connected layer, which only `early_cnn` has. The heads
            of the other four are a single Linear.

    Raises:
        ValueError: A value is not among the allowed ones; the message names them.
    """

    name: ModelName = "cnn_lstm"
    num_frames: int | None = None
    pretrained: bool = True
    weights: Path | None = None
    backbone: str = "resnet18"
    fusion: Fusion = "mean"
    rnn: Rnn = "lstm"
    rnn_hidden: int = 512
    rnn_norm: bool = False
    stem: Stem = "random"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        choices = {"name": ModelName, "fusion": Fusion, "rnn": Rnn, "stem": Stem}
        for field, allowed in choices.items():
            value = getattr(self, field)
            if value not in get_args(allowed):
                raise ValueError(f"model.{field} is '{value}', must be one of {', '.join(get_args(allowed))}")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"model.num_frames is {self.num_frames}, must be at least 1")
        if self.rnn_hidden < 1:
            raise ValueError(f"model.rnn_hidden is {self.rnn_hidden}, must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}, must be at least 0 and below 1")
