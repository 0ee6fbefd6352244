"""Which frames, in which order, on which rank: integer arithmetic, testable without a video."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def frame_indices(num_frames: int, num_samples: int, first: int = 0) -> np.ndarray:
    """The frame numbers of a sample: `i_k = first + floor(k (N - 1) / (T - 1))`, k = 0 .. T-1.

    One sample takes the middle frame, `first + floor((N - 1) / 2)`. A clip with fewer frames than samples
    repeats frames by the same formula. Source: Roy (2025), algorithm 1.

    Args:
        num_frames: N, the frames of the clip that decode.
        num_samples: T, the frames wanted.
        first: The clip's first frame in its file; 0 unless it is a segment.

    Returns:
        int64 [T], ascending, each in first .. first + N - 1.

    Raises:
        ValueError: N or T is below 1.
    """
    if num_frames < 1:
        raise ValueError(f"a clip of {num_frames} frames has none to sample")
    if num_samples < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_samples}")
    if num_samples == 1:
        return np.array([first + (num_frames - 1) // 2], dtype=np.int64)
    return first + np.arange(num_samples, dtype=np.int64) * (num_frames - 1) // (num_samples - 1)


def keyed_seed(seed: int, epoch: int, key: str) -> int:
    """A 128-bit number that depends only on (seed, epoch, key), not on process, platform or call order."""
    text = f"{seed}\0{epoch}\0{key}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def epoch_order(keys: Sequence[str], *, seed: int, epoch: int) -> np.ndarray:
    """The shuffled order of an epoch.

    Clips are sorted by a hash of (seed, epoch, key): adding or removing a clip keeps the relative order of
    the others.

    Returns:
        int64 [len(keys)], a permutation.
    """
    numbers = [keyed_seed(seed, epoch, key) for key in keys]
    return np.array(sorted(range(len(keys)), key=lambda i: (numbers[i], keys[i])), dtype=np.int64)


@dataclass(frozen=True)
class RankStep:
    """The clips of one rank in one step.

    Attributes:
        indices: int64 [B], positions in the list of clips.
        is_padding: bool [B], True for a clip that is repeated only to even out the ranks.
        num_global: Clips of this step over all ranks, without padding.
    """

    indices: np.ndarray
    is_padding: np.ndarray
    num_global: int


def rank_steps(
    order: np.ndarray, *, batch_size: int, rank: int = 0, world_size: int = 1, even: bool = True
) -> list[RankStep]:
    """Split an order among the ranks: step s of all ranks together is the next `batch_size * world_size` clips.

    Rank r takes every `world_size`-th clip from the r-th on, so the clips of a step do not depend on how
    many processes share the global batch. With `even`, the order is extended by its first clips until every
    rank has the same number (at most `world_size - 1` extra clips, marked as padding).

    Raises:
        ValueError: No clips, a batch size below 1, or a rank outside the world size.
    """
    if len(order) == 0:
        raise ValueError("there are no clips to load")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside a world size of {world_size}")
    num_padding = -len(order) % world_size if even else 0
    padded = np.concatenate([order, np.resize(order, num_padding)])
    is_padding = np.arange(len(padded)) >= len(order)
    mine, mine_padding = padded[rank::world_size], is_padding[rank::world_size]
    global_batch = batch_size * world_size
    return [
        RankStep(
            indices=mine[start : start + batch_size],
            is_padding=mine_padding[start : start + batch_size],
            num_global=min(global_batch, len(order) - start * world_size),
        )
        for start in range(0, len(mine), batch_size)
    ]
