"""From a file to a batch, a step at a time, each with every processor at work: demux, prune, decode, resize, load."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import av
import torch

from benchmarks.measure import Pass, Rung, timed
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest
from fastemo.machine import available_processors
from fastemo.video.bitstream.pruning import prune
from fastemo.video.config import StoreConfig, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices


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
def decode_rungs(manifest: Manifest, config: VideoConfig) -> Iterator[list[Rung]]:
    """What a clip goes through before it is part of a batch; one clip a thread, a thread a processor."""
    clips = manifest.clips
    paths = [manifest.root / clip.key for clip in clips]
    wanted = [frame_indices(clip.num_frames, config.num_frames) for clip in clips]

    def decode_and_resize(number: int) -> None:
        decode_clip(paths[number], wanted[number], config.spec)

    with ThreadPoolExecutor(available_processors()) as pool:
        pruned = list(pool.map(lambda number: prune(paths[number], wanted[number]).data, range(len(clips))))

        def rung(name: str, title: str, work: Callable[[int], object]) -> Rung:
            def run(numbers: Sequence[int] = range(len(clips))) -> Pass:
                return timed(lambda: len(list(pool.map(work, numbers))))

            return Rung(name, title, run, lambda: run(range(min(len(clips), available_processors()))))

        yield [
            rung("demux", "demux", lambda number: demux(paths[number])),
            rung("prune", "prune", lambda number: prune(paths[number], wanted[number])),
            rung("decode_full", "decode, every frame (the old limit)", lambda number: decode_all(paths[number])),
            rung("decode_pruned", "decode, pruned (the limit)", lambda number: decode_all(pruned[number])),
            rung("decode_resize", "prune + decode + resize", decode_and_resize),
        ]


def cold_rung(manifest: Manifest, config: VideoConfig, batch_size: int, device: str, stack: ExitStack) -> Rung:
    """The loader without a store: every clip decoded. It is closed with the stack."""
    on_gpu = torch.device(device).type == "cuda"

    def loader(clips: Sequence[Clip]) -> ClipLoader:
        names = manifest.class_names
        none = StoreConfig(tier="none")
        made = ClipLoader(clips, manifest.root, names, config, batch_size=batch_size, device=device, store=none)
        return stack.enter_context(made)

    whole = loader(manifest.clips)
    few = loader(manifest.clips[: max(batch_size, available_processors())])
    title = f"loader, no store ({whole.backend})"
    name = "loader_cold_gpu" if on_gpu else "loader_cold"
    return Rung(name, title, lambda: timed(lambda: count_clips(whole)), lambda: count_clips(few))


def count_clips(loader: ClipLoader, epoch: int = 0) -> int:
    """Go through an epoch; returns its clips when all of them are where they should be."""
    clips = sum(len(batch.keys) for batch in loader.epoch(epoch))
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clips
