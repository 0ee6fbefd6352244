"""The command: which archives are wanted, whether they fit, and several at once through download and unpacking."""

from __future__ import annotations

import errno
import re
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel

from fastemo.console import Console
from fastemo.corpus.download import zenodo
from fastemo.corpus.download.unpacking import of_modality, unpack
from fastemo.corpus.download.zenodo import RESUMES, Archive, ArchiveError, Halted, Server, file_size
from fastemo.corpus.ravdess import MODALITIES, NUM_ACTORS
from fastemo.errors import Stopped, UserError
from fastemo.machine import only_one, readable_bytes, write_text

_STATE = ".fastemo-download"  # below the root; a scan passes hidden folders over
_THREADS = 4
# Of the archives' size. Either modality is about half of an archive.
_UNPACKED_SHARE = {1: 0.6, 2: 1.05}


class _Unpacked(BaseModel):
    """What an archive was unpacked to: sizes in bytes by path relative to the root."""

    checksum: str
    clips: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to download and what to leave in the folder.

    Attributes:
        actors: Such as `1-4` or `1,3,7-9`.
        channels: Of `speech` and `song`.
        modalities: Of `audio-video` and `video-only`: the files of each archive that are unpacked.
        keep: Keep the archives as `root/NAME.zip`. Archives that lie there already are used and never removed.
    """

    actors: str = f"1-{NUM_ACTORS}"
    channels: tuple[str, ...] = ("speech",)
    modalities: tuple[str, ...] = MODALITIES[:2]
    keep: bool = False


def download_ravdess(
    root: Path,
    wanted: Wanted,
    console: Console,
    *,
    yes: bool = False,
    dry_run: bool = False,
    wait: Callable[[float], object] | None = None,
) -> None:
    """Download and unpack archives of RAVDESS, on the main thread. What an earlier call completed is not fetched again.

    Args:
        yes: Do not ask.
        dry_run: Only report what would be downloaded.
        wait: Waits so many seconds before a request is repeated.

    Raises:
        ValueError: Nothing or something impossible is selected, or another process downloads to `root`.
        UserError: The network, the server, an archive or the disk fails; the message says which, and what to do.
        Stopped: Ctrl-C.
    """
    stop = threading.Event()
    pairs = [(channel, actor) for channel in wanted.channels for actor in parse_actors(wanted.actors)]
    if ("song", zenodo.NO_SONG) in pairs:
        pairs.remove(("song", zenodo.NO_SONG))
        console.say(f"note: actor {zenodo.NO_SONG} recorded no song")
    if not pairs:
        raise ValueError("nothing is selected: --no-speech needs --song, and an actor who recorded song")

    def interrupt(*_: object) -> NoReturn:
        stop.set()  # the exception alone may be lost where Python ignores one
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with zenodo.open_client() as client:
            server = Server(client, console.say, stop, wait or stop.wait)
            licence, archives = server.read_record(pairs)
            download = _Download(root, wanted, console, server, archives)
            download.describe(licence, list_all=dry_run)
            if dry_run or not download.todo:
                return
            download.check_room()
            if yes or _confirmed(f"Download to {root}? [y/N] "):
                download.run()
            else:
                console.say("nothing was downloaded")
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, RESUMES) from None
    finally:
        signal.signal(signal.SIGINT, before)


def parse_actors(text: str) -> list[int]:
    """Numbers and ranges, such as `1-4` or `1,3,7-9`, ascending.

    Raises:
        ValueError: It is something else, or RAVDESS has no such actor.
    """
    actors: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= first <= last <= NUM_ACTORS:
            raise ValueError(f"--actors is '{text}', allowed are 1 to {NUM_ACTORS}, such as 1-4 or 1,3,7-9")
        actors.update(range(first, last + 1))
    return sorted(actors)


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError("nothing was downloaded: no terminal to ask on; --yes accepts the licence and starts")
    return input(question).strip().lower() in ("y", "yes")


class _Download:
    """Archives on their way into a folder.

    Attributes:
        todo: Those that are not complete yet.
    """

    def __init__(self, root: Path, wanted: Wanted, console: Console, server: Server, archives: list[Archive]) -> None:
        self._root, self._keep, self._console, self._server = root, wanted.keep, console, server
        self._modalities = [MODALITIES.index(name) + 1 for name in wanted.modalities]
        self._archives, self.todo = archives, [archive for archive in archives if not self._is_complete(archive)]
        self._failures: list[Exception] = []
        for archive in self.todo:
            has = file_size(root / archive.key) == archive.size
            server.received[archive.key] = archive.size if has else min(archive.size, file_size(self._part(archive)))
        self._size = sum(archive.size for archive in self.todo)
        largest = sorted((archive.size for archive in self.todo), reverse=True)[:_THREADS]
        beside = self._size - self._received() if self._keep else sum(largest)
        self._needed = beside + int(self._size * _UNPACKED_SHARE[len(self._modalities)])
        existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        self._free = shutil.disk_usage(existing).free

    def describe(self, licence: str, *, list_all: bool) -> None:
        """Report sizes, licence and disk space."""
        say, num_all = self._console.say, len(self._archives)
        for archive in self._archives if list_all else ():
            received = self._server.received.get(archive.key)
            state = "complete" if received is None else f"{readable_bytes(received)} downloaded"
            say(f"{archive.key}  {readable_bytes(archive.size)}  {state}")
        if len(self.todo) < num_all:
            say(f"{self._root}: {num_all - len(self.todo)} of {num_all} archives complete")
        if self.todo:
            say(
                f"RAVDESS, licence {licence}, from {zenodo.record_url()}: {len(self.todo)} archives, "
                f"{readable_bytes(self._size - self._received())} to download; disk space needed in {self._root}: "
                f"{readable_bytes(self._needed)}, free: {readable_bytes(self._free)}"
            )

    def check_room(self) -> None:
        """Refuse what does not fit on the disk.

        Raises:
            UserError: It does not.
        """
        if self._needed > self._free:
            raise UserError(
                f"{self._root}: {readable_bytes(self._needed)} are needed, {readable_bytes(self._free)} are free; free "
                f"some space, choose fewer --actors{', leave out --keep' * self._keep} or another --root"
            )

    def run(self) -> None:
        """Download, verify and unpack several archives at once; one that cannot be had does not stop the others.

        Raises:
            UserError: Archives that cannot be had, or what stopped all of them.
            ValueError: Another process downloads to the folder.
            KeyboardInterrupt: Within two seconds, whatever the threads wait for.
        """
        state = self._root / _STATE
        try:
            state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._root} cannot be written: {error.strerror}; choose another --root") from error
        with only_one(state, f"{self._root}: the download"):
            parts = (self._part(archive) for archive in self._archives if archive not in self.todo)
            for leftover in (*state.glob("*.clip"), *state.glob(".*.json.*"), *parts):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            queue, before = deque(self.todo), self._received()
            # Daemons: one that waits for a silent server does not keep the command from ending.
            threads = [threading.Thread(target=self._work, args=(queue,), daemon=True) for _ in range(_THREADS)]
            try:
                with self._console.track("downloading", "MiB") as advance:
                    for thread in threads:
                        thread.start()
                    while not self._server.stop.is_set() and (running := [it for it in threads if it.is_alive()]):
                        running[0].join(0.2)
                        advance(max(0, self._received() - before) // 2**20, (self._size - before) // 2**20)
                if self._server.stop.is_set() and not self._failures:
                    raise KeyboardInterrupt
            finally:
                self._server.stop.set()
                for thread in filter(threading.Thread.is_alive, threads):
                    thread.join(1 / _THREADS)
        for failure in self._failures:
            if not isinstance(failure, ArchiveError):
                raise failure
        if self._failures:
            raise ArchiveError("; ".join(map(str, self._failures)))
        self._console.say(f"{self._root}: {len(self._archives)} of {len(self._archives)} archives complete")

    def _work(self, queue: deque[Archive]) -> None:
        while not self._server.stop.is_set():
            try:
                archive = queue.popleft()
            except IndexError:
                return
            try:
                self._process(archive)
            except ArchiveError as error:
                self._failures.append(error)
            except Halted:
                return
            except Exception as error:
                is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                full = UserError(f"{self._root}: the disk is full; free some space, then {RESUMES}")
                self._failures.append(full if is_full else error)
                self._server.stop.set()

    def _process(self, archive: Archive) -> None:
        """Take an archive all the way; killed anywhere in between, the next call ends in the same files."""
        part, kept = self._part(archive), self._root / archive.key
        path = kept
        if not self._server.is_intact(archive, kept):
            if kept.exists():
                self._console.say(f"{kept}: not the archive of the record; it is downloaded again")
            self._server.fetch(archive, part)
            path = part.replace(kept) if self._keep else part
        temporary = self._root / _STATE / f"{archive.key}.clip"
        clips, num_others = unpack(path, archive.key, self._root, self._modalities, temporary, self._server.check)
        unpacked = _Unpacked(checksum=archive.checksum, clips=self._unpacked(archive) | clips)
        write_text(self._record(archive), unpacked.model_dump_json())
        part.unlink(missing_ok=True)
        others = f", {num_others} other files left out" if num_others else ""
        self._console.say(f"{archive.key}: {len(clips)} clips{others}")

    def _is_complete(self, archive: Archive) -> bool:
        clips = self._unpacked(archive)
        for modality in self._modalities:
            sizes = of_modality(clips, modality)
            if not sizes or any(file_size(self._root / path) != size for path, size in sizes.items()):
                return False
        return True

    def _unpacked(self, archive: Archive) -> dict[str, int]:
        try:
            record = _Unpacked.model_validate_json(self._record(archive).read_bytes())
        except (OSError, ValueError):
            return {}
        return record.clips if record.checksum == archive.checksum else {}

    def _record(self, archive: Archive) -> Path:
        return self._root / _STATE / f"{archive.key}.json"

    def _part(self, archive: Archive) -> Path:
        return self._root / f"{archive.key}.part"

    def _received(self) -> int:
        return sum(self._server.received.values())
