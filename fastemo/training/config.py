"""Training settings of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

Precision = Literal["auto", "fp32", "fp16", "bf16"]
SpeedMode = Literal["auto", "fp32", "plain"]
Compile = Literal["auto", "off", "default", "cudagraphs"]
Exchange = Literal["auto", "fp32", "bf16"]
Schedule = Literal["plateau", "onecycle", "cosine", "constant"]
Optimizer = Literal["adam", "adamw", "sgd"]
ClassWeights = Literal["none", "balanced"]
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training recipe; the defaults are those of Roy (2025).

    Attributes:
        batch_size: Clips per step on each device.
        accumulate_steps: Batches whose gradients are accumulated for one optimiser step.
        epochs: Maximum number of epochs.
        optimizer: `adam`, `adamw` (Loshchilov and Hutter, 2019) or `sgd` with Nesterov momentum 0.9 (Sutskever et al.,
            2013).
        lr: Learning rate; with `onecycle` and `cosine` its peak.
        weight_decay: L2 penalty on all weights; with `adamw` decoupled from the gradient.
        schedule: `plateau` (lower the rate when validation accuracy stalls), `onecycle` (one rise and fall
            over the whole training), `cosine` (a half cosine down to 0; Loshchilov and Hutter, 2017), `constant`.
        warmup_epochs: With `cosine`, epochs in which the rate first rises linearly (Goyal et al., 2017).
        plateau_factor: With `plateau`, what the rate is multiplied by.
        plateau_patience: With `plateau`, epochs without a better validation accuracy before that.
        early_stop_patience: Stop after this many epochs without a better validation accuracy; null: never.
        label_smoothing: Share of each label that is spread over all classes (Szegedy et al., 2016).
        class_weights: `balanced` weights each clip's loss by N / (K * clips of its class), for N clips of K classes
            (King and Zeng, 2001), so that all classes count the same; `none`.
        oversample: Repeat clips of the rarer classes until an epoch has as many of each class (Buda et al., 2018).
        ema: Decay per update of an exponential moving average of the weights, which is evaluated and saved in their
            place (Polyak and Juditsky, 1992); after n updates at most (1 + n) / (10 + n); 0: none.
        backbone_lr: Factor on the learning rate of the backbone's weights.
        layer_decay: Factor on the learning rate from each layer of the backbone to the one before it; the layers are
            timm's (Clark et al., 2020).
        freeze_epochs: Epochs at the beginning in which the backbone's weights and statistics stay as they are.
        test_every_epoch: Test after each epoch too, for the best epoch on the test split, which much published code
            reports. It changes neither training nor result: the result is that of the best epoch on validation.
        clip_norm: Maximum norm of the gradients; 0: no clipping.
        speed: Preset. `auto` picks precision, memory layout and optimiser kernel by measurements on this kind of
            device, and logs them; `fp32` is fp32 with torch's defaults.
        precision: Arithmetic of the model; `auto` is what `accelerate launch --mixed_precision` says or, without
            that option, what `speed` picks. A CPU that can only emulate bf16 computes in fp32, which is logged.
        channels_last: Memory layout of convolutions, which does not change the result; null: what `speed` picks.
        compile: torch.compile of the training step: `off` (the same as `auto`), `default`, or `cudagraphs`.
        exchange: dtype of the gradient all-reduce; `auto` is what `speed` picks: bf16 where a CPU computes in bf16,
            fp32 otherwise.
        freeze_batch_norm: Freeze the running statistics of batch normalisation (those of pretrained weights): a
            clip's result depends neither on the other clips of its batch nor on how a batch is split.
        checkpoint_minutes: Minutes between writes of `checkpoints/last` within an epoch; 0: only at its end.
        keep: Older checkpoints to keep beside `last`, in case it is damaged.
        deterministic: Bitwise identical results from identical runs on one machine, with slower kernels if needed.
        trackers: Experiment trackers that log the run: `tensorboard`, `wandb`, `trackio` and `mlflow`, as a list or
            separated by commas.
    """

    batch_size: int = 8
    accumulate_steps: int = 1
    epochs: int = 100
    optimizer: Optimizer = "adam"
    lr: float = 1e-4
    weight_decay: float = 1e-4
    schedule: Schedule = "plateau"
    warmup_epochs: float = 0.0
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    early_stop_patience: int | None = 5
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    oversample: bool = False
    ema: float = 0.0
    backbone_lr: float = 1.0
    layer_decay: float = 1.0
    freeze_epochs: int = 0
    test_every_epoch: bool = False
    clip_norm: float = 5.0
    speed: SpeedMode = "auto"
    precision: Precision = "auto"
    channels_last: bool | None = None
    compile: Compile = "auto"
    exchange: Exchange = "auto"
    freeze_batch_norm: bool = False
    checkpoint_minutes: float = 10.0
    keep: int = 1
    deterministic: bool = False
    trackers: list[str] | str = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.trackers, str):
            names = [name.strip() for name in self.trackers.split(",")] if self.trackers else []
            object.__setattr__(self, "trackers", names)
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"train.trackers must be among {', '.join(TRACKERS)}, not '{unknown[0]}'")
        if self.speed == "plain":  # its name in older configurations
            object.__setattr__(self, "speed", "fp32")
        for name in ("batch_size", "accumulate_steps", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "backbone_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"train.{name} must be above 0 and finite, not {getattr(self, name)}")
        for name in (
            *("weight_decay", "warmup_epochs", "freeze_epochs", "clip_norm", "plateau_patience"),
            *("checkpoint_minutes", "keep"),
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"train.{name} must be at least 0 and finite, not {getattr(self, name)}")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"train.layer_decay must be above 0 and at most 1, not {self.layer_decay}")
        if self.warmup_epochs and self.schedule != "cosine":
            raise ValueError(f"train.warmup_epochs needs train.schedule cosine, not {self.schedule}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"train.warmup_epochs {self.warmup_epochs:g} must be below train.epochs {self.epochs}")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"train.plateau_factor must lie between 0 and 1, not {self.plateau_factor}")
        if self.early_stop_patience is not None and self.early_stop_patience < 1:
            raise ValueError(f"train.early_stop_patience must be at least 1 or null, not {self.early_stop_patience}")
        for name, allowed in (
            ("optimizer", get_args(Optimizer)),
            ("schedule", get_args(Schedule)),
            ("class_weights", get_args(ClassWeights)),
            ("speed", ("auto", "fp32")),
            ("precision", get_args(Precision)),
            ("compile", get_args(Compile)),
            ("exchange", get_args(Exchange)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"train.{name} must be one of {', '.join(allowed)}, not '{getattr(self, name)}'")
        if self.compile == "cudagraphs" and self.accumulate_steps > 1:
            # The next batch would overwrite the accumulated gradients.
            steps = self.accumulate_steps
            raise ValueError(f"train.compile cudagraphs needs train.accumulate_steps 1, not {steps}; or choose default")
