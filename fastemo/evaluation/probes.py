"""Temporal-order probes: a model whose predictions do not change with frame order does not use time.

B clips, T frames, h x w stored pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch

from fastemo.video.sampling import keyed_generator

Order = Literal["recorded", "reversed", "shuffled", "frozen"]
ORDERS: tuple[Order, ...] = get_args(Order)
PROBES: tuple[Order, ...] = ORDERS[1:]


def check_order(order: str) -> None:
    """Raises `ValueError` for a name that is not among `ORDERS`."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not '{order}'")


def reorder(frames_BTChw: torch.Tensor, keys: Sequence[str], order: Order, *, seed: int = 0) -> torch.Tensor:
    """Reorder each clip's frames.

    Args:
        frames_BTChw: [B, T, 3, h, w] on any device.
        keys: B clip keys.
        order: `recorded`, as it is; `reversed`, the last first; `shuffled`, each clip by a permutation of its own that
            depends only on (seed, key); `frozen`, the middle frame, `floor((T - 1) / 2)`, T times.
        seed: Seed of `shuffled`.

    Returns:
        The same shape, dtype and device. Only `shuffled` copies anything to the device: B x T indices.

    Raises:
        ValueError: An unknown order.
    """
    check_order(order)
    num_frames = frames_BTChw.shape[1]
    if order == "reversed":
        return frames_BTChw.flip(1)
    if order == "frozen":
        middle = (num_frames - 1) // 2
        return frames_BTChw[:, middle : middle + 1].expand(-1, num_frames, -1, -1, -1)
    if order == "shuffled":
        device = frames_BTChw.device
        indices = torch.from_numpy(permutations(keys, num_frames, seed=seed)).to(device, non_blocking=True)
        return frames_BTChw[torch.arange(len(keys), device=device)[:, None], indices]
    return frames_BTChw


def permutations(keys: Sequence[str], num_frames: int, *, seed: int) -> np.ndarray:
    """A uniformly random order of each clip's frames, a pure function of (seed, key): int64 [B, T]."""
    return np.stack([keyed_generator(seed, 0, key).permutation(num_frames) for key in keys])
