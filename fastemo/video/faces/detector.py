"""The face detector, YuNet by OpenCV, and its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock, local

import cv2
import numpy as np

from fastemo.errors import UserError
from fastemo.machine import cache_folder, is_offline, replacing
from fastemo.video.config import Box, FrameSpec, area
from fastemo.video.decode import DecodedFrame, ToRGB

# OpenCV's model zoo, MIT licence. Wu, Peng & Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023.
ADDRESS = "https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2026may.onnx"
SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
_OPTION = "--faces.weights PATH"
_MOST_BYTES = 2**26
# Longer sides of the pictures in which faces are sought, in pixels, until one shows any: large faces are found in small
# pictures in a tenth of the time.
_SIDES = (160, 320, 640)
_LEAST_SCORE = 0.7
_QUIETLY = Lock()  # OpenCV's level of logging is one for all threads


class _OfThread(local):
    """A thread's own net, opened when the thread first uses it, and its conversions by their size."""

    def __init__(self, open_net: Callable[[], cv2.FaceDetectorYN]) -> None:
        self.net, self.to_rgb = open_net(), dict[int, ToRGB]()


class FaceDetector:
    """Finds faces in decoded frames. Threads may use it at once.

    Args:
        weights: File of the weights; `None`: the cached ones, which are downloaded first if they are missing.
        sides: Longer sides of the pictures in which faces are sought, one after the other until one shows any.

    Attributes:
        weights: The file's bytes.
        digest: Their SHA-256, in hexadecimal.

    Raises:
        UserError: The weights cannot be read, had, or opened; the message names the option.
    """

    def __init__(self, weights: Path | None = None, *, sides: Sequence[int] = _SIDES) -> None:
        self._sides = sides
        self._source = ADDRESS if weights is None else str(weights)
        self.weights = _cached_weights() if weights is None else _read(weights)
        self.digest = hashlib.sha256(self.weights).hexdigest()
        self._of_thread = _OfThread(self._open)

    def faces(self, frame: DecodedFrame) -> list[Box]:
        """The boxes of the faces in a frame, in pixels of the displayed picture; the largest first."""
        width, height = frame[1].size
        for side in self._sides:
            if found := self._found(frame, side):
                within = (_within(box, width, height) for box in found)
                return sorted((box for box in within if box is not None), key=area, reverse=True)
            if side >= max(width, height):
                break
        return []

    def _found(self, frame: DecodedFrame, side: int) -> list[np.ndarray]:
        """Boxes of faces, float [4]: left, top, width, height in the displayed picture."""
        width, height = frame[1].size
        scale = min(1.0, side / max(width, height))
        size = max(1, round(scale * min(width, height)))
        to_rgb = self._of_thread.to_rgb.setdefault(size, ToRGB(FrameSpec(num_frames=1, crop="full", size=size)))
        picture = np.ascontiguousarray(to_rgb(*frame)[..., ::-1])
        self._of_thread.net.setInputSize(picture.shape[1::-1])
        _, rows = self._of_thread.net.detect(picture)
        ratio = np.array([width / picture.shape[1], height / picture.shape[0]] * 2)
        return [] if rows is None else [row[:4] * ratio for row in rows]

    def _open(self) -> cv2.FaceDetectorYN:
        try:
            with _QUIETLY:
                # It warns that its only target cannot be chosen.
                level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
                try:
                    data, nothing = np.frombuffer(self.weights, np.uint8), np.empty(0, np.uint8)
                    net = cv2.FaceDetectorYN.create("onnx", data, nothing, (_SIDES[0], _SIDES[0]), _LEAST_SCORE)
                finally:
                    cv2.utils.logging.setLogLevel(level)
            net.detect(np.zeros((_SIDES[0], _SIDES[0], 3), np.uint8))
        except cv2.error as error:
            reason = " ".join(str(error.err or error).split())
            raise UserError(
                f"{self._source}: OpenCV cannot use it as YuNet's weights ({reason}): name others with {_OPTION}"
            ) from error
        return net


def fetch_weights() -> bool:
    """Download the weights to the cache unless they are there; return whether they were.

    Raises:
        UserError: They cannot be downloaded, or not be written to the cache.
    """
    was_cached = _from_cache() is not None
    _cached_weights()
    if _from_cache() is None:
        raise UserError(f"the face detector cannot be written to {_cache_path()}: set FASTEMO_CACHE to another folder")
    return was_cached


def weights_of_run(own: Path | None, chosen: Path | None) -> Path | None:
    """The weights to use a run with: those chosen, else its own if the file is here, else the downloaded ones."""
    return chosen or (own if own is not None and own.is_file() else None)


def _within(box: np.ndarray, width: int, height: int) -> Box | None:
    """The part of a box that lies in the picture, in whole pixels; `None` if that is nothing."""
    corners = np.rint([*box[:2], *(box[:2] + box[2:])]).astype(int)
    left, top, right, bottom = np.clip(corners, 0, [width, height] * 2).tolist()
    return (left, top, right - left, bottom - top) if left < right and top < bottom else None


def _cache_path() -> Path:
    return cache_folder() / "models" / Path(ADDRESS).name


def _from_cache() -> bytes | None:
    """The cached weights, unless they are damaged."""
    path = _cache_path()
    data = path.read_bytes() if path.is_file() else b""
    return data if hashlib.sha256(data).hexdigest() == SHA256 else None


def _cached_weights() -> bytes:
    if (data := _from_cache()) is not None:
        return data
    path, data = _cache_path(), _downloaded()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(data)
    except OSError:
        pass  # it is downloaded again by the next run
    return data


def _downloaded() -> bytes:
    import httpx2

    from fastemo.corpus.download.zenodo import open_client

    data, get = bytearray(), f"get {Path(ADDRESS).name} elsewhere and name it with {_OPTION}"
    if is_offline():
        how = "run fastemo fetch CONFIG on a machine with network, or"
        raise UserError(f"the face detector is not in the cache, and HF_HUB_OFFLINE is set: {how} {get}")
    try:
        with open_client() as client, client.stream("GET", ADDRESS) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _MOST_BYTES:
                    break
    except httpx2.HTTPError as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"the face detector cannot be downloaded from {ADDRESS} ({reason}): {get}") from error
    _check(bytes(data), ADDRESS, get)
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise UserError(f"{ADDRESS} has the SHA-256 {found}, not {SHA256}: {get}")
    return bytes(data)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{_OPTION}: {path} cannot be read: {error.strerror or error}") from error
    _check(data, str(path), f"name the file itself with {_OPTION}")
    return data


def _check(data: bytes, source: str, advice: str) -> None:
    """Refuse what servers and clones give in place of the file."""
    if data.startswith(b"version https://git-lfs"):
        raise UserError(f"{source} is a pointer of Git LFS, not the weights: {advice}")
    if data.lstrip()[:1] == b"<":
        raise UserError(f"{source} is a web page, not the weights: {advice}")
    if not 0 < len(data) <= _MOST_BYTES:
        raise UserError(f"{source} has {len(data)} bytes, too {'many' if data else 'few'} for the weights: {advice}")
