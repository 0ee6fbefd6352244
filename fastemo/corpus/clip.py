"""One file of a corpus: its label, from its path, and its properties."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastemo.corpus import cremad, ravdess
from fastemo.corpus.config import PICTURE_SUFFIXES, SPLITS
from fastemo.corpus.table import TableRow

# The folder to which keys are relative; of several corpora, each one's folder by its name.
Root = Path | Mapping[str, Path]


def folders(root: Root) -> Mapping[str, Path]:
    """Each corpus's folder by its name; the only one's by an empty name."""
    return {"": root} if isinstance(root, Path) else root


Status = Literal["clip", "unlabelled", "rejected", "audio-only", "duplicate"]
IDENTICAL_TO = "identical to "  # a duplicate's reason, before the other's key
LINE_AT_END = r" \(line \d+ of the label table\)$"

# RAVDESS's own papers and Roy (2025) use both forms for these folders; other names stay as they are.
_EMOTION_ALIASES = {"surprise": "surprised", "fear": "fearful", "anger": "angry", "sadness": "sad"}
_ACTOR_IN_NAME = re.compile(r"actor[_-]?(\d{1,9})(?!\d)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One file of a corpus, one segment of a file, or one folder of images: its label and its properties.

    Attributes:
        key: Path relative to the corpus root, with forward slashes; of several corpora the corpus's name before it, of
            a segment `#start-end` after it. Identifies the clip everywhere.
        status: How the file is used; if it is not `clip`, `reason` says why.
        emotion: Class name; empty where unknown.
        actor, modality, channel, intensity, statement, repetition: RAVDESS's numbers; 0 where unknown. CREMA-D's names
            give actor, intensity and statement, see `cremad.Recording`. With labels from folders, RAVDESS's names give
            actor and modality alone.
        split: `train`, `val` or `test` where the corpus's own folders or a label table say so; empty otherwise.
        subject: The person, as a label table or `corpus.subjects` gives it; empty: as `actor` says.
        corpus: Name of the corpus, if there are several.
        columns: A label table's further columns, as a JSON object of texts; empty for none.
        segment: `start-end` in seconds of the file's time, for a segment; `end` is empty for the file's end.
        first_frame, first_pts: A segment's first frame in the file: its number, and its timestamp in the video's time
            base.
        num_frames: Frames that decode; of a segment, those in it.
        width, height, orientation, pixel_aspect, hdr: See `Probe`; an orientation of 0 is not known.
        size_bytes, mtime_ns: Fingerprint of the file; for a folder of images the sum and the newest.
        verified: How far it was decoded, `quick` or `full`; empty if the probe did not finish.
        face: Where its face is, `left top width height` in pixels of the displayed picture; empty: it has none, or
            was not looked for.
        num_faces: Faces found in it.
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
    subject: str = ""
    corpus: str = ""
    columns: str = ""
    segment: str = ""
    first_frame: int = 0
    first_pts: int = 0
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
    face: str = ""
    num_faces: int = 0

    @property
    def face_box(self) -> tuple[int, int, int, int] | None:
        """`face` as numbers."""
        if not self.face:
            return None
        left, top, width, height = map(int, self.face.split())
        return left, top, width, height

    @property
    def take(self) -> str:
        """The same for both files of one performance: the RAVDESS name without its modality, else the key."""
        if not self.modality:
            return self.key
        take = ravdess.parse_stem(Path(self.path).stem).take
        return f"{take}#{self.segment}" if self.segment else take

    @property
    def path(self) -> str:
        """The file's path: the key without a corpus's name or a segment."""
        path = self.key.removesuffix(f"#{self.segment}") if self.segment else self.key
        return path.removeprefix(f"{self.corpus}/") if self.corpus else path

    def file(self, root: Root) -> Path:
        """The file, or folder of images, below the corpus root."""
        return (root if isinstance(root, Path) else root[self.corpus]) / self.path

    @property
    def anchor(self) -> tuple[int, int] | None:
        """A segment's first frame in its file, number and timestamp; `None` for a whole file."""
        return (self.first_frame, self.first_pts) if self.segment else None

    @property
    def person(self) -> str:
        """Who is shown, the same text for the same person only; empty where unknown."""
        name = self.subject or str(self.actor or "")
        return f"{self.corpus}/{name}" if self.corpus and name else name

    @property
    def is_shown_as_stored(self) -> bool:
        """Whether a player neither turns, mirrors nor stretches the frames, as far as is known."""
        return self.orientation <= 1 and self.pixel_aspect == 1

    @property
    def is_cremad(self) -> bool:
        """Whether the label comes from a CREMA-D name; labelled by folder, such a file has no actor."""
        return self.actor in cremad.ACTORS and is_named(Path(self.path).stem, cremad.parse_stem)


def is_named(stem: str, parse: Callable[[str], object]) -> bool:
    """Whether `parse` reads a file name without its extension."""
    try:
        parse(stem)
    except ValueError:
        return False
    return True


def class_name(folder: str) -> str:
    """The class that a folder stands for: case, blanks around the name and the form of its accents do not count."""
    name = unicodedata.normalize("NFC", folder.strip().lower())
    return _EMOTION_ALIASES.get(name, name)


def label_clip(clip: Clip, labels: str, row: TableRow | None = None, subjects: str | None = None) -> Clip:
    """Fill in what the path, or a label table's row, gives: the fields of the name, class, person and split."""
    if clip.status in ("rejected", "audio-only"):
        return replace(clip, reason=f"{clip.reason} (line {row.line} of the label table)") if row else clip
    *folders, name = clip.path.split("/")
    is_picture = clip.codec == "images"
    is_folder = is_picture and Path(name).suffix.lower() not in PICTURE_SUFFIXES
    folder = class_name(folders[-1]) if folders else ""
    folder = "" if folder in SPLITS else folder
    found, reason = _fields_of_name(name if is_folder else Path(name).stem, labels)
    emotion = found.pop("emotion", "")
    if row:
        emotion, reason = class_name(row.label), f"no label in line {row.line} of the label table"
    elif labels == "folder":
        emotion, reason = folder, "not in a folder named after its class"
    elif not emotion and labels == "ravdess" and is_picture and folder in ravdess.EMOTIONS:
        emotion = folder
    elif not emotion and labels == "ravdess" and is_picture and folder:
        reason = f"'{folders[-1]}' is not one of RAVDESS's classes: --corpus.labels folder takes any"
    elif folder in ravdess.EMOTIONS:
        reason += f"; --corpus.labels folder takes the class from the folder '{folders[-1]}'"
    person = re.search(subjects, clip.path) if subjects else None
    return replace(
        clip,
        **found,
        **({"emotion": emotion} if emotion else {"status": "unlabelled", "reason": reason}),
        split=(row and row.split) or next((folder for folder in folders if folder in SPLITS), ""),
        subject=(row and row.subject) or (person and person[1 if person.re.groups else 0]) or "",
        columns=row.columns if row else "",
    )


def _fields_of_name(stem: str, labels: str) -> tuple[dict[str, Any], str]:
    """A file name's fields, `emotion` only if it gives the class, and why it does not."""
    try:
        if labels == "cremad":
            return vars(cremad.parse_stem(stem)).copy(), ""
        performance = ravdess.parse_stem(stem)
    except ValueError as error:
        actor = _ACTOR_IN_NAME.match(stem) if labels != "cremad" else None
        return {"actor": int(actor[1]) if actor else 0}, str(error)
    found = {"actor": performance.actor, "modality": performance.modality}
    if labels != "ravdess":
        return found, ""
    names = ("channel", "intensity", "statement", "repetition")
    return {**found, **{name: getattr(performance, name) for name in names}, "emotion": performance.emotion_name}, ""


def settle_duplicates(rows: Sequence[Clip], labels: str, identical: Callable[[Clip, Clip], bool]) -> list[Clip]:
    """Keep the first file, by key, of each RAVDESS take and modality and of each CREMA-D take.

    The others are duplicates if they have the same class, split and, by `identical`, content, else rejected.
    """
    first: dict[tuple[str, int], Clip] = {}
    settled = []
    for row in sorted(rows, key=lambda row: row.key):
        if row.status == "clip" and (row.modality or labels == "cremad"):
            take = Path(row.path).stem if labels == "cremad" else row.take
            owner = first.setdefault((take, row.modality), row)
            if owner is not row:
                what = "take and modality" if row.modality else "take"
                if (row.emotion, row.split) == (owner.emotion, owner.split) and identical(row, owner):
                    row = replace(row, status="duplicate", reason=IDENTICAL_TO + owner.key)
                else:
                    row = replace(row, status="rejected", reason=f"duplicate {what}: not identical to {owner.key}")
        settled.append(row)
    return settled
