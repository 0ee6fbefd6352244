"""Draws frames of a generated face: action units move the landmarks, OpenCV paints them.

The canvas is twice the frame (below 360 lines) and is downsampled by the same affine map that sways the
head, so motion is smooth to a fraction of a pixel.
"""

from __future__ import annotations

import threading

import cv2
import numpy as np

from fastemo.corpus.synthetic.action_units import ACTION_UNITS, Tracks
from fastemo.corpus.synthetic.identity import Identity
from fastemo.corpus.synthetic.portraits import JAW_DROP, JAW_LEVELS, SHIFT, Portrait

_MIN_CANVAS_HEIGHT = 360
_LID = np.linspace(-1, 1, 11)  # along an eyelid, inner to outer corner
_LIP = np.linspace(-1, 1, 15)  # along a lip, left to right corner
_BROW = np.linspace(0, 1, 8)  # along a brow, inner to outer end


class Landmarks:
    """The parts that move with an expression, for N frames, in face units.

    Attributes:
        jaw: float [N], 0 closed to 1 fully open.
        lids: float [N, 2 eyes, 2 (upper, lower), 11, 2].
        creases: float [N, 2 eyes, 11, 2], the fold above the upper lid.
        brows: float [N, 2, 16, 2], closed outlines.
        lips: float [N, 4, 15, 2]: outer upper, inner upper, inner lower, outer lower line.
        gape: float [N], distance of the lips in the middle, fu.
        folds: float [N, 7], depth of each of `FOLDS`.
    """

    def __init__(self, identity: Identity, tracks: Tracks) -> None:
        au = {unit: tracks.units[:, i] for i, unit in enumerate(ACTION_UNITS)}
        opening, rounding = tracks.mouth[:, 0], tracks.mouth[:, 1]
        self.jaw = np.clip(au[26] + 0.28 * opening, 0, 1)
        self.lids, self.creases = _eyes(identity, au, tracks.blink)
        self.brows = _brows(identity, au)
        self.lips, self.gape = _mouth(identity, au, self.jaw, opening, rounding)
        self.folds = np.stack([strength(au) for strength in FOLDS.values()], axis=1).clip(0, 1.2)


def _eyes(who: Identity, au: dict[int, np.ndarray], blink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    up = who.eye_height * (1 + 1.0 * au[5] - 0.40 * au[7] - 0.30 * au[6] - 0.50 * au[9] - 0.85 * au[43])
    down = who.eye_height * 0.62 * (1 + 0.15 * au[5] - 0.75 * au[6] - 0.65 * au[7] - 0.55 * au[9])
    up = np.maximum(up, -0.4 * down)
    up = up * (1 - blink) - 0.75 * down * blink
    arch = (1 - np.abs(_LID) ** 2.3)[None]
    tilt = -who.eye_tilt * _LID
    upper, lower = tilt - up[:, None] * arch, tilt + down[:, None] * arch**1.15
    fold = tilt - (0.062 + 0.35 * np.maximum(up, 0) + 0.02 * au[2] - 0.018 * au[4])[:, None] * arch**0.7 - 0.012
    lids = np.stack([_both(who.eye_distance, who.eye_width, _LID, y) for y in (upper, lower)], axis=2)
    return lids, _both(who.eye_distance, 0.96 * who.eye_width, _LID, fold)


def _both(centre: float, half_width: float, along: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mirror a curve y [N, P] around x = 0: float [N, 2, P, 2]."""
    x = np.broadcast_to(centre + half_width * along, y.shape)
    return np.stack([np.stack([-x, y], axis=-1), np.stack([x, y], axis=-1)], axis=1)


def _brows(who: Identity, au: dict[int, np.ndarray]) -> np.ndarray:
    s = _BROW[None]
    rise = au[1][:, None] * 0.165 * (1 - s) ** 1.3 + au[2][:, None] * 0.150 * s * (1.6 - 0.75 * s)
    sink = au[4][:, None] * 0.125 * (1 - 0.75 * s) + au[9][:, None] * 0.095 * (1 - 0.8 * s)
    y = -who.brow_height - who.brow_arch * np.sin(np.pi * (0.15 + 0.75 * s)) + 0.03 * s - rise + sink
    knit = (0.055 * au[4] + 0.02 * au[9])[:, None] * (1 - s)
    x = np.broadcast_to(who.eye_distance - 0.185 + 0.385 * s - knit, y.shape)
    thick = who.brow_thickness * (0.80 + 0.45 * np.sin(np.pi * s) - 0.70 * s**2)
    outline_x = np.concatenate([x, x[:, ::-1]], axis=1)
    outline_y = np.concatenate([y - thick, (y + thick)[:, ::-1]], axis=1)
    return np.stack([np.stack([side * outline_x, outline_y], axis=-1) for side in (-1, 1)], axis=1)


def _mouth(
    who: Identity, au: dict[int, np.ndarray], jaw: np.ndarray, opening: np.ndarray, rounding: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    half_width = who.mouth_width * (
        1 + 0.36 * au[12] + 0.42 * au[20] - 0.26 * au[26] - 0.10 * au[23] + 0.06 * au[15] - 0.16 * rounding
    )
    corner = who.mouth_y - 0.010 - 0.125 * au[12] + 0.095 * au[15] + 0.30 * JAW_DROP * jaw + 0.02 * au[20]
    upper = who.mouth_y - 0.028 * au[12] - 0.075 * au[9] - 0.015 * au[26] - 0.012 * au[15] - 0.02 * opening
    upper = upper + 0.012 * au[23]
    gape = np.maximum(
        0.30 * au[26] + 0.085 * opening + 0.085 * au[16] + 0.06 * au[12] + 0.035 * au[20] - 0.05 * au[23], 0
    )
    lower = upper + gape
    thin = 1 - 0.62 * au[23] - 0.22 * au[12] - 0.20 * au[20] - 0.12 * au[26]
    thick = who.lip_thickness * np.clip(thin + 0.12 * rounding, 0.25, 1.5)
    s = np.abs(_LIP)[None]
    round_off = np.clip(gape / 0.2, 0, 1)[:, None]
    to_corner = (1 - round_off) * s**2 + round_off * (1 - (1 - s**2.4) ** 0.62)
    bow = 1 - 0.22 * np.exp(-((s / 0.16) ** 2))
    swell = np.sqrt(np.clip(1 - s**2.2, 0, 1))
    inner_up = upper[:, None] + (corner - upper)[:, None] * to_corner
    inner_low = lower[:, None] + (corner - lower)[:, None] * to_corner
    outer_up = inner_up - thick[:, None] * 0.95 * bow * swell**1.3
    outer_low = inner_low + (thick * (1.2 + 0.3 * au[16]))[:, None] * swell
    lines = np.stack([outer_up, inner_up, inner_low, outer_low], axis=1)
    x = np.broadcast_to((half_width[:, None] * _LIP)[:, None], lines.shape)
    return np.stack([x, lines], axis=-1), gape


# Folds of the skin and how deep the action units press them.
FOLDS = {
    "forehead": lambda au: 0.5 * (au[1] + au[2]) - 0.2 * au[4],
    "frown": lambda au: au[4] + 0.3 * au[9],
    "nose": lambda au: au[9],
    "cheeks": lambda au: au[6] + 0.4 * au[9],
    "smile": lambda au: au[12] + 0.7 * au[9] + 0.3 * au[20],
    "corners": lambda au: au[15] + 0.3 * au[23],
    "chin": lambda au: 0.7 * au[15] + 0.8 * au[23],
}
_FOLD_LINES: dict[str, list[list[tuple[float, float]]]] = {
    "forehead": [[(-0.40, y + 0.02), (-0.2, y - 0.01), (0.0, y + 0.01), (0.2, y - 0.01), (0.40, y + 0.02)]
                 for y in (-0.43, -0.50, -0.57)],
    "frown": [[(x, -0.34), (0.8 * x, -0.22), (x, -0.12)] for x in (-0.06, 0.06)],
    "nose": [[(-0.09, 0.0), (0.0, -0.025), (0.09, 0.0)], [(-0.10, 0.06), (0.0, 0.03), (0.10, 0.06)],
             [(-0.10, 0.10), (-0.15, 0.22)], [(0.10, 0.10), (0.15, 0.22)]],
    "cheeks": [[(s * 0.16, 0.085), (s * 0.30, 0.135), (s * 0.46, 0.09)] for s in (-1, 1)]
              + [[(s * 0.50, y), (s * 0.60, 1.7 * y - 0.01)] for s in (-1, 1) for y in (-0.04, 0.02, 0.07)],
    "smile": [[(s * 0.18, 0.38), (s * 0.28, 0.46), (s * 0.37, 0.60), (s * 0.37, 0.70)] for s in (-1, 1)],
    "corners": [[(s * 0.28, 0.70), (s * 0.33, 0.76), (s * 0.34, 0.84)] for s in (-1, 1)],
    "chin": [[(-0.12, 0.845), (0.0, 0.82), (0.12, 0.845)]],
}  # fmt: skip


NECK = 1.1  # y of the point about which a head turns, in face units


class FacePainter:
    """Paints the frames of one actor, one clip at a time: it reuses its canvas."""

    def __init__(self, identity: Identity, width: int, height: int) -> None:
        self._lock = threading.Lock()
        self.width, self.height = width, height
        self.zoom = 2 if height < _MIN_CANVAS_HEIGHT else 1
        self.identity = identity
        portrait = Portrait(identity, width * self.zoom, height * self.zoom)
        self.canvas, self.jaws, self.jaw_box = portrait.canvas, portrait.jaws, portrait.jaw_box
        self._base = portrait.base
        self._work = portrait.base.copy()
        self._face_box = self.canvas.box(-1.0, -0.8, 1.0, 1.5)
        self._eye_box = self.canvas.box(-0.60, -0.25, 0.60, 0.25)
        self._eyeballs = self._paint_eyeballs()
        self._folds = [self._fold(lines) for lines in _FOLD_LINES.values()]
        rows, columns = self.canvas.box(-0.15, 0.1, 0.15, 0.2)
        lit = portrait.base[rows, columns].reshape(-1, 3).mean(axis=0) / identity.skin
        self._glow = float(np.clip(lit.mean(), 0.6, 1.1))

    def paint(self, tracks: Tracks) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB frames of `tracks`, before sensor noise."""
        marks = Landmarks(self.identity, tracks)
        fixed = self.canvas.fixed_point
        shapes = zip(fixed(marks.lids), fixed(marks.creases), fixed(marks.brows), fixed(marks.lips), strict=True)
        frames = np.empty((len(marks.jaw), self.height, self.width, 3), np.uint8)
        views = self._views(tracks.pose)
        with self._lock:
            for n, shape in enumerate(shapes):
                self._draw(float(marks.jaw[n]), marks.folds[n], *shape, gape=float(marks.gape[n]))
                frame = cv2.warpAffine(
                    self._work, views[n], (self.width, self.height),
                    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
                )  # fmt: skip
                cv2.convertScaleAbs(frame, frames[n], float(tracks.light[n]), 0.0)
        return frames

    def _draw(
        self,
        jaw: float,
        folds: np.ndarray,
        lids: np.ndarray,
        creases: np.ndarray,
        brows: np.ndarray,
        lips: np.ndarray,
        *,
        gape: float,
    ) -> None:
        """Redraw the canvas with one frame's landmarks, in fixed-point pixels."""
        self._work[self._face_box] = self._base[self._face_box]
        self._set_jaw(jaw)
        self._press_folds(folds)
        self._draw_eyes(lids, creases)
        shade = 0.50 * self.identity.hair + 0.14 * self.identity.skin * self._glow
        cv2.fillPoly(self._work, list(brows), _colour(shade), cv2.LINE_AA, SHIFT)
        self._draw_mouth(lips, gape)

    def _views(self, pose: np.ndarray) -> np.ndarray:
        """Affine maps from frame pixels to canvas pixels, float64 [N, 2, 3]: sway about the neck."""
        neck = self.canvas.origin / self.zoom + [0.0, NECK * self.canvas.unit / self.zoom]
        cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
        turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=1)
        turn = turn * np.exp(-pose[:, 3])[:, None, None]
        shift = neck - np.einsum("nij,nj->ni", turn, neck - 0.5 + pose[:, :2] * self.height)
        return self.zoom * np.dstack([turn, shift[..., None]]) - [[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]]

    def _set_jaw(self, jaw: float) -> None:
        level = jaw * (JAW_LEVELS - 1)
        low = min(int(level), JAW_LEVELS - 2)
        part = self._work[self.jaw_box]
        cv2.addWeighted(self.jaws[low], 1 - (level - low), self.jaws[low + 1], level - low, 0.0, part)

    def _press_folds(self, depths: np.ndarray) -> None:
        for (box, dark), depth in zip(self._folds, depths, strict=True):
            if depth > 0.02:
                part = self._work[box]
                cv2.addWeighted(part, 1.0, dark, -float(depth), 0.0, part)

    def _draw_eyes(self, lids: np.ndarray, creases: np.ndarray) -> None:
        rows, columns = self._eye_box
        part = self._work[self._eye_box]
        offset = np.array([columns.start, rows.start], np.int32) << SHIFT
        mask = np.zeros(part.shape[:2], np.uint8)
        almonds = np.concatenate([lids[:, 0], lids[:, 1, ::-1]], axis=1) - offset
        cv2.fillPoly(mask, list(almonds), 255, cv2.LINE_8, SHIFT)
        cv2.copyTo(self._eyeballs, mask, part)
        who, skin = self.identity, self.identity.skin * self._glow
        self._draw_lines(creases, skin * 0.66, 1 / 90)
        self._draw_lines(lids[:, 1], skin * [0.66, 0.55, 0.52], 1 / 90)
        self._draw_lines(lids[:, 0], who.hair * 0.35 + 6, who.lashes / 42)

    def _draw_lines(self, lines: np.ndarray, rgb: np.ndarray, thickness: float) -> None:
        """Open lines int32 [L, P, 2], `thickness` in face units."""
        pixels = max(1, round(thickness * self.canvas.unit))
        cv2.polylines(self._work, list(lines), False, _colour(rgb), pixels, cv2.LINE_AA, SHIFT)

    def _draw_mouth(self, lips: np.ndarray, gape: float) -> None:
        outer_up, inner_up, inner_low, outer_low = lips
        red = self.identity.lips * self._glow
        if gape > 0.008:
            self._draw_cavity(inner_up, inner_low, gape)
        upper = np.concatenate([outer_up, inner_up[::-1]])
        lower = np.concatenate([inner_low, outer_low[::-1]])
        cv2.fillPoly(self._work, [lower], _colour(red * 1.04), cv2.LINE_AA, SHIFT)
        cv2.fillPoly(self._work, [upper], _colour(red * 0.86), cv2.LINE_AA, SHIFT)
        gloss = (inner_low[5:10] + 2 * outer_low[5:10]) // 3
        self._draw_lines(gloss[None], red * 1.10 + 10, 1 / 50)
        self._draw_lines(inner_up[None], red * 0.42, 1 / 80)

    def _draw_cavity(self, inner_up: np.ndarray, inner_low: np.ndarray, gape: float) -> None:
        cavity = np.concatenate([inner_up, inner_low[::-1]])
        cv2.fillPoly(self._work, [cavity], (46, 16, 18), cv2.LINE_AA, SHIFT)
        unit = self.canvas.unit * (1 << SHIFT)
        teeth = min(0.055, 0.75 * gape) * unit
        if gape > 0.14:
            tongue = inner_low[2:13].copy()
            tongue[:, 1] -= np.rint((gape - 0.10) * 0.45 * unit * (1 - _LIP[2:13] ** 2)).astype(np.int32)
            outline = np.concatenate([tongue, inner_low[2:13][::-1]])
            cv2.fillPoly(self._work, [outline], (140, 62, 62), cv2.LINE_AA, SHIFT)
        edge = inner_up[2:13].copy()
        edge[:, 1] = np.clip(edge[5, 1] + np.int32(teeth), edge[:, 1], np.maximum(inner_low[2:13, 1], edge[:, 1]))
        bright = _colour(np.array([226.0, 220.0, 208.0]) * min(self._glow, 1.0))
        cv2.fillPoly(self._work, [np.concatenate([inner_up[2:13], edge[::-1]])], bright, cv2.LINE_AA, SHIFT)

    def _paint_eyeballs(self) -> np.ndarray:
        """Whites, irises, pupils and highlights of both open eyes, uint8, as large as the eye box."""
        canvas, who = self.canvas, self.identity
        rows, columns = self._eye_box
        x, y = np.broadcast_arrays(canvas.x[:, columns], canvas.y[rows])
        away = (np.abs(x) - who.eye_distance) / who.eye_width
        whites = np.array([232.0, 228.0, 222.0]) * (1 - 0.22 * away**2 - 1.6 * np.clip(-y - 0.02, 0, 0.1))[..., None]
        radius = np.hypot(np.abs(x) - who.eye_distance, y + 0.006)
        size, edge = 0.074, 1.2 / canvas.unit
        ring = np.clip((radius - 0.3 * size) / (0.7 * size), 0, 1)[..., None]
        iris = who.iris * (1.15 - 0.65 * ring**3)
        eyes = whites + _disc(radius, size, edge) * (iris - whites)
        eyes = eyes * (1 - 0.92 * _disc(radius, 0.40 * size, edge))
        side = np.sign(who.light_from[0]) or 1.0
        for sign in (-1, 1):
            spark = np.hypot(x - sign * who.eye_distance - 0.026 * side, y + 0.034)
            eyes = eyes + 0.8 * _disc(spark, 0.016, edge) * (250 - eyes)
        return np.clip(eyes, 0, 255).astype(np.uint8)

    def _fold(self, lines: list[list[tuple[float, float]]]) -> tuple[tuple[slice, slice], np.ndarray]:
        """A fold's place on the canvas and what it subtracts there at full depth, uint8 [h, w, 3]."""
        canvas = self.canvas
        points = np.array([point for line in lines for point in line])
        (left, top), (right, bottom) = points.min(axis=0) - 0.07, points.max(axis=0) + 0.07
        box = canvas.box(left, top, right, bottom)
        mask = np.zeros(self._base.shape[:2], np.uint8)
        for line in lines:
            cv2.polylines(mask, [canvas.fixed_point(np.array(line))], False, 255,
                          max(1, round(canvas.unit / 40)), cv2.LINE_AA, SHIFT)  # fmt: skip
        soft = mask[box].astype(np.float32) / 255
        soft = 0.45 * cv2.GaussianBlur(soft, (0, 0), 0.014 * canvas.unit) + 0.75 * cv2.GaussianBlur(
            soft, (0, 0), 0.040 * canvas.unit
        )
        taken = soft[..., None] * np.array([0.26, 0.33, 0.34]) * self._base[box]
        return box, np.clip(taken, 0, 255).astype(np.uint8)


def _disc(radius: np.ndarray, size: float, edge: float) -> np.ndarray:
    """Cover of a disc with a soft edge, float [..., 1]."""
    return np.clip((size - radius) / edge + 0.5, 0, 1)[..., None]


def _colour(rgb: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(np.rint(rgb), 0, 255))
    return red, green, blue
