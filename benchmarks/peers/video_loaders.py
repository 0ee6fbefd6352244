"""A DataLoader over video files, decoded by one library: `video_loaders.py pyav --corpus DIR`.

Settings of all but `jpeg`: one decoder thread in each of as many workers as processors, which live on. Of each library
what was quickest (genuine RAVDESS clips, two cores):

- pyav: reads on from the start to the last sampled frame. Frames that are not sampled are decoded but never converted;
  a sampled one is scaled and converted from the decoder's planes in one libswscale pass, then cropped.
- opencv: `grab`, which decodes but does not convert, to the last sampled frame; `retrieve` of the sampled ones.
  OpenCV's own threads, which would compete with the workers, are off.
- decord, decord2: `get_batch` of the sampled frames, scaled by the reader itself, which wants the size before it opens
  a file: taken from the first file, as all of RAVDESS is alike. More decoder threads, and a resize afterwards, each
  cost a tenth more processor time. Both install one folder, so an environment holds one of the two; the other is
  skipped.
- torchcodec_exact, torchcodec_approximate: `get_frames_at` of the sampled frames, cropped and resized by the decoder's
  transforms. `exact` scans a file once before it seeks, `approximate` trusts the header; what the header gets wrong is
  learned from the first file. torchcodec loads FFmpeg's shared libraries (versions 4 to 8), which its wheel does not
  hold: `apt-get install ffmpeg`, `brew install ffmpeg` or `conda install ffmpeg`.
- jpeg: Roy (2025)'s way. Every frame is extracted to a JPEG beforehand; then Pillow and torchvision's transforms, 4
  workers. The transforms are those of its validation without normalisation. Its training adds crops, flips, rotations
  and floats, so this favours it. Extraction (all frames, OpenCV's default quality, all processors) is timed apart and
  done once for each `--frames` folder; links to one file are extracted once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import peer
import torch
from torch.utils.data import DataLoader, Dataset

JPEG_WORKERS = 4
_DONE = "extracted"


def cropped(frames: np.ndarray, size: int) -> torch.Tensor:
    """uint8 [T, H, W, 3] -> [T, 3, size, size], the centre."""
    top, left = (frames.shape[1] - size) // 2, (frames.shape[2] - size) // 2
    return torch.from_numpy(frames[:, top : top + size, left : left + size]).permute(0, 3, 1, 2).contiguous()


def in_order(found: dict[int, np.ndarray], wanted: list[int]) -> np.ndarray:
    """Frames by number as [T, H, W, 3]; what a file lacks at its end is its last frame."""
    return np.stack([found[min(index, max(found))] for index in wanted])


def scaled(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height in pixels with the shorter side at `size`."""
    scale = size / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


def read_pyav(path: Path, options: argparse.Namespace) -> torch.Tensor:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        width, height = scaled(stream.width, stream.height, options.size)
        wanted = peer.frame_indices(stream.frames, options.num_frames)
        found: dict[int, np.ndarray] = {}
        for number, frame in enumerate(container.decode(stream)):
            # RAVDESS's header counts one frame too many: the last but one sampled frame is kept until another comes.
            if number in wanted or number == wanted[-1] - 1:
                found[number] = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
            if number == wanted[-1]:
                break
    return cropped(in_order(found, wanted), options.size)


def read_opencv(path: Path, options: argparse.Namespace) -> torch.Tensor:
    import cv2

    cv2.setNumThreads(0)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = peer.frame_indices(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), options.num_frames)
    found: dict[int, np.ndarray] = {}
    for number in range(wanted[-1] + 1):
        if not capture.grab():
            break
        if number in wanted or number == wanted[-1] - 1:  # as in read_pyav
            _, frame = capture.retrieve()
            side = min(frame.shape[:2])
            top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
            square = frame[top : top + side, left : left + side]
            small = cv2.resize(square, (options.size, options.size), interpolation=cv2.INTER_AREA)
            found[number] = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
    capture.release()
    return cropped(in_order(found, wanted), options.size)


@lru_cache(maxsize=1)
def scaled_size(example: Path, size: int) -> tuple[int, int]:
    """Of the frames of a file."""
    import decord

    height, width = decord.VideoReader(str(example), num_threads=1)[0].shape[:2]
    return scaled(width, height, size)


def read_decord(path: Path, options: argparse.Namespace) -> torch.Tensor:
    import decord

    width, height = scaled_size(options.example, options.size)
    reader = decord.VideoReader(str(path), num_threads=1, width=width, height=height)
    frames = reader.get_batch(peer.frame_indices(len(reader), options.num_frames)).asnumpy()
    return cropped(frames, options.size)


@lru_cache(maxsize=1)
def learn(example: Path, seek_mode: str) -> tuple[int, int]:
    """Side of the centre square in pixels, and how many frames too many a file seems to hold."""
    from torchcodec.decoders import VideoDecoder

    exact = VideoDecoder(example, seek_mode="exact")
    side = min(exact.metadata.width, exact.metadata.height)
    return side, len(VideoDecoder(example, seek_mode=seek_mode)) - len(exact)


def read_torchcodec(path: Path, options: argparse.Namespace) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    seek_mode = options.library.removeprefix("torchcodec_")
    side, surplus = learn(options.example, seek_mode)
    transforms = [CenterCrop((side, side)), Resize((options.size, options.size))]
    decoder = VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=1, transforms=transforms)
    return decoder.get_frames_at(peer.frame_indices(len(decoder) - surplus, options.num_frames)).data


def frame_folders(paths: list[Path], options: argparse.Namespace) -> dict[Path, Path]:
    """Each file's folder of extracted frames."""
    folder_of: dict[Path, Path] = {}
    for path in paths:
        folder_of.setdefault(path.resolve(), options.frames / path.relative_to(options.corpus).with_suffix(""))
    return {path: folder_of[path.resolve()] for path in paths}


def extract(path: Path, target: Path) -> int:
    """Write `frame0001.jpg` and so on; returns how many."""
    import cv2

    cv2.setNumThreads(0)
    target.mkdir(parents=True, exist_ok=True)
    capture, number = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), 0
    while (read := capture.read())[0]:
        number += 1
        cv2.imwrite(str(target / f"frame{number:04d}.jpg"), read[1])
    return number


def extract_all(folders: dict[Path, Path], target: Path) -> dict[str, float] | None:
    """Extract every file once; returns what that took where it had to be done."""
    if (target / _DONE).exists():
        return None
    sources = {folder: path for path, folder in folders.items()}

    def work() -> dict[str, float]:
        with ProcessPoolExecutor() as pool:
            return {"clips": len(sources), "frames": sum(pool.map(extract, sources.values(), sources))}

    found = peer.timed(work)
    (target / _DONE).touch()
    return {**found, "bytes": sum(file.stat().st_size for folder in sources for file in folder.iterdir())}


def read_jpeg(
    path: Path, options: argparse.Namespace, transform: Callable[[Any], torch.Tensor] | None = None
) -> torch.Tensor:
    """The sampled frames, each transformed alone."""
    from PIL import Image
    from torchvision import transforms

    steps = [transforms.Resize(options.size), transforms.CenterCrop(options.size), transforms.PILToTensor()]
    transform = transform or transforms.Compose(steps)
    folder = options.folders[path]
    files = sorted(os.listdir(folder))
    frames = []
    for index in peer.frame_indices(len(files), options.num_frames):
        with Image.open(folder / files[index]) as image:
            frames.append(transform(image.convert("RGB")))
    return torch.stack(frames)


@dataclass(frozen=True)
class Library:
    """What decodes, and how.

    Attributes:
        packages: By module as pip names them: whose versions are reported, and what to install where one is absent.
    """

    read: Callable[[Path, argparse.Namespace], torch.Tensor]
    packages: dict[str, str]
    settings: dict[str, Any]


_DECORD = Library(read_decord, {"decord": "decord"}, {"decoder_threads": 1, "resize": "by the reader"})
_TORCHCODEC = {"torchcodec.decoders": "torchcodec"}
_SETTINGS = {"decoder_threads": 1, "resize": "by the decoder's transforms"}
LIBRARIES = {
    "pyav": Library(read_pyav, {"av": "av"}, {"decoder_threads": 1, "resize": "libswscale, area"}),
    "opencv": Library(read_opencv, {"cv2": "opencv-python-headless"}, {"decoder_threads": 1, "resize": "area"}),
    "decord": _DECORD,
    "decord2": _DECORD,
    "torchcodec_exact": Library(read_torchcodec, _TORCHCODEC, {**_SETTINGS, "seek_mode": "exact"}),
    "torchcodec_approximate": Library(read_torchcodec, _TORCHCODEC, {**_SETTINGS, "seek_mode": "approximate"}),
    "jpeg": Library(
        read_jpeg,
        {"PIL": "pillow", "torchvision": "torchvision", "cv2": "opencv-python-headless"},
        {"resize": "Pillow, antialiased bilinear"},
    ),
}


def decord_package() -> str:
    """Of what is loaded; metadata may name both."""
    return "decord" if import_module("decord").__version__.startswith("0.") else "decord2"


def check(name: str, example: Path) -> None:
    """Skip a library that is not here, with what to install."""
    library = LIBRARIES[name]
    try:
        for module in library.packages:
            import_module(module)
        if library.read is read_torchcodec:  # newer versions look for FFmpeg only now
            import_module("torchcodec.decoders").VideoDecoder(example)
    except (ImportError, OSError, RuntimeError) as error:
        if "libtorchcodec" in str(error):
            peer.skip(name, "FFmpeg's shared libraries are not found; apt-get install ffmpeg (or brew, or conda)")
        if isinstance(error, RuntimeError):
            raise
        packages = ["decord2"] if library is _DECORD else library.packages.values()
        peer.skip(name, f"{error}; pip install {' '.join(packages)}")
    if library is _DECORD and name != decord_package():
        loaded = f"decord {peer.version('decord')} is loaded, which is {decord_package()}"
        peer.skip(name, f"{loaded}; pip uninstall -y decord decord2, then pip install {name}")


class Clips(Dataset[Any]):
    """Files as uint8 [T, 3, size, size] RGB."""

    def __init__(self, paths: list[Path], read: Callable[[Path], torch.Tensor]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.read(self.paths[index])


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    options = parser.parse_args()
    library, paths = LIBRARIES[options.library], peer.files(options.corpus)
    check(options.library, paths[0])
    options.example, about = paths[0], {}
    workers = options.workers or peer.processors()
    if options.library == "jpeg":
        workers = options.workers or JPEG_WORKERS
        options.folders = frame_folders(paths, options)
        if extraction := extract_all(options.folders, options.frames):
            about["extraction"] = extraction
    # A list that changes: the workers that the warm-up started, outside the clock, serve the pass too.
    plan: list[list[int]] = [[i % len(paths)] for i in range(2 * workers)]
    clips = Clips(paths, partial(library.read, options=options))
    loader = DataLoader(clips, batch_sampler=plan, num_workers=workers, persistent_workers=True, prefetch_factor=2)
    samples = [batch[0] for batch in loader]
    if options.save_first:
        np.save(options.save_first, samples[0].numpy())
    count = range(len(paths))
    plan[:] = [list(count[i : i + options.batch_size]) for i in range(0, len(paths), options.batch_size)]
    settings = {"batch_size": options.batch_size, "workers": workers, "prefetch_factor": 2, "persistent_workers": True}
    about |= {
        "peer": options.library,
        "settings": {**settings, **library.settings},
        "clip_shapes": sorted({tuple(clip.shape) for clip in samples}),
        "dtypes": sorted({str(clip.dtype).removeprefix("torch.") for clip in samples}),
    }
    peer.serve(about, library.packages.values(), lambda: {"clips": sum(len(frames) for frames in loader)})


if __name__ == "__main__":
    main()
