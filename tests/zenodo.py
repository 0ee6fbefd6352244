"""A server on this machine of the shape of Zenodo's API: one record and its archives, and faults by request."""

from __future__ import annotations

import hashlib
import io
import json
import random
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RECORD = "/api/records/1188976"


def zipped(members: Mapping[str, bytes], **options: object) -> bytes:
    """An archive of these files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def archive_of(actor: int, channel: int = 1, *, num_takes: int = 2, num_bytes: int = 5000) -> bytes:
    """An archive as RAVDESS has it, of noise instead of videos."""
    noise = random.Random(actor)
    names = [f"{modality:02d}-{channel:02d}-03-01-01-{take:02d}-{actor:02d}" for take in (1, 2) for modality in (1, 2)]
    return zipped({f"Actor_{actor:02d}/{name}.mp4": noise.randbytes(num_bytes) for name in names[: 2 * num_takes]})


class Zenodo:
    """The record and what happens to requests.

    Attributes:
        archives: Content by name.
        claims: Keys of a record's file that differ from its content's own, by name.
        faults: Per path, how the next requests are answered, one each: a status and headers; a number of bytes
            after which the connection is closed; "whole" (ignores ranges); "wrong" (all bytes are 0); "endless".
        hold: Per path, the number of bytes after which the server stays silent until `release` is set.
        requests: Path and first byte of each request for an archive, in order.
        sent: Bytes sent of each archive.
    """

    def __init__(self, archives: Mapping[str, bytes]) -> None:
        self.archives = dict(archives)
        self.claims: dict[str, dict[str, object]] = {}
        self.faults: dict[str, list[object]] = {}
        self.hold: dict[str, int] = {}
        self.release, self.held = threading.Event(), threading.Event()
        self.requests: list[tuple[str, int]] = []
        self.sent: dict[str, int] = {}
        self.text: bytes | None = None  # in place of the record
        self.address = ""

    @property
    def url(self) -> str:
        return self.address + RECORD

    def record(self) -> bytes:
        files = [
            {
                "id": f"id of {name}",
                "key": name,
                "size": len(content),
                "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{self.url}/files/{name}/content"},
            }
            | self.claims.get(name, {})
            for name, content in self.archives.items()
        ]
        record = {"id": 1188976, "metadata": {"license": {"id": "cc-by-nc-sa-4.0"}, "title": "RAVDESS"}, "files": files}
        return json.dumps(record).encode() if self.text is None else self.text


@contextmanager
def serving(archives: Mapping[str, bytes]) -> Iterator[Zenodo]:
    """A server in threads of this process."""
    zenodo = Zenodo(archives)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            with suppress(ConnectionError):  # a client that was killed
                _answer(self, zenodo)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    zenodo.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield zenodo
    finally:
        zenodo.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, zenodo: Zenodo) -> None:
    path = request.path
    name = path.split("/")[-2] if path.endswith("/content") else "record"
    content = zenodo.record() if path == RECORD else zenodo.archives.get(name)
    asked = request.headers.get("Range")
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
    if name != "record":
        zenodo.requests.append((name, start))
    fault = zenodo.faults[name].pop(0) if zenodo.faults.get(name) else None
    if content is None or isinstance(fault, tuple) or start >= len(content):
        status, headers = fault if isinstance(fault, tuple) else ((404, {}) if content is None else (416, {}))
        request.send_response(status)
        for key, value in (headers | {"Content-Length": "0"}).items():
            request.send_header(key, value)
        request.end_headers()
        return
    if fault == "whole":
        asked, start = None, 0
    elif fault == "wrong":
        content = bytes(len(content))
    request.send_response(206 if asked else 200)
    if asked:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    if fault != "endless":  # else the connection's end is the content's
        request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    while fault == "endless":
        request.wfile.write(content)
    body = content[start:]
    cut = fault if isinstance(fault, int) else zenodo.hold.get(name, len(body))
    zenodo.sent[name] = zenodo.sent.get(name, 0) + len(body[:cut])
    request.wfile.write(body[:cut])
    if cut < len(body) and not isinstance(fault, int):
        request.wfile.flush()
        zenodo.held.set()
        zenodo.release.wait()
        request.wfile.write(body[cut:])
