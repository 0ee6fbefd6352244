"""Precision, memory layout and kernels of a training, picked per device: only what was measured to be faster there."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from fastemo.machine import keep_freed_memory
from fastemo.training.config import TrainConfig

# bf16 has 8 bits of precision: each factor is off by 0.2 % on average, and sums of products by about as much. Wrong
# kernels are off by whole multiples, or give NaN.
MOST_CONV3D_ERROR = 0.02
# Torch's default, which overlaps compute and all-reduce on a GPU. CPUs cannot overlap them, and buckets cost time.
_BUCKET_MIB, _BUCKET_MIB_CPU = 25, 1024
# Input [B, C, T, H, W] and weight of two of R3D-18's convolutions, at a quarter of its width in space.
_CONV3D = (((2, 64, 4, 28, 28), (64, 64, 3, 3, 3), 1), ((2, 128, 4, 14, 14), (256, 128, 3, 3, 3), 2))


@dataclass(frozen=True)
class Speed:
    """The settings that were picked.

    Attributes:
        precision: Of matrix products and convolutions; weights and updates are fp32.
        channels_last: Memory layout of convolutions, 2D and 3D.
        fused: All weights updated by one kernel.
        compile: `off`, `default`, or `cudagraphs` for torch.compile.
        tf32: Whether fp32 products on a GPU may use TF32 (10 bits), and cuDNN benchmarks its kernels.
        keeps_memory: Whether the process keeps freed memory for the next step.
        exchange: dtype of the gradient all-reduce; `None`: there is one process.
        bucket_mib: Size of the all-reduce's buckets, in MiB.
        note: Why the settings differ from those asked for; empty: they do not.
    """

    precision: Literal["fp32", "fp16", "bf16"]
    channels_last: bool
    fused: bool
    compile: Literal["off", "default", "cudagraphs"]
    tf32: bool
    keeps_memory: bool
    exchange: Literal["fp32", "bf16"] | None
    bucket_mib: int
    note: str = ""

    def __str__(self) -> str:
        parts = {
            "channels_last": self.channels_last,
            "fused optimiser": self.fused,
            f"compiled ({self.compile})": self.compile != "off",
            "TF32": self.tf32,
            "memory kept": self.keeps_memory,
            "gradient all-reduce in bf16": self.exchange == "bf16",
        }
        return ", ".join([self.precision, *(name for name, is_on in parts.items() if is_on)])

    def compiled(self, model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """The compiled model; `None` without compilation."""
        if self.compile == "off":
            return None
        mode = "reduce-overhead" if self.compile == "cudagraphs" else None
        compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model, mode=mode)
        return compiled

    def set_backends(self) -> None:
        """Apply the settings to torch, for this process."""
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = self.tf32
        if self.keeps_memory:
            keep_freed_memory()


def pick(config: TrainConfig, device_type: str) -> Speed:
    """What `train.speed` means on a kind of device; single keys of the configuration win.

    `auto` on a CPU, ResNet-18 on 8 clips of 10 frames at 112 pixels: channels_last and bf16 2.2 x fp32, fused Adam half
    the time of an update, freed memory kept 1.1 x; torch.compile 0.85 x (benchmarks/LOG.md). Nothing is compiled unless
    asked for. Two processes with a gradient all-reduce in bf16 and one bucket: 0.93 of one, 0.87 in fp32 and buckets.
    """
    is_auto = config.speed == "auto"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = config.precision
    if precision == "auto":
        # The launcher's default is "no", too.
        if launched in ("fp16", "bf16"):
            precision = "fp16" if launched == "fp16" else "bf16"
        else:
            precision = _half_precision(device_type) if is_auto else "fp32"
    note = ""
    if precision == "bf16" and device_type == "cpu" and not bf16_is_fast_on_cpu():
        precision, note = "fp32", "fp32 instead of bf16, which this processor can only emulate"
    exchange = config.exchange
    if exchange == "auto":
        exchange = "bf16" if is_auto and precision == "bf16" and device_type == "cpu" else "fp32"
    return Speed(
        precision=precision,
        channels_last=is_auto if config.channels_last is None else config.channels_last,
        fused=is_auto and device_type in ("cpu", "cuda"),
        compile="off" if config.compile == "auto" else config.compile,
        tf32=is_auto and device_type == "cuda",
        keeps_memory=is_auto and device_type == "cpu",
        exchange=exchange if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        bucket_mib=_BUCKET_MIB_CPU if is_auto and device_type == "cpu" else _BUCKET_MIB,
        note=note,
    )


def _half_precision(device_type: str) -> Literal["fp32", "fp16", "bf16"]:
    if device_type == "cpu":
        return "bf16" if bf16_is_fast_on_cpu() else "fp32"
    if device_type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def bf16_is_fast_on_cpu() -> bool:
    """Whether the processor computes in bf16; one without AVX-512 or similar is many times slower in it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def set_determinism(is_on: bool) -> None:
    """Restrict torch, in this process, to deterministic kernels, or allow all again.

    Source: PyTorch's notes on reproducibility.
    """
    if is_on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    # By default deterministic mode fills every new tensor, which costs time in each step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(is_on)


def freeze_batch_norm(model: nn.Module) -> None:
    """Make every batch normalisation use its running statistics in training, too, and not update them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = functools.partial(_stay, module)  # type: ignore[assignment,method-assign]


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def to_channels_last(model: nn.Module) -> None:
    """Convert the weights of 2D and 3D convolutions to channels_last; their input follows."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.dim() in formats:
            # `contiguous` gives 1x1 kernels other strides than their gradients will have.
            last = torch.empty_like(parameter.data, memory_format=formats[parameter.dim()])
            parameter.data = last.copy_(parameter.data)


def keep_conv3d_right(model: nn.Module, device: torch.device, speed: Speed) -> str:
    """Make a model with 3D convolutions compute in fp32 where the device computes them wrong with these settings.

    Some versions of cuDNN were wrong in bf16. On a CPU, R3D-18 handles this itself.

    Returns:
        A message for the user; empty if nothing was wrong.
    """
    is_exact = speed.precision == "fp32" and not speed.tf32
    if is_exact or device.type == "cpu" or not any(isinstance(m, nn.Conv3d) for m in model.modules()):
        return ""
    error = conv3d_error(device, speed)
    if error <= MOST_CONV3D_ERROR:
        return ""
    compute_in_fp32(model)
    name = "TF32" if speed.precision == "fp32" else speed.precision
    return f"3D convolutions in {name} are off by {error:.0%} on this device: the model computes in fp32 without TF32"


def compute_in_fp32(model: nn.Module) -> None:
    """Turn off autocast inside the model, whatever the context, and TF32 in this process's convolutions."""
    forward, torch.backends.cudnn.allow_tf32 = model.forward, False

    def in_fp32(frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast(frames.device.type, enabled=False):
            result: torch.Tensor = forward(frames.float())
            return result

    model.forward = in_fp32


def conv3d_error(device: torch.device, speed: Speed) -> float:
    """The largest relative error of 3D convolutions' results and gradients, as `speed` runs them; NaN counts as 1."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[speed.precision]
    return max(
        max(conv3d_errors(*layer, device, dtype, tf32=speed.tf32, channels_last=speed.channels_last))
        for layer in _CONV3D
    )


def conv3d_errors(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: int | tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    *,
    tf32: bool = False,
    channels_last: bool = False,
) -> list[float]:
    """Relative errors, as norms, of one convolution's result, input gradient and weight gradient.

    They are against the same convolution in float32 without TF32, contiguous.
    """
    generator = torch.Generator(device).manual_seed(0)
    frames = torch.randn(shape, generator=generator, device=device)
    weight = torch.randn(weight_shape, generator=generator, device=device) / weight_shape[1] ** 0.5
    padding = tuple(size // 2 for size in weight_shape[2:])

    def step(dtype: torch.dtype, layout: torch.memory_format) -> list[torch.Tensor]:
        inputs, kernel = (it.to(dtype, memory_format=layout, copy=True).requires_grad_() for it in (frames, weight))
        result = F.conv3d(inputs, kernel, stride=stride, padding=padding)
        # A gradient whose sums do not cancel, of a size that keeps them in fp16's range.
        gradient = result.detach() / (result.numel() / weight_shape[0]) ** 0.5
        return [result.detach(), *torch.autograd.grad(result, (inputs, kernel), gradient)]

    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        exact = step(torch.float32, torch.contiguous_format)
        torch.backends.cudnn.allow_tf32 = tf32
        rough = step(dtype, torch.channels_last_3d if channels_last else torch.contiguous_format)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    return [
        float(torch.nan_to_num((one.float() - other).norm() / other.norm(), nan=1.0, posinf=1.0))
        for one, other in zip(rough, exact, strict=True)
    ]
