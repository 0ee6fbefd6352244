"""A pruned clip, as passed to DALI."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import av
import av.error
import numpy as np

from fastemo.corpus.files.display import Display, as_ratio
from fastemo.corpus.files.probe import video_stream
from fastemo.errors import DecodeError
from fastemo.video.bitstream.pruning import PrunedClip
from fastemo.video.config import Box

# Header -> the stream's pixel format and matrix: clips of one encoder share them, and finding out costs a decoded
# frame, 10 ms at 720p.
_colours_by_header: dict[tuple[str, bytes, int], tuple[str, int]] = {}


@dataclass(frozen=True, eq=False)
class Source:
    """A clip to decode. Creating one reads the clip's header: do it on the thread that pruned the clip.

    Attributes:
        path, indices: The file and its T frame numbers, for messages.
        clip: The result of `prune` for these frames.
        width, height, orientation, pixel_aspect: How the file's frames are displayed, from the manifest.
        face: Where the clip's face is, for crop `face`.
        display: How the frames are displayed, with the size of the stored ones.
        positions: int32 [U], the distinct frames among the T, ascending.
        places: int64 [T], the index of each of the T in `positions`.
        matrix: FFmpeg's number for the matrix between RGB and the stream's YCbCr.
        pixel_format: FFmpeg's name for it.

    Raises:
        DecodeError: The clip cannot be read, or its frames have another size.
    """

    path: Path
    indices: tuple[int, ...]
    clip: PrunedClip = field(repr=False)
    width: int
    height: int
    orientation: int = 1
    pixel_aspect: float = 1.0
    face: Box | None = None
    display: Display = field(init=False)
    positions: np.ndarray = field(init=False)
    places: np.ndarray = field(init=False)
    matrix: int = field(init=False)
    pixel_format: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            width, height, pixel_format, matrix = _look_into(self.clip.data)
        except (av.error.FFmpegError, ValueError) as error:
            raise DecodeError(self.path, self.indices[0], getattr(error, "strerror", None) or str(error)) from error
        display = Display(width, height, self.orientation or 1, as_ratio(self.pixel_aspect))
        if display.size != (self.width, self.height):
            width, height = display.size
            reason = f"frames are {width}x{height}, but {self.width}x{self.height} in the manifest"
            raise DecodeError(self.path, self.indices[0], f"{reason}; the file changed after the scan")
        positions, places = np.unique(self.clip.positions, return_inverse=True)
        found = {"display": display, "matrix": matrix, "pixel_format": pixel_format, "places": places}
        for name, value in {**found, "positions": positions.astype(np.int32)}.items():
            object.__setattr__(self, name, value)

    @property
    def refused_format(self) -> str | None:
        """Why DALI does not decode the clip's pixel format correctly; `None` if it does."""
        kind = av.VideoFormat(self.pixel_format)
        is_420 = len(kind.components) == 3 and not kind.is_rgb and kind.chroma_width(2) == kind.chroma_height(2) == 1
        if not is_420 or any(component.bits != 8 for component in kind.components):
            return f"pixel format {self.pixel_format}, not 8 bits and 4:2:0"
        return None


def _look_into(data: bytes) -> tuple[int, int, str, int]:
    """Width and height of a clip's frames in pixels, its pixel format, and the number of its matrix."""
    with av.open(io.BytesIO(data), options={"skip_frame": "all"}) as container:
        stream = video_stream(container)
        if stream is None or stream.codec_context is None:
            raise ValueError("the clip has no video that FFmpeg knows")
        context = stream.codec_context
        header = context.codec.canonical_name, bytes(context.extradata or b""), int(context.colorspace)
        colours = _colours_by_header.get(header)
        if colours is not None:
            return context.width, context.height, *colours
        context.skip_frame, context.thread_count = "DEFAULT", 1
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ValueError("the clip has no frames")
        colours = frame.format.name, int(frame.colorspace)
        if header[1]:
            _colours_by_header[header] = colours
        return frame.width, frame.height, *colours
