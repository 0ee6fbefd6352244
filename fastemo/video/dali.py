"""Pruned clips -> uint8 frames on the GPU by NVDEC; on the CPU by the same pipeline. The only module that imports DALI.

What DALI 2.4 does, by its sources and by measurement, and what is made of it:

- It converts every stream to RGB by BT.601, in the range that the stream says. RAVDESS is BT.709: 38 dB off. Frames of
  other matrices are turned afterwards, for RGB by one matrix is linear in RGB by another: 48 dB, 3 levels at most.
- It decodes a repeated frame again, from the keyframe before it: it is asked for each frame once.
- Frames beyond the end are black unless `pad_mode` is "none", and those of a broken header too: `Source` looks at it.
- One bad stream ends the pipeline. The clips in flight are then decoded one at a time, each in a pipeline that works.
- NVDEC's decoders are kept for the process under the frame's size and looked for by the coded one, a multiple of 16.
  Other sizes never find theirs: each clip takes 50-70 ms to make one, or a wrong one. PyAV decodes those.
- It says of exhausted memory and of a broken CUDA context what it says of a clip: the words tell them apart.
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
# Micro-batches in DALI's hands: while one is handed over, the next decodes.
_IN_FLIGHT = 2
_PACKAGE = "nvidia-dali-cuda120 (or nvidia-dali-cuda130, for drivers of CUDA 13)"
_REORDER_FRAMES = 8  # of full size, which each clip has on a GPU to put its pictures in order
# For full-size frames: of the GPU's free memory, the rest being the model's; and on a CPU.
_GPU_SHARE, _CPU_BYTES = 1 / 8, 256 << 20
# Two for each engine of an H100: one parses while the other's picture decodes.
_GPU_THREADS = 14
# Numbers of cudaVideoCodec. Source: cuviddec.h of NVIDIA's Video Codec SDK.
_NVDEC_CODECS = {"h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11, "mpeg4": 2, "mjpeg": 5}
# Values turned at once, of eight bytes each meanwhile: few launches on a GPU, what caches hold on a CPU.
_TURNED_CUDA, _TURNED_CPU = 1 << 24, 1 << 18
# In errors of DALI, CUDA and NVDEC, in small letters.
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
    """DALI cannot decode here; the message says why and what to do."""


def why_unavailable(device: torch.device | None = None) -> str | None:
    """Why DALI cannot be used, in one line; `None` where it can. With a device, whether it decodes on that."""
    try:
        import_module("nvidia.dali")
    except (ImportError, OSError) as error:
        if not isinstance(error, ModuleNotFoundError) or error.name not in ("nvidia", "nvidia.dali"):
            return f"DALI is installed but cannot be imported ({error}): reinstall {_PACKAGE}"
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return f"DALI needs Linux on x86-64, this is {sys.platform} on {platform.machine()}: use backend pyav"
        return f"DALI is not installed: pip install {_PACKAGE}"
    kind = "cpu" if device is None else device.type
    if kind not in ("cpu", "cuda"):
        return f"DALI decodes for CUDA and the CPU, not for {kind}: use backend pyav"
    if kind == "cuda" and isinstance(problem := _nvcuvid(), str):
        return f"NVDEC's library is missing ({problem}): give the container NVIDIA_DRIVER_CAPABILITIES=compute,video"
    return None


def version() -> str:
    """DALI's own, where it can be imported."""
    return str(import_module("nvidia.dali").__version__)


def capabilities(device_index: int = 0) -> dict[str, object]:
    """What decides whether and how fast DALI decodes on a GPU: versions, memory, NVDEC's engines and frame sizes."""
    library = _nvcuvid()
    found: dict[str, object] = {"dali": why_unavailable() or version()}
    found["libnvcuvid"] = library if isinstance(library, str) else "loaded"
    if torch.cuda.is_available():
        with torch.cuda.device(device_index):
            torch.zeros(1, device="cuda")  # NVDEC answers within a CUDA context only
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
    """What NVDEC says of a codec at 8 bits and 4:2:0. Source: CUVIDDECODECAPS of cuviddec.h."""
    caps = ctypes.create_string_buffer(struct.pack("6I", codec, 1, 0, 0, 0, 0), 128)
    status = library.cuvidGetDecoderCaps(caps)
    supported, engines, *_, min_width, min_height = struct.unpack_from("BBH3I2H", caps, 24)
    return {"status": status, "supported": supported, "engines": engines, "min_size": (min_width, min_height)}


class DaliDecoder:
    """Clips in, frames out, on the device.

    Args:
        spec: Crop, size and T.
        device: CUDA (NVDEC) or CPU (libavcodec inside DALI: `CODECS_CPU` only).
        frame_size: Width and height of the result in pixels: `spec.out_size` of every clip.
        max_batch: The most clips that DALI gets at once. Memory may make them fewer: full-size frames stay within an
            eighth of what is free on the GPU now, on a CPU within 256 MiB, unless a single clip needs more.
        num_threads: Clips decoded at once; `None`: 14 on CUDA, one for each processor on a CPU.

    Raises:
        DaliUnavailable: Not on this device.
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
        self._pipeline: Any = None  # built when first needed, and again after it broke
        self._sources: Sequence[Source] = ()
        self._waiting: deque[list[int]] = deque()
        # With what DALI was given: it reads that memory where it lies.
        self._flying: deque[tuple[list[int], tuple[list[np.ndarray], ...]]] = deque()

    def decode(self, sources: Sequence[Source]) -> tuple[torch.Tensor, dict[int, DecodeError]]:
        """Decode clips, several at once: the more in one call, the less the engines stand idle at its end.

        On CUDA the frames are written on the calling thread's current stream, which this waits for: call it on a
        background thread, under a stream of its own.

        Returns:
            uint8 [B, T, 3, h, w], RGB, on the device, complete, in the order given; and, by place in `sources`, what
            did not decode. Those clips' frames are zeros, all others are right, and the decoder can be used on.

        Raises:
            torch.OutOfMemoryError, RuntimeError: Memory is full or CUDA is broken, which is no clip's fault.
        """
        with self._lock:
            shape = (len(sources), self._spec.num_frames, 3, *self._frame_size[::-1])
            frames = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            errors: dict[int, DecodeError] = {}
            self._sources = sources
            groups = self._groups()
            try:
                while groups and (broken := self._run(groups, frames)) is not None:
                    # DALI does not say which clip it was, nor surely of which group.
                    suspects, groups = [index for group, _ in self._flying for index in group], [*self._waiting]
                    if not suspects:  # it broke before it took any
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
        """Give memory and threads back. The decoder may be used again."""
        with self._lock:
            self._pipeline = None

    def _groups(self) -> list[list[int]]:
        """Micro-batches in order, none with more full-size frames than there is room for."""
        groups: list[list[int]] = []
        room = 0
        for index, source in enumerate(self._sources):
            # As decoded and as cropped; and what putting pictures in order takes.
            need = (2 * len(source.positions) + _REORDER_FRAMES * self._is_cuda) * source.width * source.height * 3
            if not groups or need > room or len(groups[-1]) == self._max_batch:
                groups.append([])
                room = self._room // _IN_FLIGHT
            groups[-1].append(index)
            room -= need
        return groups

    def _run(self, groups: list[list[int]], frames: torch.Tensor) -> str | None:
        """Decode micro-batches into rows of `frames`; why the pipeline broke, `_flying` and `_waiting` being undone."""
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
            if self._is_cuda:  # DALI writes other frames where these lie as soon as it has them back
                torch.cuda.current_stream(self._device).synchronize()
            self._flying.popleft()
        self._pipeline.reset()
        return None

    def _hand_over(self, videos: Sequence[Any], group: list[int], frames: torch.Tensor) -> None:
        """DALI's uint8 [U, h, w, 3] of each clip of a micro-batch -> its rows of `frames`, by each stream's matrix."""
        sources = [self._sources[index] for index in group]
        # Side by side by matrix, so that all of one are turned at once.
        slots = sorted(range(len(group)), key=lambda slot: sources[slot].matrix)
        decoded = torch.cat([torch.from_dlpack(videos[slot]) for slot in slots])
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
        """The next micro-batch for DALI, which asks for it as soon as it has one less than `_IN_FLIGHT`."""
        if not self._waiting:
            raise StopIteration
        group = self._waiting.popleft()
        sources = [self._sources[index] for index in group]
        boxes = [self._spec.box(source.width, source.height) for source in sources]
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
            # Threads stay unpinned: several ranks of a host would pin theirs to the same processors.
            video = fn.decoders.video(data, device=device, frames=positions, pad_mode="none", affine=False)
            # Cropped before it is resized, as PyAV's frames are: the filter sees nothing beyond the crop.
            video = fn.slice(video, start=start, shape=shape, axes=(1, 2))
            pipeline.set_outputs(fn.resize(video, size=[*map(float, self._frame_size[::-1])], antialias=True))
        pipeline.build()
        return pipeline


def _from_bt601(frames: torch.Tensor, matrix: int) -> None:
    """Turn uint8 RGB [N, h, w, 3] that BT.601's matrix made, in place, into what another matrix makes."""
    from_red, from_green, from_blue = _turn(matrix, frames.device)
    for part in frames.split(max(1, (_TURNED_CUDA if frames.is_cuda else _TURNED_CPU) // frames[0].numel())):
        red, green, blue = part.split(1, dim=3)
        # Multiplied, then added: a matrix product may round in TensorFloat-32, and addcmul rounds once on a GPU only.
        total = red * from_red
        term = green * from_green
        total += term
        total += torch.mul(blue, from_blue, out=term)
        part.copy_(total.round_().clamp_(0, 255))


@cache
def _turn(matrix: int, device: torch.device) -> torch.Tensor:
    """float32 [3, 3]: what BT.601's red, green and blue give to red, green and blue by another matrix."""
    # Offsets and ranges of luma and chroma are the same for both, and cancel.
    turn = _to_rgb(*_LUMA[matrix]) @ np.linalg.inv(_to_rgb(red=0.299, blue=0.114))
    return torch.tensor(turn.T, dtype=torch.float32, device=device)


def _to_rgb(red: float, blue: float) -> np.ndarray:
    """float64 [3, 3], (Y, Cb, Cr) -> (R, G, B), by the weights of red and blue in Y. Source: ISO/IEC 23091-2, 8.3."""
    green, from_cr, from_cb = 1 - red - blue, 2 * (1 - red), 2 * (1 - blue)
    return np.array([[1, 0, from_cr], [1, -from_cb * blue / green, -from_cr * red / green], [1, from_cb, 0]])


def _raise_unless_a_clips(error: Exception) -> None:
    """Raise, as what it is, an error that no clip can be blamed for.

    Raises:
        torch.OutOfMemoryError: The device's memory is full.
        RuntimeError: CUDA cannot be used any more in this process.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError):
        raise error
    if any(it in text for it in _NO_MEMORY):
        raise torch.OutOfMemoryError(f"the device is out of memory: {_reason(error)}") from error
    if "cuda" in text and any(it in text for it in _BROKEN):
        raise RuntimeError(f"CUDA failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What DALI says of a failure, without where in its code and in ours."""
    text = str(error).rpartition("encountered:")[2]
    for end in ("C++ context:", "Current pipeline object"):
        text = text.partition(end)[0]
    return f"DALI: {' '.join(text.split()) or type(error).__name__}"
