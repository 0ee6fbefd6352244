"""Batches of CUDA tensors by NVDEC: `gpu_loaders.py torchcodec_cuda --corpus DIR`.

- torchcodec_cuda: decoders in threads, crop and antialiased resize on the GPU. Threads rather than processes, as each
  process would hold a CUDA context of its own, and as many as there are processors, at most 16: an H100 has seven
  decoders, and two threads on each hide the host's part.
- dali_reader: DALI's plain video reader: `fn.readers.video` on the GPU, crop, resize, the PyTorch iterator. The reader
  takes one stride for all files, so the frames are every n-th of each file's beginning, n from the shortest file: close
  to an even spread where clips are alike, and never more work than one. It uses one of the GPU's decoders.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import peer
import torch
from torch.nn import functional

Batches = Callable[[], Iterator[torch.Tensor]]


def read(path: Path, num_frames: int, size: int) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, device="cuda", seek_mode="exact")
    frames = decoder.get_frames_at(peer.frame_indices(len(decoder), num_frames)).data
    side = min(frames.shape[-2:])
    top, left = (frames.shape[-2] - side) // 2, (frames.shape[-1] - side) // 2
    square = frames[..., top : top + side, left : left + side].float()
    small = functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return small.round_().clamp_(0, 255).to(torch.uint8)


def torchcodec_cuda(paths: list[Path], workers: int, options: argparse.Namespace) -> tuple[Batches, dict[str, Any]]:
    import torchcodec.decoders  # noqa: F401, absent here rather than in a thread

    workers = min(16, workers)
    pool = ThreadPoolExecutor(workers)

    def load(path: Path) -> torch.Tensor:
        return read(path, options.num_frames, options.size)

    def batches() -> Iterator[torch.Tensor]:
        jobs = [pool.submit(load, path) for path in paths]
        for start in range(0, len(jobs), options.batch_size):
            yield torch.stack([job.result() for job in jobs[start : start + options.batch_size]])

    return batches, {"threads": workers, "seek_mode": "exact", "resize": "torch, antialiased bilinear, on the GPU"}


def shortest(paths: list[Path]) -> tuple[int, int, int]:
    """Frames of the shortest file, less the one that RAVDESS's header has too many; width and height of the last."""
    import av

    counts = []
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            counts.append(stream.frames - 1)
            width, height = stream.width, stream.height
    return min(counts), width, height


def dali_reader(paths: list[Path], workers: int, options: argparse.Namespace) -> tuple[Batches, dict[str, Any]]:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    num_frames, width, height = shortest(paths)
    stride, side = max(1, (num_frames - 1) // max(1, options.num_frames - 1)), min(width, height)

    @pipeline_def
    def clips():
        frames = fn.readers.video(
            device="gpu",
            name="reader",
            filenames=[str(path) for path in paths],
            sequence_length=options.num_frames,
            stride=stride,
            step=1_000_000,  # one sequence a file
            skip_vfr_check=True,
        )
        small = fn.crop(frames, crop=(side, side), dtype=types.UINT8)
        small = fn.resize(small, size=(options.size,) * 2, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.transpose(small, perm=[0, 3, 1, 2])

    pipeline = clips(batch_size=options.batch_size, num_threads=workers, device_id=0, prefetch_queue_depth=2)
    policy = LastBatchPolicy.PARTIAL
    iterator = DALIGenericIterator(
        [pipeline], ["frames"], reader_name="reader", last_batch_policy=policy, auto_reset=True
    )

    def batches() -> Iterator[torch.Tensor]:
        return (batch[0]["frames"] for batch in iterator)

    return batches, {"threads": workers, "stride": stride, "prefetch_queue_depth": 2}


LOADERS = {"torchcodec_cuda": (torchcodec_cuda, "torchcodec"), "dali_reader": (dali_reader, "nvidia-dali-cuda120")}


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("loader", choices=LOADERS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        peer.skip(options.loader, "no CUDA device")
    make, package = LOADERS[options.loader]
    try:
        batches, settings = make(peer.files(options.corpus), options.workers or peer.processors(), options)
    except (ImportError, OSError) as error:
        peer.skip(options.loader, f"{error}; pip install {package}")
    except RuntimeError as error:
        if "libtorchcodec" not in str(error):
            raise
        peer.skip(options.loader, "FFmpeg's shared libraries are not found; apt-get install ffmpeg")
    about = {"peer": options.loader, "settings": {"batch_size": options.batch_size, **settings}}
    warm_up = list(batches())
    about["clip_shapes"] = sorted({tuple(batch.shape[1:]) for batch in warm_up})
    about["dtypes"] = sorted({str(batch.dtype).removeprefix("torch.") for batch in warm_up})
    if options.save_first:
        np.save(options.save_first, warm_up[0][0].cpu().numpy())
    del warm_up
    torch.cuda.synchronize()

    def run() -> dict[str, float]:
        clips = sum(len(batch) for batch in batches())
        torch.cuda.synchronize()
        return {"clips": clips}

    peer.serve(about, [package], run)


if __name__ == "__main__":
    main()
