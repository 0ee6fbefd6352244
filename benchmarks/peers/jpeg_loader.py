"""The report's way: every frame extracted to a JPEG beforehand, then Pillow and torchvision's transforms.

DataLoader with 4 workers and batches of 8, as the report has it. The transforms are those of its validation without
normalisation and at `--size`: shorter side resized, centre crop, tensor. Its training adds crops, flips, rotations and
floats, so this favours it. Extraction (all frames, OpenCV's default quality, all processors) is timed apart and done
once for each `--frames` folder.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import peer
import torch

try:
    import cv2
    from PIL import Image
    from torchvision import transforms
except (ImportError, OSError) as error:
    peer.skip("jpeg", f"{error}; pip install pillow torchvision opencv-python-headless")

WORKERS = 4
_DONE = "extracted"


def extract(path: Path, target: Path) -> int:
    """Write `frame0001.jpg` and so on; returns how many."""
    cv2.setNumThreads(0)
    target.mkdir(parents=True, exist_ok=True)
    capture, number = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), 0
    while True:
        has_frame, frame = capture.read()
        if not has_frame:
            return number
        number += 1
        cv2.imwrite(str(target / f"frame{number:04d}.jpg"), frame)


def extract_all(paths: list[Path], folders: list[Path]) -> dict[str, float]:
    before, cpu_before = time.perf_counter(), peer.cpu_seconds()
    with ProcessPoolExecutor() as pool:
        num_frames = sum(pool.map(extract, paths, folders))
    return {
        "seconds": time.perf_counter() - before,
        "cpu_seconds": peer.cpu_seconds() - cpu_before,
        "clips": len(paths),
        "frames": num_frames,
        "bytes": sum(file.stat().st_size for folder in folders for file in folder.iterdir()),
    }


def read(path: Path, folders: dict[Path, Path], num_frames: int, size: int) -> torch.Tensor:
    transform = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    files = sorted(os.listdir(folders[path]))
    frames = []
    for index in peer.frame_indices(len(files), num_frames):
        with Image.open(folders[path] / files[index]) as image:
            frames.append(transform(image.convert("RGB")))
    return torch.stack(frames)


def main() -> None:
    parser = peer.parser(__doc__, workers=WORKERS)
    parser.add_argument("--frames", type=Path, required=True, help="folder of the extracted frames")
    options = parser.parse_args()
    paths = peer.files(options.corpus)
    folders = {path: options.frames / path.relative_to(options.corpus).with_suffix("") for path in paths}
    extraction = None
    if not (options.frames / _DONE).exists():
        extraction = extract_all(paths, list(folders.values()))
        (options.frames / _DONE).touch()
    peer.run_data_loader(
        "jpeg",
        paths,
        partial(read, folders=folders, num_frames=options.num_frames, size=options.size),
        options,
        packages=["pillow", "torchvision", "opencv-python-headless"],
        settings={"resize": "Pillow, antialiased bilinear"},
        extra={"extraction": extraction} if extraction else None,
    )


if __name__ == "__main__":
    main()
