"""Cost of a model: parameters, FLOPs per clip, and training speed."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def forward_flops(model: nn.Module, num_frames: int, size: int) -> int:
    """FLOPs of one clip's forward pass, as torch counts them: a multiply-add is two.

    Convolutions and matrix products count, including those of recurrent layers. Counted on a copy on the meta device,
    so that nothing is computed and the model is unchanged.

    Args:
        num_frames, size: T, and H = W in pixels, of float [1, T, 3, H, W].
    """
    bare = copy.deepcopy(model).to("meta").eval()
    frames = torch.empty(1, num_frames, 3, size, size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        # The class's own: the instance's, wrapped for mixed precision, refers to the model with memory.
        type(bare).forward(bare, frames)
    return counter.get_total_flops()


def training_speed(history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Medians over the epochs after the first, which decodes; the first epoch's values if there is only one.

    Args:
        history: Rows of `metrics.jsonl`.

    Returns:
        `clips_per_second` and `epoch_seconds`; None without an epoch.
    """
    rows = history[1:] or history
    return {
        name: statistics.median(row[name] for row in rows) if rows else None
        for name in ("clips_per_second", "epoch_seconds")
    }
