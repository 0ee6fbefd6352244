"""One file of a corpus: its label, from its path, and its properties."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fastemo.corpus import cremad, ravdess
from fastemo.corpus.config import Labels

Status = Literal["clip", "unlabelled", "rejected", "audio-only"]
SPLITS = ("train", "val", "test")

# RAVDESS's own papers and Roy (2025) use both forms for these folders; other names stay as they are.
_EMOTION_ALIASES = {"surprise": "surprised", "fear": "fearful", "anger": "angry", "sadness": "sad"}
_ACTOR_IN_NAME = re.compile(r"actor[_-]?(\d{1,9})(?!\d)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One file of a corpus, or one folder of images: its label and its properties.

    Attributes:
        key: Path relative to the corpus root, with forward slashes. Identifies the clip everywhere.
        status: How the file is used; if it is not `clip`, `reason` says why.
        emotion: Class name; empty where unknown.
        actor, modality, channel, intensity, statement, repetition: RAVDESS's numbers; 0 where unknown. CREMA-D's names
            give actor, intensity and statement, see `cremad.Recording`.
        split: `train`, `val` or `test` where the corpus's own folders say so; empty otherwise.
        num_frames: Frames that decode.
        width, height, orientation, pixel_aspect, hdr: See `Probe`; an orientation of 0 is not known.
        size_bytes, mtime_ns: Fingerprint of the file; for a folder of images the sum and the newest.
        verified: How far it was decoded, `quick` or `full`; empty if the probe did not finish.
    """

    key: str
    status: Status = "clip"
    reason: str = ""
    emotion: str = ""
    actor: int = 0
    modality: int = 0
    channel: int = 0
    intensity: int = 0
    statement: int = 0
    repetition: int = 0
    split: str = ""
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    duration_seconds: float = 0.0
    orientation: int = 0
    pixel_aspect: float = 1.0
    hdr: str = ""
    size_bytes: int = 0
    mtime_ns: int = 0
    verified: str = ""

    @property
    def take(self) -> str:
        """The same for both files of one performance: the RAVDESS name without its modality, else the key."""
        return ravdess.parse_stem(Path(self.key).stem).take if self.modality else self.key


def label_clip(clip: Clip, labels: Labels) -> Clip:
    """Fill in what the path gives: the fields of the name, class and split."""
    if clip.status in ("rejected", "audio-only"):
        return clip
    *folders, name = clip.key.split("/")
    split = next((folder for folder in folders if folder in SPLITS), "")
    clip = replace(clip, split=split)
    stem = name if clip.codec == "images" else Path(name).stem
    if labels == "cremad":
        try:
            return replace(clip, **vars(cremad.parse_stem(stem)))
        except ValueError as error:
            return replace(clip, status="unlabelled", reason=str(error))
    try:
        performance = ravdess.parse_stem(stem)
    except ValueError as error:
        reason = str(error)
        actor = _ACTOR_IN_NAME.match(stem)
        clip = replace(clip, actor=int(actor[1]) if actor else 0)
        emotion = ""
    else:
        reason = ""
        emotion = performance.emotion_name
        names = ("actor", "modality", "channel", "intensity", "statement", "repetition")
        clip = replace(clip, **{field: getattr(performance, field) for field in names})
    folder = folders[-1] if folders else ""
    known = _EMOTION_ALIASES.get(folder.lower(), folder.lower())
    folder = known if known in ravdess.EMOTIONS else folder
    if labels == "folder":
        emotion = "" if folder in SPLITS else folder
        reason = "not in a folder named after its class (--corpus.labels folder)"
    elif not emotion and clip.codec == "images" and folder in ravdess.EMOTIONS:
        emotion = folder
    if not emotion:
        return replace(clip, status="unlabelled", reason=reason)
    return replace(clip, emotion=emotion)


def reject_duplicates(rows: Sequence[Clip], labels: Labels) -> list[Clip]:
    """Reject all but the first file, by key, of each RAVDESS take and modality and of each CREMA-D take."""
    first: dict[tuple[str, int], str] = {}
    kept = []
    for row in sorted(rows, key=lambda row: row.key):
        if row.status == "clip" and (row.modality or labels == "cremad"):
            take = Path(row.key).stem if labels == "cremad" else row.take
            owner = first.setdefault((take, row.modality), row.key)
            if owner != row.key:
                what = "take and modality" if row.modality else "take"
                row = replace(row, status="rejected", reason=f"duplicate {what}: same as {owner}")
        kept.append(row)
    return kept
