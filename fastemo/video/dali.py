"""Pruned clips -> uint8 frames on the GPU by NVDEC, or on the CPU by the same pipeline. The only module with DALI.

Properties of DALI 2.4, from its sources and by measurement, and how they are handled:

- It converts every stream to RGB by BT.601, in the stream's own range. RAVDESS is BT.709: 38 dB off. Frames of other
  matrices are corrected afterwards, since RGB by one matrix is linear in RGB by another: 48 dB, at most 3 levels off.
- It decodes a repeated frame again, from the keyframe before it: each frame is requested once.
- Frames beyond the end are black unless `pad_mode` is "none", and so are those of a broken header: `Source` checks it.
- One bad stream breaks the pipeline. The clips in flight are then decoded one at a time, each in a working pipeline.
- NVDEC's decoders are cached per process by frame size but looked up by coded size, a multiple of 16. Other sizes
  never find theirs: each clip takes 50-70 ms to create one, or gets a wrong one. PyAV decodes those.
- It reports exhausted memory and a broken CUDA context like a bad clip: the message tells them apart.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections import deque
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import groupby
from threading import Lock
from typing import Any

import numpy as np
import torch

from fastemo.errors import DecodeError
from fastemo.machine import available_processors
from fastemo.video.bitstream.source import Source
from fastemo.video.config import FrameSpec

# Weights of red and blue in luma, by FFmpeg's number of the matrix. Source: ISO/IEC 23091-2, table 4.
_LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
# Micro-batches in DALI at once: while one is handed over, the next decodes.
_IN_FLIGHT = 2
_PACKAGE = "nvidia-dali-cuda120 (or nvidia-dali-cuda130, for drivers of CUDA 13)"
_REORDER_FRAMES = 8  # full-size frames per clip that a GPU holds to reorder its pictures
# Memory for full-size frames: a share of the GPU's free memory (the rest is the model's), and bytes on a CPU.
_GPU_SHARE, _CPU_BYTES = 1 / 8, 256 << 20
# Two per engine of an H100: one parses while the other's picture decodes.
_GPU_THREADS = 14
# Numbers of cudaVideoCodec. Source: cuviddec.h of NVIDIA's Video Codec SDK.
_NVDEC_CODECS = {"h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11, "mpeg4": 2, "mjpeg": 5}
# Values converted at once, of eight bytes each: few launches on a GPU, and on a CPU no more than its caches hold.
_TURNED_CUDA, _TURNED_CPU = 1 << 24, 1 << 18
# In errors of DALI, CUDA and NVDEC, in lower case.
_NO_MEMORY = ("out of memory", "out_of_memory", "memoryallocation", "cuda allocation failed", "bad_alloc")
_BROKEN = (
    "illegal",
    "launch failure",
    "launchfailure",
    "launch_failed",
    "device-side assert",
    "misaligned",
    "ecc error",
)


class DaliUnavailable(ValueError):
    """DALI cannot be used here; the message says why and what to do."""


def why_unavailable(device: torch.device | None = None) -> str | None:
    """Why DALI cannot be used, in one line; `None` if it can. With a device, whether it decodes on that device."""
    try:
        import_module("nvidia.dali")
    except (ImportError, OSError) as error:
        if not isinstance(error, ModuleNotFoundError) or error.name not in ("nvidia", "nvidia.dali"):
            return f"DALI is installed but cannot be imported ({error}): reinstall {_PACKAGE}"
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return f"DALI needs Linux on x86-64, not {sys.platform} on {platform.machine()}: use --video.backend pyav"
        return f"DALI is not installed: pip install {_PACKAGE}"
    kind = "cpu" if device is None else device.type
    if kind not in ("cpu", "cuda"):
        return f"DALI decodes on CUDA and the CPU, not on {kind}: use --video.backend pyav"
    if kind == "cuda" and isinstance(problem := _nvcuvid(), str):
        return f"NVDEC's library is missing ({problem}): give the container NVIDIA_DRIVER_CAPABILITIES=compute,video"
    return None


def version() -> str:
    """DALI's version, if it can be imported."""
    return str(import_module("nvidia.dali").__version__)


def capabilities(device_index: int = 0) -> dict[str, object]:
    """What DALI's use and speed on a GPU depend on: versions, memory, NVDEC's engines and frame sizes."""
    library = _nvcuvid()
    found: dict[str, object] = {"dali": why_unavailable() or version()}
    found["libnvcuvid"] = library if isinstance(library, str) else "loaded"
    if torch.cuda.is_available():
        with torch.cuda.device(device_index):
            torch.zeros(1, device="cuda")  # NVDEC answers only within a CUDA context
            found["gpu"] = str(torch.cuda.get_device_properties(device_index))
            found["free_bytes"] = torch.cuda.mem_get_info(device_index)[0]
            if not isinstance(library, str):
                found["nvdec"] = {name: _nvdec(library, number) for name, number in _NVDEC_CODECS.items()}
    return found


def _nvcuvid() -> ctypes.CDLL | str:
    """The driver's video library, or why it cannot be loaded."""
    try:
        return ctypes.CDLL("libnvcuvid.so.1")
    except OSError as error:
        return str(error)


def _nvdec(library: ctypes.CDLL, codec: int) -> dict[str, object]:
    """NVDEC's capabilities for a codec at 8 bits and 4:2:0. Source: CUVIDDECODECAPS of cuviddec.h."""
    caps = ctypes.create_string_buffer(struct.pack("6I", codec, 1, 0, 0, 0, 0), 128)
    status = library.cuvidGetDecoderCaps(caps)
    supported, engines, *_, min_width, min_height = struct.unpack_from("BBH3I2H", caps, 24)
    return {"status": status, "supported": supported, "engines": engines, "min_size": (min_width, min_height)}


class DaliDecoder:
    """Decodes pruned clips to frames on the device.

    Args:
        spec: Crop, size and T.
        device: CUDA (NVDEC) or CPU (libavcodec inside DALI: `CODECS_CPU` only).
        frame_size: Width and height of the result in pixels: `spec.out_size` of every clip.
        max_batch: Maximum number of clips that DALI gets at once. Memory may lower it: full-size frames take at most
            an eighth of the GPU's memory that is free now, on a CPU 256 MiB, unless a single clip needs more.
        num_threads: Clips decoded at once; `None`: 14 on CUDA, one per processor on a CPU.

    Raises:
        DaliUnavailable: DALI cannot decode on this device.
    """

    def __init__(
        self,
        spec: FrameSpec,
        device: torch.device,
        *,
        frame_size: tuple[int, int],
        max_batch: int = 64,
        num_threads: int | None = None,
    ) -> None:
        if (reason := why_unavailable(device)) is not None:
            raise DaliUnavailable(reason)
        self._is_cuda = device.type == "cuda"
        if self._is_cuda and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._device, self._spec, self._frame_size, self._max_batch = device, spec, frame_size, max_batch
        self._num_threads = num_threads or (_GPU_THREADS if self._is_cuda else available_processors())
        self._room = int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE) if self._is_cuda else _CPU_BYTES
        self._lock = Lock()
        self._pipeline: Any = None  # built on first use, and again after a failure
        self._sources: Sequence[Source] = ()
        self._waiting: deque[list[int]] = deque()
        # With the input arrays: DALI reads their memory in place.
        self._flying: deque[tuple[list[int], tuple[list[np.ndarray], ...]]] = deque()

    def decode(self, sources: Sequence[Source]) -> tuple[torch.Tensor, dict[int, DecodeError]]:
        """Decode clips, several at once: the more in one call, the less the engines idle at its end.

        On CUDA the frames are written on the calling thread's current stream, which this waits for: call it on a
        background thread, under a stream of its own.

        Returns:
            uint8 [B, T, 3, h, w], RGB, on the device, complete, in the given order; and the errors, by position in
            `sources`. Those clips' frames are zeros; the decoder remains usable.

        Raises:
            torch.OutOfMemoryError, RuntimeError: Memory is full or CUDA is broken; no clip is to blame.
        """
        with self._lock:
            shape = (len(sources), self._spec.num_frames, 3, *self._frame_size[::-1])
            frames = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            errors: dict[int, DecodeError] = {}
            self._sources = sources
            groups = self._groups()
            try:
                while groups and (broken := self._run(groups, frames)) is not None:
                    # DALI does not report which clip failed, nor reliably of which group.
                    suspects, groups = [index for group, _ in self._flying for index in group], [*self._waiting]
                    if not suspects:  # it failed before it took any
                        raise DaliUnavailable(broken)
                    for index in suspects:
                        if (reason := self._run([[index]], frames)) is not None:
                            errors[index] = DecodeError(sources[index].path, sources[index].indices[0], reason)
            finally:
                if self._flying:
                    self._pipeline = None
                self._flying.clear()
                self._sources = ()
        return frames, errors

    def close(self) -> None:
        """Release memory and threads. The decoder may be used again."""
        with self._lock:
            self._pipeline = None

    def _groups(self) -> list[list[int]]:
        """Micro-batches in order, none with more full-size frames than fit in memory."""
        groups: list[list[int]] = []
        room = 0
        for index, source in enumerate(self._sources):
            # As decoded and as cropped; and the frames held for reordering.
            frame = source.display.width * source.display.height * 3
            need = (2 * len(source.positions) + _REORDER_FRAMES * self._is_cuda) * frame
            if not groups or need > room or len(groups[-1]) == self._max_batch:
                groups.append([])
                room = self._room // _IN_FLIGHT
            groups[-1].append(index)
            room -= need
        return groups

    def _run(self, groups: list[list[int]], frames: torch.Tensor) -> str | None:
        """Decode micro-batches into rows of `frames`. Returns why the pipeline failed, with the rest still pending."""
        self._waiting, self._flying = deque(groups), deque()
        while self._waiting or self._flying:
            try:
                if self._pipeline is None:
                    self._pipeline = self._build()
                (videos,) = self._pipeline.run()
            except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
                self._pipeline = None
                _raise_unless_a_clips(error)
                return _reason(error)
            self._hand_over(videos, self._flying[0][0], frames)
            if self._is_cuda:  # DALI reuses this memory as soon as it gets it back
                torch.cuda.current_stream(self._device).synchronize()
            self._flying.popleft()
        self._pipeline.reset()
        return None

    def _hand_over(self, videos: Sequence[Any], group: list[int], frames: torch.Tensor) -> None:
        """DALI's uint8 [U, h, w, 3] of each clip of a micro-batch -> its rows of `frames`, by each stream's matrix."""
        sources = [self._sources[index] for index in group]
        # Sorted by matrix, so that all frames of one matrix are converted at once.
        slots = sorted(range(len(group)), key=lambda slot: sources[slot].matrix)
        decoded = torch.cat([sources[slot].display.upright(torch.from_dlpack(videos[slot])) for slot in slots])
        starts, end = [0] * len(group), 0
        for matrix, alike in groupby(slots, key=lambda slot: sources[slot].matrix):
            start = end
            for slot in alike:
                starts[slot], end = end, end + len(sources[slot].positions)
            if matrix in _LUMA:
                _from_bt601(decoded[start:end], matrix)
        places = np.concatenate([start + source.places for start, source in zip(starts, sources, strict=True)])
        if not np.array_equal(places, np.arange(len(decoded))):
            decoded = decoded.index_select(0, torch.from_numpy(places).to(self._device))
        rows = frames[group[0] : group[-1] + 1]  # a micro-batch is a run of clips
        rows.copy_(decoded.unflatten(0, rows.shape[:2]).permute(0, 1, 4, 2, 3))

    def _feed(self) -> tuple[list[np.ndarray], ...]:
        """The next micro-batch for DALI, which asks for it whenever it has fewer than `_IN_FLIGHT`."""
        if not self._waiting:
            raise StopIteration
        group = self._waiting.popleft()
        sources = [self._sources[index] for index in group]
        boxes = [it.display.stored_box(*self._spec.at(it.face).box(*it.display.size)) for it in sources]
        batch = (
            [np.frombuffer(source.clip.data, np.uint8) for source in sources],
            [source.positions for source in sources],
            [np.array([top, left], np.int32) for left, top, _, _ in boxes],
            [np.array([height, width], np.int32) for _, _, width, height in boxes],
        )
        self._flying.append((group, batch))
        return batch

    def _build(self) -> Any:
        from nvidia.dali import Pipeline, fn

        device, device_id = ("mixed", self._device.index) if self._is_cuda else ("cpu", None)
        with Pipeline(self._max_batch, self._num_threads, device_id, prefetch_queue_depth=_IN_FLIGHT) as pipeline:
            data, positions, start, shape = fn.external_source(self._feed, num_outputs=4, batch=True, no_copy=True)
            # Threads are not pinned: several ranks of a host would pin theirs to the same processors.
            video = fn.decoders.video(data, device=device, frames=positions, pad_mode="none", affine=False)
            # Cropped before resizing, like PyAV's frames: the filter sees nothing beyond the crop.
            video = fn.slice(video, start=start, shape=shape, axes=(1, 2))
            pipeline.set_outputs(fn.resize(video, size=[*map(float, self._frame_size[::-1])], antialias=True))
        pipeline.build()
        return pipeline


def _from_bt601(frames: torch.Tensor, matrix: int) -> None:
    """Convert uint8 RGB [N, h, w, 3] made by BT.601's matrix, in place, to RGB by another matrix."""
    from_red, from_green, from_blue = _turn(matrix, frames.device)
    for part in frames.split(max(1, (_TURNED_CUDA if frames.is_cuda else _TURNED_CPU) // frames[0].numel())):
        red, green, blue = part.split(1, dim=3)
        # Multiply, then add: a matrix product may use TensorFloat-32, and addcmul rounds once on a GPU only.
        total = red * from_red
        term = green * from_green
        total += term
        total += torch.mul(blue, from_blue, out=term)
        part.copy_(total.round_().clamp_(0, 255))


@cache
def _turn(matrix: int, device: torch.device) -> torch.Tensor:
    """float32 [3, 3]: RGB by BT.601's matrix -> RGB by another matrix."""
    # Offsets and ranges of luma and chroma are the same for both, and cancel.
    turn = _to_rgb(*_LUMA[matrix]) @ np.linalg.inv(_to_rgb(red=0.299, blue=0.114))
    return torch.tensor(turn.T, dtype=torch.float32, device=device)


def _to_rgb(red: float, blue: float) -> np.ndarray:
    """float64 [3, 3], (Y, Cb, Cr) -> (R, G, B), by the weights of red and blue in Y. Source: ISO/IEC 23091-2, 8.3."""
    green, from_cr, from_cb = 1 - red - blue, 2 * (1 - red), 2 * (1 - blue)
    return np.array([[1, 0, from_cr], [1, -from_cb * blue / green, -from_cr * red / green], [1, from_cb, 0]])


def _raise_unless_a_clips(error: Exception) -> None:
    """Raise an error that is not a clip's fault, as the matching type.

    Raises:
        torch.OutOfMemoryError: The device's memory is full.
        RuntimeError: CUDA is unusable in this process.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError):
        raise error
    if any(it in text for it in _NO_MEMORY):
        raise torch.OutOfMemoryError(f"the device is out of memory: {_reason(error)}") from error
    if "cuda" in text and any(it in text for it in _BROKEN):
        raise RuntimeError(f"CUDA failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """DALI's message, without the locations in its code and ours."""
    text = str(error).rpartition("encountered:")[2]
    for end in ("C++ context:", "Current pipeline object"):
        text = text.partition(end)[0]
    return f"DALI: {' '.join(text.split()) or type(error).__name__}"
