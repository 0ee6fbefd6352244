"""CREMA-D file names: actor, sentence, emotion and intensity.

Source: Cao et al. (2014), "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Transactions on
Affective Computing 5(4), and the description that comes with the data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

ACTORS = range(1001, 1092)
# Class names as in RAVDESS, so that both corpora share them.
EMOTIONS = {
    "ANG": "angry",
    "DIS": "disgust",
    "FEA": "fearful",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
# Low, medium, high, unspecified. Medium and high are RAVDESS's normal and strong; the other two have no equivalent.
INTENSITIES = {"LO": 0, "MD": 1, "HI": 2, "XX": 0}
# Test actors of the five folds of published results (HiCMAE and others).
FOLDS = (range(1001, 1019), range(1019, 1037), range(1037, 1055), range(1055, 1073), range(1073, 1092))
# Shares of the actors.
_VAL, _TEST = 0.1, 0.2


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The fields of a file name.

    Attributes:
        actor: 1001 to 1091.
        statement: 1 to 12, by the order of `SENTENCES`.
        emotion: Class name, one of RAVDESS's eight.
        intensity: 1 (medium), 2 (high), or 0: low, or not asked for.
    """

    actor: int
    statement: int
    emotion: str
    intensity: int


def parse_stem(stem: str) -> Recording:
    """Read a file name without its extension, such as `1001_DFA_ANG_XX`.

    Raises:
        ValueError: `stem` is not a CREMA-D name; the message says which part is not.
    """
    parts = stem.split("_")
    if len(parts) != 4 or not re.fullmatch(r"\d{4}", parts[0], re.ASCII):
        raise ValueError(f"'{stem}' is not an actor, a sentence, an emotion and a level joined by '_' (CREMA-D naming)")
    if int(parts[0]) not in ACTORS:
        raise ValueError(f"actor is {parts[0]}, CREMA-D has {ACTORS[0]} to {ACTORS[-1]}")
    codes: tuple[Collection[str], ...] = (SENTENCES, EMOTIONS, INTENSITIES)
    for what, code, allowed in zip(("sentence", "emotion", "level"), parts[1:], codes, strict=True):
        if code not in allowed:
            raise ValueError(f"{what} is '{code}', CREMA-D has {', '.join(allowed)}")
    return Recording(
        actor=int(parts[0]),
        statement=SENTENCES.index(parts[1]) + 1,
        emotion=EMOTIONS[parts[2]],
        intensity=INTENSITIES[parts[3]],
    )


def split_actors() -> dict[str, Sequence[int]]:
    """Split the 91 actors into 64 for train, 9 for val and 18 for test, by the BLAKE2b digests of their numbers.

    The corpus has no split of its own; this one is fixed and does not depend on which files are present.
    """
    ordered = sorted(ACTORS, key=lambda actor: hashlib.blake2b(str(actor).encode()).digest())
    num_val, num_test = round(_VAL * len(ACTORS)), round(_TEST * len(ACTORS))
    num_train = len(ACTORS) - num_val - num_test
    return {
        "train": sorted(ordered[:num_train]),
        "val": sorted(ordered[num_train : num_train + num_val]),
        "test": sorted(ordered[num_train + num_val :]),
    }
