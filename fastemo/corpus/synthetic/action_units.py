"""Curves of a face over time: facial action units, head sway, light, speech and blinks.

An expression is a set of FACS action units (Ekman & Friesen), chosen as in EMFACS. Every curve of
`performance_tracks` is computed for the first class of a pair and read backwards for the second, so that
the two differ in order only; blinks and speech are added on top and are symmetric in time on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastemo.corpus import ravdess

FRAMES_PER_SECOND = 30000 / 1001

ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 12, 15, 16, 20, 23, 26, 43)
EXPRESSIONS: dict[str, dict[int, float]] = {
    "neutral": {},
    "calm": {12: 0.38, 43: 0.55},
    "happy": {6: 1.0, 12: 1.0},
    "sad": {1: 1.0, 4: 0.6, 15: 1.0},
    "angry": {4: 1.0, 5: 0.4, 7: 0.8, 23: 1.0},
    "fearful": {1: 1.0, 2: 0.6, 4: 0.7, 5: 1.0, 20: 1.0, 26: 0.45},
    "disgust": {9: 1.0, 15: 0.35, 16: 0.9},
    "surprised": {1: 1.0, 2: 1.0, 5: 0.9, 26: 1.0},
}
# Both classes of a pair show both expressions: the first class in this order, the second in the other.
PAIRS = (("surprised", "fearful"), ("sad", "disgust"))

# How far the mouth opens and rounds at each of a statement's seven syllables ("Kids are talking by the door",
# "Dogs are sitting by the door"). Palindromes: the mouth must not show the direction of time.
SYLLABLE_OPENING = ((0.55, 0.45, 1.0, 0.5, 1.0, 0.45, 0.55), (0.95, 0.4, 0.6, 0.45, 0.6, 0.4, 0.95))
SYLLABLE_ROUNDING = ((0.0, 0.2, 0.5, -0.4, 0.5, 0.2, 0.0), (0.7, 0.1, -0.5, -0.3, -0.5, 0.1, 0.7))

_INTENSITY_GAIN = {1: 0.6, 2: 0.95}
_TAKE, _BLINK, _SPEECH, _GAIN, _PLACE = range(5)
# A head's half width, half height and the distance from its middle down to the neck, in face units.
_HALF_WIDTH, _HALF_HEIGHT, _TO_NECK = 0.8, 1.05, 1.15


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """The state of a face in each of N frames.

    Attributes:
        units: float64 [N, 14], strength of each of `ACTION_UNITS`: 0 absent, 1 full.
        pose: float64 [N, 4], head x and y in frame heights, rotation in radians, logarithm of scale.
        light: float64 [N], gain of the picture, 1 = as lit.
        blink: float64 [N], 0 = lids as the action units set them, 1 = closed.
        mouth: float64 [N, 2], opening (0 to about 1) and rounding (-1 spread to 1 round) by speech.
    """

    units: np.ndarray
    pose: np.ndarray
    light: np.ndarray
    blink: np.ndarray
    mouth: np.ndarray


def generator(*key: int) -> np.random.Generator:
    """A random stream that depends only on the integers of `key`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(key))))


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a smooth cubic between."""
    s = np.clip((x - low) / max(high - low, 1e-6), 0, 1)
    return s * s * (3 - 2 * s)


def performance_tracks(
    performance: ravdess.Performance, *, num_frames: int, seed: int, identity: float, timing: float,
    motion: float, light: float,
) -> Tracks:  # fmt: skip
    """The curves of one take, without blinks and speech.

    `identity`, `timing`, `motion` and `light` scale the spread of what differs between people, between takes,
    head movement and light. The modality has no effect: both files of a take show the same.
    """
    emotion = performance.emotion_name
    order = next((pair for pair in PAIRS if emotion in pair), (emotion,))
    leader = ravdess.EMOTIONS.index(order[0])
    rng = generator(seed, _TAKE, performance.actor, leader, *_take_fields(performance))
    units = _expression_units(order, num_frames, rng, timing, _INTENSITY_GAIN[performance.intensity])
    units = units * _personal_gains(seed, performance.actor, leader, identity)
    seconds = np.arange(num_frames) / FRAMES_PER_SECOND
    pose_scale = motion * np.array([0.014, 0.008, 0.023, 0.014])
    pose = np.stack([_wander(seconds, rng) for _ in pose_scale], axis=1) * pose_scale
    gain = 1.0 + light * (0.04 * rng.normal() + 0.016 * _wander(seconds, rng))
    backwards = slice(None, None, -1 if emotion != order[0] else 1)
    return Tracks(
        units=units[backwards],
        pose=pose[backwards],
        light=np.maximum(gain[backwards], 0.3),
        blink=np.zeros(num_frames),
        mouth=np.zeros((num_frames, 2)),
    )


def blink_track(performance: ravdess.Performance, *, num_frames: int, seed: int) -> np.ndarray:
    """Closing of the lids, float64 [N] in 0 to 1: blinks of 0.2 to 0.3 s at uniformly random moments."""
    rng = generator(seed, _BLINK, performance.actor, performance.emotion, *_take_fields(performance))
    seconds = np.arange(num_frames) / FRAMES_PER_SECOND
    closing = np.zeros(num_frames)
    for _ in range(rng.poisson(0.35 * num_frames / FRAMES_PER_SECOND)):
        moment, half_width = rng.uniform(0, num_frames / FRAMES_PER_SECOND), rng.uniform(0.10, 0.15)
        distance = np.abs(seconds - moment) / half_width
        closing = np.maximum(closing, np.clip(1.5 * np.cos(np.minimum(distance, 1) * np.pi / 2) ** 2, 0, 1))
    return closing


def speech_track(performance: ravdess.Performance, *, num_frames: int, seed: int, timing: float) -> np.ndarray:
    """Opening and rounding of the speaking mouth, float64 [N, 2]: the statement's seven syllables.

    `timing` scales the jitter of the sentence's position, length and loudness, all symmetric in time.
    """
    rng = generator(seed, _SPEECH, performance.actor, performance.emotion, *_take_fields(performance))
    phase = np.linspace(0, 1, num_frames) if num_frames > 1 else np.full(1, 0.5)
    centre = 0.5 + 0.04 * timing * rng.uniform(-1, 1)
    length = 0.62 * (1 + 0.12 * timing * rng.uniform(-1, 1))
    spots = centre + length * np.linspace(-0.5, 0.5, 7)
    loudness = np.clip(1 + 0.25 * timing * rng.uniform(-1, 1, size=7), 0, 2)
    bumps = np.exp(-0.5 * ((phase[:, None] - spots) / (0.036 * length / 0.62)) ** 2) * loudness
    opening = bumps @ np.array(SYLLABLE_OPENING[performance.statement - 1])
    rounding = bumps @ np.array(SYLLABLE_ROUNDING[performance.statement - 1])
    return np.stack([opening, rounding], axis=1)


def head_place(
    performance: ravdess.Performance, *, seed: int, place: float, aspect: float, unit: float, neck: tuple[float, float]
) -> np.ndarray:
    """What a take adds to every row of `Tracks.pose`, float64 [4]: where the head is in the picture, and its size.

    At `place` 1 the head is 40 to 100 % of its size and wholly in the picture, anywhere; both classes of a pair have
    the same places.

    Args:
        aspect: The picture's width, in its heights.
        unit: A face unit, in frame heights.
        neck: x and y of the neck in the middle of the picture, in frame heights.
    """
    order = next((pair for pair in PAIRS if performance.emotion_name in pair), (performance.emotion_name,))
    leader = ravdess.EMOTIONS.index(order[0])
    rng = generator(seed, _PLACE, performance.actor, leader, *_take_fields(performance))
    smaller = -0.9 * place * rng.uniform()
    unit *= np.exp(smaller)
    sides = np.array([_HALF_WIDTH, _HALF_HEIGHT]) * unit
    middle = sides + rng.uniform(size=2) * np.maximum(0, np.array([aspect, 1.0]) - 2 * sides)
    shift = middle - neck
    shift[1] += _TO_NECK * unit
    return np.array([*min(1.0, place) * shift, 0.0, smaller])


def _take_fields(performance: ravdess.Performance) -> tuple[int, int, int, int]:
    return performance.channel, performance.intensity, performance.statement, performance.repetition


def _expression_units(
    order: tuple[str, ...], num_frames: int, rng: np.random.Generator, timing: float, gain: float
) -> np.ndarray:
    """The expressions of `order` one after the other, float64 [N, 14]: onset, apex and offset of each."""
    phase = np.linspace(0, 1, num_frames) if num_frames > 1 else np.full(1, 0.5)
    draws = rng.uniform(-1, 1, size=8) * timing
    begin, end = 0.12 + 0.07 * draws[0], 0.88 + 0.07 * draws[1]
    swap = 0.5 + 0.06 * draws[2]
    slow = 0.16 * np.clip(1 + 0.3 * draws[3:6], 0.2, 1.8)
    loud = gain * np.clip(1 + 0.18 * draws[6:8], 0.4, 1.6)
    if len(order) == 1:
        spans = [(begin, begin + slow[0], end - slow[2], end)]
    else:
        half = slow[1] / 2
        spans = [
            (begin, begin + slow[0], swap - half, swap + half),
            (swap - half, swap + half, end - slow[2], end),
        ]
    units = np.zeros((num_frames, len(ACTION_UNITS)))
    for name, span, strength in zip(order, spans, loud, strict=False):
        weights = np.array([EXPRESSIONS[name].get(unit, 0.0) for unit in ACTION_UNITS])
        envelope = smoothstep(phase, span[0], span[1]) - smoothstep(phase, span[2], span[3])
        units += strength * np.clip(envelope, 0, 1)[:, None] * weights
    return units


def _personal_gains(seed: int, actor: int, leader: int, identity: float) -> np.ndarray:
    """How strongly a person shows each action unit in one expression (or pair), float64 [14]."""
    rng = generator(seed, _GAIN, actor, leader)
    spread = 0.12 * rng.normal() + 0.08 * rng.normal(size=len(ACTION_UNITS))
    return np.exp(np.clip(identity * spread, -0.6, 0.4))


def _wander(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A slow random curve around a random level, float64 [N], standard deviation about 1."""
    hertz = rng.uniform(0.15, 0.9, size=3)
    phases = rng.uniform(0, 2 * np.pi, size=3)
    waves = np.sin(2 * np.pi * hertz * seconds[:, None] + phases).sum(axis=1)
    return 0.6 * rng.normal() + 0.65 * waves
