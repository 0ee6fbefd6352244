"""A corpus -> the same with the box of each clip's face, found once and cached."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fastemo.console import Console
from fastemo.corpus.clip import Clip, Root, folders
from fastemo.corpus.manifest import Manifest
from fastemo.errors import DecodeError
from fastemo.machine import available_processors, cache_folder, write_text
from fastemo.video.config import Box, VideoConfig
from fastemo.video.decode import DECODE_VERSION, decoded_frames
from fastemo.video.faces.detector import FaceDetector
from fastemo.video.faces.linking import clip_face
from fastemo.video.sampling import frame_indices

NO_FACE = "no face found in the sampled frames"
# Increased when the same detector finds other boxes in the same frames.
_VERSION = 1
_MOST_NAMED = 5

# A clip's key and what identifies its frames -> its box as `Clip.face`, and how many faces it has.
_Boxes = dict[tuple[str, ...], tuple[str, int]]


def with_faces(
    manifest: Manifest, video: VideoConfig, weights: Path | None, console: Console, *, known: Manifest | None = None
) -> Manifest:
    """The manifest with the face of each clip, if the crop needs it.

    Faces are sought in the T sampled frames, as PyAV decodes them whatever the backend; a clip that does not decode
    has none here, and is reported when it is used. Clips without a face are reported, and with `video.no_face: reject`
    they are rejected.

    Args:
        weights: The detector's, as `FaceDetector` takes them; not needed if `known` has every clip.
        known: What this gave for the same files, which may have other modification times: its boxes are taken.

    Raises:
        ValueError: No clip has a face.
        UserError: The detector's weights are not available.
    """
    if video.crop != "face":
        return manifest
    if known is not None and (same := _as_known(manifest, known)) is not None:
        return same
    boxes = _found(manifest, video, FaceDetector(weights), console)
    clips, without = [], []
    for clip in manifest.clips:
        face, num_faces = boxes.get(_identity(clip), ("", 0))
        clips.append(replace(clip, face=face, num_faces=num_faces))
        if not face and _identity(clip) in boxes:
            without.append(clip.key)
    if len(without) == len(clips):
        raise ValueError(f"no clip of {manifest.where} has a face: use another --video.crop")
    several = sum(clip.num_faces > 1 for clip in clips)
    console.say(
        f"faces: in {sum(bool(clip.face) for clip in clips)} of {len(clips)} clips"
        + f"; {several} have several, of which the largest is taken" * bool(several)
    )
    is_rejected = video.no_face == "reject"
    if without:
        more = f" and {len(without) - _MOST_NAMED} more" * (len(without) > _MOST_NAMED)
        how = "are left out" if is_rejected else "get the centre square (--video.no_face reject leaves them out)"
        console.say(f"{len(without)} clips without a face {how}: {', '.join(without[:_MOST_NAMED])}{more}")
    if is_rejected:
        left_out = set(without)
        clips = [replace(it, status="rejected", reason=NO_FACE) if it.key in left_out else it for it in clips]
    return _with_clips(manifest, clips)


def _with_clips(manifest: Manifest, clips: list[Clip]) -> Manifest:
    others = [row for row in manifest.rows if row.status != "clip"]
    return Manifest.of(manifest.root, [*clips, *others], manifest.passed_over)


def _as_known(manifest: Manifest, known: Manifest) -> Manifest | None:
    """The manifest with another one's boxes; `None` if that lacks a clip."""
    rows = {_identity(row)[:-1]: row for row in (*known.clips, *known.rejected) if row.reason in ("", NO_FACE)}
    clips = []
    for clip in manifest.clips:
        if (row := rows.get(_identity(clip)[:-1])) is None:
            return None
        found = {name: getattr(row, name) for name in ("status", "reason", "face", "num_faces")}
        clips.append(replace(clip, **found))
    return _with_clips(manifest, clips)


def _identity(clip: Clip) -> tuple[str, ...]:
    return clip.key, *map(str, (clip.size_bytes, clip.num_frames, clip.first_frame, clip.mtime_ns))


def _found(manifest: Manifest, video: VideoConfig, detector: FaceDetector, console: Console) -> _Boxes:
    """The boxes of all clips that decode: cached ones, and those found now, which are cached even if it is stopped."""
    roots = "\n".join(f"{name}\0{folder.resolve()}" for name, folder in folders(manifest.root).items())
    depends_on = f"{_VERSION} {DECODE_VERSION} {detector.digest} {video.num_frames}\n{roots}"
    digest = hashlib.blake2b(depends_on.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    path = cache_folder() / "manifests" / f"{digest}-faces.csv"
    boxes = _read(path)
    wanted = [clip for clip in manifest.clips if _identity(clip) not in boxes]
    if wanted:
        with console.track("finding faces", "clips") as advance:
            try:
                _find(wanted, manifest.root, video.num_frames, detector, boxes, advance)
            finally:
                try:
                    _write(path, boxes)
                except OSError as error:
                    console.say(f"cannot cache the faces in {path.parent}: {error.strerror}")
    return boxes


def _find(
    clips: list[Clip],
    root: Root,
    num_frames: int,
    detector: FaceDetector,
    boxes: _Boxes,
    on_progress: Callable[[int, int], None],
) -> None:
    def find(clip: Clip) -> tuple[str, int]:
        indices = frame_indices(clip.num_frames, num_frames, clip.first_frame)
        frames = decoded_frames(clip.file(root), indices.tolist(), anchor=clip.anchor)
        box, num_faces = clip_face([detector.faces(frame) for frame in frames])
        return _text(box), num_faces

    with ThreadPoolExecutor(available_processors()) as pool:
        jobs = {pool.submit(find, clip): clip for clip in clips}
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                with suppress(DecodeError, OSError):
                    boxes[_identity(jobs[job])] = job.result()
                on_progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _text(box: Box | None) -> str:
    """A box as `Clip.face`."""
    return " ".join(map(str, box or ()))


def _read(path: Path) -> _Boxes:
    """A cache's boxes; none if there is no cache, or it is damaged."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [(tuple(row[:-2]), Clip(key="", face=row[-2], num_faces=int(row[-1]))) for row in csv.reader(file)]
        return {identity: (_text(clip.face_box), clip.num_faces) for identity, clip in rows}
    except (OSError, ValueError, IndexError, csv.Error):
        return {}


def _write(path: Path, boxes: Mapping[tuple[str, ...], tuple[str, int]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([*identity, *found] for identity, found in boxes.items())
    write_text(path, text.getvalue())
