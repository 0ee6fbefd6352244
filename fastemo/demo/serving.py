"""The page's server: on this machine alone, for pages of its own, with bounded uploads."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from threading import Thread

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastemo.console import Console
from fastemo.demo.videos import MAX_BYTES, Videos
from fastemo.errors import UserError

HOST, _PORTS = "127.0.0.1", range(7860, 7960)
_UPLOAD = "/gradio_api/upload"
# Where the page posts, and the most bytes: of an upload, the form's besides the file's.
_POSTS = dict.fromkeys((f"/gradio_api/{name}" for name in ("queue/join", "cancel", "reset")), 2**20)
_POSTS[_UPLOAD] = MAX_BYTES + 2**16
# The browser itself asks no other host: Gradio 6.2 would fetch FFmpeg for an upload.
_POLICY = b"default-src 'self' blob: data: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'"


def listen(port: int | None) -> socket.socket:
    """A socket on a port of 127.0.0.1; `None`: the first free one from 7860.

    Raises:
        UserError: It is taken.
    """
    for number in _PORTS if port is None else (port,):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
            listener.listen()
        except OSError:
            listener.close()
            continue
        return listener
    raise UserError(f"port {port or f'{_PORTS[0]} to {_PORTS[-1]}'} of {HOST} is taken: choose another with --port")


def serve(page: ASGIApp, listener: socket.socket, videos: Videos, console: Console) -> None:
    """Serve a page until Ctrl-C, and end the prediction that is being made."""
    port = listener.getsockname()[1]
    guarded = Guard(page, port, videos.folder)
    # An open page holds its connection: it is not waited for.
    config = uvicorn.Config(guarded, log_level="critical", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    # Not in the main thread, uvicorn leaves signals alone.
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        console.say(f"open http://{HOST}:{port} in a browser on this machine; Ctrl-C ends it and deletes the videos")
        while thread.is_alive():
            thread.join(0.2)  # without a timeout, a signal that another thread receives would not wake this one
        raise UserError("the server has failed")
    except KeyboardInterrupt:
        pass
    finally:
        server.should_exit = server.force_exit = True
        videos.stop()
        thread.join()


class Guard:
    """Passes on what the page asks for.

    Refused are pages of other hosts (by `Host` and `Origin`), Gradio's routes to other hosts and for other uses, and
    uploads that are too large, before they are read. Half an upload is deleted. The browser is told to ask no other
    host.

    Args:
        folder: Where Gradio writes uploads: `tmp...` at first, then in folders.
    """

    def __init__(self, app: ASGIApp, port: int, folder: Path) -> None:
        self._app, self._folder, self._num_uploads = app, folder, 0
        self._hosts = [f"{name}:{port}" for name in (HOST, "localhost")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", _POLICY)]
            await send(message)

        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            status, reason = refusal
            await PlainTextResponse(reason, status)(scope, receive, send)
            return
        is_upload = scope["type"] == "http" and scope["path"] == _UPLOAD
        self._num_uploads += is_upload
        try:
            await self._app(scope, receive, send_guarded)
        finally:
            self._num_uploads -= is_upload
            if is_upload and not self._num_uploads:
                for half in self._folder.glob("tmp*"):
                    if half.is_file():
                        half.unlink()

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if host not in self._hosts or origin not in (None, f"http://{host}"):
            return 403, "only pages of this server may ask"
        if "://" in scope["path"] or "proxy=" in scope["path"]:
            return 403, "other hosts are not asked"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST" or scope["path"] not in _POSTS:
            return 403, "the page does not ask for this"
        if not (length := headers.get(b"content-length", "")).isdecimal():
            return 411, "the request does not give its length"
        if int(length) > _POSTS[scope["path"]]:
            return 413, f"the file is larger than {MAX_BYTES // 2**20} MB"
        return None
