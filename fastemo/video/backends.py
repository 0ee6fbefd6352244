"""The decoding backend (PyAV, decord, or DALI with PyAV as fallback): its choice and its use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import torch

from fastemo.corpus.clip import Clip, Root
from fastemo.corpus.files.examining import fingerprint
from fastemo.errors import DecodeError
from fastemo.video import dali
from fastemo.video.bitstream.source import Source
from fastemo.video.config import Backend, FrameSpec
from fastemo.video.decode import decode_clip, decoder_name, decord_version, pruned_clip
from fastemo.video.sampling import frame_indices

# By FFmpeg's names. Source: the documentation of nvidia.dali.fn.decoders.video, 2.4. For CUDA, only those decoded
# correctly on an H100 (benchmarks/LOG.md): VP9 was 27 dB from PyAV's frames, MJPEG failed, NVDEC has no AV1 there.
CODECS_CPU = frozenset({"mjpeg", "vp8", "vp9"})
CODECS_CUDA = frozenset({"h264", "hevc", "mpeg4", "vp8"})
# Other containers frame the same codecs in ways that DALI does not pass on to NVDEC's parser.
_CONTAINERS = frozenset({".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_CODED_MULTIPLE = 16  # pixels, of H.264's and HEVC's smallest blocks
# NVDEC's minimum width and height; HEVC's limit, the others' are lower. Source: cuvidGetDecoderCaps on an H100.
_LEAST_SIDE = 144
_ONE_DECORD = "pip uninstall -y decord decord2, then pip install decord2"
_CHANGED = (
    "the file changed after the scan; start again to rescan it (copies on several machines need the same "
    "modification time: copy with rsync -a or cp -p)"
)


def choose_backend(backend: Backend, device: torch.device) -> tuple[Literal["dali", "pyav", "decord"], str]:
    """The backend to use for frames on a device, and why.

    Raises:
        ValueError: The backend is not installed, or does not load.
    """
    if backend == "auto":
        if device.type != "cuda":
            return "pyav", f"the device is {device.type.upper()}"
        missing = dali.why_unavailable(device)
        return ("dali", "decodes on the GPU") if missing is None else ("pyav", missing)
    if backend == "dali" and (missing := dali.why_unavailable(device)):
        raise ValueError(f"video.backend dali: {missing}")
    if backend == "decord":
        try:
            why = f"as asked, {decord_version()}"
        except (ImportError, OSError, RuntimeError) as error:
            raise ValueError(f"video.backend decord cannot be loaded ({error}): {_ONE_DECORD}") from error
        if all(any(distributions(name=name)) for name in ("decord", "decord2")):
            why += f"; decord and decord2 are both installed, into the same folder: {_ONE_DECORD}"
        return backend, why
    return backend, "as asked"


def decodes(codec: str, container_suffix: str, device: torch.device) -> bool:
    """Whether DALI decodes a codec (FFmpeg's name: `h264`) in files with a suffix (`.mp4`) on a device."""
    codecs = {"cpu": CODECS_CPU, "cuda": CODECS_CUDA}.get(device.type, frozenset())
    return codec in codecs and container_suffix.lower() in _CONTAINERS


def refused_size(width: int, height: int, device: torch.device) -> str | None:
    """Why DALI decodes this frame size on a device not at all, wrongly or slower than PyAV; `None` if it is fine."""
    if device.type != "cuda":
        return None
    if min(width, height) < _LEAST_SIDE:
        return f"{width}x{height} is too small for NVDEC"
    if width % _CODED_MULTIPLE or height % _CODED_MULTIPLE:
        return f"{width}x{height} is not a multiple of {_CODED_MULTIPLE}"
    return None


class Decoder:
    """Decodes clips, by their row in a list, with the chosen backend; what that one cannot decode, PyAV does.

    Attributes:
        left_to_pyav: Reason -> keys of the clips that PyAV decoded instead.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        root: Root,
        spec: FrameSpec,
        frame_size: tuple[int, int],
        backend: Literal["dali", "pyav", "decord"],
        device: torch.device,
    ) -> None:
        self.clips, self.spec, self.device = clips, spec, device
        self.frame_size = frame_size
        self._root = root
        self._library: Literal["pyav", "decord"] = "decord" if backend == "decord" else "pyav"
        self._uses_dali = backend == "dali"
        self._dali: dali.DaliDecoder | None = None
        self._lock = Lock()
        self.left_to_pyav: dict[str, set[str]] = {}
        self._rows_for_pyav: set[int] = set()

    @property
    def name(self) -> str:
        """Identifies everything that the frames depend on, besides the files and the `FrameSpec`."""
        library = decoder_name(self._library)
        return f"dali {dali.version()} on {self.device.type}, {library}" if self._uses_dali else library

    def by_dali(self, row: int) -> bool:
        """Whether DALI should decode a clip, judging by the manifest."""
        clip = self.clips[row]
        if not self._uses_dali or row in self._rows_for_pyav:
            return False
        reason = None
        if not decodes(clip.codec, suffix := Path(clip.path).suffix, self.device):
            reason = clip.codec + f" in {suffix} files" * bool(suffix)
        elif clip.is_shown_as_stored:
            reason = refused_size(clip.width, clip.height, self.device)
        return not self._leave_to_pyav(row, reason)

    def _leave_to_pyav(self, row: int, reason: str | None) -> bool:
        """Leave a clip to PyAV from now on, if there is a reason."""
        if reason is None:
            return False
        with self._lock:
            self._rows_for_pyav.add(row)
            self.left_to_pyav.setdefault(reason, set()).add(self.clips[row].key)
        return True

    def decode(self, row: int) -> np.ndarray:
        """uint8 [T, 3, h, w], decoded on the calling thread.

        Raises:
            DecodeError: The file cannot be read, does not decode, or is not the one that was scanned.
        """
        clip, path = self.clips[row], self.clips[row].file(self._root)
        indices = frame_indices(clip.num_frames, self.spec.num_frames, clip.first_frame)
        with _as_scanned(clip, path, int(indices[0])):
            frames, reason = self._by_decord(row, path, indices)
            if frames is None:
                frames = decode_clip(path, indices, self.spec.at(clip.face_box), anchor=clip.anchor)
                self._leave_to_pyav(row, reason)
        width, height = self.frame_size
        if frames.shape[2:] != (height, width):
            raise DecodeError(
                path,
                int(indices[0]),
                f"frames are {frames.shape[-1]}x{frames.shape[-2]}, but {width}x{height} in the manifest; "
                f"the file changed after the scan",
            )
        return frames

    def _by_decord(self, row: int, path: Path, indices: np.ndarray) -> tuple[np.ndarray | None, str | None]:
        """The frames, if decord is the backend and decodes them, or why it does not."""
        clip = self.clips[row]
        if self._library != "decord" or row in self._rows_for_pyav or clip.codec == "images":
            return None, None
        if clip.orientation in (2, 4, 5, 7) or clip.pixel_aspect != 1:
            return None, "decord neither mirrors frames nor knows the shape of their pixels"
        try:
            spec = self.spec.at(clip.face_box)
            return decode_clip(path, indices, spec, backend="decord", anchor=clip.anchor), None
        except DecodeError as error:
            return None, error.reason

    def prune(self, row: int) -> Source | None:
        """The part of a clip that DALI needs; `None` if PyAV decodes it instead.

        Raises:
            DecodeError: The file cannot be read, or is not the one that was scanned.
        """
        clip, path = self.clips[row], self.clips[row].file(self._root)
        indices = tuple(frame_indices(clip.num_frames, self.spec.num_frames, clip.first_frame).tolist())
        with _as_scanned(clip, path, indices[0]):
            pruned = pruned_clip(path, indices, clip.anchor)
        # DALI relies on timestamps, which are bad in files that pruning left whole; VP8 is merely unknown to pruning.
        is_timed = not pruned.is_whole or clip.codec == "vp8"
        shape = clip.width, clip.height, clip.orientation, clip.pixel_aspect
        source = Source(path, indices, pruned, *shape, clip.face_box)
        if not is_timed:
            reason: str | None = "a stream that pruning leaves whole"
        elif source.display.is_turned and self.frame_size[0] != self.frame_size[1]:
            reason = "stored lying on its side, and crop full keeps its shape"
        else:
            reason = refused_size(source.display.width, source.display.height, self.device) or source.refused_format
        return None if self._leave_to_pyav(row, reason) else source

    def decode_on_device(self, sources: Sequence[Source]) -> tuple[torch.Tensor, dict[int, DecodeError]]:
        """uint8 [B, T, 3, h, w] on the device, by DALI; and the errors, by position in `sources`."""
        with self._lock:
            if self._dali is None:
                self._dali = dali.DaliDecoder(self.spec, self.device, frame_size=self.frame_size)
        return self._dali.decode(sources)

    def close(self) -> None:
        """Release DALI's resources."""
        if self._dali is not None:
            self._dali.close()
            self._dali = None


@contextmanager
def _as_scanned(clip: Clip, path: Path, frame: int) -> Iterator[None]:
    """Check that the file read inside is the one that was scanned.

    Raises:
        DecodeError: It is another one, or cannot be read; `frame` is the first one wanted.
    """
    try:
        _check_unchanged(clip, path, frame)
        yield
        # Checked again: a file may be replaced while it is read.
        _check_unchanged(clip, path, frame)
    except OSError as error:
        raise DecodeError(path, frame, f"cannot be read: {error.strerror or error}") from error


def _check_unchanged(clip: Clip, path: Path, frame: int) -> None:
    if not clip.size_bytes and not clip.mtime_ns:
        return  # this row does not come from a scan
    try:
        is_unchanged = fingerprint(path) == (clip.size_bytes, clip.mtime_ns)
    except ValueError:  # a folder without images
        is_unchanged = False
    if not is_unchanged:
        raise DecodeError(path, frame, _CHANGED)
