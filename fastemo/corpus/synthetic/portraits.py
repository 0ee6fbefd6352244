"""A person at rest: the parts of the picture that expressions do not move.

Everything is painted once per actor on a canvas, in face units (fu): the origin is between the eyes, x to
the right, y down, and the chin at about y = 1. Skin is lit as a relief: a height field of skull, nose,
cheeks and chin gives normals, and the normals the shading.
"""

from __future__ import annotations

import cv2
import numpy as np

from fastemo.corpus.synthetic.action_units import generator, smoothstep
from fastemo.corpus.synthetic.identity import Identity

SHIFT = 4  # fractional bits of the coordinates that OpenCV draws with
JAW_DROP = 0.17  # how far the chin sinks when the jaw is fully open, fu
JAW_LEVELS = 9


class Canvas:
    """The canvas an actor is painted on: height x width pixels, and the mapping of face units to it."""

    def __init__(self, identity: Identity, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.unit = identity.head_scale * height
        self.origin = np.array([width / 2 + identity.head_x * height, identity.head_y * height])
        self.x = ((np.arange(width) + 0.5 - self.origin[0]) / self.unit)[None, :].astype(np.float32)
        self.y = ((np.arange(height) + 0.5 - self.origin[1]) / self.unit)[:, None].astype(np.float32)

    def fixed_point(self, points: np.ndarray) -> np.ndarray:
        """Face units float [..., 2] -> OpenCV's fixed-point pixels int32 [..., 2]."""
        pixels = self.origin - 0.5 + self.unit * points
        return np.rint(pixels * (1 << SHIFT)).astype(np.int32)

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """Rows and columns of a rectangle given in face units, clipped to the canvas."""
        columns = np.clip(np.rint(self.origin[0] + self.unit * np.array([left, right])), 0, self.width)
        rows = np.clip(np.rint(self.origin[1] + self.unit * np.array([top, bottom])), 0, self.height)
        return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))

    def mask(self, points: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """A filled polygon as float32 [H, W, 1] in 0 to 1, its edge blurred by `blur` fu."""
        image = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(image, [self.fixed_point(points)], 255, cv2.LINE_AA, SHIFT)
        mask: np.ndarray = image.astype(np.float32) / 255
        if blur > 0:
            mask = cv2.GaussianBlur(mask, (0, 0), max(blur * self.unit, 0.3))
        return mask[..., None]

    def bump(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """A Gaussian hill of height 1, float32 [H, W]."""
        columns = np.exp(-0.5 * ((self.x - x) / width) ** 2)
        return columns * np.exp(-0.5 * ((self.y - y) / height) ** 2)


def curve(points: list[tuple[float, float]], per_span: int = 8) -> np.ndarray:
    """A closed smooth (Catmull-Rom) curve through `points`, float [len(points) * per_span, 2]."""
    p = np.array(points)
    before, after, later = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    s = (np.arange(per_span) / per_span)[None, :, None]
    a, b, c, d = (q[:, None] for q in (before, p, after, later))
    line = b + 0.5 * s * (c - a + s * (2 * a - 5 * b + 4 * c - d + s * (3 * (b - c) + d - a)))
    return line.reshape(-1, 2)


def mirrored(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A closed outline from its right half, given from top to bottom."""
    return right + [(-x, y) for x, y in reversed(right) if abs(x) > 1e-6]


class Portrait:
    """The static picture of one actor.

    Attributes:
        canvas: Size, and mapping of face units to pixels.
        base: uint8 [H, W, 3] RGB, the face at rest without eyes, brows and mouth.
        jaw_box: Rows and columns of `base` that move with the jaw.
        jaws: `JAW_LEVELS` uint8 pictures of that box, from a closed to a fully open jaw.
    """

    def __init__(self, identity: Identity, width: int, height: int) -> None:
        self.identity = identity
        self.canvas = Canvas(identity, width, height)
        self.rng = generator(*identity.key)
        behind = self._behind()
        skin, cover = self._head()
        canvas = self.canvas
        self.base = _to_bytes(behind + cover * (skin - behind))
        rows, columns = self.jaw_box = canvas.box(-1.0, 0.38, 1.0, 1.5)
        self.jaws = []
        rest = np.linspace(-2, 3, 2001)
        for level in np.linspace(0, 1, JAW_LEVELS):
            sunk = rest + level * JAW_DROP * smoothstep(rest, 0.40, 0.95)
            source = np.interp(canvas.y[rows, 0], sunk, rest) * canvas.unit + canvas.origin[1] - 0.5
            map_y = np.repeat(source.astype(np.float32)[:, None], columns.stop - columns.start, axis=1)
            map_x = np.repeat(np.arange(columns.start, columns.stop, dtype=np.float32)[None], len(source), axis=0)
            moved = cv2.remap(np.dstack([skin, cover]), map_x, map_y, cv2.INTER_LINEAR)
            under = behind[rows, columns]
            self.jaws.append(_to_bytes(under + moved[..., 3:] * (moved[..., :3] - under)))

    def _behind(self) -> np.ndarray:
        """Backdrop, hair behind the head, neck and clothes: float32 [H, W, 3]."""
        canvas, who = self.canvas, self.identity
        side = who.light_from[0]
        glow = 1.0 - 0.05 * side * canvas.x - 0.035 * (canvas.y - 0.2) ** 2 - 0.012 * canvas.x**2
        image = who.backdrop.astype(np.float32) * glow[..., None].astype(np.float32)
        drop = canvas.mask(curve(mirrored([(0, -1.1), (0.8, -0.5), (0.8, 0.5), (1.7, 1.6), (1.5, 2.6)])), 0.22)
        image = image * (1 - 0.10 * drop)
        back = _HAIR_BEHIND.get(who.hair_style)
        strands = self._strands()
        if back is not None:
            image = _over(image, canvas.mask(curve(mirrored(back)), 0.012), who.hair * 0.72 * strands)
        neck_width = 0.47 if who.lashes < 1 else 0.42
        neck = [(0, 0.4), (neck_width, 0.6), (neck_width, 1.0), (neck_width + 0.05, 1.3), (0, 2.2)]
        column = 1 - 0.32 * (canvas.x / 0.6 - 0.35 * side) ** 2
        under_chin = 1 - 0.42 * smoothstep(-canvas.y, -1.42, -0.95)
        shade = np.clip(column * under_chin, 0.25, 1.1)[..., None]
        image = _over(image, canvas.mask(curve(mirrored(neck)), 0.01), who.skin * 0.93 * shade)
        shirt = [(0.0, 1.47), (0.26, 1.40), (neck_width + 0.03, 1.20), (0.72, 1.30), (1.25, 1.46),
                 (1.60, 1.80), (1.75, 2.7), (0.9, 3.2)]  # fmt: skip
        collar = curve(mirrored(shirt), 6)
        folds = 1.0 + 0.10 * (1.9 - canvas.y) - 0.16 * side * canvas.x - 0.14 * canvas.x**2
        cloth = who.shirt * np.clip(folds, 0.4, 1.6)[..., None]
        return _over(image, canvas.mask(collar, 0.008), cloth).astype(np.float32)

    def _head(self) -> tuple[np.ndarray, np.ndarray]:
        """Ears, lit skin, nose, beard and the front hair: float32 [H, W, 3] and its alpha [H, W, 1]."""
        canvas, who = self.canvas, self.identity
        outline = canvas.mask(curve(self._outline()), 0.004)
        light = self._relief()
        skin: np.ndarray = who.skin.astype(np.float32) * np.ones((*light.shape, 1), np.float32)
        for side in (-1, 1):
            cheek, nose = (
                canvas.bump(side * 0.40, 0.36, 0.17, 0.14),
                canvas.bump(side * 0.08, 0.42, 0.1, 0.08),
            )
            blush = cheek + 0.5 * nose
            skin = skin * (1 - blush[..., None] * np.array([0.0, 0.085, 0.075], np.float32))
            socket = canvas.bump(side * who.eye_distance, 0.0, 0.19, 0.09)
            skin = skin * (1 - 0.12 * socket[..., None])
        pores = cv2.GaussianBlur(self._noise(), (0, 0), 0.03 * canvas.unit)
        skin = skin * (1 + 0.10 * pores[..., None])
        if who.beard > 0:
            skin = self._bearded(skin)
        skin = skin * light[..., None]
        for side in (-1, 1):
            nostril = canvas.bump(side * who.nose_width * 0.52, who.nose_length + 0.012, 0.034, 0.015)
            wing = canvas.bump(side * who.nose_width * 1.12, who.nose_length - 0.035, 0.018, 0.05)
            skin = skin * (1 - 0.62 * nostril - 0.22 * wing)[..., None]
        shadow = canvas.bump(0.04 * -np.sign(who.light_from[0]), who.nose_length + 0.055, 0.11, 0.025)
        skin = skin * (1 - 0.20 * shadow[..., None])
        ears = np.zeros_like(outline)
        if who.hair_style not in (3, 4, 6):
            for side in (-1, 1):
                ear = [(0.0, -0.1), (0.10, -0.13), (0.135, 0.0), (0.10, 0.18), (0.04, 0.32), (-0.03, 0.25)]
                ears = np.maximum(
                    ears, canvas.mask(curve([(side * (who.face_width - 0.02 + x), y) for x, y in ear]), 0.006)
                )
        inside = 1 - 0.35 * (
            canvas.bump(who.face_width + 0.05, 0.08, 0.03, 0.1) + canvas.bump(-who.face_width - 0.05, 0.08, 0.03, 0.1)
        )
        picture = _over(who.skin * 0.86 * inside[..., None], outline, skin)
        cover = np.maximum(outline, ears)
        front = self._hair_front()
        rim = cv2.GaussianBlur(front[..., 0], (0, 0), 0.05 * canvas.unit)[..., None]
        picture = picture * (1 - 0.30 * rim)
        shine = 0.80 + 0.5 * np.exp(-0.5 * ((canvas.y + 0.80) / 0.16) ** 2) * (1 - 0.5 * np.abs(canvas.x))
        hair = (
            who.hair * self._strands() * np.clip(shine * (1 + 0.12 * who.light_from[0] * canvas.x), 0.5, 1.5)[..., None]
        )
        picture = _over(picture, front, hair)
        return picture.astype(np.float32), np.maximum(cover, front).astype(np.float32)

    def _outline(self) -> list[tuple[float, float]]:
        w, jaw, chin = self.identity.face_width, self.identity.jaw_width, self.identity.chin
        return mirrored([(0, -0.98), (0.40 * w, -0.94), (0.80 * w, -0.70), (0.97 * w, -0.30), (w, 0.05),
                         (0.965 * w, 0.38), (jaw * w, 0.70), (0.52 * jaw * w, 0.93 * chin),
                         (0.24 * jaw * w, chin), (0, 1.01 * chin)])  # fmt: skip

    def _relief(self) -> np.ndarray:
        """Brightness of the skin under the actor's light, float32 [H, W], about 1 where the face is flat."""
        canvas, who = self.canvas, self.identity
        skull = 1 - (canvas.x / (who.face_width * 1.10)) ** 2 - ((canvas.y - 0.05) / 1.25) ** 2
        z = 0.62 * np.sqrt(np.clip(skull, 0.02, 1))
        ridge = np.clip((canvas.y + 0.08) / (who.nose_length + 0.02), 0, 1) ** 1.3
        ridge = ridge * smoothstep(-canvas.y, -who.nose_length - 0.05, -who.nose_length + 0.06)
        z = z + 0.17 * ridge * np.exp(-0.5 * (canvas.x / (0.055 + 0.035 * ridge)) ** 2)
        for side in (-1, 1):
            z = z - 0.055 * canvas.bump(side * who.eye_distance, 0.0, 0.15, 0.085)
            z = z + 0.030 * canvas.bump(side * 0.27, -who.brow_height + 0.03, 0.17, 0.06)
            z = z + 0.045 * canvas.bump(side * 0.40, 0.28, 0.15, 0.13)
            z = z + 0.035 * canvas.bump(side * who.nose_width * 0.85, who.nose_length - 0.03, 0.045, 0.045)
        z = z + 0.035 * canvas.bump(0, who.mouth_y, 0.24, 0.15) - 0.030 * canvas.bump(0, 0.82, 0.16, 0.035)
        z = z + 0.045 * canvas.bump(0, 0.92, 0.13, 0.09) - 0.012 * canvas.bump(0, who.nose_length + 0.10, 0.02, 0.05)
        slope_y, slope_x = np.gradient(cv2.GaussianBlur(z.astype(np.float32), (0, 0), 0.012 * canvas.unit))
        normal = np.dstack([-slope_x * canvas.unit, -slope_y * canvas.unit, np.ones_like(z)])
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        towards = who.light_from / np.linalg.norm(who.light_from)
        diffuse = np.clip(normal @ towards.astype(np.float32), 0, 1)
        half = towards + np.array([0.0, 0.0, 1.0])
        gloss = np.clip(normal @ (half / np.linalg.norm(half)).astype(np.float32), 0, 1) ** 24
        return (0.50 + 0.58 * diffuse + 0.07 * gloss).astype(np.float32)

    def _bearded(self, skin: np.ndarray) -> np.ndarray:
        canvas, who = self.canvas, self.identity
        jaw = [(who.face_width * 0.98, 0.25), (who.face_width * 0.80, 0.52), (0.30, 0.52), (0.0, 0.51)]
        hairs = canvas.mask(np.array(jaw + [(-x, y) for x, y in reversed(jaw)] + [(-1.0, 1.3), (1.0, 1.3)]), 0.05)
        hairs = hairs * (1 - 0.9 * canvas.bump(0, who.mouth_y + 0.01, 0.17, 0.06)[..., None])
        grain = 1 + 0.5 * cv2.GaussianBlur(self._noise(), (0, 0), 0.008 * canvas.unit)[..., None]
        density = np.clip(min(who.beard, 0.75) * hairs * grain, 0, 0.9)
        return skin * (1 - density) + who.hair * 0.9 * density

    def _hair_front(self) -> np.ndarray:
        """Alpha of the hair over forehead and temples, float32 [H, W, 1]."""
        canvas, style = self.canvas, self.identity.hair_style
        volume, side_low, line = _HAIR_FRONT[style]
        w = self.identity.face_width
        top = [(-(w + 0.45 * volume), side_low), (-(w + volume), -0.35), (-0.78 * w, -0.86 - 0.7 * volume),
               (-0.3 * w, -1.0 - volume), (0.3 * w, -1.0 - volume), (0.78 * w, -0.86 - 0.7 * volume),
               (w + volume, -0.35), (w + 0.45 * volume, side_low)]  # fmt: skip
        inner = [(x * w, y) for x, y in line]
        end = w + 0.4 * volume - 0.04
        return canvas.mask(
            curve([*top, (end, side_low), *inner, (-end, side_low)], 6),
            0.010,
        )

    def _strands(self) -> np.ndarray:
        """Hair texture around 1, float32 [H, W, 1]."""
        noise = self._noise()
        blur = (0.25, 0.012) if self.identity.hair_style in (3, 4, 6) else (0.06, 0.012)
        if self.identity.hair_style in (5, 7):
            blur = (0.022, 0.022)
        strands = cv2.GaussianBlur(noise, (0, 0), sigmaX=blur[1] * self.canvas.unit, sigmaY=blur[0] * self.canvas.unit)
        return (1 + 0.11 * strands / (strands.std() + 1e-6))[..., None]

    def _noise(self) -> np.ndarray:
        return self.rng.standard_normal((self.canvas.height, self.canvas.width), dtype=np.float32)


# Style -> right half of the hair seen behind the head and neck.
_HAIR_BEHIND = {
    3: [
        (0.0, -1.05),
        (0.62, -0.9),
        (0.90, -0.3),
        (0.95, 0.5),
        (0.98, 1.2),
        (0.80, 1.75),
        (0.3, 1.8),
        (0.0, 1.6),
    ],
    4: [(0.0, -1.05), (0.62, -0.9), (0.92, -0.3), (0.98, 0.4), (0.88, 0.95), (0.55, 1.05), (0.0, 1.0)],
    5: [(0.0, -1.12), (0.62, -1.02), (0.98, -0.5), (1.02, 0.0), (0.90, 0.45), (0.5, 0.6), (0.0, 0.6)],
    6: [
        (0.0, -1.05),
        (0.62, -0.9),
        (0.84, -0.3),
        (0.86, 0.4),
        (0.92, 1.1),
        (1.02, 1.6),
        (0.6, 1.9),
        (0.0, 1.7),
    ],
}
# Style -> volume (fu), where the sideburns end (fu), and the hairline from right to left (x in face widths).
_HAIR_FRONT: dict[int, tuple[float, float, list[tuple[float, float]]]] = {
    0: (0.035, 0.02, [(0.93, -0.30), (0.78, -0.55), (0.40, -0.66), (0.00, -0.69), (-0.40, -0.66),
                      (-0.78, -0.55), (-0.93, -0.30)]),  # cropped
    1: (0.10, 0.06, [(0.92, -0.32), (0.80, -0.52), (0.45, -0.58), (0.00, -0.62), (-0.35, -0.70),
                     (-0.78, -0.58), (-0.93, -0.30)]),  # short and parted
    2: (0.05, 0.04, [(0.93, -0.30), (0.86, -0.55), (0.55, -0.82), (0.00, -0.76), (-0.55, -0.82),
                     (-0.86, -0.55), (-0.93, -0.30)]),  # receding
    3: (0.10, 0.62, [(0.95, 0.10), (0.88, -0.35), (0.55, -0.62), (0.12, -0.80), (-0.35, -0.66),
                     (-0.86, -0.38), (-0.95, 0.10)]),  # long and parted
    4: (0.12, 0.55, [(0.93, 0.10), (0.86, -0.40), (0.50, -0.46), (0.00, -0.47), (-0.50, -0.46),
                     (-0.86, -0.40), (-0.93, 0.10)]),  # a bob with a fringe
    5: (0.17, 0.10, [(0.92, -0.25), (0.80, -0.50), (0.40, -0.62), (0.00, -0.65), (-0.40, -0.62),
                     (-0.80, -0.50), (-0.92, -0.25)]),  # curls
    6: (0.11, 0.60, [(0.96, 0.10), (0.86, -0.30), (0.60, -0.58), (-0.10, -0.74), (-0.45, -0.72),
                     (-0.84, -0.42), (-0.96, 0.10)]),  # long and open
    7: (0.13, 0.02, [(0.92, -0.30), (0.80, -0.54), (0.40, -0.63), (0.00, -0.66), (-0.40, -0.63),
                     (-0.80, -0.54), (-0.92, -0.30)]),  # short curls
}  # fmt: skip


def _over(under: np.ndarray, cover: np.ndarray, paint: np.ndarray) -> np.ndarray:
    return under + cover * (paint - under)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)
