"""Batch normalisation folded into convolutions, for inference: the same function with fewer operations."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from fastemo.models.fusion import ClipModel


def fold_batch_norm(model: ClipModel, num_frames: int, size: int) -> None:
    """Fold every batch normalisation that alone takes a convolution's output into that convolution, in place.

    The model has to be in evaluation mode, and can no longer be trained. Results differ by rounding.

    Args:
        num_frames, size: T, and H = W in pixels, of the clips that the model takes.
    """
    for conv_name, norm_name in _pairs(model, num_frames, size).items():
        conv: Any = model.get_submodule(conv_name)
        norm: Any = model.get_submodule(norm_name)
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        bias = 0 if conv.bias is None else conv.bias.double()
        shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
        conv.weight.data.mul_(scale.to(conv.weight.dtype).view(-1, *[1] * (conv.weight.ndim - 1)))
        conv.bias = nn.Parameter(shift.to(conv.weight.dtype).detach())
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        model.set_submodule(norm_name, rest)


def _pairs(model: ClipModel, num_frames: int, size: int) -> dict[str, str]:
    """Names of convolutions and the normalisation of each, found in the graph of a pass that computes nothing."""
    traced = copy.deepcopy(model).to("meta").requires_grad_()
    names = {module: name for name, module in traced.named_modules()}
    made, taken, calls = dict[Any, nn.Module](), dict[nn.Module, nn.Module](), Counter[nn.Module]()

    def note_output(conv: nn.Module, inputs: object, output: Tensor) -> None:
        made[output.grad_fn] = conv
        calls[conv] += 1

    def note_input(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        calls[norm] += 1
        if (conv := made.get(inputs[0].grad_fn)) is not None:
            taken[conv] = norm

    for module in names:
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(note_output)
        elif type(module) in (nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d):
            module.register_forward_pre_hook(note_input)
    with torch.enable_grad():
        logits = type(traced).forward(traced, torch.empty(1, num_frames, 3, size, size, device="meta"))
    users = _users(logits.grad_fn)
    alone = {made[output] for output in made if users[output] == 1}
    return {
        names[conv]: names[norm] for conv, norm in taken.items() if conv in alone and calls[conv] == calls[norm] == 1
    }


def _users(last: Any) -> Counter[Any]:
    """How many operations of a graph take each operation's output."""
    users, waiting, seen = Counter[Any](), [last], {last}
    while waiting:
        for operation, _ in waiting.pop().next_functions:
            users[operation] += 1
            if operation is not None and operation not in seen:
                seen.add(operation)
                waiting.append(operation)
    return users
