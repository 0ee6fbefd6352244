"""Which frames, in which order, on which rank: integer arithmetic, testable without a video."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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


def keyed_generator(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Random numbers that depend only on (seed, epoch, key), by Philox, a counter-based generator.

    Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".
    """
    return np.random.Generator(np.random.Philox(key=keyed_seed(seed, epoch, key)))


def segment_frames(num_stored: int, num_samples: int, draws: np.ndarray | None = None) -> np.ndarray:
    """T of a clip's N stored frames, one from each of T segments.

    With step `m = (N - 1) / (T - 1)`, evaluation takes stored frame `m k`, which is frame k of `frame_indices`; segment
    k is the m stored frames around it, fewer at both ends. Source: Wang et al. (2016), "Temporal Segment Networks".

    Args:
        num_stored: N; N - 1 is a multiple of T - 1, and even if T is 1.
        draws: float64 [..., T] in [0, 1), which frame of each segment to take; `None`: those of evaluation.

    Returns:
        int64 [..., T], in 0 .. N-1.
    """
    step = (num_stored - 1) // (num_samples - 1) if num_samples > 1 else num_stored
    middle = np.arange(num_samples, dtype=np.int64) * step if num_samples > 1 else np.array([num_stored // 2])
    if draws is None:
        return middle
    first, last = np.maximum(middle - (step - 1) // 2, 0), np.minimum(middle + step // 2, num_stored - 1)
    return first + (draws * (last - first + 1)).astype(np.int64)


def oversampled(labels: np.ndarray, keys: Sequence[str], *, seed: int, epoch: int) -> np.ndarray:
    """An epoch's visits of clips, as many of each class as of the most frequent one.

    Every clip is visited equally often, and once more if a hash of (seed, epoch, key) chooses it.

    Args:
        labels: int64 [N], each clip's class.

    Returns:
        int64 [M]: a clip's position, plus N for each earlier visit of it in the epoch.
    """
    most = np.bincount(labels).max()
    visits: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        whole, rest = divmod(int(most), len(rows))
        drawn = epoch_order([f"oversample\0{keys[row]}" for row in rows.tolist()], seed=seed, epoch=epoch)
        chosen = rows[drawn[:rest]]
        visits += [rows + visit * len(labels) for visit in range(whole)] + [chosen + whole * len(labels)]
    return np.concatenate(visits)


def epoch_order(keys: Sequence[str], *, seed: int, epoch: int) -> np.ndarray:
    """The shuffled order of an epoch.

    Clips are sorted by a hash of (seed, epoch, key): adding or removing a clip keeps the relative order of
    the others.

    Returns:
        int64 [len(keys)], a permutation.
    """
    numbers = [keyed_seed(seed, epoch, key) for key in keys]
    return np.array(sorted(range(len(keys)), key=lambda i: (numbers[i], keys[i])), dtype=np.int64)


def _none() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class RankStep:
    """The clips of one rank in one step.

    Attributes:
        indices: int64 [B], positions in the list of clips.
        is_padding: bool [B], True for a clip that is repeated only to even out the ranks.
        num_global: Clips of this step over all ranks, without padding.
        others: int64 [E], the clips that are mixed with those of the step and are not among them.
        partners: int64 [B], where each clip's partner is in `indices` followed by `others`; empty if none is mixed.
    """

    indices: np.ndarray
    is_padding: np.ndarray
    num_global: int
    others: np.ndarray = field(default_factory=_none)
    partners: np.ndarray = field(default_factory=_none)

    @property
    def visits(self) -> np.ndarray:
        """All clips that the step reads, int64 [B + E]: `indices` and `others`."""
        return np.concatenate([self.indices, self.others])

    def mixed_with(self, following: np.ndarray) -> RankStep:
        """The same step with a partner for each clip, int64 [B]."""
        own = dict(zip(self.indices[::-1].tolist(), range(len(self.indices))[::-1], strict=True))
        others = [it for it in dict.fromkeys(following.tolist()) if it not in own]
        place = {**own, **{it: len(self.indices) + i for i, it in enumerate(others)}}
        partners = np.array([place[it] for it in following.tolist()], dtype=np.int64)
        return replace(self, others=np.array(others, dtype=np.int64), partners=partners)


def rank_steps(
    order: np.ndarray, *, batch_size: int, rank: int = 0, world_size: int = 1, even: bool = True, mixed: bool = False
) -> list[RankStep]:
    """Split an order among the ranks: step s of all ranks together is the next `batch_size * world_size` clips.

    Rank r takes every `world_size`-th clip from the r-th on, so the clips of a step do not depend on how
    many processes share the global batch. With `even`, the order is extended by its first clips until every
    rank has the same number (at most `world_size - 1` extra clips, marked as padding). With `mixed`, each clip's
    partner is the one that follows in the order, on whatever rank, and the last one's the first.

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
    steps = [
        RankStep(
            indices=mine[start : start + batch_size],
            is_padding=mine_padding[start : start + batch_size],
            num_global=min(global_batch, len(order) - start * world_size),
        )
        for start in range(0, len(mine), batch_size)
    ]
    if not mixed:
        return steps
    following = np.resize(np.roll(order, -1), len(padded))[rank::world_size]
    return [step.mixed_with(following[i * batch_size :][: len(step.indices)]) for i, step in enumerate(steps)]
