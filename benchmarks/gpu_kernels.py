"""Whether a GPU's bf16 `conv3d` is right and quick: some cuDNN versions were neither."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F

from fastemo.training.speed import MOST_CONV3D_ERROR, conv3d_errors

# R3D-18's at batch 8, T = 10, 112x112: name, input [B, C, T, H, W], weight, stride.
_LAYERS = (
    ("stem", (8, 3, 10, 112, 112), (64, 3, 3, 7, 7), (1, 2, 2)),
    ("layer1", (8, 64, 10, 56, 56), (64, 64, 3, 3, 3), (1, 1, 1)),
    ("layer3", (8, 128, 5, 28, 28), (256, 128, 3, 3, 3), (2, 2, 2)),
    ("layer4", (8, 512, 2, 7, 7), (512, 512, 3, 3, 3), (1, 1, 1)),
)
_REPEATS = 20


def conv3d_in_bf16(device: torch.device) -> dict[str, Any]:
    """Results and gradients of each layer in bf16 against fp32, as relative norms; and milliseconds of both."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        found: dict[str, Any] = {
            name: {
                "errors": conv3d_errors(shape, weight_shape, stride, device, torch.bfloat16),
                "bf16_ms": _milliseconds(shape, weight_shape, stride, device, torch.bfloat16),
                "fp32_ms": _milliseconds(shape, weight_shape, stride, device, torch.float32),
            }
            for name, shape, weight_shape, stride in _LAYERS
        }
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    worst = max(max(layer["errors"]) for layer in found.values())
    return {"ok": worst <= MOST_CONV3D_ERROR, "worst_error": worst, "cudnn": torch.backends.cudnn.version(), **found}


def _milliseconds(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Of one forward and backward pass."""
    frames = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(weight_shape, device=device, dtype=dtype, requires_grad=True)
    padding = tuple(size // 2 for size in weight_shape[2:])
    for repeat in range(_REPEATS + 3):
        if repeat == 3:  # the first ones choose kernels
            torch.cuda.synchronize(device)
            before = time.perf_counter()
        result = F.conv3d(frames, weight, stride=stride, padding=padding)
        torch.autograd.grad(result, (frames, weight), result.detach())
    torch.cuda.synchronize(device)
    return round((time.perf_counter() - before) / _REPEATS * 1e3, 3)
