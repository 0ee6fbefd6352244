"""How a player shows the frames of a file: which way up, and in which shape."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.sidedata.sidedata import SideDataContainer, Type

# (rows become columns, then left and right are exchanged, then top and bottom) -> the orientation as Exif numbers it.
# Source: CIPA DC-008, tag 274.
_EXIF = {
    (False, False, False): 1,
    (False, True, False): 2,
    (False, True, True): 3,
    (False, False, True): 4,
    (True, False, False): 5,
    (True, True, False): 6,
    (True, True, True): 7,
    (True, False, True): 8,
}
_STEPS = {number: steps for steps, number in _EXIF.items()}
_EXIF_TAG = 274
_BY_ANGLE = {-90: 6, 90: 8, 180: 3, -180: 3}  # degrees anticlockwise
# Other ratios of a pixel's sides are mistakes.
_MOST_STRETCHED = 10


@dataclass(frozen=True)
class Display:
    """How a player shows stored frames.

    Attributes:
        width, height: Of the stored frames, in pixels.
        orientation: 1 to 8, as Exif numbers them: 1 is shown as stored, 6 is turned by 90 degrees clockwise first.
        pixel_aspect: Width of a stored pixel, as a multiple of its height.
    """

    width: int
    height: int
    orientation: int = 1
    pixel_aspect: Fraction = Fraction(1)

    @classmethod
    def of(cls, frame: av.VideoFrame, pixel_aspect: Fraction | float | None) -> Display:
        """Read a decoded frame's display matrix; without one, the frame is shown as it is stored.

        Angles other than quarter turns are rounded to them.

        Args:
            frame: As decoded.
            pixel_aspect: Of its stream; none or outside 1:10 to 10:1: pixels are square.
        """
        return cls(frame.width, frame.height, _orientation(frame), as_ratio(pixel_aspect))

    @classmethod
    def of_image(cls, frame: av.VideoFrame, path: Path) -> Display:
        """The same for an image file, which says it by Exif."""
        from PIL import Image

        try:
            with Image.open(path) as image:
                orientation = image.getexif().get(_EXIF_TAG)
        except Exception:  # FFmpeg reads images that Pillow does not; damaged Exif is none
            orientation = None
        return cls(frame.width, frame.height, orientation if orientation in _STEPS else 1)

    @property
    def is_turned(self) -> bool:
        """Whether width and height are exchanged."""
        return _STEPS[self.orientation][0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the displayed picture, in square pixels as high as the stored ones."""
        shape = max(1, round(self.width * self.pixel_aspect)), self.height
        return shape[::-1] if self.is_turned else shape

    def stored_box(self, left: int, top: int, width: int, height: int) -> tuple[int, int, int, int]:
        """A box of the displayed picture (left, top, width, height) -> the box of the stored frame that shows there."""
        if (left, top, width, height) == (0, 0, *self.size):
            return 0, 0, self.width, self.height
        turned, mirrored, flipped = _STEPS[self.orientation]
        left = self.size[0] - left - width if mirrored else left
        top = self.size[1] - top - height if flipped else top
        if turned:
            left, top, width, height = top, left, height, width
        # Even, so that subsampled chroma is cropped exactly.
        width = min(max(2, _even(width / self.pixel_aspect)), self.width)
        left = min(_even(left / self.pixel_aspect), self.width - width)
        return left, top // 2 * 2, width, height

    def upright(self, frames: Any) -> Any:
        """Frames [..., h, w, channels] as stored -> as displayed, in the stored pixels' shape; arrays or tensors."""
        turned, mirrored, flipped = _STEPS[self.orientation]
        frames = frames.swapaxes(-3, -2) if turned else frames
        axes = (-2,) * mirrored + (-3,) * flipped
        if not axes:
            return frames
        if hasattr(frames, "flip"):  # a tensor
            return frames.flip(axes)
        return frames[..., :: -1 if flipped else 1, :: -1 if mirrored else 1, :]


def as_ratio(pixel_aspect: Fraction | float | None) -> Fraction:
    """A pixel's width by its height, exactly; none or outside 1:10 to 10:1: 1."""
    ratio = Fraction(pixel_aspect or 1).limit_denominator(1 << 16)
    return ratio if 1 <= ratio * _MOST_STRETCHED <= _MOST_STRETCHED**2 else Fraction(1)


def _orientation(frame: av.VideoFrame) -> int:
    try:
        # Not `frame.side_data`, which the frame would keep, and which keeps the frame: only the collector frees them.
        side_data = SideDataContainer(frame)  # type: ignore[call-arg]
        matrix = side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # side data that PyAV has no name for, of spatial video for example: it gives the angle only
        return _BY_ANGLE.get(round(frame.rotation / 90) * 90, 1)
    if matrix is None:
        return 1
    # x' = a x + c y and y' = b x + d y. Source: FFmpeg's libavutil/display.h.
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    is_turned = abs(b) + abs(c) > abs(a) + abs(d)
    return _EXIF[(True, c < 0, b < 0) if is_turned else (False, a < 0, d < 0)]


def _even(number: Fraction) -> int:
    return round(number / 2) * 2
