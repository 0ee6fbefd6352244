"""The loader from each tier of the store, on as many clips as a corpus has; and the disk's own speed."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.common.measure import Pass, Skipped, Stage, timed, total
from benchmarks.common.stages import count_clips, loader_of
from fastemo.corpus.manifest import Manifest
from fastemo.machine import available_processors
from fastemo.video.augment import AugmentConfig, augment
from fastemo.video.config import VideoConfig
from fastemo.video.loader import ClipBatch, ClipLoader
from fastemo.video.store import StoreConfig

_CHUNK_BYTES = 8 * 2**20
_PROBES = 64  # places of a file that are looked at before a cold read


@dataclass
class StoreStages:
    """Loaders over one store.

    Attributes:
        manifest: The clips to store.
        root: Where the store lies.
        seconds: A warm tier is read epoch after epoch for about as long.
    """

    manifest: Manifest
    root: Path
    config: VideoConfig
    batch_size: int
    seconds: float
    device: str
    _epoch: int = field(default=0, init=False)

    def _loader(self, tier: str, device: str = "cpu") -> ClipLoader:
        # Another decoder makes a store of its own, which a cold read must not count.
        store = StoreConfig(tier=tier, root=self.root / torch.device(device).type)  # type: ignore[arg-type]
        options = {"batch_size": self.batch_size, "shuffle": True, "device": device, "store": store, "say": _refuse}
        return loader_of(self.manifest, self.manifest.clips, self.config, **options)

    @contextmanager
    def stages(self) -> Iterator[list[Stage]]:
        """Fill the store, open a loader for each tier, and close them at the end."""
        with ExitStack() as stack:
            with self._loader("disk") as loader:
                count_clips(loader)
            disk, memory = (stack.enter_context(self._loader(tier)) for tier in ("disk", "memory"))
            stages = [
                Stage("disk_read", "plain read of the store's file, cold", self._read_cold),
                Stage("loader_disk_cold", "loader, disk tier, cold page cache", self._load_cold),
                self._warm("loader_disk_warm", "loader, disk tier, warm page cache", disk),
                self._warm("loader_memory", "loader, memory tier", memory),
                self._augmented("loader_memory_augmented", "loader, memory tier + augmentation", memory),
            ]
            if torch.device(self.device).type == "cuda":
                to_gpu, device = (stack.enter_context(self._loader(it, self.device)) for it in ("memory", "device"))
                stages += [
                    self._warm("loader_host_to_device", "loader, memory tier, host to device", to_gpu),
                    self._warm("loader_device", "loader, device tier", device),
                    self._augmented("loader_device_augmented", "loader, device tier + augmentation", device),
                ]
            yield stages

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _warm(self, name: str, title: str, loader: ClipLoader) -> Stage:
        """Whole epochs, each in another order."""

        def run() -> Pass:
            passes: list[Pass] = []
            while not passes or total(passes).seconds < self.seconds:
                passes.append(timed(lambda: count_clips(loader, self._next_epoch())))
            return total(passes)

        return Stage(name, title, run, lambda: count_clips(loader))

    def _augmented(self, name: str, title: str, loader: ClipLoader) -> Stage:
        def work() -> int:
            # Augmentation on a processor takes a hundred times as long as loading: no need for a whole epoch.
            clips, stop = 0, time.perf_counter() + self.seconds
            for batch in loader.epoch(self._next_epoch()):
                self._augment(batch)
                clips += len(batch.keys)
                if time.perf_counter() > stop:
                    break
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            return clips

        return Stage(name, title, lambda: timed(work), lambda: self._augment(next(iter(loader.epoch(0)))))

    def _augment(self, batch: ClipBatch) -> None:
        crop = AugmentConfig(crop_size=max(1, self.config.size * 7 // 8))
        augment(batch.frames, crop, batch.keys, seed=0, epoch=self._epoch)

    def _load_cold(self) -> Pass:
        """The first epoch of a new loader, checksums and all, with nothing of the store in memory."""
        drop_cached_pages(self.root / "cpu")
        with self._loader("disk") as loader:
            return timed(lambda: count_clips(loader, self._next_epoch()))

    def _read_cold(self) -> Pass:
        """The same bytes in large pieces, by as many threads as the loader has: the disk's own speed."""
        drop_cached_pages(self.root / "cpu")
        files = {path: path.stat().st_size for path in _files(self.root / "cpu")}
        pieces = [(path, offset) for path, size in files.items() for offset in range(0, size, _CHUNK_BYTES)]
        with ThreadPoolExecutor(available_processors()) as pool:
            passed = timed(lambda: len(list(pool.map(_read_piece, pieces))))
        return replace(passed, clips=len(self.manifest.clips))


def _refuse(trouble: str) -> None:
    """Training continues without a store; a figure of a store that is none would be wrong."""
    raise ValueError(trouble)


def _read_piece(piece: tuple[Path, int]) -> None:
    path, offset = piece
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        file.read(_CHUNK_BYTES)


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]


def drop_cached_pages(root: Path) -> float:
    """Make the system drop its page cache of the files below `root`.

    Returns:
        The share of the largest of them that is still cached, 0 to 0.1.

    Raises:
        Skipped: More of it is.
    """
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        raise Skipped("only Linux can be told to forget cached pages")
    for path in _files(root):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet are not dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    largest = max(_files(root), key=lambda path: path.stat().st_size)
    if (share := cached_share(largest)) > 0.1:
        raise Skipped(f"{share:.0%} of the store stay in memory; TMPDIR names a folder on a disk")
    return share


def cached_share(path: Path) -> float:
    """How much of a file lies in memory, by reading bytes here and there that must not come from the disk."""
    size, hits, byte = path.stat().st_size, 0, bytearray(1)
    with path.open("rb", buffering=0) as file:
        # Reading a byte that is not there makes the kernel fetch it and, without this, what lies after it.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for probe in range(_PROBES):
            try:
                hits += os.preadv(file.fileno(), [byte], probe * size // _PROBES, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise Skipped(f"the store's file system does not tell what it holds in memory ({error})") from error
    return hits / _PROBES
