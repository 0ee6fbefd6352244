"""OpenCV + DataLoader: `grab` to the last sampled frame, `retrieve` the sampled ones, crop, area resize.

Settings: one decoder thread in each of as many workers as processors, and OpenCV's own threads off, which would compete
with the workers. `grab` decodes a frame but does not convert it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import peer
import torch

try:
    import cv2
except (ImportError, OSError) as error:
    peer.skip("opencv", f"{error}; pip install opencv-python-headless")


def read(path: Path, num_frames: int, size: int) -> torch.Tensor:
    cv2.setNumThreads(0)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = peer.frame_indices(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), num_frames)
    width, height = (int(capture.get(it)) for it in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    found: dict[int, np.ndarray] = {}
    for number in range(wanted[-1] + 1):
        # RAVDESS's header counts one frame too many: the last but one sampled frame is kept until another comes.
        if not capture.grab():
            break
        if number in wanted or number == wanted[-1] - 1:
            _, frame = capture.retrieve()
            square = frame[top : top + side, left : left + side]
            small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
            found[number] = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
    capture.release()
    last = max(found)
    frames = np.stack([found[min(index, last)] for index in wanted])
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    options = peer.parser(__doc__).parse_args()
    peer.run_data_loader(
        "opencv",
        peer.files(options.corpus),
        partial(read, num_frames=options.num_frames, size=options.size),
        options,
        packages=["opencv-python-headless"],
        settings={"decoder_threads": 1, "resize": "area"},
    )


if __name__ == "__main__":
    main()
