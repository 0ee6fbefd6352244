"""The looks of a generated actor: colours and proportions from the actor's number and the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastemo.corpus import ravdess
from fastemo.corpus.synthetic.action_units import generator

_IDENTITY = 10  # tag of this module's random keys
_SKIN = ((244, 210, 190), (236, 193, 168), (224, 175, 144), (203, 150, 116), (174, 120, 88), (139, 91, 65),
         (104, 66, 48))  # fmt: skip
_HAIR = ((34, 27, 25), (52, 38, 31), (78, 53, 38), (112, 76, 48), (158, 118, 72), (196, 160, 108),
         (128, 66, 38), (128, 124, 122))  # fmt: skip
_IRIS = ((70, 44, 28), (96, 66, 38), (104, 98, 58), (86, 116, 132), (92, 124, 96))
_SHIRT = ((38, 40, 46), (30, 34, 58), (62, 62, 66), (70, 34, 40), (36, 62, 60), (96, 98, 104))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One generated person: colours (RGB, 0 to 255) and proportions (face units, see `portraits.py`).

    Attributes:
        key: Random key of the painted texture.
        light_from: Direction towards the light, x right, y down, z towards the camera.
        hair_style: Index into the styles of `portraits.py`.
        beard: Density of the beard, 0 none.
        lashes: Thickness of the lash line, 1 = average.
        jaw_width: Fraction of the face width.
        head_scale: Size of a face unit in frame heights.
        head_x: Offset of the face's centre from the frame's, in frame heights.
        head_y: Height of the eyes in the frame, in frame heights.
    """

    key: tuple[int, ...]
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    shirt: np.ndarray
    backdrop: np.ndarray
    light_from: np.ndarray
    hair_style: int
    beard: float
    lashes: float
    face_width: float
    jaw_width: float
    chin: float
    eye_distance: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lip_thickness: float
    head_scale: float
    head_x: float
    head_y: float


def draw_identity(seed: int, actor: int, spread: float) -> Identity:
    """Generate the person of an actor number; `spread` 0 gives everyone the same face.

    Even numbers are drawn as women, odd ones as men, as in RAVDESS. Skin tones are spread evenly over the
    actors rather than drawn at random, so that any group of actors covers a wide range.
    """
    rng = generator(seed, _IDENTITY, actor)
    female = 1.0 if actor % 2 == 0 else -1.0
    place = (
        generator(seed, _IDENTITY).permutation(ravdess.NUM_ACTORS)[actor - 1] + rng.uniform(0.2, 0.8)
    ) / ravdess.NUM_ACTORS
    tone = float(np.clip(0.3 + (place - 0.3) * spread, 0, 1)) ** 1.3
    darkness = 0.25 * spread * rng.uniform(0, 1) if tone < 0.55 else 0.0
    hair_at = float(np.clip(0.28 + spread * (rng.uniform(0, 1) - 0.28), 0, 1)) if tone < 0.5 else darkness
    skin = _ramp(_SKIN, tone) * (1 + 0.03 * spread * rng.normal(size=3) * [0.4, 0.6, 1.0])

    def around(mean: float, deviation: float, gender: float = 0.0) -> float:
        return float(mean + spread * (deviation * np.clip(rng.normal(), -2, 2) + gender * female))

    styles = (3, 4, 5, 6) if female > 0 else (0, 1, 2, 7)
    return Identity(
        key=(seed, _IDENTITY, actor, 1),
        skin=np.clip(skin, 30, 250),
        hair=_ramp(_HAIR, hair_at),
        iris=_ramp(_IRIS, spread * rng.uniform(0, 1) if tone < 0.45 else 0.1),
        lips=np.clip(skin * [0.86, 0.62, 0.62] + [8 * female * spread, 0, 4], 20, 240),
        shirt=np.array(_SHIRT[int(rng.integers(len(_SHIRT))) if spread > 0 else 0], dtype=float),
        backdrop=np.clip(around(212, 12) + np.clip(6 * spread * rng.normal(size=3), -10, 10), 150, 245),
        light_from=np.array([around(0.1, 0.45), around(-0.45, 0.12), 0.8]),
        hair_style=styles[int(rng.integers(4))] if spread > 0 else 0,
        beard=max(0.0, around(-0.1, 0.45)) if female < 0 else 0.0,
        lashes=max(0.6, around(1.0, 0.12, 0.25)),
        face_width=around(0.725, 0.028, -0.012),
        jaw_width=around(0.80, 0.035, -0.035),
        chin=around(1.0, 0.035, -0.02),
        eye_distance=around(0.315, 0.012),
        eye_width=around(0.158, 0.010, 0.004),
        eye_height=around(0.073, 0.008, 0.004),
        eye_tilt=around(0.012, 0.012),
        brow_height=around(0.215, 0.018, 0.012),
        brow_thickness=max(0.018, around(0.038, 0.007, -0.006)),
        brow_arch=around(0.035, 0.014, 0.008),
        nose_length=around(0.44, 0.03),
        nose_width=around(0.135, 0.014, -0.008),
        mouth_y=around(0.655, 0.018),
        mouth_width=around(0.265, 0.018, -0.006),
        lip_thickness=max(0.03, around(0.058, 0.010, 0.005)),
        head_scale=around(0.318, 0.010, -0.004),
        head_x=around(0.0, 0.012),
        head_y=around(0.450, 0.010),
    )


def _ramp(colours: tuple[tuple[int, int, int], ...], position: float) -> np.ndarray:
    table = np.array(colours, dtype=float)
    at = position * (len(table) - 1)
    return np.array([np.interp(at, np.arange(len(table)), channel) for channel in table.T])
