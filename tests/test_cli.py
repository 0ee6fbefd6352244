"""The commands as a user runs them: what they print, where, and with which exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, command, write_video

from fastemo import __version__
from fastemo.cli import main
from fastemo.config import RunConfig, config_leaves
from fastemo.corpus.manifest import read_manifest, scan

HAPPY = "02-01-03-01-01-01-01.mp4"


def fastemo(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return command(sys.executable, "-m", "fastemo.cli", *arguments, **environment)


def refusal(*arguments: object, **environment: str) -> str:
    """The one line that a command ends with."""
    done = fastemo(*arguments, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("fastemo: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("fastemo: error: ").rstrip("\n")


class TestIndex:
    def test_bad_files_are_listed_and_are_no_failure(self, tmp_path: Path) -> None:
        write_video(tmp_path / HAPPY, 5)
        write_video(tmp_path / "a.mp4", 5)
        (tmp_path / "empty [x] :sad:.mp4").touch()
        (tmp_path / "03-01-03-01-01-01-01.mp4").touch()
        done = fastemo("index", tmp_path, "--verify", "full")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            f"{HAPPY}  5 frames 64x48 h264  happy, actor 1",
            "a.mp4  5 frames 64x48 h264  unlabelled: 'a' is not seven two-digit numbers joined by '-' (RAVDESS naming)",
            "empty [x] :sad:.mp4  rejected: zero length",
            "03-01-03-01-01-01-01.mp4  audio-only: RAVDESS audio-only (modality 03)",
            f"{tmp_path}: 1 clips, 1 unlabelled, 1 rejected, 1 audio-only skipped",
        ]

    def test_a_folder_of_archives_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "Video_Speech_Actor_01.zip").touch()
        done = fastemo("index", tmp_path)
        assert done.stdout.splitlines() == [
            f"{tmp_path}: 0 clips, 0 unlabelled, 0 rejected, passed over: 1 .zip",
            "no labelled clips: its .zip files are archives: unpack them",
        ]

    def test_out_is_a_manifest(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        write_video(root / "amused/a.mp4", 5)
        out = tmp_path / "new folder/manifest.csv"
        done = fastemo("index", root, "--corpus.labels", "folder", "--out", out)
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == f"written: {out}"
        assert read_manifest(out, root) == scan(root, labels="folder")
        assert read_manifest(out, root).clips[0].emotion == "amused"

    @pytest.mark.parametrize(
        ("name", "encoding"), [(b"caf\xe9", "utf-8"), ("日本".encode(), "ascii"), ("日本".encode(), "latin-1")]
    )
    def test_names_that_are_no_text_or_that_the_output_cannot_show(self, tmp_path, name, encoding) -> None:
        path = write_video(tmp_path / "a.mp4", 5)
        try:
            path.rename(tmp_path / f"{os.fsdecode(name)}.mp4")
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        done = fastemo("index", tmp_path, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, "")
        assert "5 frames" in done.stdout

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        assert refusal("index", tmp_path / "gone") == f"corpus root {tmp_path / 'gone'} is not a folder"

    def test_an_out_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert str(tmp_path / "file") in refusal("index", tmp_path, "--out", tmp_path / "file/manifest.csv")

    def test_a_traceback_for_those_who_ask(self, tmp_path: Path) -> None:
        done = fastemo("index", tmp_path / "gone", FASTEMO_TRACEBACK="1")
        assert done.returncode == 1
        assert "Traceback" in done.stderr

    def test_it_does_not_wait_for_torch(self, tmp_path: Path) -> None:
        write_video(tmp_path / HAPPY, 5)
        program = (
            "import json, sys; from fastemo.cli import main; main(['index', sys.argv[1]]);"
            "print(json.dumps([name for name in ('torch', 'timm', 'accelerate', 'matplotlib') if name in sys.modules]))"
        )
        done = command(sys.executable, "-c", program, tmp_path)
        assert json.loads(done.stdout.splitlines()[-1]) == []


class TestSynthesize:
    def test_a_corpus_that_index_reads(self, tmp_path: Path) -> None:
        arguments = ("--actors", 2, "--clips_per_actor", 8, "--width", 64, "--height", 64, "--num_frames", 6)
        done = fastemo("synthesize", tmp_path / "out", *arguments, "--noise", 0)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{tmp_path / 'out'}: 2 actors, 16 takes"
        done = fastemo("index", tmp_path / "out", "--verify", "full")
        assert done.returncode == 0
        *files, summary = done.stdout.splitlines()
        assert summary == f"{tmp_path / 'out'}: 16 clips, 0 unlabelled, 0 rejected"
        assert len(files) == 16
        assert all("6 frames 64x64 h264" in line for line in files)

    def test_what_cannot_be_drawn(self, tmp_path: Path) -> None:
        assert refusal("synthesize", tmp_path, "--actors", 25) == "actors is 25, allowed are 1 to 24"
        assert refusal("synthesize", tmp_path, "--noise", 3) == "difficulty.noise is 3.0, allowed are 0 (none) to 2"
        assert list(tmp_path.iterdir()) == []


class TestMistakes:
    @pytest.mark.parametrize("arguments", [(), ("guess",), ("index",), ("index", "x", "--verify", "names")])
    def test_a_command_line_that_makes_no_sense(self, arguments: tuple[str, ...]) -> None:
        done = fastemo(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "usage: fastemo" in done.stderr
        assert "Traceback" not in done.stderr

    # In this process from here on: a new one takes seconds to load torch.
    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (("train", "--train.lrr", "3"), "--train.lrr"),
            (("train", "--train.lr", "fast"), "train.lr must be float, not fast"),
            (("train", "--config", "gone.yaml"), "gone.yaml"),
            (("evaluate", "gone"), "gone"),
        ],
    )
    def test_one_line_and_status_two(self, arguments, part, capsys):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("fastemo: error: ")
        assert said.count("\n") == 1
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("evaluate", "latest"), "fastemo.experiment.retest.evaluate_run"),
        (("page", "latest"), "fastemo.report.page.write_page"),
    ],
)
def test_latest_is_the_newest_finished_run(arguments, place, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(place, lambda run, *_, **__: given.append(run))
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("second", "first", "unfinished")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        if number < 2:
            (tmp_path / "runs" / name / "test.json").touch()
            os.utime(tmp_path / "runs" / name / "test.json", (2 - number, 2 - number))
    main(arguments)
    (tmp_path / "latest").mkdir()
    main(arguments)
    found = [Path("runs/second"), Path("latest")]
    assert given == (found if arguments[0] == "evaluate" else [[path] for path in found])


def test_version_and_help() -> None:
    commit = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    expected = f" ({commit.stdout.strip()}" if commit.returncode == 0 else ""
    assert fastemo("--version").stdout.startswith(f"fastemo {__version__}{expected}")
    done = fastemo("--help")
    assert done.returncode == 0
    for name in ("train", "synthesize", "index", "evaluate"):
        assert name in done.stdout


@pytest.mark.parametrize(
    "words", ["", "train", "synthesize", "index", "evaluate", "study", "page", "figures corpus", "download ravdess"]
)
def test_help_loads_nothing_heavy(words: str) -> None:
    done = command(sys.executable, "-X", "importtime", "-m", "fastemo.cli", *words.split(), "--help")
    assert done.stdout.startswith("usage: ")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "fastemo" in loaded
    assert not loaded & {
        "torch",
        "torchvision",
        "timm",
        "av",
        "cv2",
        "accelerate",
        "matplotlib",
        "numpy",
        "sklearn",
        "httpx2",
    }


def test_help_of_train_is_short_and_help_all_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    short = capsys.readouterr().out.splitlines()
    assert short[0].startswith("usage: fastemo train")
    assert sum(1 + len(line) // 80 for line in short) <= 48  # two screens of 24 lines, 80 characters wide
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help-all"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    keys = [key for key, _ in config_leaves(RunConfig())]
    assert all(f"  --{key} " in listed for key in keys)
    named = [line.split()[0].removeprefix("--") for line in short if line.startswith("  --")]
    assert len(named) == 21
    assert {*named} <= {*keys, "config"}
    defaults = {key: str(value) for key, value in config_leaves(RunConfig())}
    for line in short:
        if (given := re.fullmatch(r"  --(\S+) .*\(default: ([^ ]+)\)", line)) and defaults[given[1]] != "None":
            assert given[2] == defaults[given[1]]
