"""`fastemo predict`, as a person runs it."""

import csv
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, command, count_decoded, free_port, sent, smooth_frame, wait_until, write_video

from fastemo.cli import main
from fastemo.console import Console
from fastemo.inference.command import Request, expanded, predict

PREDICT = [sys.executable, "-m", "fastemo.cli", "predict"]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """12 s with sound."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(path, 300, 96, 64, draw=smooth_frame, options={"g": "25"}, silence=True)


@pytest.fixture(autouse=True)
def same_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def running_predict(words) -> subprocess.Popen:
    """The command, which Ctrl-C reaches even where these tests run in the background."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, **pipes, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.fixture
def home(tiny_run, few_clips, tmp_path, monkeypatch) -> Path:
    """A folder with a finished run, two videos, and files that are none."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    for number, path in enumerate(sorted(few_clips.rglob("*.mp4"))[:2]):
        shutil.copy(path, tmp_path / f"clip{number}.mp4")
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "void").mkdir()
    return tmp_path


def test_a_folder_in_a_table_and_in_files(home):
    done = command(*PREDICT, "latest", ".", "--out", "out.csv", "--features", "out.npz", PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 1, done.stderr  # a file has failed
    lines = done.stdout.splitlines()
    assert lines[0].startswith(".: ")
    assert "other files passed over" in lines[0]
    assert re.fullmatch(r"latest: Recognizer\(early_cnn, 8 classes, 2 frames a clip by pyav, fp32 on cpu\)", lines[1])
    assert lines[2] == "clip0.mp4"
    assert re.fullmatch(r"  +0\.00 - +0\.40 s  \w+ +(\w+ \d+\.\d%(, )?){3}", lines[3])
    assert lines[4] == "clip1.mp4"
    assert [line.strip() for line in lines[6:8]] == ["empty.mp4", "zero length"]
    assert lines[8:] == ["written: out.csv", "written: out.npz", "failed: 1"]
    assert "Traceback" not in done.stderr
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert [(row["path"], row["error"]) for row in rows] == [
        ("clip0.mp4", ""),
        ("clip1.mp4", ""),
        ("empty.mp4", "zero length"),
    ]
    with np.load("out.npz", allow_pickle=False) as arrays:
        assert arrays["path"].tolist() == ["clip0.mp4", "clip1.mp4"]


def test_a_long_video_in_windows_with_subtitles_and_its_labels_drawn(home, video):
    words = ["runs/tiny", video, "--window", "2", "--hop", "1", "--out", "out.jsonl", "--annotate", "drawn.mp4"]
    done = command(*PREDICT, *words, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(row["start"], row["end"]) for row in rows] == [(float(n), min(n + 2.0, 12.0)) for n in range(11)]
    assert count_decoded(Path("drawn.mp4")) == 300


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_what_there_is(home, video, number):
    words = [*PREDICT, "tiny", *[video] * 200, "--out", "out.json"]
    with running_predict(words) as running:
        wait_until(lambda: Path("out.json").is_file() and Path("out.json").read_text().count('"path"') > 25)
        running.send_signal(number)
        _, said = running.communicate(timeout=120)
    assert (running.returncode, said) == (130, "fastemo: interrupted\n")
    rows = json.loads(Path("out.json").read_text())
    assert 25 < len(rows) < 200 * 19
    assert all(row["error"] is None for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny"], "after RUN, give files"),
        (["clip0.mp4"], "after RUN, give files"),
        (["nosuch", "clip0.mp4"], "neither nosuch nor runs/nosuch is a run folder"),
        (["tiny", "clip0.mp4", "--camera", "0"], "or else --camera N"),
        (["tiny", "udp://127.0.0.1:1", "clip0.mp4"], "a URL is watched alone"),
        (["tiny", "udp://127.0.0.1:1", "--annotate", "x.mp4"], "it takes no live input"),
        (["tiny", "file:///etc/passwd"], "live input is read from rtsp"),
        (["tiny", "clip0.mp4", "--out", "x.doc"], "one of .csv, .json"),
        (["tiny", "clip0.mp4", "--out", "nosuch/x.csv"], "nosuch"),
        (["tiny", "clip0.mp4", "clip1.mp4", "--out", "x.srt"], "subtitles hold one video"),
        (["tiny", "clip0.mp4", "--window", "1", "--hop", "2"], "the hop at most the window"),
        (["tiny", "clip0.mp4", "clip1.mp4", "--annotate", "x.mp4"], "--annotate takes one video, not 2"),
        (["tiny", "clip0.mp4", "--annotate", "clip0.mp4"], "replace the video itself"),
        (["tiny", "void"], "void holds no video"),
        (["tiny", "x*.mp4"], "no file matches x*.mp4"),
        (["tiny", "clip0.mp4", "--min_confidence", "2"], "min_confidence must be from 0 to 1"),
        (["tiny", "clip0.mp4", "--device", "cuda:77"], "device cuda:77 is not available"),
    ],
)
def test_what_cannot_be_done_is_one_line(home, words, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["predict", *words])
    [line] = [it for it in capsys.readouterr().err.splitlines() if it.startswith("fastemo")]
    assert exit_.value.code == 2
    assert said in line


def test_folders_patterns_and_paths_become_files_in_their_order(home, tmp_path):
    (home / "frames").mkdir()
    shutil.copy(REPOSITORY / "docs" / "assets" / "picture.jpg", home / "frames" / "frame0001.jpg")
    (home / "deep" / "er").mkdir(parents=True)
    shutil.copy(home / "clip1.mp4", home / "deep" / "er" / "x.mkv")
    quiet = Console(show=False)
    found = expanded(["clip1.mp4", "clip*.mp4", "frames", "deep", "missing.mp4", "deep/**/*.mkv"], quiet)
    assert [str(path) for path in found] == [
        *("clip1.mp4", "clip0.mp4", "clip1.mp4", "frames", "deep/er/x.mkv", "missing.mp4", "deep/er/x.mkv")
    ]


def test_a_picture_has_a_line_without_times(home, capsys):
    shutil.copy(REPOSITORY / "docs" / "assets" / "picture.jpg", home / "one.jpg")
    assert predict(Request(run="tiny", sources=["one.jpg"]), Console()) == 0
    assert re.search(r"^one\.jpg\n  +\w+ +\w+ \d", capsys.readouterr().out, re.MULTILINE)


def test_a_stream_is_answered_as_it_comes_until_ctrl_c(home):
    source = write_video(home / "sent.mp4", 100, 96, 64, draw=smooth_frame, options={"g": "25", "bf": "0"})
    url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    words = [*PREDICT, "tiny", url, "--window", "1", "--hop", "0.5", "--out", "out.jsonl"]
    with (
        sent(source, url, "-stream_loop", "-1"),
        running_predict(words) as running,
    ):
        wait_until(lambda: Path("out.jsonl").is_file() and Path("out.jsonl").read_text().count("\n") >= 4)
        running.send_signal(signal.SIGINT)
        shown, said = running.communicate(timeout=120)
    assert (running.returncode, said.splitlines()[-1]) == (130, "fastemo: interrupted")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rows} == {url}
    assert [row["error"] for row in rows] == [None] * len(rows)
    starts = [row["start"] for row in rows]
    assert starts == sorted(set(starts))
    assert all(start % 0.5 == 0 for start in starts)
    assert f"\n{url}\n" in shown
    assert shown.count(" s  ") >= len(rows)


def test_a_camera_is_answered_to_its_end(home, monkeypatch, capsys):
    class Camera:
        left = 60

        def read(self):
            time.sleep(0.02)
            self.left -= 1
            return smooth_frame(self.left, 64, 48) if self.left else None

        def close(self):
            self.left = -1

    camera = Camera()
    monkeypatch.setattr("fastemo.inference.live.open_camera", lambda number: camera)
    request = Request(run="tiny", camera=0, window=0.5, hop=0.25, out=Path("out.csv"), features=Path("out.npz"))
    assert predict(request, Console()) == 0
    assert camera.left == -1
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert {row["path"] for row in rows} == {"camera 0"}
    with np.load("out.npz") as arrays:
        assert arrays["start"].tolist() == [float(row["start"]) for row in rows]
    assert "camera 0\n" in capsys.readouterr().out
