"""Decoding, loaders made and closed, epoch after epoch: memory, open files and threads stay what they were.

The sample repeats a fifth as often and allows a fifth of the growth, so both notice 7 KiB more a decode (a clip here
has 12), 70 KiB a loader and 205 KiB a loader with DALI; of epochs the full run notices 410 KiB each, the sample 82.
One file or thread is noticed at once. Runs without a leak grow by less than 2 MiB.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import full_or, noise_frame, write_noise_clip, write_video

from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.machine import give_back_memory
from fastemo.video import backends, tiers
from fastemo.video.bitstream.pruning import PrunedClip, prune
from fastemo.video.config import StoreConfig, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

CONFIG = VideoConfig(num_frames=4, size=32, decode_threads=2)
GROWTH_MIB, PARTS = full_or((4, 1), (20, 5))
NUM_CLIPS, BROKEN = 12, 5


@dataclass(frozen=True)
class Resources:
    """What a process holds.

    Attributes:
        resident_mib: Memory that lies in RAM.
        files: Open file handles, by what they lead to.
        threads: Their number.
    """

    resident_mib: float
    files: list[str]
    threads: int

    @classmethod
    def now(cls) -> Resources:
        gc.collect()
        give_back_memory()
        files = []
        for handle in Path("/proc/self/fd").iterdir():
            try:
                files.append(os.readlink(handle))
            except FileNotFoundError:  # the handle of this very listing
                continue
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident_mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        return cls(resident_mib, sorted(files), len(os.listdir("/proc/self/task")))


def stays_flat(work: Callable[[int], None], *, warm_up: int, times: int) -> dict[str, int]:
    """Repeat `work`, which is given its number; what is held after the warm-up is held at the end."""
    for number in range(warm_up):
        work(number)
    before = Resources.now()
    for number in range(times):
        work(number)
    after = Resources.now()
    assert after.files == before.files
    assert after.threads == before.threads
    growth = after.resident_mib - before.resident_mib
    assert growth < GROWTH_MIB, f"{growth:.1f} MiB more after {times} times"
    return {f"memory, open files and threads as before, {times} times": 1}


def damage(path: Path) -> None:
    """Most frames become zeros, which the decoder finds: the index, the size and the time stay as they were."""
    stat, data = path.stat(), path.read_bytes()
    end = data.index(b"moov") - 4
    path.write_bytes(data[: end // 4] + bytes(end - end // 4) + data[end:])
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Twelve clips of H.264 and MPEG-4, of which one was cut after the scan."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(NUM_CLIPS):
        path = folder / f"02-01-0{number % 8 + 1}-01-01-01-{number // 8 + 1:02d}.mp4"
        write_noise_clip(path, number, 16, 96, 64, codec="mpeg4" if number % 4 == 3 else "libx264")
    found = scan(folder)
    damage(folder / found.clips[BROKEN].key)
    return found


def make_loader(manifest: Manifest, tier: str, root: Path, config: VideoConfig = CONFIG) -> ClipLoader:
    options = {"batch_size": 4, "shuffle": True, "store": StoreConfig(tier=tier, root=root), "on_error": "drop"}
    return ClipLoader(manifest.clips, manifest.root, EMOTIONS, config, **options)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_decodes(manifest, fault_log, backend):
    clips = [clip for number, clip in enumerate(manifest.clips) if number != BROKEN]

    def decode(number: int) -> None:
        clip = clips[number % len(clips)]
        decode_clip(manifest.root / clip.key, frame_indices(clip.num_frames, 4), CONFIG.spec, backend=backend)

    def decode_some(_: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, range(100)))

    fault_log(f"{600 * PARTS:,} decodes by {backend}", stays_flat(decode_some, warm_up=5, times=6 * PARTS))


@pytest.mark.parametrize("tier", ["none", "disk", "memory"])
def test_loaders_made_and_left(manifest, tmp_path, fault_log, tier):
    """A batch or two, then the loader is closed: the epoch ended, closed or left to the garbage collector."""

    def restart(number: int) -> None:
        with make_loader(manifest, tier, tmp_path / str(number % 15)) as loader:
            batches = loader.epoch(number)
            next(batches)
            if number % 3 == 0:
                batches.close()
            elif number % 3 == 1:
                del batches
            else:
                list(batches)

    times = 60 * PARTS
    fault_log(f"{times} loaders, epochs left half way, tier {tier}", stays_flat(restart, warm_up=30, times=times))


@pytest.mark.parametrize("tier", ["none", "disk", "memory", "device"])
def test_epochs(manifest, tmp_path, monkeypatch, fault_log, tier):
    if tier == "device":  # where there is no GPU: cached in a tensor all the same
        monkeypatch.setattr(tiers, "choose_tier", lambda *_: ("device", "a test"))
    with make_loader(manifest, "disk" if tier == "device" else tier, tmp_path) as loader:

        def epoch(number: int) -> None:
            assert sum(int((~batch.is_padding).sum()) for batch in loader.epoch(number)) == NUM_CLIPS - 1

        fault_log(f"50 epochs with a broken clip, tier {tier}", stays_flat(epoch, warm_up=10, times=50))
        assert list(loader.dropped) == [manifest.clips[BROKEN].key]


def test_loaders_made_and_left_with_dali(tmp_path, monkeypatch, fault_log):
    """Each loader makes a pipeline of DALI's, and a broken clip ends it."""
    pytest.importorskip("nvidia.dali", reason="DALI is a dependency on Linux x86-64 only")
    for number in range(4):
        path = tmp_path / f"02-01-0{number + 1}-01-01-01-01.mp4"
        write_video(path, 16, 96, 64, codec="libvpx-vp9", options={"g": "8", "cpu-used": "8"}, draw=noise_frame)
    manifest = scan(tmp_path)
    config, broken = VideoConfig(num_frames=4, size=32, backend="dali"), manifest.clips[2].key

    def damaged(path: Path, indices: np.ndarray, _anchor: object) -> PrunedClip:
        clip = prune(path, indices)
        return PrunedClip(clip.data, clip.positions + 100) if path.name == broken else clip

    monkeypatch.setattr(backends, "pruned_clip", damaged)

    def restart(number: int) -> None:
        with make_loader(manifest, "none", tmp_path, config) as loader:
            next(loader.epoch(number))
            assert "DALI: " in loader.dropped[broken]

    times = 20 * PARTS
    fault_log(f"{times} loaders with DALI and a broken clip", stays_flat(restart, warm_up=10, times=times))
