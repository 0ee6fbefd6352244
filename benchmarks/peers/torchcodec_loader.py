"""torchcodec + DataLoader: `get_frames_at` of the sampled frames, cropped and resized by the decoder's transforms.

`--seek_mode exact` scans a file once before it seeks, `approximate` trusts the header. Settings: one decoder thread in
each of as many workers as processors; two threads were slower, and so was resizing before the crop (genuine RAVDESS
clips, two cores). What the header gets wrong, and the frame's size, are learned from the first file once, as all of
RAVDESS is alike.

torchcodec loads FFmpeg's shared libraries (versions 4 to 8), which its wheel does not hold: `apt-get install ffmpeg`,
`brew install ffmpeg` or `conda install ffmpeg`.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import peer
import torch

NO_LIBRARIES = "FFmpeg's shared libraries are not found; apt-get install ffmpeg (or brew, or conda)"

try:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize
except ImportError as error:
    peer.skip("torchcodec", f"{error}; pip install torchcodec")
except (RuntimeError, OSError):
    peer.skip("torchcodec", NO_LIBRARIES)


@lru_cache(maxsize=1)
def learn(example: Path, seek_mode: str) -> tuple[int, int]:
    """Side of the centre square in pixels, and how many frames too many a file seems to hold."""
    exact = VideoDecoder(example, seek_mode="exact")
    side = min(exact.metadata.width, exact.metadata.height)
    return side, len(VideoDecoder(example, seek_mode=seek_mode)) - len(exact)


def read(path: Path, example: Path, num_frames: int, size: int, seek_mode: str) -> torch.Tensor:
    side, surplus = learn(example, seek_mode)
    transforms = [CenterCrop((side, side)), Resize((size, size))]
    decoder = VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=1, transforms=transforms)
    return decoder.get_frames_at(peer.frame_indices(len(decoder) - surplus, num_frames)).data


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("--seek_mode", choices=("exact", "approximate"), default="exact")
    options = parser.parse_args()
    name = f"torchcodec_{options.seek_mode}"
    paths = peer.files(options.corpus)
    try:
        VideoDecoder(paths[0])
    except (RuntimeError, OSError) as error:
        if "libtorchcodec" not in str(error):
            raise
        peer.skip(name, NO_LIBRARIES)
    job = {"num_frames": options.num_frames, "size": options.size, "seek_mode": options.seek_mode}
    peer.run_data_loader(
        name,
        paths,
        partial(read, example=paths[0], **job),
        options,
        packages=["torchcodec"],
        settings={"decoder_threads": 1, "seek_mode": options.seek_mode, "resize": "by the decoder's transforms"},
    )


if __name__ == "__main__":
    main()
