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

from fastemo.models.fusion import ClipModel, MapLayer


def gradcam(model: ClipModel, frames_BTCHW: Tensor, classes_B: Tensor) -> np.ndarray | None:
    """Heat maps of the evidence for a class, from the last feature maps with spatial extent.

    That is the output of `model.map_layer` or, in convolutional networks without one, the last output of a leaf module
    that is a map of more than one cell: after the last convolution and before pooling. A map per frame is shown on that
    frame, a map with fewer time steps (3D networks) is interpolated over the frames, and a single map for all frames
    (early fusion) is shown on each of them. Runs in evaluation mode and float32; the model is left unchanged.

    Args:
        frames_BTCHW: float [B, T, 3, H, W], as the model takes them, on its device.
        classes_B: int64 [B], whose logit is explained.

    Returns:
        float32 [B, T, H, W], 0 .. 1; 1 is the hottest pixel of the clip, and a clip without evidence is 0 everywhere.
        None if the model has no such maps.
    """
    num_clips, num_frames = frames_BTCHW.shape[:2]
    size, named = frames_BTCHW.shape[-2:], model.map_layer()
    with _observed(model, named) as maps, torch.autocast(frames_BTCHW.device.type, enabled=False):
        # A leaf that requires gradients, so that the maps have them even if no weight of the model does.
        frames = frames_BTCHW.float().clone().requires_grad_()
        # The class's own: the instance's is wrapped for mixed precision, in which small gradients vanish.
        logits = type(model).forward(model, frames)
        if not maps:
            return None
        features = maps[-1]
        score = logits.gather(1, classes_B[:, None].to(logits.device)).sum()
        (gradient,) = torch.autograd.grad(score, features)
    if named is not None:
        features, gradient = (named.maps(it, size[0] / size[1]) for it in (features, gradient))
    weights = gradient.mean(tuple(range(2, features.ndim)), keepdim=True)
    heat = F.relu((weights * features.detach()).sum(1))
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
def _observed(model: nn.Module, named: MapLayer | None) -> Iterator[list[Tensor]]:
    """Records the last output of the named layer or, without one, that is a map of more than one cell."""
    maps: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        is_map = isinstance(output, Tensor) and output.ndim in (4, 5) and output.shape[-1] * output.shape[-2] > 1
        if named is not None or is_map:
            maps[:] = [output]  # type: ignore[list-item]

    leaves = [module for module in model.modules() if not list(module.children())] if named is None else [named.layer]
    handles = [module.register_forward_hook(note) for module in leaves]
    was_training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        # cuDNN's recurrent layers have no backward pass in evaluation mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            yield maps
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in was_training:
            module.training = mode
