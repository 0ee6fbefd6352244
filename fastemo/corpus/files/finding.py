"""A folder -> the files in it that may be clips, and how many there are of every other kind."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from fastemo.corpus.clip import Clip
from fastemo.corpus.config import PICTURE_SUFFIXES
from fastemo.corpus.files.probe import IMAGE_NAME, VIDEO_SUFFIXES

HIDDEN = "hidden or system"
_AUDIO_SUFFIXES = frozenset({".wav"})
# Besides names that begin with a dot; in lower case.
_SYSTEM_NAMES = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir"}
)
_SYNTHESIS_RECORD = "synthetic.json"  # written by the built-in corpus


def find_files(root: Path) -> tuple[list[Path], Counter[str], list[Clip]]:
    """What to examine, sorted, the number of all other files by kind, and the folders that cannot be listed.

    To examine are video files, folders of images, or else pictures, and RAVDESS's audio-only files.
    """
    closed: list[Clip] = []

    def on_error(error: OSError) -> None:
        if Path(error.filename) == root:
            raise ValueError(f"corpus root {root} cannot be read: {error.strerror}") from error
        path = Path(error.filename).relative_to(root)
        if not any(map(_is_hidden, path.parts)):
            reason = f"unreadable folder: {error.strerror}"
            closed.append(Clip(key=path.as_posix(), status="rejected", reason=reason))

    clips: list[Path] = []
    sounds: list[Path] = []
    pictures: list[Path] = []
    passed_over: Counter[str] = Counter()
    ancestors: dict[str, frozenset[str]] = {}
    for folder, subfolders, names in os.walk(root, onerror=on_error, followlinks=True):
        # A link to a parent folder would be followed forever.
        real = os.path.realpath(folder)
        seen = ancestors.get(folder, frozenset()) | {real}
        subfolders[:] = [name for name in subfolders if os.path.realpath(os.path.join(folder, name)) not in seen]
        ancestors.update((os.path.join(folder, name), seen) for name in subfolders)
        is_below = Path(folder) != root
        is_hidden = any(map(_is_hidden, Path(folder).relative_to(root).parts))
        has_frames = False
        for name in names:
            path, suffix = Path(folder, name), os.path.splitext(name)[1].lower()
            if is_hidden or _is_hidden(name):
                passed_over[HIDDEN] += 1
            elif suffix in VIDEO_SUFFIXES:
                clips.append(path)
            elif suffix in _AUDIO_SUFFIXES and name.startswith("03-"):
                sounds.append(path)
            elif is_below and IMAGE_NAME.fullmatch(name):
                has_frames = True
            elif suffix in PICTURE_SUFFIXES:
                pictures.append(path)
            elif name != _SYNTHESIS_RECORD:
                passed_over[suffix if suffix and suffix.isprintable() else "no suffix"] += 1
        if has_frames:
            clips.append(Path(folder))
    if not clips:
        return sorted(pictures + sounds), passed_over, closed
    passed_over.update(path.suffix.lower() for path in pictures)
    return sorted(clips + sounds), passed_over, closed


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES
