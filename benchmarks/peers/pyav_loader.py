"""PyAV + DataLoader: read on from the start to the last sampled frame, one libswscale pass for each sampled frame.

Settings: one decoder thread in each of as many workers as processors. Frames that are not sampled are decoded but never
converted; a sampled one is scaled and converted from the decoder's planes in one step, then cropped.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import peer
import torch

try:
    import av
except (ImportError, OSError) as error:
    peer.skip("pyav", f"{error}; pip install av")


def read(path: Path, num_frames: int, size: int) -> torch.Tensor:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        scale = size / min(stream.width, stream.height)
        width, height = (max(size, round(side * scale)) for side in (stream.width, stream.height))
        wanted = peer.frame_indices(stream.frames, num_frames)
        found: dict[int, np.ndarray] = {}
        for number, frame in enumerate(container.decode(stream)):
            # RAVDESS's header counts one frame too many: the last but one sampled frame is kept until another comes.
            if number in wanted or number == wanted[-1] - 1:
                found[number] = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
            if number == wanted[-1]:
                break
    last = max(found)
    top, left = (height - size) // 2, (width - size) // 2
    frames = np.stack([found[min(index, last)] for index in wanted])[:, top : top + size, left : left + size]
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    options = peer.parser(__doc__).parse_args()
    peer.run_data_loader(
        "pyav",
        peer.files(options.corpus),
        partial(read, num_frames=options.num_frames, size=options.size),
        options,
        packages=["av"],
        settings={"decoder_threads": 1, "resize": "libswscale, area"},
    )


if __name__ == "__main__":
    main()
