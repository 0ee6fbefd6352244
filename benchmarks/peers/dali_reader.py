"""DALI's plain video reader: `fn.readers.video` on the GPU, crop, resize, the PyTorch iterator.

The reader takes one stride for all files, so the frames are every n-th of each file's beginning, n from the shortest
file: close to an even spread where clips are alike, and never more work than one. It uses one of the GPU's decoders.
"""

from __future__ import annotations

from collections.abc import Iterator

import peer
import torch

try:
    import av
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator
except (ImportError, OSError) as error:
    peer.skip("dali_reader", f"{error}; pip install nvidia-dali-cuda120 av")


def shortest(paths: list[str]) -> tuple[int, int, int]:
    """Frames of the shortest file, less the one that RAVDESS's header has too many; width and height of the last."""
    counts = []
    for path in paths:
        with av.open(path) as container:
            stream = container.streams.video[0]
            counts.append(stream.frames - 1)
            width, height = stream.width, stream.height
    return min(counts), width, height


@pipeline_def
def clips(paths: list[str], num_frames: int, stride: int, side: int, size: int):
    frames = fn.readers.video(
        device="gpu",
        name="reader",
        filenames=paths,
        sequence_length=num_frames,
        stride=stride,
        step=1_000_000,  # one sequence a file
        skip_vfr_check=True,
    )
    small = fn.crop(frames, crop=(side, side), dtype=types.UINT8)
    small = fn.resize(small, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.transpose(small, perm=[0, 3, 1, 2])


def main() -> None:
    options = peer.parser(__doc__).parse_args()
    if not torch.cuda.is_available():
        peer.skip("dali_reader", "no CUDA device")
    paths = [str(path) for path in peer.files(options.corpus)]
    num_frames, width, height = shortest(paths)
    stride = max(1, (num_frames - 1) // max(1, options.num_frames - 1))
    pipeline = clips(
        paths,
        options.num_frames,
        stride,
        min(width, height),
        options.size,
        batch_size=options.batch_size,
        num_threads=options.workers,
        device_id=0,
        prefetch_queue_depth=2,
    )
    iterator = DALIGenericIterator(
        [pipeline], ["frames"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=True
    )

    def start_pass() -> Iterator[torch.Tensor]:
        return (batch[0]["frames"] for batch in iterator)

    for _ in start_pass():
        pass
    torch.cuda.synchronize()
    peer.report(
        "dali_reader",
        start_pass,
        options,
        packages=["torch", "nvidia-dali-cuda120"],
        settings={"threads": options.workers, "stride": stride, "prefetch_queue_depth": 2},
    )


if __name__ == "__main__":
    main()
