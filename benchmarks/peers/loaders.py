"""Loads batches of clips with one library: `loaders.py pyav --corpus DIR`.

CPU peers are a DataLoader over video files. All except `jpeg` have one persistent worker per processor, each with one
decoder thread. For each library, the fastest way (genuine RAVDESS clips, two cores):

- pyav: reads from the start to the last sampled frame. Other frames are decoded but not converted; a sampled one is
  scaled and converted from the decoder's planes in one libswscale pass, then cropped.
- opencv: `grab`, which decodes but does not convert, to the last sampled frame; `retrieve` of the sampled ones.
  OpenCV's threads are off, as they would compete with the workers.
- decord, decord2: `get_batch` of the sampled frames, scaled by the reader, which needs the size before it opens a file:
  taken from the first file, as all RAVDESS files are alike. More decoder threads, or a resize afterwards, each cost a
  tenth more processor time. Both install the same folder, so an environment has one of the two; the other is skipped.
- torchcodec_exact, torchcodec_approximate: `get_frames_at` of the sampled frames, cropped and resized by the decoder's
  transforms. `exact` scans a file before it seeks, `approximate` trusts the header; the header's error is determined
  from the first file. torchcodec loads FFmpeg's shared libraries (versions 4 to 8), which its wheel does not include:
  `apt-get install ffmpeg`, `brew install ffmpeg` or `conda install ffmpeg`.
- jpeg: the JPEG-frame baseline, as in Roy (2025). Every frame is extracted to a JPEG beforehand; then Pillow and
  torchvision's transforms, 4 workers. The transforms are those of its validation without normalisation. Its training
  adds crops, flips, rotations and floats, so this favours it. Extraction (all frames, OpenCV's default quality, all
  processors) is timed separately and done once per `--frames` folder; links to one file are extracted once.

GPU peers decode with NVDEC and return batches of CUDA tensors:

- torchcodec_cuda: decoders in threads, crop and antialiased resize on the GPU. Threads rather than processes, as each
  process would need its own CUDA context; as many as processors, at most 16: an H100 has seven decoders, and two
  threads on each hide the host's part.
- dali_reader: DALI's plain video reader: `fn.readers.video` on the GPU, crop, resize, the PyTorch iterator. The reader
  has one stride for all files, so it samples every n-th frame from each file's start, with n from the shortest file:
  close to even sampling if clips are alike, and never more work. It uses one of the GPU's decoders.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import peer
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

# Starts a pass and yields its batches; number of warm-up batches; settings.
Loaded = tuple[Callable[[], Iterator[torch.Tensor]], list[torch.Tensor], dict[str, Any]]

JPEG_WORKERS = 4


class Clips(Dataset[torch.Tensor]):
    """Files as uint8 [T, 3, size, size] RGB, or as `read` returns them."""

    def __init__(self, paths: list[Path], read: Callable[[Path], torch.Tensor]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(self.paths[index])


def data_loader(
    read: Callable[..., torch.Tensor], paths: list[Path], options: argparse.Namespace, **settings: Any
) -> Loaded:
    """`read` in the workers of a DataLoader; its settings are reported with the DataLoader's."""
    workers = options.workers or peer.processors()
    # The list changes, so that the workers started by the untimed warm-up also serve the pass.
    plan = [[i % len(paths)] for i in range(2 * workers)]
    clips = Clips(paths, partial(read, options=options))
    loader = DataLoader(clips, batch_sampler=plan, num_workers=workers, persistent_workers=True, prefetch_factor=2)
    warm_up = list(loader)
    plan[:] = BatchSampler(range(len(paths)), options.batch_size, drop_last=False)
    settings = {"workers": workers, "prefetch_factor": 2, "persistent_workers": True, **settings}
    return loader.__iter__, warm_up, settings


def cropped(frames: np.ndarray, size: int) -> torch.Tensor:
    """Centre crop, uint8 [T, H, W, 3] -> [T, 3, size, size]."""
    top, left = (frames.shape[1] - size) // 2, (frames.shape[2] - size) // 2
    return torch.from_numpy(frames[:, top : top + size, left : left + size]).permute(0, 3, 1, 2).contiguous()


def sampled(
    frames: Iterable[Any], num_frames: int, options: argparse.Namespace, convert: Callable[[Any], np.ndarray]
) -> torch.Tensor:
    """The sampled ones of the first `num_frames` frames of a file, converted and cropped.

    Missing frames at the end repeat the last frame.
    """
    wanted = peer.frame_indices(num_frames, options.num_frames)
    found: dict[int, np.ndarray] = {}
    for number, frame in enumerate(islice(frames, wanted[-1] + 1)):
        # RAVDESS's header counts one frame too many: keep the previous sampled frame until another comes.
        if number in wanted or number == wanted[-1] - 1:
            found[number] = convert(frame)
    return cropped(np.stack([found[min(index, max(found))] for index in wanted]), options.size)


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

        def convert(frame: Any) -> np.ndarray:
            return frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()

        return sampled(container.decode(stream), stream.frames, options, convert)


def open_opencv(path: Path) -> Any:
    """One decoder thread, and no other."""
    import cv2

    cv2.setNumThreads(0)
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def read_opencv(path: Path, options: argparse.Namespace) -> torch.Tensor:
    import cv2

    capture = open_opencv(path)

    def convert(_: bool) -> np.ndarray:
        _, frame = capture.retrieve()
        side = min(frame.shape[:2])
        top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
        square = frame[top : top + side, left : left + side]
        small = cv2.resize(square, (options.size, options.size), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(small, cv2.COLOR_BGR2RGB)

    num_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return sampled(iter(capture.grab, False), num_frames, options, convert)


@lru_cache(maxsize=1)
def scaled_size(example: Path, size: int) -> tuple[int, int]:
    """The scaled size of the frames of a file."""
    import decord

    height, width = decord.VideoReader(str(example), num_threads=1)[0].shape[:2]
    return scaled(width, height, size)


def read_decord(path: Path, options: argparse.Namespace) -> torch.Tensor:
    import decord

    width, height = scaled_size(options.example, options.size)
    reader = decord.VideoReader(str(path), num_threads=1, width=width, height=height)
    frames = reader.get_batch(peer.frame_indices(len(reader), options.num_frames)).asnumpy()
    return cropped(frames, options.size)


def read_torchcodec(path: Path, options: argparse.Namespace, seek_mode: str, side: int, surplus: int) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    transforms = [CenterCrop((side, side)), Resize((options.size, options.size))]
    decoder = VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=1, transforms=transforms)
    return decoder.get_frames_at(peer.frame_indices(len(decoder) - surplus, options.num_frames)).data


def torchcodec(seek_mode: str, paths: list[Path], options: argparse.Namespace) -> Loaded:
    """Determines from the first file the side of the centre square and how many frames too many its header counts."""
    from torchcodec.decoders import VideoDecoder

    exact = VideoDecoder(paths[0], seek_mode="exact")
    side = min(exact.metadata.width, exact.metadata.height)
    surplus = len(VideoDecoder(paths[0], seek_mode=seek_mode)) - len(exact)
    read = partial(read_torchcodec, seek_mode=seek_mode, side=side, surplus=surplus)
    resize = "by the decoder's transforms"
    return data_loader(read, paths, options, decoder_threads=1, resize=resize, seek_mode=seek_mode)


def extract(path: Path, target: Path) -> int:
    """Write `frame0001.jpg` and so on; return their number."""
    import cv2

    target.mkdir(parents=True, exist_ok=True)
    capture, number = open_opencv(path), 0
    for number, _ in enumerate(iter(capture.grab, False), start=1):
        cv2.imwrite(str(target / f"frame{number:04d}.jpg"), capture.retrieve()[1])
    return number


def extract_all(paths: list[Path], options: argparse.Namespace) -> tuple[list[Path], dict[str, float]]:
    """Extract every file, unless an earlier peer has done so.

    Returns:
        The folder of frames of each path, and the cost of the extraction.
    """
    folders = {it.resolve(): options.frames / it.relative_to(options.corpus).with_suffix("") for it in paths}

    def work() -> dict[str, float]:
        with ProcessPoolExecutor() as pool:
            return {"clips": len(folders), "frames": sum(pool.map(extract, folders, folders.values()))}

    done = options.frames / "extracted.json"
    if not done.exists():
        took = peer.timed(work)
        took["bytes"] = sum(file.stat().st_size for file in options.frames.rglob("*.jpg"))
        done.write_text(json.dumps(took))
    return [folders[path.resolve()] for path in paths], json.loads(done.read_text())


def read_jpeg(folder: Path, options: argparse.Namespace, transform: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """The sampled frames, each transformed separately."""
    from PIL import Image

    files = sorted(os.listdir(folder))
    frames = []
    for index in peer.frame_indices(len(files), options.num_frames):
        with Image.open(folder / files[index]) as image:
            frames.append(transform(image.convert("RGB")))
    return torch.stack(frames)


def jpeg(folders: list[Path], options: argparse.Namespace) -> Loaded:
    from torchvision import transforms

    steps = [transforms.Resize(options.size), transforms.CenterCrop(options.size), transforms.PILToTensor()]
    read = partial(read_jpeg, transform=transforms.Compose(steps))
    return data_loader(read, folders, options, resize="Pillow, antialiased bilinear")


def torchcodec_cuda(paths: list[Path], options: argparse.Namespace) -> Loaded:
    from torchcodec.decoders import VideoDecoder

    workers = min(16, options.workers or peer.processors())
    pool = ThreadPoolExecutor(workers)

    def read(path: Path) -> torch.Tensor:
        decoder = VideoDecoder(path, device="cuda", seek_mode="exact")
        frames = decoder.get_frames_at(peer.frame_indices(len(decoder), options.num_frames)).data
        side = min(frames.shape[-2:])
        top, left = (frames.shape[-2] - side) // 2, (frames.shape[-1] - side) // 2
        square = frames[..., top : top + side, left : left + side].float()
        small = torch.nn.functional.interpolate(square, (options.size, options.size), mode="bilinear", antialias=True)
        return small.round_().clamp_(0, 255).to(torch.uint8)

    def batches() -> Iterator[torch.Tensor]:
        clips = pool.map(read, paths)
        while batch := list(islice(clips, options.batch_size)):
            yield torch.stack(batch)
        torch.cuda.synchronize()

    settings = {"threads": workers, "seek_mode": "exact", "resize": "torch, antialiased bilinear, on the GPU"}
    return batches, list(batches()), settings


def dali_reader(paths: list[Path], options: argparse.Namespace) -> Loaded:
    import av
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    counts = []
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            counts.append(stream.frames - 1)  # RAVDESS's header counts one too many
            side = min(stream.width, stream.height)
    stride = max(1, (min(counts) - 1) // max(1, options.num_frames - 1))

    @pipeline_def
    def clips():
        frames = fn.readers.video(
            device="gpu",
            name="reader",
            filenames=[str(path) for path in paths],
            sequence_length=options.num_frames,
            stride=stride,
            step=1_000_000,  # one sequence per file
            skip_vfr_check=True,
        )
        small = fn.crop(frames, crop=(side, side), dtype=types.UINT8)
        small = fn.resize(small, size=(options.size,) * 2, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.transpose(small, perm=[0, 3, 1, 2])

    workers = options.workers or peer.processors()
    pipeline = clips(batch_size=options.batch_size, num_threads=workers, device_id=0, prefetch_queue_depth=2)
    policy = {"last_batch_policy": LastBatchPolicy.PARTIAL, "auto_reset": True}
    iterator = DALIGenericIterator([pipeline], ["frames"], reader_name="reader", **policy)

    def batches() -> Iterator[torch.Tensor]:
        for batch in iterator:
            yield batch[0]["frames"]
        torch.cuda.synchronize()

    return batches, list(batches()), {"threads": workers, "stride": stride, "prefetch_queue_depth": 2}


# Packages by module, with their names on PyPI: for the reported versions, and for what to install if one is missing.
_TORCHCODEC = {"torchcodec.decoders": "torchcodec"}
_OPENCV = {"cv2": "opencv-python-headless"}
DECORD = {"decord": "decord"}

_load_decord = partial(data_loader, read_decord, decoder_threads=1, resize="by the reader")
LOADERS: dict[str, tuple[Callable[[list[Path], argparse.Namespace], Loaded], dict[str, str]]] = {
    "pyav": (partial(data_loader, read_pyav, decoder_threads=1, resize="libswscale, area"), {"av": "av"}),
    "opencv": (partial(data_loader, read_opencv, decoder_threads=1, resize="area"), _OPENCV),
    "decord": (_load_decord, DECORD),
    "decord2": (_load_decord, DECORD),
    "torchcodec_exact": (partial(torchcodec, "exact"), _TORCHCODEC),
    "torchcodec_approximate": (partial(torchcodec, "approximate"), _TORCHCODEC),
    "jpeg": (jpeg, {"PIL": "pillow", "torchvision": "torchvision", **_OPENCV}),
    "torchcodec_cuda": (torchcodec_cuda, _TORCHCODEC),
    "dali_reader": (dali_reader, {"nvidia.dali.plugin.pytorch": "nvidia-dali-cuda120"}),
}


def check(name: str, packages: dict[str, str], example: Path) -> None:
    """Skip a peer that cannot run here, with what to install."""
    if name in ("torchcodec_cuda", "dali_reader") and not torch.cuda.is_available():
        peer.skip(name, "no CUDA device")
    try:
        for module in packages:
            import_module(module)
        if packages is _TORCHCODEC:  # newer versions load FFmpeg only now
            import_module("torchcodec.decoders").VideoDecoder(example)
    except (ImportError, OSError, RuntimeError) as error:
        if "libtorchcodec" in str(error):
            peer.skip(name, "FFmpeg's shared libraries are missing; apt-get install ffmpeg (or brew, or conda)")
        if isinstance(error, RuntimeError):
            raise
        wanted = ["decord2"] if packages is DECORD else packages.values()
        peer.skip(name, f"{error}; pip install {' '.join(wanted)}")
    if name.startswith("decord"):
        version = peer.version("decord")
        loaded = "decord" if version.startswith("0.") else "decord2"  # metadata may name both
        if name != loaded:
            reason = f"decord {version} is loaded, which is {loaded}"
            peer.skip(name, f"{reason}; pip uninstall -y decord decord2, then pip install {name}")


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("loader", choices=LOADERS)
    options = parser.parse_args()
    name, paths = options.loader, peer.files(options.corpus)
    load, packages = LOADERS[name]
    check(name, packages, paths[0])
    options.example, about = paths[0], {}
    if name == "jpeg":
        options.workers = options.workers or JPEG_WORKERS
        paths, about["extraction"] = extract_all(paths, options)
    batches, warm_up, settings = load(paths, options)
    about |= {
        "peer": name,
        "settings": {"batch_size": options.batch_size, **settings},
        "clip_shapes": sorted({tuple(batch.shape[1:]) for batch in warm_up}),
        "dtypes": sorted({str(batch.dtype).removeprefix("torch.") for batch in warm_up}),
    }
    if options.save_first:
        np.save(options.save_first, warm_up[0][0].cpu().numpy())
    del warm_up
    peer.serve(about, packages.values(), lambda: {"clips": sum(len(batch) for batch in batches())})


if __name__ == "__main__":
    main()
