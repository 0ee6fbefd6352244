"""The loader from each tier of the store, on as many clips as a corpus has; and what the disk itself gives."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.ladder import count_clips
from benchmarks.measure import Pass, Rung, Skipped, timed, total
from fastemo.corpus.manifest import Manifest
from fastemo.machine import available_processors
from fastemo.video.augment import augment
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipBatch, ClipLoader

_CHUNK_BYTES = 8 * 2**20
_PROBES = 64  # places of a file that are asked for before a cold read


class StoreRungs:
    """Loaders over one store.

    Args:
        manifest: The clips to keep.
        root: Where the store lies.
        seconds: A warm tier is read epoch after epoch for about as long.
    """

    def __init__(
        self, manifest: Manifest, root: Path, config: VideoConfig, *, batch_size: int, seconds: float, device: str
    ) -> None:
        self._manifest, self._root, self._config = manifest, root, config
        self._batch_size, self._seconds, self._device = batch_size, seconds, device
        self._crop = AugmentConfig(crop_size=max(1, config.size * 7 // 8))
        self._epoch = 0

    def _loader(self, tier: str, device: str = "cpu") -> ClipLoader:
        return ClipLoader(
            self._manifest.clips,
            self._manifest.root,
            self._manifest.class_names,
            self._config,
            batch_size=self._batch_size,
            shuffle=True,
            device=device,
            # Another decoder makes a store of its own, which a cold read must not count.
            store=StoreConfig(tier=tier, root=self._root / torch.device(device).type),  # type: ignore[arg-type]
            say=_refuse,
        )

    @contextmanager
    def rungs(self) -> Iterator[list[Rung]]:
        """Fill the store, open a loader for each tier, and let go of them at the end."""
        with ExitStack() as stack:
            with self._loader("disk") as loader:
                count_clips(loader)
            disk, memory = (stack.enter_context(self._loader(tier)) for tier in ("disk", "memory"))
            rungs = [
                Rung("disk_read", "plain read of the store's file, cold", self._read_cold),
                Rung("loader_disk_cold", "loader, disk tier, cold page cache", self._load_cold),
                self._warm_rung("loader_disk_warm", "loader, disk tier, warm page cache", disk),
                self._warm_rung("loader_memory", "loader, memory tier", memory),
                self._augmented("loader_memory_augmented", "loader, memory tier + augmentation", memory),
            ]
            if torch.device(self._device).type == "cuda":
                to_gpu, device = (
                    stack.enter_context(self._loader(tier, self._device)) for tier in ("memory", "device")
                )
                rungs += [
                    self._warm_rung("loader_host_to_device", "loader, memory tier, host to device", to_gpu),
                    self._warm_rung("loader_device", "loader, device tier", device),
                    self._augmented("loader_device_augmented", "loader, device tier + augmentation", device),
                ]
            yield rungs

    def _warm_rung(self, name: str, title: str, loader: ClipLoader) -> Rung:
        return Rung(name, title, lambda: self._load(loader), lambda: count_clips(loader))

    def _load(self, loader: ClipLoader) -> Pass:
        """Whole epochs, each in another order."""
        passes: list[Pass] = []
        while not passes or total(passes).seconds < self._seconds:
            self._epoch += 1
            passes.append(timed(lambda: count_clips(loader, self._epoch)))
        return total(passes)

    def _augmented(self, name: str, title: str, loader: ClipLoader) -> Rung:
        def run() -> Pass:
            self._epoch += 1
            return timed(work)

        def work() -> int:
            # Augmentation on a processor takes a hundred times as long as loading: no need for a whole epoch.
            clips, stop = 0, time.perf_counter() + self._seconds
            for batch in loader.epoch(self._epoch):
                self._augment(batch)
                clips += len(batch.keys)
                if time.perf_counter() > stop:
                    break
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            return clips

        return Rung(name, title, run, lambda: self._augment(next(iter(loader.epoch(0)))))

    def _augment(self, batch: ClipBatch) -> None:
        augment(batch.frames, self._crop, batch.keys, seed=0, epoch=self._epoch)

    def _load_cold(self) -> Pass:
        """The first epoch of a new loader, checksums and all, with nothing of the store in memory."""
        self._epoch += 1
        drop_cached_pages(self._root / "cpu")
        with self._loader("disk") as loader:
            return timed(lambda: count_clips(loader, self._epoch))

    def _read_cold(self) -> Pass:
        """The same bytes in large pieces, by as many threads as the loader has: what the disk gives."""
        drop_cached_pages(self._root / "cpu")
        pieces = [
            (path, offset)
            for path in _files(self._root / "cpu")
            for offset in range(0, path.stat().st_size, _CHUNK_BYTES)
        ]
        with ThreadPoolExecutor(available_processors()) as pool:
            passed = timed(lambda: len(list(pool.map(_read_piece, pieces))))
        return replace(passed, clips=len(self._manifest.clips))


def _refuse(trouble: str) -> None:
    """Training goes on without a store; a figure of a store that is none would be a lie."""
    raise ValueError(trouble)


def _read_piece(piece: tuple[Path, int]) -> None:
    path, offset = piece
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        file.read(_CHUNK_BYTES)


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]


def drop_cached_pages(root: Path) -> float:
    """Make the system forget what it holds in memory of the files below `root`.

    Returns:
        What it still holds of the largest of them, 0 to 0.1.

    Raises:
        Skipped: It does not.
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
    """How much of a file lies in memory, by asking for bytes here and there that must not come from the disk."""
    size, hits, byte = path.stat().st_size, 0, bytearray(1)
    with path.open("rb", buffering=0) as file:
        # Asking for a byte that is not there makes the kernel fetch it and, without this, what lies after it.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for probe in range(_PROBES):
            try:
                hits += os.preadv(file.fileno(), [byte], probe * size // _PROBES, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise Skipped(f"the store's file system does not tell what it holds in memory ({error})") from error
    return hits / _PROBES
