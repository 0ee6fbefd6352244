"""A pruned clip as DALI is handed it, and which clips are."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import av
import av.error
import numpy as np
import torch

from fastemo.video.bitstream.pruning import PrunedClip
from fastemo.video.decode import DecodeError

# By FFmpeg's names. Source: the documentation of nvidia.dali.fn.decoders.video, 2.4. Of CUDA's, those that came out
# right on an H100 (benchmarks/LOG.md): VP9 was 27 dB from PyAV's frames, MJPEG did not decode, NVDEC has no AV1 there.
CODECS_CPU = frozenset({"mjpeg", "vp8", "vp9"})
CODECS_CUDA = frozenset({"h264", "hevc", "mpeg4", "vp8"})
# Other containers frame the same codecs in ways that DALI does not tell NVDEC's parser of.
_CONTAINERS = frozenset({".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_CODED_MULTIPLE = 16  # pixels, of H.264's and of HEVC's smallest blocks
# The least width and height for NVDEC; HEVC's own limit, the others' is lower. Source: cuvidGetDecoderCaps on an H100.
_LEAST_SIDE = 144
# A stream's pixel format and matrix by its header: one encoder's clips share it, and asking costs a decoded frame,
# 10 ms at 720p.
_colours_by_header: dict[tuple[str, bytes, int], tuple[str, int]] = {}


def decodes(codec: str, container_suffix: str, device: torch.device) -> bool:
    """Whether DALI takes files of a codec (FFmpeg's name: `h264`) with a suffix (`.mp4`) on a device."""
    codecs = {"cpu": CODECS_CPU, "cuda": CODECS_CUDA}.get(device.type, frozenset())
    return codec in codecs and container_suffix.lower() in _CONTAINERS


def refused_size(width: int, height: int, device: torch.device) -> str | None:
    """Why DALI would not decode frames of a size in pixels on a device, or not rightly, or slower than PyAV."""
    if device.type != "cuda":
        return None
    if min(width, height) < _LEAST_SIDE:
        return f"{width}x{height} is too small for NVDEC"
    if width % _CODED_MULTIPLE or height % _CODED_MULTIPLE:
        return f"{width}x{height} is no multiple of {_CODED_MULTIPLE}"
    return None


@dataclass(frozen=True, eq=False)
class Source:
    """A clip to decode. Making one reads the clip's header: let the thread do it that pruned the clip.

    Attributes:
        path, indices: The file and T frame numbers of it, for messages.
        clip: What `prune` made of the file for these frames.
        width, height: Pixels of the file's frames, as the manifest has them.
        positions: int32 [U], the different frames among the T, ascending.
        places: int64 [T], where each of the T stands in `positions`.
        matrix: FFmpeg's number of the matrix between RGB and the stream's YCbCr.
        pixel_format: FFmpeg's name.

    Raises:
        DecodeError: The clip cannot be read, or its frames have another size.
    """

    path: Path
    indices: tuple[int, ...]
    clip: PrunedClip = field(repr=False)
    width: int
    height: int
    positions: np.ndarray = field(init=False)
    places: np.ndarray = field(init=False)
    matrix: int = field(init=False)
    pixel_format: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            width, height, pixel_format, matrix = _look_into(self.clip.data)
        except (av.error.FFmpegError, ValueError) as error:
            raise DecodeError(self.path, self.indices[0], getattr(error, "strerror", None) or str(error)) from error
        if (width, height) != (self.width, self.height):
            reason = f"frames are {width}x{height} where the manifest promises {self.width}x{self.height}"
            raise DecodeError(self.path, self.indices[0], f"{reason}; the file changed after the scan")
        positions, places = np.unique(self.clip.positions, return_inverse=True)
        found = {"matrix": matrix, "pixel_format": pixel_format, "places": places}
        for name, value in {**found, "positions": positions.astype(np.int32)}.items():
            object.__setattr__(self, name, value)

    @property
    def refused_format(self) -> str | None:
        """Why DALI would not decode the clip, or not rightly, by its pixel format."""
        kind = av.VideoFormat(self.pixel_format)
        is_420 = len(kind.components) == 3 and not kind.is_rgb and kind.chroma_width(2) == kind.chroma_height(2) == 1
        if not is_420 or any(component.bits != 8 for component in kind.components):
            return f"its pixel format is {self.pixel_format}, not 8 bits and 4:2:0"
        return None


def _look_into(data: bytes) -> tuple[int, int, str, int]:
    """Width and height of a clip's frames in pixels, its pixel format, and the number of its matrix."""
    with av.open(io.BytesIO(data), options={"skip_frame": "all"}) as container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            raise ValueError("the clip holds no video that FFmpeg knows")
        context = stream.codec_context
        header = context.codec.canonical_name, bytes(context.extradata or b""), int(context.colorspace)
        colours = _colours_by_header.get(header)
        if colours is not None:
            return context.width, context.height, *colours
        context.skip_frame, context.thread_count = "DEFAULT", 1
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ValueError("the clip holds no frame")
        colours = frame.format.name, int(frame.colorspace)
        if header[1]:
            _colours_by_header[header] = colours
        return frame.width, frame.height, *colours
