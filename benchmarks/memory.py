"""Whether resident memory grows over many decodes: `python benchmarks/memory.py --corpus DIR` prints one JSON line."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest, scan
from fastemo.errors import one_line_errors
from fastemo.machine import available_processors, give_back_memory
from fastemo.video.config import VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices

_MIB = 2**20
# FFmpeg's pools and the threads' heaps reach their size within as many decodes.
_WARM_UP = 200


def resident_mib() -> float:
    """Memory of this process that lies in RAM. Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB


def growth(work: Callable[[], int], decodes: int) -> dict[str, float]:
    """Repeat `work`, which returns how many clips it decoded.

    Returns:
        Decodes, resident MiB after the warm-up, at the end and at the most, and the growth from first to last.
    """
    _repeat(work, _WARM_UP)
    gc.collect()
    seen, done = [resident_mib()], 0
    while done < decodes:
        done += work()
        seen.append(resident_mib())
    gc.collect()
    last = resident_mib()
    return {
        "decodes": done,
        "resident_mib_before": round(seen[0], 2),
        "resident_mib_after": round(last, 2),
        "resident_mib_highest": round(max(*seen, last), 2),
        "growth_mib": round(last - seen[0], 2),
    }


def _repeat(work: Callable[[], int], at_least: int) -> None:
    done = 0
    while done < at_least:
        done += work()


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
    with ClipLoader(clips, manifest.root, manifest.class_names, config, batch_size=batch_size) as loader:
        found["loader"] = growth(lambda: sum(len(batch.keys) for batch in loader.epoch()), decodes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of clips")
    parser.add_argument("--decodes", type=int, default=3000)
    parser.add_argument("--num_frames", type=int, default=10, help="T, frames a clip")
    parser.add_argument("--size", type=int, default=128, help="side of a frame in pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="clips a batch")
    options = parser.parse_args()
    with one_line_errors():
        manifest = scan(options.corpus)
        if not manifest.clips:
            raise ValueError(f"{options.corpus} holds no clip under a RAVDESS name")
        config = VideoConfig(num_frames=options.num_frames, size=options.size)
        print(json.dumps(measure(manifest, config, options.decodes, options.batch_size)))


if __name__ == "__main__":
    main()
