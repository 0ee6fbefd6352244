"""uint8 clips -> float model input on the device: one batched affine sampling, then one normalisation.

Shapes: B clips, T frames, C = 3 channels, h x w stored pixels, H x W pixels the model sees.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from fastemo.video.config import AugmentConfig
from fastemo.video.sampling import keyed_seed
from fastemo.video.transfer import send

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def draw_parameters(
    config: AugmentConfig, keys: Sequence[str], num_frames: int, *, seed: int, epoch: int
) -> np.ndarray:
    """The random parameters of clips, each a pure function of (seed, epoch, key).

    Drawn by Philox, a counter-based generator. Source: Salmon et al. (2011), "Parallel random numbers:
    as easy as 1, 2, 3".

    Returns:
        float64 [B, T, 4]: vertical and horizontal crop position as shares (0-1) of the free range, 1 for a
        flip, and the angle in radians, positive counter-clockwise. Equal over T unless `per_frame`.
    """
    draws = np.empty((len(keys), num_frames, 4))
    for clip, key in enumerate(keys):
        generator = np.random.Generator(np.random.Philox(key=keyed_seed(seed, epoch, key)))
        draws[clip] = generator.random((num_frames if config.per_frame else 1, 4))
    draws[..., 2] = draws[..., 2] < config.flip
    draws[..., 3] = (2 * draws[..., 3] - 1) * math.radians(config.rotation_degrees)
    return draws


def augment(
    frames_BTChw: torch.Tensor, config: AugmentConfig, keys: Sequence[str], *, seed: int, epoch: int
) -> torch.Tensor:
    """Crop, flip and rotate each clip, in this order, and normalise it.

    Args:
        frames_BTChw: uint8 [B, T, 3, h, w] on the device.
        keys: B clip keys.

    Returns:
        float32 [B, T, 3, H, W] on the same device, with ImageNet's mean and standard deviation.

    Raises:
        ValueError: The stored frames are smaller than the crop.
    """
    if not config.enabled:
        return center_crop(frames_BTChw, config)
    b, t, c, h, w = frames_BTChw.shape
    _check_size(h, w, config)
    draws = draw_parameters(config, keys, t, seed=seed, epoch=epoch)
    if config.per_frame:
        images, draws = frames_BTChw.reshape(b * t, c, h, w), draws.reshape(b * t, 4)
    else:
        # Frames that move together are channels of one image: one grid serves them all.
        images, draws = frames_BTChw.reshape(b, t * c, h, w), draws[:, 0]
    grid, inside = _sampling_grid(draws, h, w, config, frames_BTChw.device)
    sampled = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    if inside is not None:
        sampled *= inside
    return _normalise(sampled.view(b, t, c, config.crop_size, config.crop_size))


def center_crop(frames_BTChw: torch.Tensor, config: AugmentConfig) -> torch.Tensor:
    """The centre crop, normalised, for evaluation. Shapes as in `augment`."""
    h, w = frames_BTChw.shape[-2:]
    rows, columns = center_crop_place(h, w, config)
    return _normalise(frames_BTChw[..., rows, columns].float())


def center_crop_place(h: int, w: int, config: AugmentConfig) -> tuple[slice, slice]:
    """The rows and columns of the centre crop of h x w pixels.

    Raises:
        ValueError: They are fewer than the crop's.
    """
    _check_size(h, w, config)
    top, left = (h - config.crop_size) // 2, (w - config.crop_size) // 2
    return slice(top, top + config.crop_size), slice(left, left + config.crop_size)


def _check_size(h: int, w: int, config: AugmentConfig) -> None:
    if min(h, w) < config.crop_size:
        raise ValueError(
            f"augment.crop_size {config.crop_size} is larger than the sampled frames ({w}x{h}): "
            f"raise video.size or lower augment.crop_size"
        )


def _sampling_grid(
    draws: np.ndarray, h: int, w: int, config: AugmentConfig, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The source of each output pixel, in `grid_sample`'s coordinates.

    Returns:
        float32 [N, H, W, 2], and [N, 1, H, W] with 0 where a rotation reaches outside the crop (None where
        that does not matter).
    """
    size = config.crop_size
    # Whole pixels, so that a crop without rotation does not interpolate.
    top, left = (
        np.minimum(draws[:, i] * (free + 1), free).astype(np.int64) for i, free in ((0, h - size), (1, w - size))
    )
    cos, sin = np.cos(draws[:, 3]), np.sin(draws[:, 3])
    mirror = 1 - 2 * draws[:, 2]
    # An output pixel at (x, y) from the crop's centre came, before the rotation, from R(x, y); before the
    # flip, from the mirrored x; before the crop, from there plus the crop's centre.
    rows = [mirror * cos, mirror * -sin, left + size / 2, sin, cos, top + size / 2]
    theta = send(torch.from_numpy(np.stack(rows, 1).astype(np.float32)), device)
    steps = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    turn = theta.view(-1, 1, 1, 2, 3)
    # Elementwise: a matrix product may use TensorFloat-32, up to 0.05 pixels off.
    source = x[..., None] * turn[..., 0] + y[..., None] * turn[..., 1] + turn[..., 2]
    inside = None
    if config.rotation_corners == "black" and config.rotation_degrees > 0:
        inside = ((source - turn[..., 2]).abs().amax(-1) <= size / 2).unsqueeze(1)
    return source * (2 / _constant((w, h), device)) - 1, inside


def _normalise(frames_BTCHW: torch.Tensor) -> torch.Tensor:
    """0-255 floats -> ImageNet-normalised, by one multiplication and one addition in place."""
    std, mean = (_constant(values, frames_BTCHW.device).view(3, 1, 1) for values in (IMAGENET_STD, IMAGENET_MEAN))
    return frames_BTCHW.mul_(1 / (255 * std)).sub_(mean / std)


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32 on the device, copied once: a copy from pageable memory waits for all pending work of the device."""
    with torch.inference_mode(False):  # evaluation may come first; training must be able to use the tensor
        return torch.tensor(values, dtype=torch.float32, device=device)
