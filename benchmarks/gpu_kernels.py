"""Whether a GPU's bf16 `conv3d` is right and quick: some cuDNN versions were neither."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F

# R3D-18's at batch 8, T = 10, 112x112: name, input [B, C, T, H, W], weight, stride, padding.
_LAYERS = (
    ("stem", (8, 3, 10, 112, 112), (64, 3, 3, 7, 7), (1, 2, 2), (1, 3, 3)),
    ("layer1", (8, 64, 10, 56, 56), (64, 64, 3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ("layer3", (8, 128, 5, 28, 28), (256, 128, 3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ("layer4", (8, 512, 2, 7, 7), (512, 512, 3, 3, 3), (1, 1, 1), (1, 1, 1)),
)
# bf16 keeps 8 bits: each factor is off by 0.2 % on average, their sums by about as much.
_MOST_ERROR = 0.02
_REPEATS = 20


def conv3d_in_bf16(device: torch.device) -> dict[str, Any]:
    """Results and gradients of each layer in bf16 against fp32, as relative norms; and milliseconds of both."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        found: dict[str, Any] = {layer[0]: _compare(layer, device) for layer in _LAYERS}
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    worst = max(max(layer["errors"]) for layer in found.values())
    return {"ok": worst <= _MOST_ERROR, "worst_error": worst, "cudnn": torch.backends.cudnn.version(), **found}


def _compare(layer: tuple[Any, ...], device: torch.device) -> dict[str, Any]:
    _, shape, weight_shape, stride, padding = layer
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(shape, generator=generator, device=device)
    weight = torch.randn(weight_shape, generator=generator, device=device) / weight_shape[1] ** 0.5

    def step(dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = images.to(dtype).requires_grad_()
        kernel = weight.to(dtype).requires_grad_()
        out = F.conv3d(inputs, kernel, stride=stride, padding=padding)
        # A gradient that no sum cancels.
        gradients = torch.autograd.grad(out, (inputs, kernel), out.detach())
        return [out.detach(), *gradients]

    def milliseconds(dtype: torch.dtype) -> float:
        torch.cuda.synchronize(device)
        before = time.perf_counter()
        for _ in range(_REPEATS):
            step(dtype)
        torch.cuda.synchronize(device)
        return round((time.perf_counter() - before) / _REPEATS * 1e3, 3)

    exact, rounded = step(torch.float32), step(torch.bfloat16)
    # NaN would compare as no error at all: it counts as a whole one.
    errors = [
        float(torch.nan_to_num((ours.float() - theirs).norm() / theirs.norm(), nan=1.0, posinf=1.0))
        for ours, theirs in zip(rounded, exact, strict=True)
    ]
    return {"errors": errors, "bf16_ms": milliseconds(torch.bfloat16), "fp32_ms": milliseconds(torch.float32)}
