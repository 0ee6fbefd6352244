"""Whether resident memory grows over many decodes; measured in a process of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.common.stages import loader_of
from fastemo.corpus.manifest import Clip, Manifest
from fastemo.machine import available_processors, give_back_memory, resident_memory
from fastemo.video.config import VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

# FFmpeg's pools and the threads' heaps reach their size within as many decodes.
_WARM_UP = 200


def growth(work: Callable[[], int], decodes: int) -> dict[str, float]:
    """Repeat `work`, which returns how many clips it decoded.

    Returns:
        Decodes, resident MiB after the warm-up, at the end and at the most, and the growth from first to last.
    """
    warm = 0
    while warm < _WARM_UP:
        warm += work()
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


def measure(manifest: Manifest, config: VideoConfig, decodes: int, batch_size: int) -> dict[str, Any]:
    """Memory over many decodes, a clip on each processor; and over as many by the loader, whose batches come on top."""
    clips = manifest.clips

    def decode(clip: Clip) -> None:
        decode_clip(manifest.root / clip.key, frame_indices(clip.num_frames, config.num_frames), config.spec)

    def decode_all() -> int:
        with ThreadPoolExecutor(available_processors()) as pool:
            count = len(list(pool.map(decode, clips)))
        give_back_memory()  # as the loader does after an epoch
        return count

    found: dict[str, Any] = growth(decode_all, decodes)
    with loader_of(manifest, clips, config, batch_size=batch_size) as loader:
        found["loader"] = growth(lambda: sum(len(batch.keys) for batch in loader.epoch()), decodes)
    return found
