"""torchcodec on CUDA: NVDEC decoders in threads, crop and antialiased resize on the GPU, batches of CUDA tensors.

Settings: threads rather than processes, as each process would hold a CUDA context of its own, and as many as there are
processors, at most 16: an H100 has seven decoders, and two threads on each hide the host's part.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peer
import torch
from torch.nn import functional

try:
    from torchcodec.decoders import VideoDecoder
except ImportError as error:
    peer.skip("torchcodec_cuda", f"{error}; pip install torchcodec")
except (RuntimeError, OSError):
    peer.skip("torchcodec_cuda", "FFmpeg's shared libraries are not found; apt-get install ffmpeg")


def read(path: Path, num_frames: int, size: int) -> torch.Tensor:
    decoder = VideoDecoder(path, device="cuda", seek_mode="exact")
    frames = decoder.get_frames_at(peer.frame_indices(len(decoder), num_frames)).data
    side = min(frames.shape[-2:])
    top, left = (frames.shape[-2] - side) // 2, (frames.shape[-1] - side) // 2
    square = frames[..., top : top + side, left : left + side].float()
    small = functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return small.round_().clamp_(0, 255).to(torch.uint8)


def main() -> None:
    options = peer.parser(__doc__).parse_args()
    if not torch.cuda.is_available():
        peer.skip("torchcodec_cuda", "no CUDA device")
    paths = peer.files(options.corpus)
    workers = min(16, options.workers)
    pool = ThreadPoolExecutor(workers)

    def load(path: Path) -> torch.Tensor:
        return read(path, options.num_frames, options.size)

    def start_pass() -> Iterator[torch.Tensor]:
        jobs = [pool.submit(load, path) for path in paths]
        for start in range(0, len(jobs), options.batch_size):
            yield torch.stack([job.result() for job in jobs[start : start + options.batch_size]])

    list(pool.map(load, [paths[i % len(paths)] for i in range(2 * workers)]))
    torch.cuda.synchronize()
    peer.report(
        "torchcodec_cuda",
        start_pass,
        options,
        packages=["torch", "torchcodec"],
        settings={"threads": workers, "seek_mode": "exact", "resize": "torch, antialiased bilinear, on the GPU"},
    )
    pool.shutdown()


if __name__ == "__main__":
    main()
