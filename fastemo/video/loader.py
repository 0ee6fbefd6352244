"""Epoch order -> ClipBatch on the device: decoded in threads, in the planned order, a bounded way ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastemo.corpus.manifest import Clip
from fastemo.machine import available_processors
from fastemo.video.decode import BACKENDS, Backend, Crop, DecodeError, FrameSpec, choose_backend, decode_clip
from fastemo.video.sampling import RankStep, epoch_order, frame_indices, rank_steps


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How clips are sampled and decoded.

    Attributes:
        num_frames, crop, size: See `FrameSpec`.
        backend: `pyav`, `decord`, or `auto`.
        decode_threads: Clips decoded at once, each on one thread; `None`: one for each processor of this
            process.
        prefetch_batches: Batches decoded ahead of the one in use.
    """

    num_frames: int = 10
    crop: Crop = "center"
    size: int = 128
    backend: Backend = "auto"
    decode_threads: int | None = None
    prefetch_batches: int = 4

    def __post_init__(self) -> None:
        assert self.spec  # checks what it is made of
        if self.backend not in BACKENDS:
            raise ValueError(f"video.backend must be one of {', '.join(BACKENDS)}, not '{self.backend}'")
        if self.decode_threads is not None and self.decode_threads < 1:
            raise ValueError(f"video.decode_threads must be at least 1, not {self.decode_threads}")
        if self.prefetch_batches < 1:
            raise ValueError(f"video.prefetch_batches must be at least 1, not {self.prefetch_batches}")

    @property
    def spec(self) -> FrameSpec:
        return FrameSpec(num_frames=self.num_frames, crop=self.crop, size=self.size)


@dataclass(frozen=True)
class ClipBatch:
    """What one rank trains on in one step.

    Attributes:
        frames: uint8 [B, T, 3, h, w], RGB, on the device.
        labels: int64 [B], on the device.
        keys: B clip keys.
        is_padding: bool [B], on the device: True for a clip repeated only to even out the ranks.
        num_global: Clips of this step over all ranks, without padding.
    """

    frames: torch.Tensor
    labels: torch.Tensor
    keys: list[str]
    is_padding: torch.Tensor
    num_global: int


class ClipLoader:
    """The clips of one split, as batches of one rank.

    Args:
        clips: What to load. Their order here matters to nothing but an unshuffled epoch.
        root: The corpus root that the clips' keys are relative to.
        class_names: A clip's label is its emotion's position here.
        batch_size: Clips of one rank's step.
        shuffle: A new order each epoch, by (seed, epoch, key); off, the order of `clips`.
        even: Pad so that all ranks take equally many steps of equal size (training); off, no clip comes
            twice (evaluation).

    Raises:
        ValueError: No clips; with crop `full`, clips of several frame shapes.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        root: Path,
        class_names: Sequence[str],
        config: VideoConfig,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        even: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not clips:
            raise ValueError("there are no clips to load")
        self.clips, self.root, self.config = tuple(clips), root, config
        self.backend, self.backend_reason = choose_backend(config.backend)
        self.frame_size = _common_frame_size(self.clips, config.spec)
        self._labels = np.array([class_names.index(clip.emotion) for clip in clips], dtype=np.int64)
        self._seed, self._shuffle = seed, shuffle
        self._share = {"batch_size": batch_size, "rank": rank, "world_size": world_size, "even": even}
        self._device = torch.device(device)
        self._threads = config.decode_threads or available_processors()
        self.num_padding = -len(clips) % world_size if even else 0

    def steps(self, epoch: int) -> list[RankStep]:
        """This rank's steps of an epoch: integers only, nothing is decoded."""
        if self._shuffle:
            order = epoch_order([clip.key for clip in self.clips], seed=self._seed, epoch=epoch)
        else:
            order = np.arange(len(self.clips))
        return rank_steps(order, **self._share)  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Steps an epoch on this rank."""
        return len(self.steps(0))

    def epoch(self, epoch: int = 0) -> Iterator[ClipBatch]:
        """The batches of an epoch, in the planned order.

        Raises:
            DecodeError: A clip does not decode; raised where its batch would have come.
        """
        steps = self.steps(epoch)
        flying: deque[tuple[RankStep, torch.Tensor, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            for step in steps:
                flying.append((step, *self._start(pool, step)))
                if len(flying) > self.config.prefetch_batches:
                    yield self._finish(*flying.popleft())
            while flying:
                yield self._finish(*flying.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, step: RankStep) -> tuple[torch.Tensor, list[Future[None]]]:
        width, height = self.frame_size
        frames = torch.empty(
            (len(step.indices), self.config.num_frames, 3, height, width),
            dtype=torch.uint8,
            pin_memory=self._device.type == "cuda",
        )
        slots = frames.numpy()
        return frames, [pool.submit(self._decode, self.clips[i], slots[s]) for s, i in enumerate(step.indices)]

    def _decode(self, clip: Clip, slot: np.ndarray) -> None:
        path = self.root / clip.key
        indices = frame_indices(clip.num_frames, self.config.num_frames)
        frames = decode_clip(path, indices, self.config.spec, backend=self.backend)
        if frames.shape != slot.shape:
            raise DecodeError(
                path,
                int(indices[0]),
                f"frames are {frames.shape[-1]}x{frames.shape[-2]} where the manifest promises "
                f"{slot.shape[-1]}x{slot.shape[-2]}; the file changed after the scan",
            )
        slot[:] = frames

    def _finish(self, step: RankStep, frames: torch.Tensor, jobs: list[Future[None]]) -> ClipBatch:
        for job in jobs:
            job.result()
        return ClipBatch(
            frames=frames.to(self._device, non_blocking=True),
            labels=torch.from_numpy(self._labels[step.indices]).to(self._device, non_blocking=True),
            keys=[self.clips[i].key for i in step.indices],
            is_padding=torch.from_numpy(step.is_padding).to(self._device, non_blocking=True),
            num_global=step.num_global,
        )


def _common_frame_size(clips: Sequence[Clip], spec: FrameSpec) -> tuple[int, int]:
    """Width and height of every clip's sampled frames, in pixels."""
    sizes = {spec.out_size(clip.width, clip.height): clip.key for clip in clips}
    if len(sizes) > 1:
        (one, key), (other, other_key) = list(sizes.items())[:2]
        raise ValueError(
            f"video.crop {spec.crop} keeps each file's shape, and they differ: {key} gives {one[0]}x{one[1]}, "
            f"{other_key} {other[0]}x{other[1]}; choose center, squash or head"
        )
    return next(iter(sizes))
