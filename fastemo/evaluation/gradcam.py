"""Where a model looks: Grad-CAM over a clip's frames.

Source: Selvaraju et al. (2017), "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization".
B clips, T frames, F feature channels, H x W pixels, h x w cells of a feature map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradcam(model: nn.Module, frames_BTCHW: Tensor, classes_B: Tensor) -> np.ndarray | None:
    """Heat where evidence for a class lies, in the last feature maps that still have places.

    Those are the last output of a module without children that is a map of more than one cell: after the last
    convolution of all models here, before their pooling. A map for each frame is shown on that frame, a map of fewer
    steps of time (3D convolution) is interpolated over the frames, and one map for all frames (early fusion) is shown
    on each of them. In evaluation mode and float32; the model is left as it was found.

    Args:
        frames_BTCHW: float [B, T, 3, H, W], as the model takes them, on its device.
        classes_B: int64 [B], whose logit is explained.

    Returns:
        float32 [B, T, H, W], 0 .. 1; 1 is the hottest place of the clip, and a clip without evidence is 0 everywhere.
        None where the model has no such maps.
    """
    num_clips, num_frames = frames_BTCHW.shape[:2]
    with _observed(model) as maps, torch.autocast(frames_BTCHW.device.type, enabled=False):
        # A leaf that asks for gradients, so that those of the maps are there where no weight of the model asks.
        frames = frames_BTCHW.float().clone().requires_grad_()
        # The class's own: mixed precision, in which small gradients vanish, is wrapped around the instance's.
        logits = type(model).forward(model, frames)
        if not maps:
            return None
        features = maps[-1]
        score = logits.gather(1, classes_B[:, None].to(logits.device)).sum()
        (gradient,) = torch.autograd.grad(score, features)
    weights = gradient.mean(tuple(range(2, features.ndim)), keepdim=True)
    heat = F.relu((weights * features.detach()).sum(1))
    size = frames_BTCHW.shape[-2:]
    if heat.ndim == 4:  # [B, T', h, w]
        heat = F.interpolate(heat[:, None], (num_frames, *size), mode="trilinear", align_corners=False)[:, 0]
    else:
        heat = F.interpolate(heat[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        per_frame = len(heat) == num_clips * num_frames
        heat = heat.unflatten(0, (num_clips, num_frames)) if per_frame else heat[:, None].expand(-1, num_frames, -1, -1)
    hottest = heat.amax((1, 2, 3), keepdim=True)
    heat = torch.where(hottest > 0, heat / hottest.clamp_min(torch.finfo(torch.float32).tiny), 0)
    found: np.ndarray = heat.cpu().numpy()
    return found


@contextmanager
def _observed(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a forward pass is noted: the outputs that are maps of more than one cell, in order."""
    maps: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim in (4, 5) and output.shape[-1] * output.shape[-2] > 1:
            maps[:] = [output]

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    was_training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        # cuDNN's recurrent layers have no way back in evaluation mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            yield maps
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in was_training:
            module.training = mode
