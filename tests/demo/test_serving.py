"""The server of the page: whom it answers, and how much it reads."""

from __future__ import annotations

import asyncio
import socket

import pytest

from fastemo.demo.serving import Guard, listen
from fastemo.demo.videos import MAX_BYTES
from fastemo.errors import UserError

PORT, UPLOAD = 7999, "/gradio_api/upload"
OWN = {"host": f"127.0.0.1:{PORT}"}


def ask(folder, path="/", method="GET", app=None, **headers) -> tuple[int, dict[bytes, bytes]]:
    """Status and headers of the answer; 200 if the request was passed on."""

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent = []

    async def send(message):
        sent.append(message)

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in (OWN | headers).items()]
    scope = {"type": "http", "path": path, "method": method, "headers": encoded}
    asyncio.run(Guard(app or page, PORT, folder)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({}, 200),
        ({"host": f"localhost:{PORT}"}, 200),
        ({"origin": f"http://127.0.0.1:{PORT}"}, 200),
        ({"host": "rebound.example"}, 403),
        ({"host": "127.0.0.1:80"}, 403),
        ({"origin": "http://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
        ({"path": "/gradio_api/file=http://127.0.0.1/x"}, 403),
        ({"path": "/gradio_api/proxy=127.0.0.1/x"}, 403),
        ({"method": "HEAD"}, 200),
        ({"method": "PUT"}, 403),
        ({"method": "POST", "path": "/gradio_api/process_recording", "content_length": "10"}, 403),
        ({"method": "POST", "path": "/gradio_api/queue/join", "content_length": "10"}, 200),
        ({"method": "POST", "path": "/gradio_api/queue/join", "content_length": str(2**21)}, 413),
        ({"method": "POST", "path": UPLOAD}, 411),
        ({"method": "POST", "path": UPLOAD, "content_length": "-1"}, 411),
        ({"method": "POST", "path": UPLOAD, "content_length": "10"}, 200),
        ({"method": "POST", "path": UPLOAD, "content_length": str(MAX_BYTES)}, 200),
        ({"method": "POST", "path": UPLOAD, "content_length": str(3 * 2**30)}, 413),
    ],
)
def test_only_the_page_is_answered_and_only_so_much_is_read(tmp_path, request_, status):
    assert ask(tmp_path, **request_)[0] == status


def test_the_browser_is_told_to_ask_no_other_host(tmp_path):
    policy = ask(tmp_path)[1][b"content-security-policy"].decode()
    assert policy.startswith("default-src 'self'")
    assert "http" not in policy


def test_half_an_upload_is_deleted(tmp_path):
    async def breaks_off(scope, receive, send):
        (tmp_path / "tmpabc").write_bytes(b"half")
        raise ConnectionError

    (tmp_path / "tmpdef").mkdir()  # of a session
    (tmp_path / "tmpdef" / "annotated.mp4").touch()
    with pytest.raises(ConnectionError):
        ask(tmp_path, UPLOAD, "POST", breaks_off, content_length="10")
    assert [it.name for it in tmp_path.rglob("*")] == ["tmpdef", "annotated.mp4"]


def test_a_port_is_free_or_refused():
    with listen(None) as first, listen(None) as second:
        ports = [it.getsockname() for it in (first, second)]
        assert {host for host, _ in ports} == {"127.0.0.1"}
        assert 7860 <= ports[0][1] < ports[1][1] < 7960
        with pytest.raises(UserError, match=rf"port {ports[0][1]} of 127\.0\.0\.1 is taken: choose another"):
            listen(ports[0][1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    with listen(number) as chosen:
        assert chosen.getsockname()[1] == number
