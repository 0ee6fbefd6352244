"""Pictures as part of the page: decoded, made small and encoded anew, so that nothing but pixels gets into it."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np

from fastemo.report.page_blocks import Picture

_MOST_BYTES = 2**23
_QUALITY = 72  # of WebP


def embedded(content: bytes, *, most_width: int, alt: str, caption: str = "") -> Picture | None:
    """A picture of at most `most_width` pixels; None where the bytes are none."""
    pixels = None
    if 0 < len(content) <= _MOST_BYTES:
        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            return None
    if pixels is None:
        return None
    height, width = pixels.shape[:2]
    if width > most_width:
        height, width = max(1, round(height * most_width / width)), most_width
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    written, data = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    assert written
    uri = f"data:image/webp;base64,{base64.b64encode(bytes(data)).decode('ascii')}"
    return Picture(uri=uri, width=width, height=height, alt=alt, caption=caption)


def embedded_file(folder: Path, name: str, *, most_width: int, alt: str, caption: str = "") -> Picture | None:
    """A picture of a run folder; None where it is not there, no picture, or outside the folder."""
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError):
        return None
    return embedded(content, most_width=most_width, alt=alt, caption=caption)
