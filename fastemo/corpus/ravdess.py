"""RAVDESS file names: their seven fields, parsed and formatted.

Source: Livingstone & Russo (2018), "The Ryerson Audio-Visual Database of Emotional Speech and Song",
PLoS ONE 13(5), section "Filename identifiers".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
MODALITIES = ("audio-video", "video-only", "audio-only")
CHANNELS = ("speech", "song")
INTENSITIES = ("normal", "strong")
NUM_ACTORS = 24

_FIELD_COUNTS = {
    "modality": len(MODALITIES),
    "channel": len(CHANNELS),
    "emotion": len(EMOTIONS),
    "intensity": len(INTENSITIES),
    "statement": 2,
    "repetition": 2,
    "actor": NUM_ACTORS,
}
_NAME = re.compile(r"\d{2}(-\d{2}){6}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Performance:
    """The seven fields of one RAVDESS file name, in order, each 1-based as in the name.

    Raises:
        ValueError: A field is outside RAVDESS's range, or a neutral performance is marked strong.
    """

    modality: int
    channel: int
    emotion: int
    intensity: int
    statement: int
    repetition: int
    actor: int

    def __post_init__(self) -> None:
        for field, count in _FIELD_COUNTS.items():
            value = getattr(self, field)
            if not 1 <= value <= count:
                raise ValueError(f"{field} is {value:02d}, RAVDESS has 01 to {count:02d}")
        if self.emotion == 1 and self.intensity == 2:
            raise ValueError("neutral is marked strong, RAVDESS records neutral at normal intensity only")

    @property
    def stem(self) -> str:
        """The file name without its extension, such as `02-01-04-01-02-01-01`."""
        return "-".join(f"{getattr(self, field):02d}" for field in _FIELD_COUNTS)

    @property
    def take(self) -> str:
        """The name without its modality: the same for the audio-video and the video-only file of a take."""
        return self.stem[3:]

    @property
    def label(self) -> int:
        """Class index 0 (neutral) to 7 (surprised)."""
        return self.emotion - 1

    @property
    def emotion_name(self) -> str:
        return EMOTIONS[self.emotion - 1]

    @property
    def is_female(self) -> bool:
        """Even actor numbers are female, odd ones male."""
        return self.actor % 2 == 0

    @property
    def is_audio_only(self) -> bool:
        return MODALITIES[self.modality - 1] == "audio-only"

    def with_modality(self, modality: int) -> Performance:
        return replace(self, modality=modality)


def parse_stem(stem: str) -> Performance:
    """Read a file name without its extension.

    Raises:
        ValueError: `stem` is not a RAVDESS name; the message says which part is not.
    """
    if not _NAME.fullmatch(stem):
        raise ValueError(f"'{stem}' is not seven two-digit numbers joined by '-' (RAVDESS naming)")
    return Performance(**dict(zip(_FIELD_COUNTS, map(int, stem.split("-")), strict=True)))


def speech_performances(actor: int, *, modality: int = 2) -> list[Performance]:
    """The 60 speech takes of an actor: neutral 4, every other emotion 8."""
    return [
        Performance(
            modality=modality,
            channel=1,
            emotion=emotion,
            intensity=intensity,
            statement=statement,
            repetition=repetition,
            actor=actor,
        )
        for emotion in range(1, len(EMOTIONS) + 1)
        for intensity in ((1,) if emotion == 1 else (1, 2))
        for statement in (1, 2)
        for repetition in (1, 2)
    ]
