"""One file -> its clips: probed, or known from an earlier scan; everything but the labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fastemo.corpus import ravdess
from fastemo.corpus.clip import LINE_AT_END, Clip
from fastemo.corpus.config import Verify
from fastemo.corpus.files.isolation import Examiner, Unsettled
from fastemo.corpus.files.probe import BadFile, Probe, image_files
from fastemo.corpus.table import segment_seconds

PROBED = [field.name for field in fields(Probe) if field.name not in ("ranges", "times")]
_KEPT = ["key", "segment", "first_frame", "first_pts", "size_bytes", "mtime_ns", "verified", *PROBED]
_NOTHING = Clip(key="")
_MOST_PAST_END = 1.0  # seconds: times are rounded when they are written down


def examine(
    path: Path, clips: Sequence[Clip], verify: Verify, reusable: Mapping[str, Clip], examiner: Examiner
) -> list[Clip]:
    """Probe one path once, or reuse an earlier scan's rows.

    Args:
        clips: The whole file or segments of it, with no more than key and segment.
        reusable: Rows of an earlier scan, by key.
    """
    if ravdess_says_audio_only(path.stem):
        return [replace(clip, status="audio-only", reason="RAVDESS audio-only (modality 03)") for clip in clips]
    try:
        size_bytes, mtime_ns = fingerprint(path)
        earlier = [reusable.get(clip.key, _NOTHING) for clip in clips]
        if all((row.size_bytes, row.mtime_ns) == (size_bytes, mtime_ns) for row in earlier):
            return [_reused(row) for row in earlier]
        found: dict[str, Any] = {"size_bytes": size_bytes, "mtime_ns": mtime_ns, "verified": verify}
        try:
            segments = [segment_seconds(clip.segment) for clip in clips if clip.segment]
            probe = examiner.probe(path, verify=verify, size_bytes=size_bytes, segments=segments)
        except BadFile as error:
            found["verified"] = "" if isinstance(error, Unsettled) else verify
            return [replace(clip, status="rejected", reason=str(error), **found) for clip in clips]
    except OSError as error:
        return [replace(clip, status="rejected", reason=f"unreadable: {error.strerror}") for clip in clips]
    found |= {name: getattr(probe, name) for name in PROBED}
    clips, ranges = [replace(clip, **found) for clip in clips], iter(probe.ranges)
    return [_segment(clip, *next(ranges)) if clip.segment else clip for clip in clips]


def _segment(clip: Clip, first: int, stop: int, first_pts: int) -> Clip:
    """A segment, given its file's properties and its own range as `Probe.ranges` gives it."""
    _, end = segment_seconds(clip.segment)
    length = f"the video is {clip.duration_seconds:.1f} s long"
    if first == stop or _MOST_PAST_END < end - clip.duration_seconds < math.inf:
        reason = f"its segment holds no frame: {length}" if first == stop else f"its segment ends later: {length}"
        return replace(clip, status="rejected", reason=reason, num_frames=0)
    seconds = (stop - first) / clip.fps if clip.fps else 0.0
    return replace(clip, first_frame=first, first_pts=first_pts, num_frames=stop - first, duration_seconds=seconds)


def _reused(row: Clip) -> Clip:
    """What an earlier scan found, without a label."""
    found = {name: getattr(row, name) for name in _KEPT}
    if row.status == "rejected" and row.num_frames == 0:
        found |= {"status": "rejected", "reason": re.sub(LINE_AT_END, "", row.reason)}
    return Clip(**found)


def fingerprint(path: Path) -> tuple[int, int]:
    """A clip's size in bytes and modification time in ns: the same as long as its file is unchanged.

    For a folder of images: the sum of its images' sizes and the newest of their times.

    Raises:
        OSError: The file is missing or unreadable.
        ValueError: A folder without images.
    """
    stats = [file.stat() for file in image_files(path)]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def ravdess_says_audio_only(stem: str) -> bool:
    try:
        return ravdess.parse_stem(stem).is_audio_only
    except ValueError:
        return False
