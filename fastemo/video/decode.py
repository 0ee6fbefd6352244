"""A clip and frame numbers -> uint8 frames, cropped and resized, by PyAV or decord."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np
from av.filter import Graph

from fastemo.corpus.files.display import Display
from fastemo.corpus.files.probe import (
    CONTAINERS_ONLY,
    IMAGES_ONLY,
    holds_images,
    image_files,
    pixel_aspect,
    video_stream,
)
from fastemo.errors import DecodeError
from fastemo.video.bitstream.pruning import UNPROBED, BitstreamError, PrunedClip, prune
from fastemo.video.config import FrameSpec

Library = Literal["pyav", "decord"]
DecodedFrame = tuple[av.VideoFrame, Display]
# Increased whenever the same file and `FrameSpec` give different bytes, so that older cached clips are not used.
# 2: upright, and cropped in the displayed shape.
DECODE_VERSION = 2

# "[12:34:56] /source/video_reader.cc:285: [BytesIO] "
_DECORD_PLACE = re.compile(r"^\[\S+\] \S+:\d+: (\[BytesIO\] )?")
# Triangle filter widened to the scale (like Pillow's antialiased bilinear), chroma upsampled to full resolution
# before the colour matrix, and identical bytes on every processor.
_SCALE_FLAGS = "bilinear+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"


def decoder_name(library: Library) -> str:
    """Identifies everything that `decode_clip`'s result depends on, besides the file and the `FrameSpec`."""
    versions = [f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libswscale")]
    own = [decord_version()] if library == "decord" else []
    return ", ".join([f"decode {DECODE_VERSION}", *own, *versions])


def _load_decord() -> Any:
    """Import decord after torch: torch loaded after decord's libraries crashes at its first BLAS call."""
    import torch  # noqa: F401, I001
    import decord

    return decord


def decord_version() -> str:
    """The loaded version: decord and decord2 install into the same folder, and both may have left their metadata."""
    decord = _load_decord()
    number = decord._ffi.base._LIB.avcodec_version()  # the one bundled with decord, not PyAV's
    return f"decord {decord.__version__} with libavcodec {number >> 16}.{number >> 8 & 255}.{number & 255}"


def decode_clip(
    path: Path | str,
    indices: Sequence[int] | np.ndarray,
    spec: FrameSpec | None,
    *,
    backend: Library = "pyav",
    anchor: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode the wanted frames of a clip on the calling thread, and of the others only those that they refer to.

    Index k means the k-th frame of a full sequential decode of the file, counted in presentation order.

    Args:
        path: A video, or a folder of images or a picture (which every backend reads the same way).
        indices: T ascending frame numbers; repeats are allowed.
        spec: Crop and size; `None` returns upright frames with the file's own pixels, square or not.
        backend: The decoding library. decord turns frames, but does not mirror them, and takes pixels
            for square.
        anchor: As for `prune`.

    Returns:
        uint8 [T, 3, h, w], RGB, the way up that a player shows them.

    Raises:
        DecodeError: The file cannot be read, or a wanted frame does not decode.
    """
    path = Path(path)
    wanted = [int(index) for index in indices]
    assert wanted, "a sample has at least one frame"
    assert sorted(wanted) == wanted, "frame indices must ascend"
    assert wanted[0] >= 0, "frame indices must not be negative"
    if holds_images(path):
        return _as_rgb(path, wanted, _images(path, wanted), spec)
    clip = pruned_clip(path, wanted, anchor)
    return decode_pruned(path, wanted, clip, spec, backend=backend)


def decode_pruned(
    path: Path, wanted: Sequence[int], clip: PrunedClip, spec: FrameSpec | None, *, backend: Library = "pyav"
) -> np.ndarray:
    """`decode_clip` of a file that was pruned for the wanted frames before."""
    wanted = list(wanted)
    return _as_rgb(path, wanted, (_decord if backend == "decord" else _pyav)(path, wanted, clip), spec)


def decoded_frames(
    path: Path, wanted: Sequence[int], clip: PrunedClip | None = None, *, anchor: tuple[int, int] | None = None
) -> Iterator[DecodedFrame]:
    """The wanted frames, ascending and each once, as PyAV decodes them, and how they are displayed.

    Args:
        clip: A video that was pruned for them before.
        anchor: As for `prune`.

    Raises:
        DecodeError: As `decode_clip`.
    """
    unique = [*dict.fromkeys(map(int, wanted))]
    if holds_images(path):
        return _images(path, unique)
    return _pyav(path, unique, clip or pruned_clip(path, unique, anchor))


def _as_rgb(path: Path, wanted: list[int], frames: Iterator[DecodedFrame], spec: FrameSpec | None) -> np.ndarray:
    def upright(frame: av.VideoFrame, display: Display) -> Any:
        return display.upright(frame.to_ndarray(format="rgb24"))

    unique = _taken(path, wanted, frames, upright if spec is None else ToRGB(spec))
    return np.stack([unique[index] for index in wanted]).transpose(0, 3, 1, 2)


def frames_by_number(
    path: Path, wanted: Sequence[int], spec: FrameSpec, clip: PrunedClip | None = None
) -> dict[int, Any]:
    """The wanted frames of a clip by their numbers, each as `taker` gives it; `clip` as for `decoded_frames`."""
    return _taken(path, wanted, decoded_frames(path, wanted, clip), taker(spec))


def taker(spec: FrameSpec) -> Callable[[av.VideoFrame, Display], Any]:
    """What a stream's frames become: uint8 [3, h, w]; before the face is found that is cropped, `DecodedFrame`s."""
    if spec.crop == "face":
        return lambda frame, display: (frame, display)
    to_rgb = ToRGB(spec)
    return lambda frame, display: to_rgb(frame, display).transpose(2, 0, 1)


def _taken(
    path: Path, wanted: Sequence[int], frames: Iterator[DecodedFrame], take: Callable[[av.VideoFrame, Display], Any]
) -> dict[int, Any]:
    unique: dict[int, Any] = {}
    sizes: set[tuple[int, int]] = set()
    try:
        for index, (frame, display) in zip(dict.fromkeys(wanted), frames, strict=False):
            sizes.add(display.size)
            unique[index] = take(frame, display)
    except (av.error.FFmpegError, ValueError) as error:
        raise DecodeError(path, wanted[0], str(error)) from error
    if len(sizes) > 1:
        raise DecodeError(path, wanted[0], f"frames of several sizes in one clip: {sorted(sizes)}")
    return unique


class ToRGB:
    """One antialiased resize from the decoder's own planes to packed RGB, cropped first and turned upright last.

    Made for a stream's frames, whose geometry may change.
    """

    def __init__(self, spec: FrameSpec) -> None:
        self._spec = spec
        self._geometry: tuple[object, ...] = ()

    def __call__(self, frame: av.VideoFrame, display: Display) -> np.ndarray:
        """uint8 [h, w, 3]."""
        geometry = display, frame.format.name, frame.colorspace, frame.color_range
        if geometry != self._geometry:
            self._geometry, self._graph = geometry, self._graph_for(frame, display)
        frame.pts = None
        self._graph.push(frame)
        result = self._graph.pull()
        assert isinstance(result, av.VideoFrame)
        upright: np.ndarray = display.upright(result.to_ndarray())
        return upright

    def _graph_for(self, frame: av.VideoFrame, display: Display) -> Graph:
        graph = Graph()
        graph.threads = 1
        last = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base or Fraction(1, 30),
        )
        left, top, width, height = display.stored_box(*self._spec.box(*display.size))
        out_size = self._spec.out_size(*display.size)
        out_width, out_height = out_size[::-1] if display.is_turned else out_size
        for name, arguments in (
            ("crop", f"{width}:{height}:{left}:{top}:exact=1"),
            ("scale", f"{out_width}:{out_height}:flags={_SCALE_FLAGS}"),
            ("format", "rgb24"),
        ):
            step = graph.add(name, arguments)
            last.link_to(step)
            last = step
        sink = graph.add("buffersink")
        last.link_to(sink)
        graph.configure()
        return graph


def pruned_clip(path: Path, wanted: Sequence[int] | np.ndarray, anchor: tuple[int, int] | None = None) -> PrunedClip:
    """The part of a file that is needed to decode the wanted frames; `anchor` as for `prune`.

    Raises:
        DecodeError: The file cannot be read, or a wanted frame lies outside it.
    """
    try:
        return prune(path, wanted, anchor=anchor)
    except BitstreamError as error:
        raise DecodeError(path, wanted[0] if error.frame is None else error.frame, error.reason) from error


def _pyav(path: Path, wanted: list[int], clip: PrunedClip) -> Iterator[DecodedFrame]:
    positions = dict(zip(wanted, clip.positions.tolist(), strict=True))
    count, missing = 0, [*positions]
    try:
        with av.open(io.BytesIO(clip.data), options=CONTAINERS_ONLY if clip.is_whole else UNPROBED) as container:
            stream = video_stream(container)
            assert stream is not None, "pruning refuses files without video"
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if count == positions[missing[0]]:
                    del missing[0]
                    yield frame, Display.of(frame, clip.pixel_aspect or pixel_aspect(stream))
                    if not missing:
                        return
                count += 1
    except av.error.FFmpegError as error:
        raise DecodeError(path, missing[0], error.strerror or str(error)) from error
    raise DecodeError(path, missing[0], "the file ends before it")


def unpadded(frame: np.ndarray) -> np.ndarray:
    """decord2's frame as uint8 [H, W, 3]: it returns rows padded to whole pixels as [H, W, 4] (W = 96, 144)."""
    height, width, _ = frame.shape
    return frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _decord(path: Path, wanted: list[int], clip: PrunedClip) -> Iterator[DecodedFrame]:
    decord = _load_decord()
    positions = dict(zip(wanted, clip.positions.tolist(), strict=True))
    count, missing = 0, [*positions]
    try:
        reader = decord.VideoReader(io.BytesIO(clip.data), ctx=decord.cpu(0), num_threads=1)
        for position in positions.values():
            # Read from the start, never seek or skip: both rely on timestamps, which containers get wrong.
            for _ in range(position - count):
                reader.next()
            frame = unpadded(reader.next().asnumpy())
            count = position + 1
            del missing[0]
            yield av.VideoFrame.from_ndarray(frame, format="rgb24"), Display(*frame.shape[1::-1])
    except MemoryError:
        raise
    except Exception as error:  # decord's own, and what its wrapper makes of them
        reason = (str(error).strip().splitlines() or ["the file ends before it"])[0]
        raise DecodeError(path, missing[0], f"decord: {_DECORD_PLACE.sub('', reason)}") from error


def _images(folder: Path, wanted: list[int]) -> Iterator[DecodedFrame]:
    files = image_files(folder)
    for index in dict.fromkeys(wanted):
        if index >= len(files):
            raise DecodeError(folder, index, f"the folder holds {len(files)} images")
        try:
            with av.open(str(files[index].absolute()), options=IMAGES_ONLY) as container:
                frame = next(container.decode(video=0))
                yield frame, Display.of_image(frame, files[index])
        except (av.error.FFmpegError, StopIteration, IndexError) as error:
            raise DecodeError(folder, index, f"image {files[index].name}: {error}") from error
