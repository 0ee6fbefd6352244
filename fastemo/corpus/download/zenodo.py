"""Zenodo's record of RAVDESS, and its archives: fetched by ranges, with retries, to a file whose MD5 sum is right."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, TypeVar

import httpx2
from pydantic import BaseModel, Field, ValidationError

from fastemo.errors import UserError
from fastemo.version import __version__

# The record's address, the names of its archives and the fields that are read, looked up on 2026-11-29. The environment
# variable holds the address of a record of the same shape elsewhere: a mirror.
RECORD_URL = "https://zenodo.org/api/records/1188976"
RECORD_VARIABLE = "FASTEMO_RAVDESS_RECORD"
ARCHIVE_NAME = "Video_{channel}_Actor_{actor:02d}.zip"
NO_SONG = 18  # this actor recorded none


class _Links(BaseModel):
    content: str = Field(alias="self")


class Archive(BaseModel):
    """One file of the record; its size is in bytes."""

    key: str
    size: Annotated[int, Field(gt=0)]
    checksum: Annotated[str, Field(pattern="^md5:[0-9a-f]{32}$")]
    links: _Links


class _Licence(BaseModel):
    id: str


class _Metadata(BaseModel):
    license: _Licence


class _Record(BaseModel):
    metadata: _Metadata
    files: list[Archive]


RESUMES = "the same command resumes"
_TRIES = 5  # in a row that each brought less than `_PROGRESS` bytes
_PROGRESS = 2**20
_LONGEST_WAIT = 600  # seconds
_MOST_RECORD_BYTES = 2**24
_CHUNK = 2**20

T = TypeVar("T")


class ArchiveError(UserError):
    """One archive cannot be had; the others may."""


class Halted(Exception):
    """This thread ends because another one failed or the user stopped the command."""


class _Incomplete(Exception):
    """A response that another request may complete."""


def record_url() -> str:
    return os.environ.get(RECORD_VARIABLE) or RECORD_URL


def file_size(path: Path) -> int:
    """In bytes; 0 if there is no file."""
    return path.stat().st_size if path.is_file() else 0


def open_client() -> httpx2.Client:
    """A client that any number of threads may share. It verifies TLS and uses the environment's proxies.

    Raises:
        UserError: A proxy's address cannot be used.
    """
    # Compressed for the way, an archive would have another sum.
    headers = {"User-Agent": f"fastemo/{__version__}", "Accept-Encoding": "identity"}
    try:
        return httpx2.Client(headers=headers, timeout=httpx2.Timeout(60, connect=20), follow_redirects=True)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise UserError(f"the proxy that the environment names cannot be used: {error}") from error


@dataclass
class Server:
    """Requests to the record's server.

    Attributes:
        stop: Once set, everything here raises `Halted` within a chunk of data.
        wait: Waits so many seconds before a request is repeated.
        received: Bytes of each archive that lie on the disk, by its key.
    """

    client: httpx2.Client
    say: Callable[[str], None]
    stop: threading.Event
    wait: Callable[[float], object]
    received: dict[str, int] = field(default_factory=dict)

    def read_record(self, wanted: Iterable[tuple[str, int]]) -> tuple[str, list[Archive]]:
        """The record's licence, and its archives of channels and actors, in their order.

        Raises:
            UserError: The record cannot be had, has another shape or lacks an archive.
        """
        url, text = record_url(), bytearray()

        def read(response: httpx2.Response) -> None:
            text.clear()
            for chunk in response.iter_bytes():
                text.extend(chunk)
                if len(text) > _MOST_RECORD_BYTES:
                    raise UserError(f"{url} is no record: it is larger than {_MOST_RECORD_BYTES} bytes")

        self._request("the record", url, read)
        try:
            record = _Record.model_validate_json(bytes(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "its text"
            raise UserError(f"{url} is not a record of the shape that Zenodo has: {where}: {first['msg']}") from error
        names = [ARCHIVE_NAME.format(channel=channel.capitalize(), actor=actor) for channel, actor in wanted]
        by_name = {archive.key: archive for archive in record.files}
        if missing := [name for name in names if name not in by_name]:
            raise UserError(f"the record at {url} lacks {', '.join(missing)}")
        return record.metadata.license.id.upper(), [by_name[name] for name in names]

    def fetch(self, archive: Archive, path: Path) -> None:
        """Complete the file `path` with what it lacks of an archive, and verify it.

        Raises:
            ArchiveError: It is wrong after a second download, or the server does not have it.
            UserError: The server cannot be reached.
            Halted: `stop` was set.
        """
        for is_last in (False, True):
            if file_size(path) < archive.size:
                self._request(archive.key, archive.links.content, lambda it: self._append(it, archive, path), path)
            if self.is_intact(archive, path):
                return
            path.unlink()
            if not is_last:
                self.say(f"{archive.key}: wrong MD5 sum; it is downloaded again")
        raise ArchiveError(f"{archive.key}: two downloads differ from the record ({archive.checksum}); try again later")

    def is_intact(self, archive: Archive, path: Path) -> bool:
        """Whether a file has an archive's size and sum."""
        if file_size(path) != archive.size:
            return False
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self.check()
                digest.update(chunk)
        return f"md5:{digest.hexdigest()}" == archive.checksum

    def check(self) -> None:
        if self.stop.is_set():
            raise Halted

    def _append(self, response: httpx2.Response, archive: Archive, path: Path) -> None:
        size = file_size(path)
        if response.status_code == 200:  # from the start, whatever was asked for
            size = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            path.unlink(missing_ok=True)
            raise _Incomplete("not the range asked for")
        with path.open("ab" if size else "wb") as file:
            for chunk in response.iter_raw():
                self.check()
                file.write(chunk)
                size += len(chunk)
                self.received[archive.key] = min(size, archive.size)
                if size > archive.size:
                    return  # a wrong file, and perhaps one without end
        if size < archive.size:
            raise _Incomplete(f"{size} of {archive.size} bytes")

    def _request(self, name: str, url: str, take: Callable[[httpx2.Response], None], part: Path | None = None) -> None:
        """Request what `part` lacks until `take` accepts a response."""
        tries = 0
        while True:
            self.check()
            before, delay = file_size(part) if part else 0, None
            try:
                headers = {"Range": f"bytes={before}-"} if before else {}
                with self.client.stream("GET", url, headers=headers) as response:
                    status = f"{response.status_code} {response.reason_phrase}".strip()
                    if response.status_code in (200, 206, 416):
                        return take(response)
                    if response.status_code < 500 and response.status_code not in (408, 429):
                        raise ArchiveError(f"{name}: the server answers {status} ({url})")
                    delay, reason = _retry_after(response), f"the server answers {status}"
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
                raise ArchiveError(f"{name}: {url} cannot be requested: {error}") from error
            except (httpx2.HTTPError, _Incomplete) as error:
                reason = str(error) or type(error).__name__
            has_gained = part is not None and file_size(part) - before >= _PROGRESS
            tries = 1 if has_gained else tries + 1
            delay = 2.0 ** (tries - 1) if delay is None else delay
            if tries == _TRIES or delay > _LONGEST_WAIT:
                asks = f", which asks to wait for {delay:.0f} s" if delay > _LONGEST_WAIT else f" ({tries} times)"
                raise UserError(f"{name}: {reason}{asks} ({url}); check the network or try later: {RESUMES}")
            self.check()
            self.say(f"{name}: {reason}; again in {delay:.0f} s")
            self.wait(delay)


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds, from either form of the header; RFC 9110, section 10.2.3."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None
