"""Epoch order -> ClipBatch on the device: cached or decoded, in the planned order, a bounded number ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Literal

import numpy as np
import torch

from fastemo.corpus.clip import Clip, Root
from fastemo.machine import available_processors, give_back_memory, lower_thread_priority
from fastemo.video.assembly import Assembly
from fastemo.video.backends import Decoder, choose_backend
from fastemo.video.config import FrameSpec, StoreConfig, VideoConfig
from fastemo.video.sampling import RankStep, epoch_order, keyed_generator, oversampled, rank_steps, segment_frames
from fastemo.video.tiers import CachedClips
from fastemo.video.transfer import Transfer, send


@dataclass(frozen=True)
class Partners:
    """What each clip of a batch is mixed with.

    Attributes:
        frames: uint8 [R, T, 3, h, w], those of the batch and then those of further clips, on the device.
        draw_keys: R texts, as `ClipBatch.draw_keys`.
        rows: int64 [B], each clip's partner among the R, on the device.
        labels: int64 [B], the partners', on the device.
    """

    frames: torch.Tensor
    draw_keys: list[str]
    rows: torch.Tensor
    labels: torch.Tensor


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
        partners: What augmentation mixes the clips with; `None`: nothing.
        draw_keys: B texts that random draws depend on: the keys, with a number for each further visit of a clip in an
            epoch.
    """

    frames: torch.Tensor
    labels: torch.Tensor
    keys: list[str]
    is_padding: torch.Tensor
    num_global: int
    partners: Partners | None = None
    draw_keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.draw_keys:
            object.__setattr__(self, "draw_keys", self.keys)


class ClipLoader:
    """The clips of one split, as batches of one rank. A context manager: leaving it releases the cached clips.

    Args:
        clips: The clips to load. Their order matters only for an unshuffled epoch.
        root: The corpus root, to which the clips' keys are relative.
        class_names: A clip's label is the index of its emotion here.
        batch_size: Clips per step of one rank.
        shuffle: A new order each epoch, by (seed, epoch, key), and of more stored frames than are wanted others by the
            same; if off, the order of `clips`, and in epoch 0 the frames of evaluation.
        oversample: Visit clips of the rarer classes repeatedly, so that an epoch has as many of each class.
        mixed: Give each batch the `Partners` of its clips: the clip that follows each in the epoch, on whatever rank.
        even: Pad so that all ranks take the same number of steps of equal size (training); if off, no clip is
            repeated (evaluation).
        store: Where decoded clips are cached; nowhere by default.
        on_error: What to do with a clip that cannot be read or does not decode. `stop`: raise its error. `drop`: leave
            it out of the step, and try again in the next epoch; its row repeats another clip of the batch and is
            padding. If no clip of the batch decoded, frames and labels are zeros and the keys are the planned ones.
        say: Called with messages for the user, such as a full disk, one line each.

    Raises:
        ValueError: No clips; with crop `full`, clips of several frame shapes; a backend or a tier that is not
            available; an unknown `on_error`; `mixed` without a place for cached clips.
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
        oversample: bool = False,
        mixed: bool = False,
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
        size, spec = _common_frame_size(self.clips, config.spec), config.stored_spec
        self._decoder = Decoder(self.clips, root, spec, size, self.backend, self._device)
        store = store or StoreConfig(tier="none")
        name = self._decoder.name
        self.kept = CachedClips(store, root, self.clips, spec, size, name, self._device, say)
        if mixed and self.kept.tier == "none":
            raise ValueError(
                f"augment.mixup and augment.cutmix read each clip a second time, but decoded clips are not cached "
                f"({self.kept.reason}); choose another --store.tier or --store.root"
            )
        self._keys = [clip.key for clip in clips]
        self._labels = np.array([class_names.index(clip.emotion) for clip in clips], dtype=np.int64)
        self.class_counts = np.bincount(self._labels, minlength=len(class_names))
        self._seed, self._shuffle, self._even = seed, shuffle, even
        self._oversample, self._mixed = oversample, mixed
        balanced = self.class_counts.max() * np.count_nonzero(self.class_counts)
        self.clips_per_epoch = int(balanced) if oversample else len(clips)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._threads = config.decode_threads or available_processors()
        self.transfer = Transfer(self._device)
        self.num_padding = -self.clips_per_epoch % world_size if even else 0
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
        """This rank's steps of an epoch: integers only; nothing is decoded.

        With `oversample`, a clip's later visits have its position plus the number of clips for each earlier one.
        """
        options = {"batch_size": self._batch_size, "rank": self._rank, "world_size": self._world_size}
        return rank_steps(self._order(epoch), **options, even=self._even, mixed=self._mixed)

    def _order(self, epoch: int) -> np.ndarray:
        """All ranks' visits of an epoch, int64 [clips_per_epoch]."""
        visits, when = np.arange(len(self.clips)), {"seed": self._seed, "epoch": epoch}
        if self._oversample:
            visits = oversampled(self._labels, self._keys, **when)
        return visits[epoch_order(self._draw_keys(visits), **when)] if self._shuffle else visits

    def _draw_keys(self, visits: np.ndarray) -> list[str]:
        split = (divmod(visit, len(self.clips)) for visit in visits.tolist())
        return [f"{self._keys[row]}\0{number}" if number else self._keys[row] for number, row in split]

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
        if num_clips < self.clips_per_epoch and num_clips % a_step:
            raise ValueError(
                f"the loader's saved position is after {num_clips} clips, which is not between two steps of {a_step} "
                f"clips; choose a batch size and a number of processes whose product divides {num_clips}"
            )
        self._resume = {"epoch": state["epoch"], "clips": num_clips}
        self._state = dict(self._resume)

    def _fixed_state(self) -> dict[str, int]:
        return {"seed": self._seed, "num_clips": len(self.clips)}

    def epoch(self, epoch: int = 0) -> Iterator[ClipBatch]:
        """The batches of an epoch, in the planned order; in evaluation, epochs above 0 have other frames, as `shuffle`.

        Raises:
            DecodeError: A clip does not decode, and `on_error` is `stop`; raised where its batch would have come.
        """
        steps, first = self.steps(epoch), 0
        # One copy per epoch, of which each step uses a slice. A rank may have no steps.
        columns = self._columns(steps)
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
                    rows = (step.visits % len(self.clips)).tolist()
                    flying.append(Assembly(rows, self._decoder, self.kept, pool, self.transfer, drops=self._drops))
                    has_decoded |= flying[-1].start()
                assembly, start = flying.popleft(), number * self._batch_size
                place = slice(start, start + len(steps[number].indices))
                own = {name: values[place] for name, values in columns.items()}
                batch = self._batch(steps[number], assembly, epoch, own)
                keeping.append(assembly.kept)
                while keeping and keeping[0].done():
                    keeping.popleft().result()
                num_clips = min((number + 1) * self._batch_size * self._world_size, self.clips_per_epoch)
                self._state = {"epoch": epoch, "clips": num_clips}
                yield batch
            for kept in keeping:
                kept.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._pools.discard(pool)
            if has_decoded:
                give_back_memory()

    def _columns(self, steps: Sequence[RankStep]) -> dict[str, torch.Tensor]:
        """What the batches of several steps hold for each clip, on the device, one step after the other."""

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(step, name) for step in steps] or [self._labels[:0]])

        found = {"labels": self._labels[joined("indices") % len(self.clips)], "is_padding": joined("is_padding") > 0}
        if self._mixed and steps:
            others = np.concatenate([step.visits[step.partners] for step in steps])
            found |= {"partners": joined("partners"), "partner_labels": self._labels[others % len(self.clips)]}
        return {name: self._to_device(values) for name, values in found.items()}

    def _batch(self, step: RankStep, assembly: Assembly, epoch: int, columns: dict[str, torch.Tensor]) -> ClipBatch:
        """The batch of a step, whose columns are those of `_columns`."""
        frames, visits, size = assembly.frames(), step.visits, len(step.indices)
        if assembly.dropped:
            slots, stand_in = [*assembly.dropped], assembly.stand_in
            with self._lock:
                for slot, reason in assembly.dropped.items():
                    self._dropped.setdefault(self._keys[visits[slot] % len(self.clips)], reason)
            is_padding = np.concatenate([step.is_padding, np.zeros(len(step.others), dtype=bool)])
            is_padding[slots] = True
            if stand_in is not None:
                visits[slots] = visits[stand_in]
            step = replace(step, indices=visits[:size], others=visits[size:], is_padding=is_padding[:size])
            columns = self._columns([step])
            if stand_in is None:
                columns["labels"].zero_()
        draw_keys = self._draw_keys(visits)
        frames = self._chosen(frames, draw_keys, epoch)
        return ClipBatch(
            frames=frames[:size],
            labels=columns["labels"],
            keys=[self._keys[row] for row in visits[:size] % len(self.clips)],
            is_padding=columns["is_padding"],
            num_global=step.num_global,
            partners=Partners(frames, draw_keys, columns["partners"], columns["partner_labels"])
            if self._mixed
            else None,
            draw_keys=draw_keys[:size],
        )

    def _chosen(self, frames_BNChw: torch.Tensor, draw_keys: Sequence[str], epoch: int) -> torch.Tensor:
        """The T of the N stored frames that the model sees in an epoch: [B, T, 3, h, w]."""
        num_stored, num_frames = frames_BNChw.shape[1], self.config.num_frames
        if num_stored == num_frames:
            return frames_BNChw
        if not self._shuffle and epoch == 0:
            return frames_BNChw[:, self._to_device(segment_frames(num_stored, num_frames))]
        draws = [keyed_generator(self._seed, epoch, f"frames\0{key}").random(num_frames) for key in draw_keys]
        chosen = self._to_device(segment_frames(num_stored, num_frames, np.stack(draws)))
        return frames_BNChw[torch.arange(len(draw_keys), device=self._device)[:, None], chosen]

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
