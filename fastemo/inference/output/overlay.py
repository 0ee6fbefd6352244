"""What an annotated video shows over its frames: the predictions of each window, and all of them over time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastemo.corpus.files.probe import SAME
from fastemo.inference.output.captions import by_window, caption, captions, handover, one_line
from fastemo.inference.prediction import Prediction
from fastemo.palette import SERIES

# Red, green, blue and opacity.
_INK, _TRACK, _BOX = (20, 22, 26, 255), (227, 227, 227, 195), (255, 255, 255, 195)
_WHITE, _BLACK, _GREY = 235, 16, 128  # levels of video
_MOST_ROWS = 4


@dataclass(frozen=True)
class _Layer:
    """A translucent picture at a place of a 4:2:0 frame: each plane p becomes p * keep + add there."""

    left: int
    top: int
    keep: tuple[np.ndarray, ...]
    add: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, picture: np.ndarray, left: int, top: int, colorspace: int) -> _Layer:
        """uint8 [h, w, 4] in RGBA, at a place; sides and place are even."""
        height, width, _ = picture.shape
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[..., :3]), format="rgb24")
        planes = frame.reformat(format="yuv444p", dst_colorspace=colorspace).to_ndarray()
        alpha = picture[..., 3].astype(np.float32) / 255
        keep, add = [1 - alpha], [alpha * planes[0] + 0.5]
        for plane in planes[1:]:
            halved = np.stack([1 - alpha, alpha * plane]).reshape(2, height // 2, 2, width // 2, 2).mean((2, 4))
            keep.append(halved[0])
            add.append(halved[1] + 0.5)
        return cls(left, top, tuple(keep), tuple(add))

    def blend(self, planes: Sequence[np.ndarray]) -> None:
        for plane, keep, add, step in zip(planes, self.keep, self.add, (1, 2, 2), strict=True):
            top, left = self.top // step, self.left // step
            place = plane[top : top + keep.shape[0], left : left + keep.shape[1]]
            height, width = place.shape  # less than the layer's in a tiny video
            place[:] = place * keep[:height, :width] + add[:height, :width]


class Overlay:
    """Draws the predictions of a video over its frames.

    Args:
        predictions: Of the windows, in order; those of a window's faces one after the other.
        class_names: In the order of their colours.
        width, height: Of the frames, in pixels, even.
        colorspace: Of the frames, as FFmpeg numbers it.
    """

    def __init__(
        self, predictions: Sequence[Prediction], class_names: Sequence[str], width: int, height: int, colorspace: int
    ) -> None:
        self._windows, self._class_names = by_window(predictions), class_names
        self._size, self._colorspace = (width, height), colorspace
        changes = [handover(before[0], after[0]) for before, after in pairwise(self._windows)]
        self._starts = [*(it.start for it in predictions[:1]), *(start for _, start in changes)]
        self._ends = [*(end for end, _ in changes), *(it.end for it in predictions[-1:])]
        self._total = max(self._ends, default=0.0)
        self._em = max(9, round(min(width, height) / 36))  # pixels, of the small letters
        fonts = _font_folder()
        self._font = ImageFont.truetype(fonts / "DejaVuSans.ttf", self._em)
        self._title = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", round(1.25 * self._em))
        self._shown = -1  # the window that the layers are of
        self._layers: list[_Layer] = []
        self._strip = self._draw_strip() if self._total > 0 else None

    def draw(self, planes: Sequence[np.ndarray], seconds: float) -> None:
        """Draw on a frame's planes in place, uint8 [h, w] and twice [h / 2, w / 2]."""
        shown = self._window_at(seconds)
        if shown != self._shown:
            self._shown, self._layers = shown, [] if shown < 0 else self._draw_window(self._windows[shown])
        for layer in self._layers:
            layer.blend(planes)
        if self._strip is not None:
            self._strip.blend(planes)
            self._draw_cursor(planes, min(seconds / self._total, 1.0))

    def _window_at(self, seconds: float) -> int:
        found = bisect_right(self._starts, seconds + SAME) - 1
        return found if found >= 0 and seconds + SAME < self._ends[found] else -1

    def _draw_window(self, window: Sequence[Prediction]) -> list[_Layer]:
        """Each face's box, with its caption if there are several; of one prediction the panel."""
        if len(window) == 1:
            return [*self._draw_box(window[0], ""), self._draw_panel(window[0])]
        texts = captions(window)
        return [layer for it, text in zip(window, texts, strict=True) for layer in self._draw_box(it, text)]

    def _draw_box(self, prediction: Prediction, text: str) -> list[_Layer]:
        """A line around a face, in the colour of its most probable class, and a text above it."""
        if prediction.box is None or not prediction.probabilities:
            return []
        best = max(prediction.probabilities, key=prediction.probabilities.__getitem__)
        left, top = (start // 2 * 2 for start in prediction.box[:2])
        line = max(2, self._em // 6)
        picture = Image.new("RGBA", (even(prediction.box[2]), even(prediction.box[3])))
        ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), None, self._colour(best), line)
        layers = [_Layer.of(np.asarray(picture), left, top, self._colorspace)]
        if text:
            text = self._fitted(text, self._title, self._size[0] - self._em)
            label = Image.new("RGBA", (even(self._title.getlength(text) + self._em), 2 * self._em), _BOX)
            ImageDraw.Draw(label).text((self._em / 2, self._em), text, _INK, self._title, anchor="lm")
            place = max(0, min(left, self._size[0] - label.width)) // 2 * 2, max(0, top - label.height) // 2 * 2
            layers.append(_Layer.of(np.asarray(label), *place, self._colorspace))
        return layers

    def _draw_panel(self, prediction: Prediction) -> _Layer:
        """The caption, and a bar per class; if there is no room for all, for the most probable ones."""
        em, row = self._em, round(1.3 * self._em)
        margin, head = even(em / 2), 2 * em
        room = self._size[1] - 2 * margin - head - 4 * em  # the strip is below
        ranked = sorted(prediction.probabilities, key=prediction.probabilities.__getitem__, reverse=True)
        names = [name for name in self._class_names if name in ranked[: max(0, room // row)]]
        labels = {name: self._fitted(one_line(name), self._font, 9 * em) for name in names}
        column = max((self._font.getlength(it) for it in labels.values()), default=0.0)
        bars = 5 * em
        inside = self._size[0] - 2 * margin - em
        title = self._fitted(caption(prediction), self._title, inside)
        width = max(self._title.getlength(title), column + bars + em / 2 if names else 0.0) + em
        height = head + row * len(names) + (em // 2 if names else 0)
        picture = Image.new("RGBA", (even(width), even(height)), _BOX)
        draw = ImageDraw.Draw(picture)
        draw.text((em / 2, head / 2), title, _INK, self._title, anchor="lm")
        for number, name in enumerate(names):
            middle, left = head + row * (number + 0.5), em + column
            box = (left, middle - 0.38 * em), (left + bars, middle + 0.38 * em)
            draw.text((em / 2, middle), labels[name], _INK, self._font, anchor="lm")
            draw.rectangle(box, _TRACK)
            draw.rectangle((box[0], (left + bars * prediction.probabilities[name], box[1][1])), self._colour(name))
        return _Layer.of(np.asarray(picture), margin, margin, self._colorspace)

    def _draw_strip(self) -> _Layer:
        """The probabilities over the whole video, stacked in the order of the classes; of several faces a row each."""
        width, height = self._size[0], min(self._size[1], even(3 * self._em))
        palette = np.array([self._colour(name) for name in self._class_names], np.uint8)
        windows = [self._window_at((column + 0.5) / width * self._total) for column in range(width)]
        num_rows = min(_MOST_ROWS, max(map(len, self._windows)))
        levels = ((height - np.arange(height) - 0.5) / height * num_rows) % 1
        rows = np.arange(height) * num_rows // height
        picture = np.broadcast_to(np.array(_BOX, np.uint8), (height, width, 4)).copy()
        for column, window in enumerate(windows):
            for row, prediction in enumerate(self._windows[window][:num_rows] if window >= 0 else ()):
                stacked = np.cumsum([prediction.probabilities.get(name, 0.0) for name in self._class_names])
                if prediction.probabilities:
                    picture[rows == row, column] = palette[np.searchsorted(stacked[:-1], levels[rows == row])]
        picture[0] = _INK
        return _Layer.of(picture, 0, self._size[1] - height, self._colorspace)

    def _draw_cursor(self, planes: Sequence[np.ndarray], place: float) -> None:
        assert self._strip is not None
        middle, half = round(place * (self._size[0] - 1)), max(1, self._em // 12)
        for level, reach in ((_BLACK, 2 * half), (_WHITE, half)):
            planes[0][self._strip.top :, max(0, middle - reach) : middle + reach + 1] = level
        for plane in planes[1:]:
            plane[self._strip.top // 2 :, max(0, (middle - 2 * half) // 2) : (middle + 2 * half) // 2 + 1] = _GREY

    def _colour(self, name: str) -> tuple[int, ...]:
        text = SERIES[self._class_names.index(name) % len(SERIES)]
        return (*bytes.fromhex(text[1:]), 235)

    @staticmethod
    def _fitted(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
        """The text, cut where it is longer than `room` pixels."""
        if font.getlength(text) <= room:
            return text
        while text and font.getlength(f"{text}…") > room:
            text = text[:-1]
        return f"{text}…"


def even(number: float) -> int:
    """The next even integer that is not smaller."""
    return -2 * int(-number // 2)


def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"
