"""decord + DataLoader: `get_batch` of the sampled frames, scaled by the reader itself.

Settings: one decoder thread in each of as many workers as processors. More decoder threads cost a tenth more processor
time a clip, and frames of the file's full size, resized afterwards, a tenth more too (genuine RAVDESS clips, two
cores). The reader wants the scaled size before it opens a file: taken from the first file, as all of RAVDESS is alike.
decord (up to 0.6) and decord2 install one folder, so an environment holds one of the two; the other is skipped.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import peer
import torch

try:
    import decord
except (ImportError, OSError) as error:
    peer.skip("decord", f"{error}; pip install decord2")

# Of what is loaded; metadata may name both.
PACKAGE = "decord" if decord.__version__.startswith("0.") else "decord2"


@lru_cache(maxsize=1)
def scaled_size(example: Path, size: int) -> tuple[int, int]:
    """Width and height in pixels with the shorter side at `size`."""
    height, width = decord.VideoReader(str(example), num_threads=1)[0].shape[:2]
    scale = size / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


def read(path: Path, example: Path, num_frames: int, size: int) -> torch.Tensor:
    width, height = scaled_size(example, size)
    reader = decord.VideoReader(str(path), num_threads=1, width=width, height=height)
    frames = reader.get_batch(peer.frame_indices(len(reader), num_frames)).asnumpy()
    top, left = (height - size) // 2, (width - size) // 2
    frames = frames[:, top : top + size, left : left + size]
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("--package", choices=("decord", "decord2"), default=PACKAGE)
    options = parser.parse_args()
    if options.package != PACKAGE:
        advice = f"pip uninstall -y decord decord2, then pip install {options.package}"
        peer.skip(options.package, f"decord {decord.__version__} is loaded, which is {PACKAGE}; {advice}")
    paths = peer.files(options.corpus)
    peer.run_data_loader(
        PACKAGE,
        paths,
        partial(read, example=paths[0], num_frames=options.num_frames, size=options.size),
        options,
        packages=["decord"],
        settings={"decoder_threads": 1, "resize": "by the reader"},
    )


if __name__ == "__main__":
    main()
