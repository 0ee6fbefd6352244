"""Disks that are full, fill up or may not be written: one line says so, and nothing half written reads as whole."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from attacks.confined import be_nobody_special, exit_code, forked
from helpers import REPOSITORY, TRAIN, check_epoch, command, decoded_clips, full_or

from fastemo.console import Console
from fastemo.corpus.config import CorpusConfig, SyntheticConfig
from fastemo.corpus.manifest import read_manifest, scan
from fastemo.corpus.prepare import corpus_root, scan_cached
from fastemo.corpus.synthetic.synthesis import synthesize
from fastemo.train import main
from fastemo.video.config import StoreConfig, Tier, VideoConfig
from fastemo.video.loader import ClipLoader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="small file systems and file limits are Linux's")

VIDEO = VideoConfig(num_frames=3, size=36)
ROW_BYTES = 3 * 3 * 36 * 36
CORPUS = SyntheticConfig(actors=2, clips_per_actor=6, width=64, height=64, num_frames=6)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return scan(synthesize(tmp_path_factory.mktemp("full") / "corpus", CORPUS, workers=1))


@pytest.fixture(scope="module")
def load(manifest):
    """Loads two epochs and checks every frame.

    Its result: how many clips were stored before, the messages, and how many clips are stored now.
    """
    expected = decoded_clips(manifest, VIDEO)

    def two_epochs(root: Path, tier: Tier, when_open: Callable[[], object] = lambda: None):
        messages: list[str] = []
        options = {"batch_size": 3, "store": StoreConfig(tier=tier, root=root), "say": messages.append}
        with ClipLoader(manifest.clips, manifest.root, manifest.class_names, VIDEO, **options) as loader:
            rows = range(len(manifest.clips))
            before = sum(loader.kept.has(row) for row in rows)
            when_open()
            for epoch in range(2):
                check_epoch(loader, expected, epoch)
            return before, messages, sum(loader.kept.has(row) for row in rows)

    return two_epochs


@contextmanager
def disk_of(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of its own, gone at the end with what it holds."""
    folder.mkdir()
    try:
        options = ["-t", "tmpfs", "-o", f"size={kib}k"]
        subprocess.run(["mount", *options, "none", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(disk: Path, free_bytes: int) -> Path:
    """A file that leaves so much free on the disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "other").write_bytes(bytes(max(0, free - free_bytes)))
    return disk / "other"


def check_message(messages: list[str], folder: Path, pattern: str) -> None:
    (line,) = messages
    assert "\n" not in line
    assert str(folder) in line
    assert "training continues without" in line
    assert re.search(pattern, line), line


# ---- stores


@pytest.mark.parametrize("tier", ["disk", "memory"])
def test_a_disk_too_full_for_a_store(manifest, load, tmp_path, tier, fault_log):
    needed = len(manifest.clips) * ROW_BYTES
    outcomes: Counter[str] = Counter()
    with disk_of(tmp_path / "disk", 1024) as disk:
        for free in (0, 4096, 16_384, needed // 2, needed, needed + 8192):
            other = fill_up(disk, free)
            _, messages, _ = load(disk / "stores", tier)
            check_message(messages, disk / "stores", "(the disk has|No space left on device).*--store.tier none")
            outcomes["reported in one line, trained without a store"] += 1
            other.unlink()
        assert load(disk / "stores", tier) == (0, [], len(manifest.clips))
        fill_up(disk, 0)  # what is stored needs no room
        assert load(disk / "stores", tier) == (len(manifest.clips), [], len(manifest.clips))
    fault_log("a disk too full for the store of decoded clips", outcomes)


def test_a_disk_that_fills_up_while_clips_are_stored(manifest, load, tmp_path, fault_log):
    """Files may not grow past a limit, which any user can set; what was stored before stays good."""
    for limit in (0, 100, 4096, 3 * ROW_BYTES + 50, 7 * ROW_BYTES):
        root = tmp_path / str(limit)

        def attack(limit: int = limit, root: Path = root) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            check_message(load(root, "disk")[1], root, "File too large")

        assert exit_code(forked(attack)) == 0
        assert load(root, "disk")[1:] == ([], len(manifest.clips))
    fault_log("a disk that fills up while clips are stored", {"reported in one line, trained without a store": 5})


def test_a_disk_that_fills_up_between_opening_and_storing(manifest, load, tmp_path, fault_log):
    with disk_of(tmp_path / "disk", 1024) as disk:
        for free in (0, 4096, 2 * ROW_BYTES, 6 * ROW_BYTES):
            root = disk / str(free)
            _, messages, stored = load(root, "disk", when_open=partial(fill_up, disk, free))
            check_message(messages, disk, "No space left on device")
            (disk / "other").unlink()
            assert load(root, "disk") == (stored, [], len(manifest.clips))
            assert stored < len(manifest.clips)
            shutil.rmtree(root)
    fault_log("a disk that fills up while clips are stored", {"reported in one line, trained without a store": 4})


# ---- the remembered scan


def test_a_scan_that_cannot_be_remembered(manifest, tmp_path, monkeypatch, capsys, fault_log):
    config = CorpusConfig(root=manifest.root)
    with disk_of(tmp_path / "disk", 64) as disk:
        monkeypatch.setenv("FASTEMO_CACHE", str(disk / "cache"))
        for free in (0, 4096, 8192):
            # A whole one is there of the second time on: it must stay.
            other = fill_up(disk, free)
            assert scan_cached(manifest.root, config, Console()) == manifest
            remembered = list((disk / "cache").rglob("*.csv"))
            output = capsys.readouterr().out
            assert remembered or re.search("cannot cache the scan in .*No space left on device", output)
            other.unlink()
            for path in remembered:
                assert read_manifest(path, manifest.root) == manifest
            assert not [path for path in (disk / "cache").rglob(".*") if path.is_file()]
            assert scan_cached(manifest.root, config, Console()) == manifest
    fault_log("a full disk for the cached scan", {"reported in one line, scanned anew": 3})


# ---- the built-in corpus


def make_corpus_here() -> str:
    """The error of generating the built-in corpus, or no text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastemo.corpus.prepare.available_processors", lambda: 1)
        try:
            corpus_root(CorpusConfig(synthetic=CORPUS), Console(show=False))
        except ValueError as error:
            return str(error)
    return ""


def whole_clips(folder: Path, whole: Path) -> int:
    """Every clip there is equals the one that was made with room enough."""
    paths = list(folder.rglob("*.mp4"))
    for path in paths:
        assert path.read_bytes() == (whole / path.parent.name / path.name).read_bytes(), path
    return len(paths)


def test_a_disk_too_full_for_the_built_in_corpus(manifest, tmp_path, monkeypatch, fault_log):
    outcomes: Counter[str] = Counter()
    total = sum(clip.size_bytes for clip in manifest.clips)
    with disk_of(tmp_path / "disk", 1024) as disk:
        monkeypatch.setenv("FASTEMO_CACHE", str(disk / "cache"))
        for free in (0, 4096, 8192, 20_000, *range(total // 5, total, total // 7)):
            other = fill_up(disk, free)
            message = make_corpus_here()
            assert whole_clips(disk, manifest.root) == len(manifest.clips) or message
            if message:
                assert re.fullmatch(
                    r".*cannot generate .* in .*/cache/synthetic/.*: No space left on device; .*FASTEMO_CACHE.*",
                    message,
                )
                outcomes["reported in one line, no half clip left"] += 1
            other.unlink()
            assert make_corpus_here() == ""
            assert whole_clips(disk, manifest.root) == len(manifest.clips)
            shutil.rmtree(disk / "cache")
        assert outcomes.total() > 4
    fault_log("a disk too full for the built-in corpus", outcomes)


def test_workers_that_find_the_disk_full(tmp_path, fault_log):
    """The error of a worker process arrives as the same line."""
    with disk_of(tmp_path / "disk", 64) as disk:
        code = (
            "from fastemo.console import Console; from fastemo.corpus.config import CorpusConfig; "
            "from fastemo.corpus import prepare; from fastemo.corpus.synthetic.synthesis import SyntheticConfig; "
            "from fastemo.errors import one_line_errors; prepare.available_processors = lambda: 2\n"
            "with one_line_errors(): prepare.corpus_root("
            "CorpusConfig(synthetic=SyntheticConfig(actors=2, clips_per_actor=8, num_frames=9)), Console(show=False))"
        )
        done = command(sys.executable, "-c", code, FASTEMO_CACHE=str(disk / "cache"))
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "No space left on device" in done.stderr
        assert str(disk / "cache") in done.stderr
    fault_log("a disk too full for the built-in corpus", {"reported in one line, no half clip left": 1})


# ---- read-only folders


def test_folders_that_may_not_be_written(manifest, load, tmp_path, fault_log):
    closed = tmp_path / "closed"
    closed.mkdir(0o555)

    def attack() -> None:
        be_nobody_special()
        os.environ["FASTEMO_CACHE"] = str(closed / "cache")
        for tier in ("disk", "memory"):
            check_message(load(closed / "stores", tier)[1], closed, "Permission denied")
        assert scan_cached(manifest.root, CorpusConfig(root=manifest.root), Console(show=False)) == manifest
        assert re.search(f"{closed}.*Permission denied.*FASTEMO_CACHE", make_corpus_here())

    assert exit_code(forked(attack)) == 0
    assert not list(closed.iterdir())
    fault_log("a folder that may not be written, for store, scan and corpus", {"reported in one line": 4})


def test_a_file_system_that_became_read_only(manifest, load, tmp_path, monkeypatch):
    """A whole built-in corpus there is used as it is; the rest works without it."""
    with disk_of(tmp_path / "disk", 1024) as disk:
        monkeypatch.setenv("FASTEMO_CACHE", str(disk))
        assert make_corpus_here() == ""
        assert load(disk / "stores", "disk")[1] == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert make_corpus_here() == ""
        assert whole_clips(disk, manifest.root) == len(manifest.clips)
        assert scan_cached(manifest.root, CorpusConfig(root=manifest.root), Console(show=False)) == manifest
        check_message(load(disk / "stores", "disk")[1], disk, "Read-only file system")


# ---- run folders, by the real command


def options(runs_dir: Path, corpus: Path) -> list[str]:
    return [
        *("--config", str(REPOSITORY / "configs" / "quick.yaml"), "--corpus.root", str(corpus)),
        *("--video.size", "36", "--augment.crop_size", "32", "--video.num_frames", "2", "--train.epochs", "1"),
        *("--train.batch_size", "16", "--store.tier", "memory", "--runs_dir", str(runs_dir), "--name", "run"),
    ]


def train(runs_dir: Path, corpus: Path) -> subprocess.CompletedProcess[str]:
    return command(sys.executable, TRAIN, *options(runs_dir, corpus), "--resume", "auto")


def the_end(done: subprocess.CompletedProcess[str], runs_dir: Path, *words: str) -> None:
    assert done.returncode not in (0, 1), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("fastemo: ")]
    assert len(errors) == 1, done.stderr
    assert str(runs_dir) in errors[0]
    assert any(word in errors[0] for word in words), errors[0]


@pytest.mark.slow
def test_a_disk_too_full_for_a_run(tiny_corpus, tmp_path, fault_log):
    """quick.yaml's model takes 45 MB, and as much twice again for the optimiser: it fails at another file each time."""
    rooms = full_or((500, 100_000), (0, 500, 30_000, 100_000))
    with disk_of(tmp_path / "disk", 200_000) as disk:
        for kib in rooms:
            other = fill_up(disk, kib * 1024)
            done = train(disk / "runs", tiny_corpus)
            the_end(done, disk / "runs", "the disk is full", "No space left on device")
            other.unlink()
        again = train(disk / "runs", tiny_corpus)
        assert again.returncode == 0, again.stderr
        assert (disk / "runs" / "run" / "test.json").is_file()
    fault_log("a disk too full for a run's folder", {"reported in one line, resumed with more room": len(rooms)})


def test_run_folders_that_may_not_be_written(tiny_corpus, tmp_path, capsys, fault_log):
    def refused(runs_dir: Path) -> subprocess.CompletedProcess[str]:
        with pytest.raises(SystemExit) as ended:
            main(options(runs_dir, tiny_corpus))
        return subprocess.CompletedProcess([], ended.value.code, *capsys.readouterr())  # type: ignore[arg-type]

    with disk_of(tmp_path / "disk", 64) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        the_end(refused(disk / "runs"), disk / "runs", "read-only", "Read-only")
    (tmp_path / "file").touch()
    the_end(refused(tmp_path / "file"), tmp_path / "file", "Not a directory", "File exists")
    fault_log("a runs_dir that is read-only or no folder", {"reported in one line": 2})
