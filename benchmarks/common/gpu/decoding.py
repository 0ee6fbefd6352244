"""The decoding stages of gpu_check.py: speed, and whether memory stays flat."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.common.gpu.bench import Bench
from benchmarks.common.measure import timed
from benchmarks.common.stages import count_clips, loader_of
from fastemo.corpus.manifest import Manifest, scan
from fastemo.machine import available_processors, resident_memory
from fastemo.video import dali
from fastemo.video.backends import refused_size
from fastemo.video.bitstream.pruning import PrunedClip, prune
from fastemo.video.bitstream.source import Source
from fastemo.video.config import StoreConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices

_MOST_GROWTH_MIB = 64
_BT709 = 1  # FFmpeg's number of the colour matrix


def _make(path: Path, width: int, height: int, *, rehearse: bool) -> None:
    """Encode coloured waves in a codec that the device decodes: H.264 on a GPU, VP9 on a CPU."""
    codec, options = "libx264", {"preset": "ultrafast", "crf": "18", "g": "12"}
    if rehearse:
        codec, options = "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "4M", "g": "10"}
    y, x = np.mgrid[0:height, 0:width] * (180 / height)
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.colorspace = _BT709
        for number in range(20 if rehearse else 100):
            waves = [np.sin(x / 17 + number / 3), np.cos(x / 29 - number / 4), np.sin((x + y) / 23 + number / 3)]
            picture = (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=_BT709)))
        container.mux(stream.encode())


def _corpora(bench: Bench) -> Iterator[tuple[str, Manifest]]:
    """The clips to time, each file many times."""
    for width, height in ((160, 90),) if bench.rehearse else ((1280, 720), (320, 180)):
        folder = bench.scratch / f"timed-{width}x{height}"
        if not folder.is_dir():
            _make(folder / "moving" / "clip.mp4", width, height, rehearse=bench.rehearse)
        found = scan(folder, labels="folder")
        yield f"{width}x{height}", replace(found, clips=found.clips * (4 if bench.rehearse else 128))


def _loader(bench: Bench, manifest: Manifest, backend: Any, batch_size: int) -> ClipLoader:
    options: dict[str, Any] = {"device": bench.device, "store": StoreConfig(tier="none"), "say": lambda text: None}
    return loader_of(manifest, manifest.clips, replace(bench.video, backend=backend), batch_size=batch_size, **options)


def nvdec(bench: Bench) -> dict[str, Any]:
    """Clips/s: the cold loader with both backends, PyAV, pruning; then DALI alone by batch and threads."""
    unavailable = dali.why_unavailable(bench.device)
    use: dict[str, float] = {}
    found: dict[str, Any] = {"ok": True, "dali": unavailable or "is there", "nvdec_percent": use}

    def measure(size: str, name: str, open_work: Callable[[], AbstractContextManager[Callable[[], int]]]) -> None:
        if bench.has_time(f"{size}, {name}"):
            with open_work() as work, engine_use(bench.device, use, f"{size}, {name}"):
                found.setdefault(size, {})[name] = timed(work).rate

    corpora = [*_corpora(bench)]
    for size, manifest in corpora:
        for batch in (2,) if bench.rehearse else (8, 64):
            for backend in ("pyav",) if unavailable else ("pyav", "dali"):
                measure(size, f"loader cold, {backend}, batch {batch}", partial(_cold, bench, manifest, backend, batch))
        paths = [clip.file(manifest.root) for clip in manifest.clips]
        wanted = frame_indices(manifest.clips[0].num_frames, bench.video.num_frames)
        decode = partial(decode_clip, indices=wanted, spec=bench.video.spec)
        measure(size, "pyav, all processors", partial(_mapped, decode, paths, available_processors()))
        for threads in (1, 4, 16):
            measure(size, f"prune, threads {threads}", partial(_mapped, partial(prune, indices=wanted), paths, threads))
    for size, manifest in [] if unavailable else corpora:
        if refused_size(manifest.clips[0].width, manifest.clips[0].height, bench.device) is None:
            for kind in ("pruned", "full"):
                for batch, threads in [(2, 2)] if bench.rehearse else itertools.product((64, 8), (14, 7, 28)):
                    opened = partial(_dali_alone, bench, manifest, kind, batch, threads)
                    measure(size, f"dali, {kind}, batch {batch}, threads {threads}", opened)
    return found


@contextmanager
def _cold(bench: Bench, manifest: Manifest, backend: str, batch_size: int) -> Iterator[Callable[[], int]]:
    with _loader(bench, manifest, backend, batch_size) as loader:
        yield partial(count_clips, loader)


@contextmanager
def _mapped(work: Callable[[Path], object], paths: list[Path], threads: int) -> Iterator[Callable[[], int]]:
    with ThreadPoolExecutor(threads) as pool:
        yield lambda: len([*pool.map(work, paths)])


@contextmanager
def _dali_alone(bench: Bench, manifest: Manifest, kind: str, batch: int, threads: int) -> Iterator[Callable[[], int]]:
    clip, config = manifest.clips[0], bench.video
    path, wanted = clip.file(manifest.root), frame_indices(clip.num_frames, config.num_frames, clip.first_frame)
    file = prune(path, wanted) if kind == "pruned" else PrunedClip(path.read_bytes(), wanted)
    sources = [Source(path, tuple(wanted.tolist()), file, clip.width, clip.height)] * batch
    options: dict[str, Any] = {"frame_size": config.spec.out_size(clip.width, clip.height), "num_threads": threads}
    decoder = dali.DaliDecoder(config.spec, bench.device, max_batch=batch, **options)

    def work() -> int:
        began, done = time.perf_counter(), 0
        while done < len(manifest.clips) and time.perf_counter() - began < 3:
            decoder.decode(sources)
            done += batch
        bench.synchronize()
        return done

    decoder.decode(sources)
    bench.synchronize()
    yield work
    decoder.close()


@contextmanager
def engine_use(device: torch.device, use: dict[str, float], name: str) -> Iterator[None]:
    """Record NVDEC's mean utilisation in percent, by NVML; nothing if that is not installed or does not respond."""
    try:
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetDecoderUtilization(handle)
    except Exception:
        yield
        return
    samples: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            samples.append(nvml.nvmlDeviceGetDecoderUtilization(handle)[0])

    with ThreadPoolExecutor(1) as pool:
        pool.submit(watch)
        try:
            yield
        finally:
            over.set()
    if samples:
        use[name] = round(statistics.mean(samples), 1)


def memory(bench: Bench) -> dict[str, Any]:
    """Memory used after the first decodes and after many, as torch and the driver report it."""
    _, manifest = next(iter(_corpora(bench)))
    backend = "dali" if dali.why_unavailable(bench.device) is None else "pyav"
    done, decodes = 0, min(bench.decodes, 40) if bench.rehearse else bench.decodes
    with _loader(bench, manifest, backend, 2 if bench.rehearse else 16) as loader:
        count_clips(loader)
        seen = [_taken(bench)]
        while done < decodes and bench.has_time(f"decodes after {done}"):
            done += count_clips(loader, done + 1)
            seen.append(_taken(bench))
    growth = {name: round(seen[-1][name] - seen[0][name], 1) for name in seen[0]}
    most = {name: max(it[name] for it in seen) for name in seen[0]}
    # The process's memory fluctuates more in a few decodes; only the driver knows the GPU's.
    watched = {name: value for name, value in growth.items() if name != "resident_mib"}
    is_flat = max(watched.values(), default=0.0) <= _MOST_GROWTH_MIB
    found = {"ok": is_flat, "backend": backend, "decodes": done, "growth_mib": growth, "most_mib": most}
    return found | ({"driver": "a driver's: not rehearsed"} if bench.rehearse else {})


def _taken(bench: Bench) -> dict[str, float]:
    found = {"resident_mib": resident_memory() / 2**20}
    if bench.device.type == "cuda":
        bench.synchronize()
        free, total = torch.cuda.mem_get_info(bench.device)
        found |= {"torch_mib": torch.cuda.memory_allocated(bench.device) / 2**20, "driver_mib": (total - free) / 2**20}
    return found
