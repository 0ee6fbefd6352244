"""uint8 clips -> float model input on the device: one batched affine sampling, one normalisation, one mixing.

Shapes: B clips, T frames, C = 3 channels, h x w stored pixels, H x W pixels the model sees.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from fastemo.video.config import AugmentConfig
from fastemo.video.sampling import keyed_generator
from fastemo.video.transfer import send

if TYPE_CHECKING:  # use of a model needs no loader
    from fastemo.video.loader import ClipBatch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Luma of ITU-R BT.601, as torchvision's `rgb_to_grayscale` has it.
_LUMA = (0.299, 0.587, 0.114)
# Of erased boxes, as timm draws them. Source: Zhong et al. (2020), "Random Erasing Data Augmentation".
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
_MOST_CUTMIX = 0.5  # probability of cutmix if mixup is on too, as in timm


def draw_parameters(
    config: AugmentConfig, keys: Sequence[str], num_frames: int, *, seed: int, epoch: int
) -> np.ndarray:
    """The random parameters of clips, each a pure function of (seed, epoch, key).

    Returns:
        float64 [B, T, 4]: vertical and horizontal crop position as shares (0-1) of the free range, 1 for a
        flip, and the angle in radians, positive counter-clockwise. Equal over T unless `per_frame`.
    """
    draws = np.empty((len(keys), num_frames, 4))
    for clip, key in enumerate(keys):
        draws[clip] = keyed_generator(seed, epoch, key).random((num_frames if config.per_frame else 1, 4))
    draws[..., 2] = draws[..., 2] < config.flip
    draws[..., 3] = (2 * draws[..., 3] - 1) * math.radians(config.rotation_degrees)
    return draws


def augment(
    frames_BTChw: torch.Tensor, config: AugmentConfig, keys: Sequence[str], *, seed: int, epoch: int
) -> torch.Tensor:
    """Crop, flip, rotate and recolour each clip, in this order, normalise it and erase a box.

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
    clips = sampled.view(b, t, c, config.crop_size, config.crop_size)
    if config.color_jitter:
        _recolour(clips, color_factors(config, keys, seed=seed, epoch=epoch))
    if inside is not None:
        sampled *= inside
    clips = _normalise(clips)
    if config.random_erasing:
        boxes = send(torch.from_numpy(erased_boxes(config, keys, seed=seed, epoch=epoch)), clips.device)
        clips.masked_fill_(_inside(boxes, config.crop_size), 0)
    return clips


def training_input(
    batch: ClipBatch, config: AugmentConfig, *, seed: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Augment a batch, and mix its clips with their partners if the configuration and the batch have that.

    Returns:
        float32 [B, T, 3, H, W], as `augment`; and float32 [B], the share of each clip in it, the rest being its
        partner's; `None`: nothing is mixed.
    """
    if batch.partners is None or not config.mixes:
        return augment(batch.frames, config, batch.draw_keys, seed=seed, epoch=epoch), None
    frames = augment(batch.partners.frames, config, batch.partners.draw_keys, seed=seed, epoch=epoch)
    drawn = mixing_parameters(config, batch.draw_keys, seed=seed, epoch=epoch)
    shares, weights, boxes = send(torch.from_numpy(drawn), frames.device).split([1, 1, 4], dim=1)
    weights = weights.view(-1, 1, 1, 1, 1)
    if config.cutmix:
        weights = weights.masked_fill(_inside(boxes, config.crop_size), 0)
    partners = frames.index_select(0, batch.partners.rows)
    return partners.lerp_(frames[: len(batch.keys)], weights), shares[:, 0]


def color_factors(config: AugmentConfig, keys: Sequence[str], *, seed: int, epoch: int) -> np.ndarray:
    """Factors of brightness, contrast and saturation, each 1 - `color_jitter` to 1 + `color_jitter`: float32 [B, 3]."""
    draws = [keyed_generator(seed, epoch, f"color\0{key}").random(3) for key in keys]
    return (1 + config.color_jitter * (2 * np.stack(draws) - 1)).astype(np.float32)


def erased_boxes(config: AugmentConfig, keys: Sequence[str], *, seed: int, epoch: int) -> np.ndarray:
    """Boxes to erase: float32 [B, 4] of first row, row after the last, the same of columns; equal rows: none."""

    def box(key: str) -> tuple[int, int, int, int]:
        is_erased, area, aspect, top, left = keyed_generator(seed, epoch, f"erasing\0{key}").random(5)
        if is_erased >= config.random_erasing:
            return 0, 0, 0, 0
        area = config.crop_size**2 * (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0]))
        aspect = _ERASED_ASPECT[0] * (_ERASED_ASPECT[1] / _ERASED_ASPECT[0]) ** aspect
        height, width = (min(round(math.sqrt(it)), config.crop_size) for it in (area * aspect, area / aspect))
        top, left = int(top * (config.crop_size - height + 1)), int(left * (config.crop_size - width + 1))
        return top, top + height, left, left + width

    return np.array([box(key) for key in keys], dtype=np.float32)


def mixing_parameters(config: AugmentConfig, keys: Sequence[str], *, seed: int, epoch: int) -> np.ndarray:
    """How each clip is mixed with its partner, a pure function of (seed, epoch, key).

    Sources: Zhang et al. (2018), "mixup: Beyond Empirical Risk Minimization"; Yun et al. (2019), "CutMix", whose box's
    centre is uniform and whose share is that of the area that is left.

    Returns:
        float32 [B, 6]: the clip's share of the label, its weight in every pixel outside a box, and the box that is the
        partner's, as `erased_boxes`.
    """

    def drawn(key: str) -> tuple[float, ...]:
        generator, size = keyed_generator(seed, epoch, f"mixing\0{key}"), config.crop_size
        cuts = config.cutmix > 0 and (not config.mixup or generator.random() < _MOST_CUTMIX)
        alpha = config.cutmix if cuts else config.mixup
        share = float(generator.beta(alpha, alpha))
        if not cuts:
            return share, share, 0, 0, 0, 0
        half = int(size * math.sqrt(1 - share)) // 2
        centres = generator.integers(0, size, 2)
        top, bottom, left, right = (min(max(it + by, 0), size) for it in centres for by in (-half, half))
        return 1 - (bottom - top) * (right - left) / size**2, 1, top, bottom, left, right

    return np.array([drawn(key) for key in keys], dtype=np.float32)


def _inside(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Boxes [B, 4], as `erased_boxes` -> bool [B, 1, 1, H, W], true inside."""
    steps, (top, bottom, left, right) = _steps(size, boxes.device), boxes.view(-1, 4, 1).unbind(1)
    rows, columns = (steps >= top) & (steps < bottom), (steps >= left) & (steps < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None, None]


def _recolour(clips_BTCHW: torch.Tensor, factors: np.ndarray) -> None:
    """Change brightness, contrast and saturation of 0-255 pixels in place, in this order, and clamp them once.

    Contrast is about the mean luma of all of a clip's frames.
    """
    factors_B31 = send(torch.from_numpy(factors), clips_BTCHW.device).view(-1, 3, 1, 1, 1, 1)
    brightness, contrast, saturation = factors_B31.unbind(1)
    luma = sum(clips_BTCHW[:, :, i : i + 1] * weight for i, weight in enumerate(_LUMA))
    assert isinstance(luma, torch.Tensor)
    mean = luma.mean(dim=(1, 2, 3, 4), keepdim=True)
    scale = brightness * contrast
    clips_BTCHW.mul_(scale * saturation).add_(
        luma.mul_(scale * (1 - saturation)).add_((1 - contrast) * brightness * mean)
    )
    clips_BTCHW.clamp_(0, 255)


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
    steps = _steps(size, device) - (size - 1) / 2
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


def _steps(size: int, device: torch.device) -> torch.Tensor:
    return torch.arange(size, device=device, dtype=torch.float32)


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32 on the device, copied once: a copy from pageable memory waits for all pending work of the device."""
    with torch.inference_mode(False):  # evaluation may come first; training must be able to use the tensor
        return torch.tensor(values, dtype=torch.float32, device=device)
