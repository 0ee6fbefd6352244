"""Configuration of the model, checked when it is created."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

ModelName = Literal[
    "early_cnn",
    "early_resnet18",
    "late_fusion",
    "r3d18",
    "cnn_lstm",
    "tsm",
    "frame_transformer",
    "video",
    "videomae",
]
Fusion = Literal["mean", "concat", "max", "attention"]
Shift = Literal["both", "online"]
Rnn = Literal["lstm", "gru"]
Stem = Literal["random", "inflate"]
# The backbone of each model if none is named; the models of Roy (2025) whose backbone is fixed have that one.
_BACKBONES: dict[str, str] = {
    "early_resnet18": "resnet18",
    "late_fusion": "resnet18",
    "r3d18": "r3d_18",
    "cnn_lstm": "resnet18",
    "tsm": "resnet18",
    "frame_transformer": "resnet18",
    "video": "r2plus1d_18",
    "videomae": "MCG-NJU/videomae-small-finetuned-kinetics",
}
_FIXED = ("early_resnet18", "r3d18")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model and its variants; options of other models have no effect.

    Attributes:
        name: Of Roy (2025): `early_cnn`, `early_resnet18`, `late_fusion`, `r3d18` or `cnn_lstm`; and `tsm`,
            `frame_transformer`, `video` or `videomae`.
        num_frames: T, frames per clip, which some models are built for; a run uses `video.num_frames`.
        size: Side of the model's input in pixels, which some are built for; a run uses `augment.crop_size`.
        pretrained: Start from the backbone's pretrained weights: ImageNet's (2D) or those of Kinetics-400 (video).
            `early_cnn` never does.
        weights: Weights to start from instead, whatever `pretrained` says: a run folder (its best checkpoint), `latest`
            (the newest finished run), a checkpoint's folder or `model.safetensors`, or a `.safetensors`, `.pt` or
            `.pth` file with a state dict of timm's key names (for `r3d18` and `video` torchvision's, for `videomae`
            transformers'; for ResNet-18 timm's and torchvision's are the same), whose classifier is dropped.
            A run may be of another model with the same backbone; its classifier is loaded if its classes are the same.
        backbone: timm model of `late_fusion`, `cnn_lstm`, `frame_transformer` and `tsm` (a ResNet, MobileNet or
            EfficientNet), with or without a tag; null: `resnet18`. Of `video` one of `VIDEO_BACKBONES`; null:
            `r2plus1d_18`. Of `videomae` a VideoMAE on the Hugging Face Hub or its folder; null: VideoMAE-S, fine-tuned
            on Kinetics-400.
        architecture: Of `videomae` the backbone's configuration in JSON; null: the hub's, which a run saves here.
        fusion: How `late_fusion` joins the T frame features.
        shift: What `tsm` shifts: features of the previous and the next frame (`both`), or only of the previous one
            (`online`).
        rnn: Recurrent layer of `cnn_lstm`.
        rnn_hidden: Hidden size of the recurrent layer.
        rnn_norm: LayerNorm on the frame features before the recurrent layer. Not in Roy (2025); training without
            pretrained weights needs it.
        stem: First convolution of `early_resnet18`, on 3T channels: `random` as in Roy (2025), or `inflate`, the
            pretrained RGB kernel repeated T times and divided by T, which initially sees the mean frame.
        dropout: Dropout probability after the hidden fully connected layer, which only `early_cnn` has. The heads
            of the others are a single Linear.
        drop_path: Probability with which training skips the backbone's last residual block, rising linearly from its
            first (stochastic depth; Huang et al., 2016); null: the backbone's own, which is 0 but for torchvision's
            transformers.

    Raises:
        ValueError: A value is not among the allowed ones; the message names them.
    """

    name: ModelName = "cnn_lstm"
    num_frames: int | None = None
    size: int | None = None
    pretrained: bool = True
    weights: Path | None = None
    backbone: str | None = None
    architecture: str | None = None
    fusion: Fusion = "mean"
    shift: Shift = "both"
    rnn: Rnn = "lstm"
    rnn_hidden: int = 512
    rnn_norm: bool = False
    stem: Stem = "random"
    dropout: float = 0.5
    drop_path: float | None = None

    def __post_init__(self) -> None:
        choices = {"name": ModelName, "fusion": Fusion, "shift": Shift, "rnn": Rnn, "stem": Stem}
        for field, allowed in choices.items():
            value = getattr(self, field)
            if value not in get_args(allowed):
                raise ValueError(f"model.{field} is '{value}', must be one of {', '.join(get_args(allowed))}")
        for field in ("num_frames", "size", "rnn_hidden"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"model.{field} is {value}, must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}, must be at least 0 and below 1")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"model.drop_path is {self.drop_path}, must be at least 0 and below 1, or null")

    @property
    def backbone_name(self) -> str | None:
        """The backbone that is used: the model's own, `backbone`, or the default; `None`: the model has none."""
        default = _BACKBONES.get(self.name)
        return default if default is None or self.name in _FIXED else self.backbone or default
