"""`fastemo demo`: refusals, what is served and to whom, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from demo_server import serving
from helpers import REPOSITORY, wait_until

from fastemo.cli import main

DEMO = (sys.executable, "-m", "fastemo.cli", "demo")
BOUNDARY = "b"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "neither nosuch nor runs/nosuch is a run folder"),
        (["RUN", "--port", "70000"], "port must be from 1 to 65535, not 70000"),
        (["RUN", "--window", "1", "--hop", "2"], "the hop at most the window"),
        (["RUN", "--min_confidence", "2"], "min_confidence must be from 0 to 1"),
        (["RUN", "--faces", "all"], "train a run with video.crop: face"),
        (["RUN", "--device", "cuda:77"], "device cuda:77 is not available"),
    ],
)
def test_what_cannot_be_done_is_one_line(tiny_run, words, said, capsys):
    assert said in refused([str(tiny_run) if word == "RUN" else word for word in words], capsys)


def test_without_gradio_one_line_says_how_to_install_it(tiny_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused([str(tiny_run)], capsys) == "fastemo demo needs gradio: pip install 'fastemo[demo]'"


def test_an_unfinished_run_and_a_taken_port_are_one_line(tiny_run, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((tiny_run / "config.yaml").read_text())
    assert "is not finished" in refused([str(tmp_path)], capsys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "choose another with --port" in refused([str(tiny_run), "--port", taken.getsockname()[1]], capsys)


def refused(words, capsys) -> str:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = dict(os.environ)
    try:
        with pytest.raises(SystemExit) as exit_:
            main(["demo", *map(str, words)])
    finally:
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    [line] = [it for it in capsys.readouterr().err.splitlines() if it.startswith("fastemo")]
    assert exit_.value.code == 2
    return line.removeprefix("fastemo: error: ")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_this_machine_alone_is_served_and_nothing_is_left(tiny_run, tmp_path, stop):
    temporary, home = tmp_path / "tmp", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    (home / "secret.txt").write_text("secret")
    adverse = {"GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOWED_PATHS": "/"}
    adverse |= {"GRADIO_ROOT_PATH": "/elsewhere", "GRADIO_ANALYTICS_ENABLED": "True", "GRADIO_MCP_SERVER": "True"}
    adverse |= {"GRADIO_TEMP_DIR": str(home), "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    words = (*DEMO, tiny_run, "--device", "cpu")
    environment = {"TMPDIR": str(temporary), "PYTHONPATH": str(REPOSITORY), **adverse}
    with serving(*words, stop=stop, cwd=home, **environment) as url:
        [folder] = temporary.glob("fastemo-demo-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):  # of this host's other addresses, too
            socket.create_connection(("127.0.0.2", port))
        page = get(url).decode()
        assert "Displayed emotions" in page
        assert "/elsewhere" not in page
        [uploaded] = json.loads(get(url, "/gradio_api/upload", form(b"video")))
        assert get(url, f"/gradio_api/file={uploaded}") == b"video"
        for path in ("/etc/hostname", home / "secret.txt", "secret.txt", tiny_run / "config.yaml", folder.parent):
            assert refusal(url, f"/gradio_api/file={path}") == 403
        assert refusal(url, "/gradio_api/file=http://127.0.0.1:9/x") == 403
        for path in ("/docs", "/monitoring/summary", "/gradio_api/mcp/sse"):
            assert refusal(url, path) in (403, 404), path
        assert json.loads(get(url, "/gradio_api/info")) == {"named_endpoints": {}, "unnamed_endpoints": {}}
        check_that_uploads_are_bounded(port, folder)
        assert sorted(it.name for it in folder.rglob("*") if it.is_file()) == [Path(uploaded).name]
    assert list(temporary.glob("fastemo*")) == []
    assert [it.name for it in home.iterdir()] == ["secret.txt"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def check_that_uploads_are_bounded(port: int, folder: Path) -> None:
    """3 GB are refused before they are sent; one that breaks off leaves nothing."""
    assert answer(port, f"Content-Length: {3 * 2**30}").startswith("HTTP/1.1 413")
    assert answer(port, "Transfer-Encoding: chunked").startswith("HTTP/1.1 411")
    with connected(port, f"Content-Length: {100 * 2**20}") as half:
        half.sendall(form(b"x" * 2**20)[: 2**20])
        wait_until(lambda: any(it.is_file() and it.stat().st_size for it in folder.glob("tmp*")), 60)
    wait_until(lambda: not any(it.is_file() for it in folder.glob("tmp*")), 60)


def connected(port: int, header: str) -> socket.socket:
    """A request for an upload, without its body."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = ["POST /gradio_api/upload HTTP/1.1", f"Host: 127.0.0.1:{port}", header]
    head += [f"Content-Type: multipart/form-data; boundary={BOUNDARY}", "", ""]
    connection.sendall("\r\n".join(head).encode())
    return connection


def answer(port: int, header: str) -> str:
    with connected(port, header) as connection:
        return connection.recv(1000).decode()


def form(content: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="clip.mp4"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def get(url: str, path: str = "/", data: bytes | None = None) -> bytes:
    headers = {} if data is None else {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(urllib.request.Request(url + path, data, headers), timeout=60) as response:
        return response.read()


def refusal(url: str, path: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as raised:
        get(url, path)
    return raised.value.code
