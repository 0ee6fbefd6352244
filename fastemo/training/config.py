"""What a run chooses about its training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "fp32", "fp16", "bf16"]
SpeedMode = Literal["auto", "plain"]
Compile = Literal["auto", "off", "default", "cudagraphs"]
Exchange = Literal["auto", "fp32", "bf16"]
Schedule = Literal["plateau", "onecycle", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe; the defaults are the report's.

    Attributes:
        batch_size: Clips a step on each device.
        accumulate_steps: Batches whose gradients make one step of the optimiser.
        epochs: At most so many.
        lr: Adam's learning rate; with `onecycle` its peak.
        weight_decay: L2 penalty on all weights.
        schedule: `plateau` (lower the rate when validation accuracy stalls), `onecycle` (up and down once over
            the whole training), `constant`.
        plateau_factor, plateau_patience: What the rate is multiplied by after how many epochs without gain.
        early_stop_patience: Stop after so many epochs without a better validation accuracy; `None`: never.
        clip_norm: Largest norm of the gradients; 0 turns clipping off.
        speed: `auto` picks precision, layout and optimiser's kernel by what was measured on this kind of device,
            and the run says what; `plain` is fp32 as torch does it by itself.
        precision: Arithmetic of the model; `auto` is what `accelerate launch --mixed_precision` says, without it
            what `speed` picks. A CPU that would only emulate bf16 computes in fp32, and the run says so.
        channels_last: Memory layout of convolutions, the same result; null: what `speed` picks.
        compile: torch.compile of the training step: `off` (which is also `auto`), `default`, or `cudagraphs`.
        exchange: In what several processes add up their gradients; `auto` is what `speed` picks: bf16 where a CPU
            computes in bf16, fp32 otherwise.
        freeze_batch_norm: Keep batch normalisation's statistics as they are (those of pretrained weights): a clip's
            result no longer depends on the clips beside it, nor on how a batch is dealt to processes.
        checkpoint_minutes: Write `checkpoints/last` so often inside an epoch, too; 0: only at the end of each.
        keep: Checkpoints before `last` that stay on the disk, for when it is damaged.
        deterministic: Equal bits from equal runs on one machine, by slower kernels where the fast ones are not.
    """

    batch_size: int = 8
    accumulate_steps: int = 1
    epochs: int = 100
    lr: float = 1e-4
    weight_decay: float = 1e-4
    schedule: Schedule = "plateau"
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    early_stop_patience: int | None = 5
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

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate_steps", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"train.lr must be above 0 and finite, not {self.lr}")
        for name in ("weight_decay", "clip_norm", "plateau_patience", "checkpoint_minutes", "keep"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"train.{name} must be at least 0 and finite, not {getattr(self, name)}")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"train.plateau_factor must lie between 0 and 1, not {self.plateau_factor}")
        if self.early_stop_patience is not None and self.early_stop_patience < 1:
            raise ValueError(f"train.early_stop_patience must be at least 1 or null, not {self.early_stop_patience}")
        for name, allowed in (
            ("schedule", ("plateau", "onecycle", "constant")),
            ("speed", ("auto", "plain")),
            ("precision", ("auto", "fp32", "fp16", "bf16")),
            ("compile", ("auto", "off", "default", "cudagraphs")),
            ("exchange", ("auto", "fp32", "bf16")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"train.{name} must be one of {', '.join(allowed)}, not '{getattr(self, name)}'")
        if self.compile == "cudagraphs" and self.accumulate_steps > 1:
            raise ValueError(
                f"train.compile cudagraphs cannot be had with train.accumulate_steps {self.accumulate_steps}: the next "
                f"batch overwrites gradients that wait for it; choose --train.compile default or off"
            )
