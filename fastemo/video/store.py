"""The clip store: a cache of decoded clips, for one corpus and one FrameSpec, in one file shared by many processes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import struct
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from types import TracebackType

import numpy as np

from fastemo.corpus.clip import Clip, Root, folders
from fastemo.corpus.files.examining import fingerprint
from fastemo.errors import UserError
from fastemo.machine import cache_folder, locked, open_plain, read_at, readable_bytes, write_at, write_text
from fastemo.video.config import FrameSpec, StoreConfig

# Increased when the layout or the meaning of the files below changes: stores of another version are never opened.
STORE_VERSION = 1
FRAMES, RECORDS, HEADER, LOCK = "frames.bin", "records.bin", "header.json", "lock"

_GIB = 2**30
_OR_NONE = "or do without a store: --store.tier none"
# A record: a mark that unwritten records lack, the clip's size, modification time and frame count (above it, with crop
# `face`, the CRC of its box), a SHA-256.
_STAMP = struct.Struct("<8sqQq")
_MARK = b"fastemo\x01"
_RECORD_BYTES = _STAMP.size + hashlib.sha256().digest_size
# A larger header was not written by this module: millions of clips need less.
_MOST_HEADER_BYTES = 2**28
# File times have the resolution of a clock tick, 10 ms at most; this leaves a margin.
_SETTLED_NS = 100_000_000
# Left free on the disk: this share of it, or this many bytes if that is less.
_FREE_SHARE, _FREE_BYTES = 0.01, 256 * 2**20


class StoreUnavailable(UserError):
    """Decoded clips cannot be stored; the message says what is missing and what to do."""


class ClipStore:
    """A cache of the decoded clips of one corpus, FrameSpec and decoder, in a folder that many processes may share.

    `frames.bin` holds uint8 [N, T, 3, h, w], one row per clip; `records.bin` identifies the source of each row, with a
    SHA-256 of that and of the row's bytes; `header.json` maps clips to rows. A row never moves and is written under
    the folder's lock, its record last: a row that a killed process left half written does not match its record.

    Threads may read and write at once. Nothing is read or written after `close`.

    Args:
        config: Its `root` and `max_gib`.
        corpus_root: The folder to which the clips' keys are relative; of several corpora, each one's by its name.
        clips: The clips to store; the folder may hold others too.
        spec: How the frames were sampled.
        frame_size: Width and height of the stored frames, w and h, in pixels.
        decoder: Name and version of the decoder: everything besides `spec` that the bytes depend on.

    Attributes:
        folder: The folder of the files.
        num_bytes: Size of the frames of `clips`.
        trouble: Why storing stopped, in one line for the user; `None` if it did not.

    Raises:
        StoreUnavailable: The disk or the limit is too small, or the folder cannot be written.
    """

    def __init__(
        self,
        config: StoreConfig,
        corpus_root: Root,
        clips: Sequence[Clip],
        spec: FrameSpec,
        frame_size: tuple[int, int],
        decoder: str,
    ) -> None:
        width, height = frame_size
        self._corpus_root = {name: folder.resolve() for name, folder in folders(corpus_root).items()}
        self._identity = {
            "version": STORE_VERSION,
            "corpus": "\n".join(f"{name}{folder}" for name, folder in self._corpus_root.items()),
            "spec": _spec_identity(spec),
            "frame_size": [width, height],
            "decoder": decoder,
        }
        self._depends_on_face = spec.crop == "face"
        self._sha256 = hashlib.sha256(json.dumps(self._identity).encode())
        self._root = (config.root or cache_folder() / "store").expanduser().absolute()
        self._limit = None if config.max_gib is None else int(config.max_gib * _GIB)
        name = "-".join(folder.name for folder in self._corpus_root.values())
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:32] or "corpus"
        self.folder = self._root / f"{name}-{self._sha256.hexdigest()[:16]}"
        self._shape = (spec.num_frames, 3, height, width)
        self._row_bytes = math.prod(self._shape)
        self.num_bytes = len(clips) * self._row_bytes
        self.trouble: str | None = None
        self._verified: dict[int, tuple[bytes, int]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._open([clip.key for clip in clips])
        except OSError as error:
            raise StoreUnavailable(
                f"cannot store decoded clips in {self.folder}: {error.strerror or error}; choose another folder with "
                f"--store.root, {_OR_NONE}"
            ) from error

    def _alone(self) -> AbstractContextManager[None]:
        """The folder's lock, against every other process and thread."""
        _remove_unless_file(self.folder / LOCK)
        return locked(self.folder / LOCK)

    def _open(self, keys: list[str]) -> None:
        """Open the folder's files, with a row for each key; called under the lock."""
        frames, records, header = (self.folder / name for name in (FRAMES, RECORDS, HEADER))
        for path in (header, records, frames):
            _remove_unless_file(path)
        stored_keys = self._read_header()
        if stored_keys is None:
            # The header is removed first: if this process is killed, the next one starts anew too. Other processes keep
            # the old files that they have open.
            for path in (header, records, frames):
                path.unlink(missing_ok=True)
            stored_keys = []
        for partial in self.folder.glob(f".{HEADER}.*"):
            partial.unlink(missing_ok=True)  # left by a process killed here: only the lock's holder writes one
        self._rows = {key: row for row, key in enumerate(dict.fromkeys([*stored_keys, *keys]))}
        self._check_room([self._rows[key] for key in keys])
        for path in (frames, records):
            path.touch()
        self._frames, self._records = (FileIO(it, "r+", opener=open_plain) for it in (frames, records))
        # Longer files with the old header are valid, a new header with the old files would not be.
        for file, row_bytes in ((self._frames, self._row_bytes), (self._records, _RECORD_BYTES)):
            if os.fstat(file.fileno()).st_size < len(self._rows) * row_bytes:
                os.ftruncate(file.fileno(), len(self._rows) * row_bytes)
        if len(self._rows) > len(stored_keys):
            write_text(header, self._header_text(list(self._rows)))

    def _header_text(self, keys: list[str]) -> str:
        content = {**self._identity, "keys": keys}
        checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return json.dumps({**content, "sha256": checksum}, indent=1)

    def _read_header(self) -> list[str] | None:
        """The keys of the rows; `None` if there is no store or it is damaged."""
        path = self.folder / HEADER
        try:
            with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
                content = file.read(_MOST_HEADER_BYTES + 1)
            if len(content) > _MOST_HEADER_BYTES:
                return None
            text = content.decode("ascii")
            keys = json.loads(text)["keys"]
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                return None
            # A truncated file is not extended again: a process that has it open and has verified its rows would read
            # zeros for them.
            short = any(
                (self.folder / name).stat().st_size < len(keys) * row_bytes
                for name, row_bytes in ((FRAMES, self._row_bytes), (RECORDS, _RECORD_BYTES))
            )
            return None if short or text != self._header_text(keys) else keys
        except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _check_room(self, rows: list[int]) -> None:
        """Check that the rows not yet written fit on the disk and within the limit."""
        size, records = _RECORD_BYTES, b""
        with suppress(FileNotFoundError), FileIO(self.folder / RECORDS, opener=open_plain) as file:
            records = file.read(len(self._rows) * size)
        needed = sum(not any(records[row * size : (row + 1) * size]) for row in set(rows)) * self._row_bytes
        disk = shutil.disk_usage(self.folder)
        free = max(0, disk.free - int(min(_FREE_SHARE * disk.total, _FREE_BYTES)))
        if needed > free:
            raise StoreUnavailable(
                f"the decoded clips need {readable_bytes(needed)} more in {self.folder}, but the disk has only "
                f"{readable_bytes(free)} available; free some space, choose another disk with --store.root, {_OR_NONE}"
            )
        taken = _taken_bytes(self._root.glob(f"*/{FRAMES}")) if self._limit is not None else 0
        self._taken_by_others = taken - _taken_bytes([self.folder / FRAMES])
        if self._limit is not None and needed and needed + taken > self._limit:
            raise StoreUnavailable(
                f"the decoded clips need {readable_bytes(needed)} more, but the stores in {self._root} take "
                f"{readable_bytes(taken)} of the {readable_bytes(self._limit)} that --store.max_gib allows; raise it, "
                f"delete stores that you no longer need, {_OR_NONE}"
            )

    def has(self, clip: Clip) -> bool:
        """Whether a record of this version of the file exists; the row's bytes are not checked."""
        row = self._rows.get(clip.key)
        try:
            return row is not None and self._read_record(row).startswith(self._stamp(clip))
        except OSError:
            return False

    def read(self, clip: Clip, slot: np.ndarray) -> bool:
        """Copy a clip's frames into `slot`, uint8 [T, 3, h, w] and contiguous.

        A row's bytes are checked against their checksum at its first read, and again if its record changed or the file
        was written to since.

        Returns:
            False if the clip is not stored, or its row does not match its record; `slot` is then undefined.
        """
        assert slot.dtype == np.uint8, "frames are stored as uint8"
        assert slot.shape == self._shape, f"this store's clips are {self._shape}, not {slot.shape}"
        assert slot.flags.c_contiguous, "a strided slot would be copied to and lost"
        row = self._rows.get(clip.key)
        if row is None:
            return False
        flat = slot.reshape(-1).data
        try:
            record, changed_ns = self._read_record(row), self._changed_ns()
            # pread, not mmap: a disk error is then an exception instead of a crash, and cold reads, which are limited
            # by the disk, take as long.
            is_same = record.startswith(self._stamp(clip))
            if not is_same or not read_at(self._frames.fileno(), flat, row * self._row_bytes):
                return False
            verified = self._verified.get(row) == (record, changed_ns)
            if verified and (self._read_record(row), self._changed_ns()) == (record, changed_ns):
                return True
            if self._record(clip, flat) != record:
                return False
            # A file that was just written to could be written to again with the same modification time.
            if time.time_ns() - changed_ns > _SETTLED_NS:
                self._verified[row] = record, changed_ns
            return True
        except OSError:
            return False

    def write(self, clip: Clip, frames: np.ndarray) -> None:
        """Store a clip's frames, uint8 [T, 3, h, w], unless its file has changed since the scan.

        Never raises on a disk error: the first error, or the limit, stops all storing and is reported in `trouble`.
        """
        assert frames.dtype == np.uint8, "frames are stored as uint8"
        assert frames.shape == self._shape, f"this store's clips are {self._shape}, not {frames.shape}"
        row = self._rows.get(clip.key)
        if row is None or self.trouble is not None:
            return
        pixels = np.ascontiguousarray(frames).reshape(-1).data
        record = self._record(clip, pixels)
        try:
            if self._is_unchanged(clip):
                with self._alone():
                    self._write_row(row, pixels, record)
        except OSError as error:
            self.trouble = f"storing decoded clips in {self.folder} stopped: {error.strerror or error}"

    def _write_row(self, row: int, pixels: memoryview, record: bytes) -> None:
        old = self._read_record(row)
        blank = bytes(_RECORD_BYTES)
        if self._limit is not None and old == blank:
            taken = self._taken_by_others + _taken_bytes([self.folder / FRAMES])
            if taken + self._row_bytes > self._limit:
                allowed = f"{readable_bytes(self._limit)} that --store.max_gib allows"
                self.trouble = f"storing decoded clips in {self.folder} stopped at the {allowed}"
                return
        # The same record means the same bytes, which may repair the row and does not disturb readers.
        if old not in (blank, record):
            write_at(self._records.fileno(), blank, row * _RECORD_BYTES)
        write_at(self._frames.fileno(), pixels, row * self._row_bytes)
        write_at(self._records.fileno(), record, row * _RECORD_BYTES)

    def _is_unchanged(self, clip: Clip) -> bool:
        try:
            return fingerprint(clip.file(self._corpus_root)) == (clip.size_bytes, clip.mtime_ns)
        except (OSError, ValueError):
            return False

    def _changed_ns(self) -> int:
        return os.fstat(self._frames.fileno()).st_mtime_ns

    def _read_record(self, row: int) -> bytes:
        return os.pread(self._records.fileno(), _RECORD_BYTES, row * _RECORD_BYTES)

    def _record(self, clip: Clip, pixels: memoryview) -> bytes:
        # SHA-256 is hashlib's fastest hash on processors with instructions for it: 2 GB/s on one core.
        stamp, digest = self._stamp(clip), self._sha256.copy()
        digest.update(stamp + clip.key.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(pixels)
        return stamp + digest.digest()

    def _stamp(self, clip: Clip) -> bytes:
        box = zlib.crc32(clip.face.encode()) << 31 if self._depends_on_face else 0
        # File systems have times past 2262, which do not fit in 63 bits of nanoseconds.
        return _STAMP.pack(_MARK, clip.size_bytes, clip.mtime_ns % 2**64, clip.num_frames | box)

    def close(self) -> None:
        self._frames.close()
        self._records.close()

    def __enter__(self) -> ClipStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _spec_identity(spec: FrameSpec) -> dict[str, object]:
    """What every row depends on; each clip's face is in its own record."""
    without = {"face"} if spec.crop == "face" else {"face", "face_margin"}
    return {name: value for name, value in asdict(spec).items() if name not in without}


def _remove_unless_file(path: Path) -> None:
    """Remove anything but a regular file: opening a pipe would block forever, a link would be written through.

    Raises:
        OSError: It is a folder.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def _taken_bytes(paths: Iterable[Path]) -> int:
    """Disk space that files take: rows that were never written take none."""
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total
