"""The stages from file to batch: demux, prune, decode, resize, load; each tier of the store; memory.

Every stage uses all processors.
"""

from __future__ import annotations

import collections
import gc
import io
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.common.measure import Pass, Skipped, Stage, timed, total
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest
from fastemo.machine import available_processors, give_back_memory, resident_memory
from fastemo.video.augment import augment
from fastemo.video.bitstream.pruning import prune
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices

_CHUNK_BYTES = 8 * 2**20
_PROBES = 64  # positions of a file that are checked before a cold read
# FFmpeg's pools and the threads' heaps reach their final size within this many decodes.
_WARM_UP_DECODES = 200


def loader_of(manifest: Manifest, clips: Sequence[Clip], config: VideoConfig, **options: Any) -> ClipLoader:
    """A loader over some of a manifest's clips."""
    return ClipLoader(clips, manifest.root, manifest.class_names, config, **options)


def demux(path: Path) -> None:
    """Read every packet of the video."""
    with av.open(str(path)) as container:
        collections.deque(container.demux(video=0), maxlen=0)


def decode_all(file: Path | bytes) -> None:
    """Decode every frame on one thread, without conversion."""
    with av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        collections.deque(container.decode(stream), maxlen=0)


@contextmanager
def decode_stages(manifest: Manifest, config: VideoConfig) -> Iterator[dict[str, Stage]]:
    """The stages of a clip before it becomes part of a batch; one clip per thread, one thread per processor."""
    clips = manifest.clips
    paths = [clip.file(manifest.root) for clip in clips]
    wanted = [frame_indices(clip.num_frames, config.num_frames, clip.first_frame) for clip in clips]

    with ThreadPoolExecutor(available_processors()) as pool:
        pruned = [clip.data for clip in pool.map(prune, paths, wanted)]

        def stage(name: str, title: str, work: Callable[..., object], *inputs: list[Any]) -> Stage:
            def run(count: int = len(clips)) -> Pass:
                return timed(lambda: len(list(pool.map(work, *(its[:count] for its in inputs)))))

            return Stage(name, title, run, lambda: run(available_processors()))

        stages = [
            stage("demux", "demux", demux, paths),
            stage("prune", "prune", prune, paths, wanted),
            stage("decode_full", "decode every frame", decode_all, paths),
            stage("decode_pruned", "decode the pruned clip (the limit)", decode_all, pruned),
            stage("decode_resize", "prune + decode + resize", partial(decode_clip, spec=config.spec), paths, wanted),
        ]
        yield {stage.name: stage for stage in stages}


def cold_stage(manifest: Manifest, config: VideoConfig, batch_size: int, device: str, stack: ExitStack) -> Stage:
    """The loader without a store: every clip is decoded. It is closed with the stack."""
    none = StoreConfig(tier="none")
    whole, few = (
        stack.enter_context(loader_of(manifest, clips, config, batch_size=batch_size, device=device, store=none))
        for clips in (manifest.clips, manifest.clips[: max(batch_size, available_processors())])
    )
    name = "loader_cold_gpu" if torch.device(device).type == "cuda" else "loader_cold"
    title = f"loader, no store ({whole.backend})"
    return Stage(name, title, lambda: timed(lambda: count_clips(whole)), lambda: count_clips(few))


def count_clips(
    loader: ClipLoader, epoch: int = 0, *, crop: AugmentConfig | None = None, seconds: float = math.inf
) -> int:
    """Iterate over an epoch, at most for `seconds`, and wait for its last copies; return the number of clips.

    Args:
        crop: How each batch is augmented on its device; by default it is not.
    """
    clips, stop = 0, time.perf_counter() + seconds
    for batch in loader.epoch(epoch):
        clips += len(batch.keys)
        if crop:
            augment(batch.frames, crop, batch.keys, seed=0, epoch=epoch)
        if time.perf_counter() > stop:
            break
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clips


@contextmanager
def store_stages(
    manifest: Manifest, root: Path, config: VideoConfig, batch_size: int, seconds: float, device: str
) -> Iterator[list[Stage]]:
    """Fill a store, open a loader over it for each tier, and close them at the end.

    Args:
        manifest: The clips to store.
        root: Folder of the store.
        seconds: How long a warm tier is read, about, epoch after epoch.
    """
    epochs, crop = itertools.count(1), AugmentConfig(crop_size=max(1, config.size * 7 // 8))

    def open_loader(tier: str, device: str = "cpu") -> ClipLoader:
        # Another decoder creates another store, which a cold read must not count.
        store = StoreConfig(tier=tier, root=root / torch.device(device).type)  # type: ignore[arg-type]
        options = {"batch_size": batch_size, "shuffle": True, "device": device, "store": store, "say": _refuse}
        return loader_of(manifest, manifest.clips, config, **options)

    def load_cold() -> Pass:
        """The first epoch of a new loader, including checksums, with nothing of the store in memory."""
        drop_cached_pages(root / "cpu")
        with open_loader("disk") as loader:
            return timed(lambda: count_clips(loader, next(epochs)))

    def read_cold() -> Pass:
        """The same bytes in large blocks, with as many threads as the loader has: the disk's speed."""
        drop_cached_pages(root / "cpu")
        starts = [(path, it) for path in _files(root / "cpu") for it in range(0, path.stat().st_size, _CHUNK_BYTES)]
        with ThreadPoolExecutor(available_processors()) as pool:
            read = partial(np.fromfile, dtype=np.uint8, count=_CHUNK_BYTES)
            passed = timed(lambda: len(list(pool.map(lambda it: read(it[0], offset=it[1]).size, starts))))
        return replace(passed, clips=len(manifest.clips))

    def add(name: str, title: str, tier: str, device: str = "cpu", *, augments: bool = False) -> None:
        loader = stack.enter_context(open_loader(tier, device))

        def warm() -> Pass:
            """Whole epochs, each in another order."""
            passes: list[Pass] = []
            while not passes or total(passes).seconds < seconds:
                passes.append(timed(lambda: count_clips(loader, next(epochs))))
            return total(passes)

        def augmented(seconds: float = seconds) -> Pass:
            # On a CPU, augmentation takes a hundred times as long as loading: no whole epoch is needed.
            return timed(lambda: count_clips(loader, next(epochs), crop=crop, seconds=seconds))

        stages.append(Stage(name, title, warm, lambda: count_clips(loader)))
        if augments:
            stages.append(Stage(f"{name}_augmented", f"{title} + augmentation", augmented, lambda: augmented(0)))

    with ExitStack() as stack:
        with open_loader("disk") as loader:
            count_clips(loader)
        stages = [
            Stage("disk_read", "plain read of the store's file, cold", read_cold),
            Stage("loader_disk_cold", "loader, disk tier, cold page cache", load_cold),
        ]
        add("loader_disk_warm", "loader, disk tier, warm page cache", "disk")
        add("loader_memory", "loader, memory tier", "memory", augments=True)
        if torch.device(device).type == "cuda":
            add("loader_host_to_device", "loader, memory tier, host to device", "memory", device)
            add("loader_device", "loader, device tier", "device", device, augments=True)
        yield stages


def _refuse(trouble: str) -> None:
    """Training continues without a store, but here the figures would be wrong."""
    raise ValueError(trouble)


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.stat().st_size]


def drop_cached_pages(root: Path) -> float:
    """Make the system drop its page cache of the files below `root`.

    Returns:
        The share of the largest file that is still cached, 0 to 0.1.

    Raises:
        Skipped: More of it is.
    """
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        raise Skipped("only Linux can drop cached pages")
    for path in _files(root):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # unwritten pages are not dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    largest = max(_files(root), key=lambda path: path.stat().st_size)
    if (share := cached_share(largest)) > 0.1:
        raise Skipped(f"{share:.0%} of the store stay in memory; set TMPDIR to a folder on a disk")
    return share


def cached_share(path: Path) -> float:
    """The share of a file in the page cache, estimated by reads that must not access the disk."""
    size, hits, byte = path.stat().st_size, 0, bytearray(1)
    with path.open("rb", buffering=0) as file:
        # Reading an uncached byte makes the kernel fetch it and, without this, the following pages.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        try:
            for probe in range(_PROBES):
                with suppress(BlockingIOError):  # not in the cache
                    hits += os.preadv(file.fileno(), [byte], probe * size // _PROBES, os.RWF_NOWAIT)
        except OSError as error:
            raise Skipped(f"the store's file system does not report what is cached ({error})") from error
    return hits / _PROBES


def growth(work: Callable[[], int], decodes: int) -> dict[str, float]:
    """Memory growth while repeating `work`, which returns the number of clips it decoded.

    Returns:
        Decodes, resident MiB after the warm-up, at the end and at the maximum, and the growth from first to last.
    """
    warm_up = 0
    while warm_up < _WARM_UP_DECODES:
        warm_up += work()
    gc.collect()
    seen, done = [resident_memory() / 2**20], 0
    while done < decodes:
        done += work()
        seen.append(resident_memory() / 2**20)
    gc.collect()
    seen.append(resident_memory() / 2**20)
    return {
        "decodes": done,
        "resident_mib_before": round(seen[0], 2),
        "resident_mib_after": round(seen[-1], 2),
        "resident_mib_highest": round(max(seen), 2),
        "growth_mib": round(seen[-1] - seen[0], 2),
    }


def memory(manifest: Manifest, config: VideoConfig, decodes: int, batch_size: int) -> dict[str, Any]:
    """Memory over many decodes, one clip per processor; and over as many by the loader, which adds its batches."""

    def decode(clip: Clip) -> None:
        decode_clip(
            clip.file(manifest.root), frame_indices(clip.num_frames, config.num_frames, clip.first_frame), config.spec
        )

    def decode_clips() -> int:
        with ThreadPoolExecutor(available_processors()) as pool:
            count = len(list(pool.map(decode, manifest.clips)))
        give_back_memory()  # as the loader does after an epoch
        return count

    found: dict[str, Any] = growth(decode_clips, decodes)
    with loader_of(manifest, manifest.clips, config, batch_size=batch_size) as loader:
        found["loader"] = growth(lambda: count_clips(loader), decodes)
    return found
