"""A folder -> a Manifest: every clip probed once, every unusable file listed with the reason."""

from __future__ import annotations

import csv
import filecmp
import io
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from fastemo.corpus import ravdess
from fastemo.corpus.clip import IDENTICAL_TO, Clip, Root, Status, folders, label_clip, settle_duplicates
from fastemo.corpus.config import LABELS, Verify, check_labels
from fastemo.corpus.files.examining import examine, fingerprint
from fastemo.corpus.files.finding import find_files
from fastemo.corpus.files.isolation import Examiner, Limits
from fastemo.corpus.files.probe import BadFile, image_files, probe_clip
from fastemo.corpus.table import TableRow, by_file, read_columns, read_table
from fastemo.machine import available_processors, write_text

_DISPLAY = frozenset({"orientation", "pixel_aspect", "hdr"})
_SINCE_0_2 = _DISPLAY | {
    *("subject", "corpus", "columns", "segment", "first_frame", "first_pts", "face", "num_faces"),
}
_NOTHING = Clip(key="")
_Row = tuple[Clip, TableRow | None]
_LARGE = ("size_bytes", "first_pts")
_FACE = re.compile(r"(?:\d{1,6} \d{1,6} [1-9]\d{0,5} [1-9]\d{0,5})?")
_DRIVE_OR_SHARE = re.compile(r"[A-Za-z]:[\\/]|\\")


@dataclass(frozen=True)
class Manifest:
    """The files below a root, sorted by key.

    Attributes:
        clips: Labelled and readable: what a protocol may choose from.
        unlabelled: Readable, but their names give no class: never trained on.
        rejected: Unusable; `reason` says why.
        audio_only: RAVDESS's audio-only files (modality 03): skipped.
        duplicates: Identical copies of the clips of a take, which are used once.
        passed_over: Number of the other files by kind: suffix in lower case, `no suffix` or `HIDDEN`; not in the CSV.
    """

    root: Root
    clips: tuple[Clip, ...]
    unlabelled: tuple[Clip, ...] = ()
    rejected: tuple[Clip, ...] = ()
    audio_only: tuple[Clip, ...] = ()
    duplicates: tuple[Clip, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, root: Root, rows: Sequence[Clip], passed_over: Mapping[str, int] | None = None) -> Manifest:
        def having(status: Status) -> tuple[Clip, ...]:
            return tuple(sorted((row for row in rows if row.status == status), key=lambda row: row.key))

        used, unlabelled, rejected, audio_only, duplicates = map(having, get_args(Status))
        return cls(root, used, unlabelled, rejected, audio_only, duplicates, passed_over or {})

    @classmethod
    def joined(cls, root: Root, parts: Mapping[str, Manifest]) -> Manifest:
        """Several corpora as one, each under its name; the only one, under an empty name, as it is."""
        if "" in parts:
            return parts[""]
        rows = [replace(row, key=f"{name}/{row.key}", corpus=name) for name, part in parts.items() for row in part.rows]
        return cls.of(root, rows, sum((Counter(part.passed_over) for part in parts.values()), Counter()))

    @property
    def rows(self) -> tuple[Clip, ...]:
        return self.clips + self.unlabelled + self.rejected + self.audio_only + self.duplicates

    @property
    def where(self) -> str:
        """The corpus root, or all of them, for messages."""
        return ", ".join(map(str, folders(self.root).values()))

    @property
    def class_names(self) -> tuple[str, ...]:
        """RAVDESS's eight if RAVDESS's or CREMA-D's file names give labels, else those that occur.

        In RAVDESS's order if all are RAVDESS's, else sorted.
        """
        names = {clip.emotion for clip in self.clips}
        if not names <= set(ravdess.EMOTIONS):
            return tuple(sorted(names))
        is_named = any(clip.channel or clip.is_cremad for clip in self.clips)
        return ravdess.EMOTIONS if is_named else tuple(name for name in ravdess.EMOTIONS if name in names)

    def rebased(self, root: Root) -> Manifest:
        """The same clips below `root`, on this host: files of the size that was scanned count as the scanned ones.

        Copies of a corpus differ in modification times. A missing file, or one of another size, keeps its row and is
        reported when it is decoded. Rows of a version that did not record how pictures are stored get that now.
        """

        def here(clip: Clip) -> Clip:
            try:
                size_bytes, mtime_ns = fingerprint(clip.file(root))
            except (OSError, ValueError):
                return clip
            if size_bytes != clip.size_bytes:
                return clip
            clip = replace(clip, mtime_ns=mtime_ns)
            return clip if clip.orientation else _with_display(clip, clip.file(root))

        return replace(self, root=root, clips=tuple(here(clip) for clip in self.clips))

    def write_csv(self, path: Path) -> None:
        """Write all rows, atomically."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        names = [field.name for field in fields(Clip)]
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in self.rows)
        write_text(path, text.getvalue())


def read_manifest(path: Path, root: Root) -> Manifest:
    """Read what `Manifest.write_csv` wrote.

    Raises:
        ValueError: The file is not a manifest, a key points outside the corpus, or a number makes no sense; the message
            names the file and the line.
    """
    types = {f.name: type(f.default) if isinstance(f.default, (int, float)) else str for f in fields(Clip)}
    rows = []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        try:
            # Versions before 0.2 wrote fewer columns; how the picture is stored is then unknown: orientation 0.
            found = {*(reader.fieldnames or ())}
            types = {name: kind for name, kind in types.items() if name in found or name not in _SINCE_0_2}
            if found != set(types):
                raise ValueError("its first line is not the manifest's header")
            for row in reader:
                if None in row or None in row.values() or row["status"] not in get_args(Status):
                    raise ValueError("columns are missing or too many, or the status is unknown")
                values: dict[str, Any] = {name: kind(row[name]) for name, kind in types.items()}
                _check_key(values["key"])
                if not isinstance(root, Path) and values["corpus"] not in root:
                    raise ValueError(f"its corpus {values['corpus']!r} is none of {', '.join(root)}")
                read_columns(values.get("columns", ""))
                if not _FACE.fullmatch(values.get("face", "")):
                    raise ValueError(f"face is {values['face']!r}")
                _check_numbers(values)
                rows.append(Clip(**values))
                _check_key(rows[-1].path)  # without a segment, `..#1-2` would be the folder above
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {reader.reader.line_num}: not a manifest ({error})") from error
    return Manifest.of(root, rows)


def _check_key(key: str) -> None:
    """Raises `ValueError` unless a key is a path below the corpus root, on every operating system."""
    parts = re.split(r"[\\/]" if os.name == "nt" else "/", key)
    if "\0" in key or _DRIVE_OR_SHARE.match(key) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"the key {key!r} is not a path below the corpus root")


def _check_numbers(values: dict[str, Any]) -> None:
    """Raises `ValueError` for numbers that no scan writes."""
    for name, value in values.items():
        if name == "mtime_ns" or isinstance(value, str):  # times before 1970 are valid
            continue
        largest = sys.float_info.max if isinstance(value, float) else 2 ** (31 if name not in _LARGE else 62) - 1
        if not (-largest if name == "first_pts" else 0) <= value <= largest:  # false for NaN too
            raise ValueError(f"{name} is {value}")


def scan(
    root: Path | str,
    *,
    labels: str = "ravdess",
    subjects: str | None = None,
    verify: Verify = "quick",
    threads: int | None = None,
    known: Path | None = None,
    limits: Limits | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Find every video below `root`, at any depth, and probe each once, in separate processes.

    Folders of images named `frame0001.jpg` and so on (Roy (2025)'s layout) count as clips too; where there is neither
    a video nor such a folder, every picture is a clip of one frame. All other files are counted by kind. A file that
    crashes its process, takes too long or needs too much memory is rejected like any other that does not decode.

    Args:
        root: The corpus.
        labels: Source of the class: `ravdess` or `cremad` file names, the name of the file's `folder`, or the path of a
            label table: only its files are examined then.
        subjects: Regular expression that finds the person in a path: its first group, or all that it matches.
        verify: `quick` decodes the first frame of each file, `full` all of them.
        threads: Files probed at once; by default one per processor.
        known: A manifest of an earlier scan: rows whose size and modification time still match are reused.
            A missing or unreadable manifest is ignored.
        limits: Limits on the examination of one file.
        on_progress: Called with (files done, files in all).

    Raises:
        ValueError: `root` is not a folder or cannot be listed, an option is not one of those allowed, a file's name
            would point outside the corpus on another operating system, or the label table is faulty.
        WorkerError: The processes that examine files cannot be started.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"corpus root {root} is not a folder")
    check_labels("labels", labels)
    if verify not in ("quick", "full"):
        raise ValueError(f"verify must be quick or full, not '{verify}'")
    reusable = _reusable_rows(known, root, verify)
    paths, passed_over, rows = find_files(root)
    keys = {path.relative_to(root).as_posix(): path for path in paths}
    wanted: dict[Path, list[_Row]] = {path: [(Clip(key=key), None)] for key, path in keys.items()}
    if labels not in LABELS:
        wanted, missing = _files_of(read_table(Path(labels), root), keys, root)
        absent = [(replace(clip, status="rejected", reason="no such file"), row) for clip, row in missing]
        rows += [label_clip(clip, labels, row) for clip, row in absent]
        if unnamed := sum(path not in wanted for path in paths):
            passed_over[f"not in {Path(labels).name}"] = unnamed
    for own in wanted.values():
        _check_key(own[0][0].path)
    examined = _examined(wanted, verify, threads or available_processors(), reusable, limits or Limits(), on_progress)
    rows += [label_clip(clip, labels, row, subjects) for clip, row in examined]
    rows = settle_duplicates(rows, labels, partial(_identical, root, reusable))
    return Manifest.of(root, rows, passed_over)


def _examined(
    wanted: Mapping[Path, Sequence[_Row]],
    verify: Verify,
    threads: int,
    reusable: Mapping[str, Clip],
    limits: Limits,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[_Row]:
    """What is found of each clip, in any order."""
    with Examiner(limits) as examiner, ThreadPoolExecutor(threads) as pool:
        jobs = {
            pool.submit(examine, path, [clip for clip, _ in own], verify, reusable, examiner): own
            for path, own in wanted.items()
        }
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                yield from zip(job.result(), [row for _, row in jobs[job]], strict=True)
                if on_progress:
                    on_progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            examiner.close()
            raise


def _files_of(
    table: Sequence[TableRow], known: Mapping[str, Path], root: Path
) -> tuple[dict[Path, list[_Row]], list[_Row]]:
    """The files that a label table names, each with its clips, and the clips whose file is missing."""
    spelled = {unicodedata.normalize("NFC", key): key for key in known}
    files: dict[Path, list[_Row]] = {}
    missing: list[_Row] = []
    for name, same in by_file(table).items():
        # Systems differ in how they store accents.
        key = name if name in known else spelled.get(unicodedata.normalize("NFC", name), name)
        path = known.get(key) or root / key
        own: list[_Row] = [(Clip(key=row.key, segment=row.segment), row) for row in same]
        if key != name:
            own = [(replace(clip, key=key + clip.key.removeprefix(name)), row) for clip, row in own]
        if key in known or path.exists():
            files[path] = own
        else:
            missing += own
    return files, missing


def _identical(root: Path, reusable: Mapping[str, Clip], row: Clip, owner: Clip) -> bool:
    """Whether two clips have the same bytes; unchanged since an earlier scan that found so, they are not read again."""
    if row.size_bytes != owner.size_bytes:
        return False
    before = [reusable.get(it.key, _NOTHING) for it in (row, owner)]
    is_unchanged = all(
        (one.size_bytes, one.mtime_ns) == (it.size_bytes, it.mtime_ns)
        for one, it in zip(before, (row, owner), strict=True)
    )
    if is_unchanged and before[0].reason == IDENTICAL_TO + owner.key:
        return True
    try:
        files, others = image_files(row.file(root)), image_files(owner.file(root))
        return len(files) == len(others) and all(
            filecmp.cmp(one, other, shallow=False) for one, other in zip(files, others, strict=True)
        )
    except OSError:
        return False


def _reusable_rows(known: Path | None, root: Path, verify: Verify) -> dict[str, Clip]:
    if known is None or not known.is_file():
        return {}
    try:
        rows = read_manifest(known, root).rows
    except (ValueError, OSError):
        rows = ()  # if damaged, every file is probed again
    if not any(row.orientation for row in rows):  # by a version before 0.2
        return {}
    return {row.key: row for row in rows if row.verified == "full" or row.verified == verify}


def _with_display(clip: Clip, path: Path) -> Clip:
    try:
        probe = probe_clip(path)
    except BadFile:
        return clip  # reported when it is decoded
    return replace(clip, **{name: getattr(probe, name) for name in ("width", "height", *_DISPLAY)})
