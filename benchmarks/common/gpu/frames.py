"""The decoding stages of gpu_check.py: are DALI's frames PyAV's, how fast, and does the memory stay flat."""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import torch

from benchmarks.common.gpu.bench import Bench
from benchmarks.common.measure import timed
from benchmarks.common.stages import count_clips, decode_stages, loader_of
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest, scan
from fastemo.machine import resident_memory
from fastemo.video import backends, dali
from fastemo.video.backends import refused_size
from fastemo.video.bitstream.pruning import PrunedClip, prune
from fastemo.video.bitstream.source import Source
from fastemo.video.config import CROPS, StoreConfig, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices

_LEAST_PSNR = 38.0  # dB, between any two backends after resizing
_MOST_GROWTH_MIB = 64
_VP9 = {"deadline": "realtime", "cpu-used": "8", "b": "4M", "g": "10"}
_FAST = {
    "libvpx-vp9": _VP9,
    "libvpx": _VP9,
    "libx264": {"preset": "ultrafast", "crf": "18", "g": "12"},
    "libx265": {"preset": "ultrafast", "crf": "18", "x265-params": "keyint=12:log-level=none"},
    "libsvtav1": {"preset": "12", "crf": "20", "g": "12"},
    "mpeg4": {"qscale": "2", "b": "8M"},
    "mjpeg": {"q:v": "2", "b": "20M"},
}


@dataclass(frozen=True)
class Sample:
    """A clip to make; the matrix by FFmpeg's number: 1 is BT.709, 5 BT.601."""

    encoder: str
    width: int
    height: int
    pixels: str = "yuv420p"
    matrix: int = 5

    @property
    def name(self) -> str:
        suffix = "mkv" if self.encoder == "mjpeg" else "mp4" if self.encoder != "libvpx" else "webm"
        return f"{self.encoder}-{self.width}x{self.height}-{self.pixels}-matrix{self.matrix}.{suffix}"


def samples(rehearse: bool) -> list[Sample]:
    """By what the device decodes; H.264 in a rehearsal, and what a card does not take, goes to PyAV."""
    if rehearse:
        codecs = ("libvpx-vp9", "libvpx", "mjpeg", "libx264")
        small = [Sample(name, 160, 90, "yuvj420p" if name == "mjpeg" else "yuv420p") for name in codecs]
        return [*small, Sample("libvpx-vp9", 320, 180, matrix=1), Sample("libx264", 160, 90, "yuv420p10le")]
    names = ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg4", "libvpx", "mjpeg")
    # Of whole blocks, as DALI is to decode them; 320x180 is PyAV's.
    found = [Sample(name, 320, 192, "yuvj420p" if name == "mjpeg" else "yuv420p") for name in names]
    found += [Sample(name, 320, 180) for name in names[:2]]
    found += [Sample(name, *size) for name in names[:2] for size in ((1280, 720), (1920, 1080))]
    found += [Sample(name, 320, 192, matrix=1) for name in names[:4]] + [Sample("libx264", 1280, 720, matrix=1)]
    return found + [Sample(name, 320, 192, "yuv420p10le") for name in ("libx264", "libx265", "libsvtav1")]


def pattern(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3]: coloured waves; neighbouring frames are less than 35 dB alike."""
    y, x = np.mgrid[0:height, 0:width] * (180 / height)
    red = np.sin(x / 17 + number / 3) * np.cos(y / 13)
    green, blue = np.cos(x / 29 - number / 4), np.sin((x + y) / 23 + number / 3)
    return (127 + 60 * np.stack([red, green, blue], axis=-1)).clip(0, 255).astype(np.uint8)


def make(sample: Sample, folder: Path, num_frames: int = 24) -> Path:
    """Encode the moving pattern."""
    path = folder / sample.name
    path.parent.mkdir(parents=True, exist_ok=True)
    # SVT-AV1 gives the thread that encodes real-time priority: not to this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_encode, sample, path, num_frames).result()
    return path


def _encode(sample: Sample, path: Path, num_frames: int) -> None:
    colour_range = 2 if sample.pixels.startswith("yuvj") else 1
    with av.open(str(path), "w") as container:
        stream = container.add_stream(sample.encoder, rate=25, options=_FAST[sample.encoder])
        stream.width, stream.height, stream.pix_fmt = sample.width, sample.height, sample.pixels
        context = stream.codec_context
        context.colorspace, context.color_range = sample.matrix, colour_range
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(pattern(number, sample.width, sample.height), format="rgb24")
            frame = frame.reformat(format=sample.pixels, dst_colorspace=sample.matrix, dst_color_range=colour_range)
            frame.colorspace, frame.color_range = sample.matrix, colour_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frames(bench: Bench) -> dict[str, Any]:
    """DALI's frames through the loader against PyAV's: the least PSNR of all, and better than the neighbours'."""
    if (reason := dali.why_unavailable(bench.device)) is not None:
        return {"ok": True, "skipped": reason}
    folder = bench.scratch / "frames" / "moving"
    unmade = {}
    for sample in samples(bench.rehearse):
        try:
            make(sample, folder)
        except (av.error.FFmpegError, ValueError) as error:
            (folder / sample.name).unlink(missing_ok=True)
            unmade[sample.name] = str(error)
    manifest = scan(folder.parent, labels="folder")
    clips: dict[str, dict[str, Any]] = {}
    for crop, kind in itertools.product(CROPS, ("pruned", "full")):
        if bench.has_time(f"{crop}, {kind}", seconds=0 if bench.rehearse else 2):
            clips[f"{crop}, {kind}"] = _compare(bench, manifest, crop, kind)
    found: dict[str, Any] = {"unmade": unmade, "rejected": [it.key for it in manifest.rejected], "clips": clips}
    found["broken"] = broken(bench, manifest) if bench.has_time("broken") else {"ok": True}
    found["PyNvVideoCodec"] = _by_nvidias_own(folder) if not bench.rehearse else "a driver's: not rehearsed"
    errors = [f"{name}: {key} {it}" for name, its in clips.items() for key, it in its.items() if not it["ok"]][:4]
    if not found["broken"]["ok"]:
        errors.append(str(found["broken"]))
    if errors:
        found["error"] = "; ".join(errors)
    return {"ok": "error" not in found, **found}


def _config(bench: Bench, **options: Any) -> VideoConfig:
    return VideoConfig(**{"num_frames": 5, "size": 48 if bench.rehearse else 128, **options})


def _compare(bench: Bench, manifest: Manifest, crop: Any, kind: str) -> dict[str, Any]:
    config = _config(bench, crop=crop, backend="dali")
    by_size: dict[tuple[int, int], list[Clip]] = {}
    for clip in manifest.clips:
        by_size.setdefault(config.spec.out_size(clip.width, clip.height), []).append(clip)
    found = {}
    for clips in by_size.values():
        with _counting(kind) as by_pyav:
            ours, dropped = _first_batch(bench, manifest, clips, config)
        for clip, own in zip(clips, ours, strict=True):
            if clip.key in dropped:
                found[clip.key] = {"ok": False, "error": dropped[clip.key]}
                continue
            by = "pyav" if manifest.root / clip.key in by_pyav else "dali"
            found[clip.key] = _fit(own, manifest.root, clip, config) | {"by": by}
    return found


def _first_batch(
    bench: Bench, manifest: Manifest, clips: Sequence[Clip], config: VideoConfig
) -> tuple[np.ndarray, dict[str, str]]:
    """All clips' frames by the loader, and why some were dropped."""
    with _loader(bench, manifest, clips, config, batch_size=len(clips), on_error="drop") as loader:
        (batch,) = loader.epoch(0)
        return batch.frames.cpu().numpy(), dict(loader.dropped)


def _fit(ours: np.ndarray, root: Path, clip: Clip, config: VideoConfig) -> dict[str, Any]:
    """The least PSNR of a clip's frames from PyAV's, and how many fit a neighbour better."""
    everything = decode_clip(root / clip.key, range(clip.num_frames), config.spec)
    least, astray = float("inf"), 0
    for frame, index in zip(ours, frame_indices(clip.num_frames, config.num_frames).tolist(), strict=True):
        decibels = _psnr(frame, everything[index])
        least = min(least, decibels)
        for other in (index - 1, index + 1):
            if 0 <= other < len(everything):
                astray += _psnr(frame, everything[other]) > decibels
    return {"ok": least >= _LEAST_PSNR and not astray, "psnr_db": round(min(least, 99.0), 2), "astray": astray}


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@contextmanager
def _counting(kind: str) -> Iterator[set[Path]]:
    """Note which clips PyAV decodes; with `full` nothing is pruned for DALI."""
    seen: set[Path] = set()
    real: Any = getattr(backends, "decode_clip")  # noqa: B009

    def noting(path: Path, *arguments: Any, **options: Any) -> np.ndarray:
        seen.add(Path(path))
        decoded: np.ndarray = real(path, *arguments, **options)
        return decoded

    def whole(path: Path, indices: Sequence[int]) -> PrunedClip:
        return PrunedClip(Path(path).read_bytes(), np.asarray(indices, np.int64))

    with ExitStack() as stack:
        stack.enter_context(patch.object(backends, "decode_clip", noting))
        if kind == "full":
            stack.enter_context(patch.object(backends, "pruned_clip", whole))
        yield seen


def _loader(bench: Bench, manifest: Manifest, clips: Sequence[Clip], config: VideoConfig, **options: Any) -> ClipLoader:
    none = StoreConfig(tier="none")
    return loader_of(manifest, clips, config, device=bench.device, store=none, say=lambda text: None, **options)


def broken(bench: Bench, manifest: Manifest) -> dict[str, Any]:
    """A clip whose stream is overwritten, in a batch: it is named, and the others are right."""
    encoder = "libvpx-vp9" if bench.rehearse else "libx264"
    clips = [clip for clip in manifest.clips if Path(clip.key).name.startswith(encoder)][:2]
    path = manifest.root / clips[0].key
    was, stat = path.read_bytes(), path.stat()
    start, end = was.find(b"mdat") + 4, was.rfind(b"moov") - 4

    def write(data: bytes) -> None:
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    config = _config(bench, backend="dali")
    try:
        write(was[:start] + b"\xff" * (end - start) + was[end:])
        ours, dropped = _first_batch(bench, manifest, clips, config)
    finally:
        write(was)
    fit = _fit(ours[1], manifest.root, clips[1], config)
    return {"ok": list(dropped) == [clips[0].key] and fit["ok"], "dropped": list(dropped.values()), "others": fit}


def _by_nvidias_own(folder: Path) -> Any:
    """The first frames by PyNvVideoCodec, where it is installed."""
    try:
        nvc: Any = import_module("PyNvVideoCodec")
    except Exception as error:
        return f"cannot be imported: {error}"
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.mp4")):
        try:
            decoder = nvc.SimpleDecoder(str(path), output_color_type=nvc.OutputColorType.RGB)
            ours = [torch.utils.dlpack.from_dlpack(decoder[number]).cpu().numpy() for number in range(3)]
            theirs = decode_clip(path, range(3), None).transpose(0, 2, 3, 1)
            found[path.name] = round(min(map(_psnr, ours, theirs)), 2)
        except Exception as error:
            found[path.name] = f"{type(error).__name__}: {error}"[:200]
    return found


def _corpora(bench: Bench) -> Iterator[tuple[str, Manifest]]:
    """Clips to time, each file many times."""
    sizes = ((160, 90),) if bench.rehearse else ((1280, 720), (320, 180))
    for width, height in sizes:
        folder = bench.scratch / f"timed-{width}x{height}"
        encoder = "libvpx-vp9" if bench.rehearse else "libx264"
        if not folder.is_dir():
            make(Sample(encoder, width, height, matrix=1), folder / "moving", 20 if bench.rehearse else 100)
        found = scan(folder, labels="folder")
        yield f"{width}x{height}", replace(found, clips=found.clips * (4 if bench.rehearse else 128))


def nvdec(bench: Bench) -> dict[str, Any]:
    """Clips a second: the loader cold by both backends, DALI alone by batch and threads, PyAV, pruning."""
    unavailable = dali.why_unavailable(bench.device)
    use: dict[str, float] = {}
    found: dict[str, Any] = {"ok": True, "dali": unavailable or "is there", "nvdec_percent": use}
    config = _config(bench, num_frames=5 if bench.rehearse else 10, backend="pyav")
    corpora = [*_corpora(bench)]
    for size, manifest in corpora:
        rates = found[size] = {}
        for batch in (2,) if bench.rehearse else (8, 64):
            for backend in ("pyav",) if unavailable else ("pyav", "dali"):
                name = f"loader cold, {backend}, batch {batch}"
                if bench.has_time(f"{size}, {name}"):
                    asked: Any = replace(config, backend=backend)
                    with (
                        engine_use(bench.device, use, f"{size}, {name}"),
                        _loader(bench, manifest, manifest.clips, asked, batch_size=batch) as loader,
                    ):
                        rates[name] = timed(partial(count_clips, loader)).rate
        with decode_stages(manifest, config) as stages:
            if bench.has_time(f"{size}, pyav"):
                rates["pyav, all processors"] = stages["decode_resize"].run().rate
        _pruning(bench, size, manifest, config, rates)
    for size, manifest in [] if unavailable else corpora:
        if refused_size(manifest.clips[0].width, manifest.clips[0].height, bench.device) is None:
            _dali_alone(bench, size, manifest, config, found[size], use)
    return found


def _dali_alone(
    bench: Bench, size: str, manifest: Manifest, config: VideoConfig, rates: dict[str, Any], use: dict[str, float]
) -> None:
    first = manifest.clips[0]
    path, wanted = manifest.root / first.key, frame_indices(first.num_frames, config.num_frames)
    shape = config.spec.out_size(first.width, first.height)
    for kind, clip in (("pruned", prune(path, wanted)), ("full", PrunedClip(path.read_bytes(), wanted))):
        source = Source(path, tuple(wanted.tolist()), clip, first.width, first.height)
        for batch, threads in [(2, 2)] if bench.rehearse else itertools.product((64, 8), (14, 7, 28)):
            name = f"dali, {kind}, batch {batch}, threads {threads}"
            if not bench.has_time(f"{size}, {name}"):
                continue
            options: dict[str, Any] = {"frame_size": shape, "max_batch": batch, "num_threads": threads}
            decoder = dali.DaliDecoder(config.spec, bench.device, **options)
            decoder.decode([source] * batch)
            bench.synchronize()
            began, done = time.perf_counter(), 0
            with engine_use(bench.device, use, f"{size}, {name}"):
                while done < len(manifest.clips) and time.perf_counter() - began < 3:
                    decoder.decode([source] * batch)
                    done += batch
                bench.synchronize()
            rates[name] = done / (time.perf_counter() - began)
            decoder.close()


@contextmanager
def engine_use(device: torch.device, use: dict[str, float], name: str) -> Iterator[None]:
    """Note NVDEC's mean use in percent, by NVML; nothing where that is not installed or does not answer."""
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


def _pruning(bench: Bench, size: str, manifest: Manifest, config: VideoConfig, rates: dict[str, Any]) -> None:
    clip, count = manifest.clips[0], len(manifest.clips)
    path, wanted = manifest.root / clip.key, frame_indices(clip.num_frames, config.num_frames)
    for threads in (1, 4, 16):
        if bench.has_time(f"{size}, prune, threads {threads}"):
            with ThreadPoolExecutor(threads) as pool:
                work = partial(pool.map, lambda _: prune(path, wanted), range(count))
                rates[f"prune, threads {threads}"] = timed(lambda work=work: len([*work()])).rate  # type: ignore[misc]


def memory(bench: Bench) -> dict[str, Any]:
    """What is taken after the first decodes and after many, by torch and by the driver."""
    _, manifest = next(iter(_corpora(bench)))
    backend: Any = "dali" if dali.why_unavailable(bench.device) is None else "pyav"
    config = _config(bench, backend=backend)
    done, decodes = 0, min(bench.decodes, 40) if bench.rehearse else bench.decodes
    with _loader(bench, manifest, manifest.clips, config, batch_size=2 if bench.rehearse else 16) as loader:
        count_clips(loader)
        seen = [_taken(bench)]
        while done < decodes and bench.has_time(f"decodes after {done}"):
            done += count_clips(loader, done + 1)
            seen.append(_taken(bench))
    growth = {name: round(seen[-1][name] - seen[0][name], 1) for name in seen[0]}
    most = {name: max(it[name] for it in seen) for name in seen[0]}
    # A process's own memory moves more in a few decodes; only a driver can tell of a card's.
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
