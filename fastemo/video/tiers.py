"""The decoded clips of one split, cached where they are read fastest: file -> memory -> device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Literal
from weakref import WeakSet

import numpy as np
import torch

from fastemo.corpus.clip import Clip, Root
from fastemo.machine import available_memory, readable_bytes
from fastemo.video.config import FrameSpec, StoreConfig
from fastemo.video.store import ClipStore, StoreUnavailable

# Share of a GPU's free memory for the decoded clips of all splits together: the rest is the model's and DALI's.
_MOST_OF_GPU = {"auto": 1 / 4, "device": 3 / 4}
# All caches of this process, which share its one device's memory.
_living: WeakSet[CachedClips] = WeakSet()


def choose_tier(
    config: StoreConfig, num_bytes: int, device: torch.device, held: int = 0
) -> tuple[Literal["none", "disk", "memory", "device"], str]:
    """The tier to use, and why.

    Args:
        config: The configuration, whose `tier` may be `auto`.
        num_bytes: Size of all clips once decoded.
        device: The device that the model runs on.
        held: Bytes that other loaders of this process have cached on the device: all share one budget.

    Raises:
        ValueError: The tier is `device` and the clips take more than three quarters of the GPU's free memory.
    """
    size = readable_bytes(num_bytes)
    on_gpu = device.type == "cuda"
    if config.tier == "device" and not on_gpu:
        return "memory", f"the device is {device.type}"
    free = torch.cuda.mem_get_info(device)[0] + held if on_gpu and config.tier in ("auto", "device") else 0
    budget = int(_MOST_OF_GPU[config.tier] * free) - held if free else 0
    if config.tier == "device" and num_bytes > budget:
        raise ValueError(
            f"store.tier device: the decoded clips take {size}, but {device} has only {readable_bytes(max(0, budget))} "
            f"for them (the rest of its free memory is for the model); choose --store.tier memory, disk or auto"
        )
    if config.tier != "auto":
        return config.tier, "as asked"
    if on_gpu and num_bytes <= budget:
        return "device", f"{size} of the {readable_bytes(free)} free on {device}"
    available = available_memory()
    if num_bytes <= available / 2:
        return "memory", f"{size} of the {readable_bytes(available)} of memory available"
    return "disk", f"{size} is more than half of the {readable_bytes(available)} of memory available"


class CachedClips:
    """A cache of decoded clips.

    With tier `disk` clips are read from the store's file. With `memory` a clip stays in this process's memory once it
    was read or decoded, with `device` on the GPU; the file still fills them at the next start. If the file is not
    available, `memory` and `device` work without it.

    Args:
        clips: A clip's row is its index here.
        decoder: Everything that the bytes depend on besides the files and `spec`.
        say: Called with messages for the user, one line each.

    Raises:
        ValueError: The tier is `device` and the clips do not fit.
    """

    def __init__(
        self,
        config: StoreConfig,
        corpus_root: Root,
        clips: Sequence[Clip],
        spec: FrameSpec,
        frame_size: tuple[int, int],
        decoder: str,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        width, height = frame_size
        shape = (len(clips), spec.num_frames, 3, height, width)
        self.num_bytes = int(np.prod(shape))
        self.tier, self.reason = choose_tier(config, self.num_bytes, device, sum(it.device_bytes for it in _living))
        self._clips, self._say, self._lock = clips, say, Lock()
        self._file: ClipStore | None = None
        self._memory: np.ndarray | None = None
        self._device_rows: torch.Tensor | None = None
        _living.add(self)
        self._is_trouble_said = False
        self._is_held = np.zeros(len(clips), dtype=bool)
        if self.tier == "none":
            return
        try:
            self._file = ClipStore(config, corpus_root, clips, spec, frame_size, decoder)
        except StoreUnavailable as error:
            if self.tier == "disk":
                self.tier, self.reason = "none", "no room on disk"
            say(f"{error}; training continues without a store on disk")
        if self.tier == "memory":
            self._memory = np.empty(shape, dtype=np.uint8)
        elif self.tier == "device":
            self._device_rows = torch.empty(shape, dtype=torch.uint8, device=device)

    @property
    def description(self) -> str:
        """Where decoded clips are cached and why, for the log."""
        if self.tier == "none":
            return f"decoded clips are not cached ({self.reason})"
        where = {"disk": "on disk", "memory": "in memory", "device": "on the GPU"}[self.tier]
        file = f", store {self._file.folder}" if self._file else ""
        return f"decoded clips are cached {where} ({self.reason}){file}"

    @property
    def device_bytes(self) -> int:
        """Bytes taken on the device."""
        return 0 if self._device_rows is None else self._device_rows.nbytes

    @property
    def wants_bytes(self) -> bool:
        """Whether `keep` does anything."""
        return self._file is not None or self._memory is not None

    def on_device(self, row: int) -> bool:
        return self._device_rows is not None and bool(self._is_held[row])

    def has(self, row: int) -> bool:
        """Whether `read` will most likely succeed."""
        if self._memory is not None and self._is_held[row]:
            return True
        return self._file is not None and self._file.has(self._clips[row])

    def read(self, row: int, slot: np.ndarray) -> bool:
        """Copy a clip to uint8 [T, 3, h, w]; False: it is not cached, and the slot may hold anything."""
        if self._memory is not None and self._is_held[row]:
            slot[:] = self._memory[row]
            return True
        if self._file is None or not self._file.read(self._clips[row], slot):
            return False
        self._cache_row(row, slot)
        return True

    def keep(self, row: int, frames: np.ndarray) -> None:
        """Cache a clip that was just decoded, uint8 [T, 3, h, w]."""
        self._cache_row(row, frames)
        if self._file is None:
            return
        self._file.write(self._clips[row], frames)
        with self._lock:
            if self._file.trouble and not self._is_trouble_said:
                self._is_trouble_said = True
                self._say(f"{self._file.trouble}; training continues without storing more")

    def _cache_row(self, row: int, frames: np.ndarray) -> None:
        if self._memory is not None:
            self._memory[row] = frames
            self._is_held[row] = True

    def keep_on_device(self, rows: Sequence[int], frames: torch.Tensor) -> None:
        """Cache clips that are on the device, uint8 [B, T, 3, h, w]; does nothing with another tier."""
        if self._device_rows is not None:
            for row, clip_frames in zip(rows, frames, strict=True):
                self._device_rows[row].copy_(clip_frames, non_blocking=True)
            self._is_held[list(rows)] = True

    def from_device(self, rows: torch.Tensor) -> torch.Tensor:
        """Clips that are `on_device`, uint8 [B, T, 3, h, w], for int64 [B] rows on the device."""
        assert self._device_rows is not None
        return self._device_rows.index_select(0, rows)

    def close(self) -> None:
        """Release files and memory."""
        if self._file is not None:
            self._file.close()
        self._file = self._memory = self._device_rows = None
