"""From a file to a batch, a stage at a time, each on every processor: demux, prune, decode, resize, load."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import av
import torch

from benchmarks.common.measure import Pass, Stage, timed
from fastemo.corpus.manifest import Clip, Manifest
from fastemo.machine import available_processors
from fastemo.video.bitstream.pruning import prune
from fastemo.video.config import VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices
from fastemo.video.store import StoreConfig


def loader_of(manifest: Manifest, clips: Sequence[Clip], config: VideoConfig, **options: Any) -> ClipLoader:
    """A loader over some of a manifest's clips."""
    return ClipLoader(clips, manifest.root, manifest.class_names, config, **options)


def demux(path: Path) -> None:
    """Read every packet of the video."""
    with av.open(str(path)) as container:
        for _ in container.demux(video=0):
            pass


def decode_all(file: Path | bytes) -> None:
    """Decode every frame on one thread; none is converted."""
    with av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass


@contextmanager
def decode_stages(manifest: Manifest, config: VideoConfig) -> Iterator[dict[str, Stage]]:
    """What a clip goes through before it is part of a batch; one clip a thread, a thread a processor."""
    clips = manifest.clips
    paths = [manifest.root / clip.key for clip in clips]
    wanted = [frame_indices(clip.num_frames, config.num_frames) for clip in clips]

    with ThreadPoolExecutor(available_processors()) as pool:
        pruned = list(pool.map(lambda number: prune(paths[number], wanted[number]).data, range(len(clips))))

        def stage(name: str, title: str, work: Callable[[int], object]) -> Stage:
            def run(count: int = len(clips)) -> Pass:
                return timed(lambda: len(list(pool.map(work, range(count)))))

            return Stage(name, title, run, lambda: run(min(len(clips), available_processors())))

        stages = [
            stage("demux", "demux", lambda it: demux(paths[it])),
            stage("prune", "prune", lambda it: prune(paths[it], wanted[it])),
            stage("decode_full", "decode, every frame (the old limit)", lambda it: decode_all(paths[it])),
            stage("decode_pruned", "decode, pruned (the limit)", lambda it: decode_all(pruned[it])),
            stage(
                "decode_resize", "prune + decode + resize", lambda it: decode_clip(paths[it], wanted[it], config.spec)
            ),
        ]
        yield {it.name: it for it in stages}


def cold_stage(manifest: Manifest, config: VideoConfig, batch_size: int, device: str, stack: ExitStack) -> Stage:
    """The loader without a store: every clip decoded. It is closed with the stack."""

    def loader(clips: Sequence[Clip]) -> ClipLoader:
        none = StoreConfig(tier="none")
        made = loader_of(manifest, clips, config, batch_size=batch_size, device=device, store=none)
        return stack.enter_context(made)

    whole, few = loader(manifest.clips), loader(manifest.clips[: max(batch_size, available_processors())])
    name = "loader_cold_gpu" if torch.device(device).type == "cuda" else "loader_cold"
    title = f"loader, no store ({whole.backend})"
    return Stage(name, title, lambda: timed(lambda: count_clips(whole)), lambda: count_clips(few))


def count_clips(loader: ClipLoader, epoch: int = 0) -> int:
    """Go through an epoch and wait for its last copies; returns its clips."""
    clips = sum(len(batch.keys) for batch in loader.epoch(epoch))
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clips
