"""Epoch order -> ClipBatch on the device: cached or decoded, in the planned order, a bounded number ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
import torch

from fastemo.corpus.clip import Clip, Root
from fastemo.machine import available_processors, give_back_memory, lower_thread_priority
from fastemo.video.assembly import Assembly
from fastemo.video.backends import Decoder, choose_backend
from fastemo.video.config import FrameSpec, StoreConfig, VideoConfig
from fastemo.video.sampling import RankStep, epoch_order, rank_steps
from fastemo.video.tiers import CachedClips
from fastemo.video.transfer import Transfer, send


@dataclass(frozen=True)
class ClipBatch:
    """One rank's input for one step.

    Attributes:
        frames: uint8 [B, T, 3, h, w], RGB, on the device.
        labels: int64 [B], on the device.
        keys: B clip keys.
        is_padding: bool [B], on the device: True for a clip repeated only to even out the ranks or to replace a dropped
            one.
        num_global: Clips of this step over all ranks, without padding. Dropped ones count, so that they do not change
            the weight of the others.
    """

    frames: torch.Tensor
    labels: torch.Tensor
    keys: list[str]
    is_padding: torch.Tensor
    num_global: int


class ClipLoader:
    """The clips of one split, as batches of one rank. A context manager: leaving it releases the cached clips.

    Args:
        clips: The clips to load. Their order matters only for an unshuffled epoch.
        root: The corpus root, to which the clips' keys are relative.
        class_names: A clip's label is the index of its emotion here.
        batch_size: Clips per step of one rank.
        shuffle: A new order each epoch, by (seed, epoch, key); if off, the order of `clips`.
        even: Pad so that all ranks take the same number of steps of equal size (training); if off, no clip is
            repeated (evaluation).
        store: Where decoded clips are cached; nowhere by default.
        on_error: What to do with a clip that cannot be read or does not decode. `stop`: raise its error. `drop`: leave
            it out of the step, and try again in the next epoch; its row repeats another clip of the batch and is
            padding. If no clip of the batch decoded, frames and labels are zeros and the keys are the planned ones.
        say: Called with messages for the user, such as a full disk, one line each.

    Raises:
        ValueError: No clips; with crop `full`, clips of several frame shapes; a backend or a tier that is not
            available; an unknown `on_error`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        root: Root,
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
        store: StoreConfig | None = None,
        on_error: Literal["stop", "drop"] = "stop",
        say: Callable[[str], None] = print,
    ) -> None:
        if not clips:
            raise ValueError("there are no clips to load")
        if on_error not in ("stop", "drop"):
            raise ValueError(f"on_error must be stop or drop, not '{on_error}'")
        self.clips, self.config, self._device = tuple(clips), config, torch.device(device)
        self.backend, self.backend_reason = choose_backend(config.backend, self._device)
        size = _common_frame_size(self.clips, config.spec)
        self._decoder = Decoder(self.clips, root, config.spec, size, self.backend, self._device)
        store = store or StoreConfig(tier="none")
        name = self._decoder.name
        self.kept = CachedClips(store, root, self.clips, config.spec, size, name, self._device, say)
        self._labels = np.array([class_names.index(clip.emotion) for clip in clips], dtype=np.int64)
        self._seed, self._shuffle, self._even = seed, shuffle, even
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._threads = config.decode_threads or available_processors()
        self.transfer = Transfer(self._device)
        self.num_padding = -len(clips) % world_size if even else 0
        self._drops = on_error == "drop"
        self._dropped: dict[str, str] = {}
        self._lock = Lock()
        self._pools: set[ThreadPoolExecutor] = set()
        self._is_closed = False
        self._state = {"epoch": 0, "clips": 0}
        self._resume: dict[str, int] | None = None

    @property
    def dropped(self) -> dict[str, str]:
        """Key -> the first error, for every clip that was left out of a batch so far."""
        with self._lock:
            return dict(self._dropped)

    @property
    def left_to_pyav(self) -> dict[str, int]:
        """Reason why PyAV decoded clips instead of the backend -> number of clips."""
        return {reason: len(keys) for reason, keys in self._decoder.left_to_pyav.items()}

    def steps(self, epoch: int) -> list[RankStep]:
        """This rank's steps of an epoch: integers only; nothing is decoded."""
        if self._shuffle:
            order = epoch_order([clip.key for clip in self.clips], seed=self._seed, epoch=epoch)
        else:
            order = np.arange(len(self.clips))
        return rank_steps(
            order, batch_size=self._batch_size, rank=self._rank, world_size=self._world_size, even=self._even
        )

    def __len__(self) -> int:
        """Steps per epoch on this rank."""
        return len(self.steps(0))

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End running epochs and release decoders, files and memory; the loader cannot be used afterwards."""
        self._is_closed = True
        # An error's traceback may keep an epoch alive: its threads must not write to closed files.
        for pool in [*self._pools]:
            pool.shutdown(wait=True, cancel_futures=True)
        self._decoder.close()
        # After an abandoned epoch, copies to memory that is released here may still be in flight.
        self.transfer.synchronize()
        self.kept.close()

    def state_dict(self) -> dict[str, int]:
        """Epoch, clips over all ranks in the batches so far, and the settings that this position depends on."""
        return {**self._state, **self._fixed_state()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume: the next `epoch(n)` of the saved epoch begins after the batches that were handed out.

        Batch size and number of ranks may differ from before, as long as a step begins where the saved one ended.

        Raises:
            ValueError: Another seed or other clips, or no step begins there; the message says what differs.
        """
        for name, value in self._fixed_state().items():
            if state.get(name) != value:
                raise ValueError(f"the loader's saved position is for {name} {state.get(name)}, not {value}")
        num_clips, a_step = state["clips"], self._batch_size * self._world_size
        if num_clips < len(self.clips) and num_clips % a_step:
            raise ValueError(
                f"the loader's saved position is after {num_clips} clips, which is not between two steps of {a_step} "
                f"clips; choose a batch size and a number of processes whose product divides {num_clips}"
            )
        self._resume = {"epoch": state["epoch"], "clips": num_clips}
        self._state = dict(self._resume)

    def _fixed_state(self) -> dict[str, int]:
        return {"seed": self._seed, "num_clips": len(self.clips)}

    def epoch(self, epoch: int = 0) -> Iterator[ClipBatch]:
        """The batches of an epoch, in the planned order.

        Raises:
            DecodeError: A clip does not decode, and `on_error` is `stop`; raised where its batch would have come.
        """
        steps, first = self.steps(epoch), 0
        # One copy per epoch, of which each step uses a slice. A rank may have no steps.
        rows = np.concatenate([self._labels[:0], *(step.indices for step in steps)])
        labels = self._to_device(self._labels[rows])
        is_padding = self._to_device(np.concatenate([rows[:0] > 0, *(step.is_padding for step in steps)]))
        if self._resume and self._resume["epoch"] == epoch:
            first = -(-self._resume["clips"] // (self._batch_size * self._world_size))
        self._resume = None
        flying: deque[Assembly] = deque()
        keeping: deque[Future[None]] = deque()
        has_decoded = False
        # A step's threads wait for each other: a decoder that takes the processor of one delays all of them. With lower
        # priority it gets every processor once the step is over and the next batch is waited for.
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode", initializer=lower_thread_priority)
        self._pools.add(pool)
        try:
            for number in range(first, len(steps)):
                assert not self._is_closed, "the loader was closed"
                # Refilled before the wait, so that the threads have work while this batch is trained on.
                for step in steps[number + len(flying) : number + 1 + self.config.prefetch_batches]:
                    flying.append(Assembly(step, self._decoder, self.kept, pool, self.transfer, drops=self._drops))
                    has_decoded |= flying[-1].start()
                assembly, start = flying.popleft(), number * self._batch_size
                place = slice(start, start + len(assembly.step.indices))
                batch = self._batch(assembly, labels[place], is_padding[place])
                keeping.append(assembly.kept)
                while keeping and keeping[0].done():
                    keeping.popleft().result()
                num_clips = min((number + 1) * self._batch_size * self._world_size, len(self.clips))
                self._state = {"epoch": epoch, "clips": num_clips}
                yield batch
            for kept in keeping:
                kept.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._pools.discard(pool)
            if has_decoded:
                give_back_memory()

    def _batch(self, assembly: Assembly, labels: torch.Tensor, is_padding: torch.Tensor) -> ClipBatch:
        frames, step = assembly.frames(), assembly.step
        indices = step.indices
        if assembly.dropped:
            with self._lock:
                for slot, reason in assembly.dropped.items():
                    self._dropped.setdefault(self.clips[indices[slot]].key, reason)
            slots, stand_in = [*assembly.dropped], assembly.stand_in
            padding = step.is_padding.copy()
            padding[slots] = True
            is_padding = self._to_device(padding)
            if stand_in is None:
                labels = torch.zeros_like(labels)
            else:
                indices = indices.copy()
                indices[slots] = indices[stand_in]
                labels = self._to_device(self._labels[indices])
        return ClipBatch(
            frames=frames,
            labels=labels,
            keys=[self.clips[i].key for i in indices],
            is_padding=is_padding,
            num_global=step.num_global,
        )

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return send(torch.from_numpy(values), self._device)


def _common_frame_size(clips: Sequence[Clip], spec: FrameSpec) -> tuple[int, int]:
    """Width and height of every clip's sampled frames, in pixels."""
    sizes = {spec.out_size(clip.width, clip.height): clip.key for clip in clips}
    if len(sizes) > 1:
        (one, key), (other, other_key) = list(sizes.items())[:2]
        raise ValueError(
            f"video.crop {spec.crop} keeps each file's shape, but they differ: {key} gives {one[0]}x{one[1]}, "
            f"{other_key} {other[0]}x{other[1]}; choose center, squash or head"
        )
    return next(iter(sizes))
