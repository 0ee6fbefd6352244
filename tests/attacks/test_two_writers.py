"""Several processes that write to one place at once, and processes killed while they do."""

from __future__ import annotations

import mmap
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from attacks.confined import exit_code, exit_codes, forked, killed
from helpers import check_epoch, decoded_clips, full_or, wait_until

from fastemo.console import Console
from fastemo.corpus import prepare
from fastemo.corpus.config import CorpusConfig, SyntheticConfig
from fastemo.corpus.manifest import Manifest, read_manifest, scan
from fastemo.corpus.prepare import corpus_root, scan_cached
from fastemo.corpus.synthetic.synthesis import synthesize
from fastemo.video.config import StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader
from fastemo.video.store import FRAMES, HEADER, LOCK, RECORDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and stores need file locks")

VIDEO = VideoConfig(num_frames=3, size=20)
TINY = SyntheticConfig(actors=2, clips_per_actor=4, width=64, height=64, num_frames=4)
LARGER = replace(TINY, actors=4, clips_per_actor=30)
# Run by an interpreter of its own: the tests' process is not a script that workers could import again.
MAKE_LARGER = (
    "from fastemo.console import Console; from fastemo.corpus.config import CorpusConfig, Difficulty, SyntheticConfig; "
    "from fastemo.corpus.prepare import corpus_root; "
    f"corpus_root(CorpusConfig(synthetic={LARGER!r}), Console(show=False))"
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    config = replace(TINY, actors=4, clips_per_actor=8)
    return scan(synthesize(tmp_path_factory.mktemp("two") / "corpus", config, workers=1))


def loader_of(manifest: Manifest, root: Path, **options) -> ClipLoader:
    options |= {"batch_size": 2, "shuffle": True, "say": pytest.fail, "store": StoreConfig(tier="disk", root=root)}
    return ClipLoader(manifest.clips, manifest.root, manifest.class_names, VIDEO, **options)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- stores


def fill(manifest: Manifest, root: Path, rank: int, world_size: int) -> None:
    with loader_of(manifest, root, rank=rank, world_size=world_size, even=True) as loader:
        for epoch in range(2):
            for _ in loader.epoch(epoch):
                pass


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_store_filled_by_several_processes_is_one_processes_byte_for_byte(manifest, tmp_path, world_size, fault_log):
    """Rows are in the clips' order, not in that of writing, and no file holds a time of writing or a random name."""
    fill(manifest, tmp_path / "alone", 0, 1)
    ranks = [
        forked(partial(fill, manifest, tmp_path / "together", rank, world_size)) for rank in reversed(range(world_size))
    ]
    assert exit_codes(ranks) == [0] * world_size
    alone = files_of(tmp_path / "alone")
    assert {Path(name).name for name in alone} == {FRAMES, RECORDS, HEADER, LOCK}
    assert files_of(tmp_path / "together") == alone
    fault_log("a store filled by two or three processes at once", {"byte for byte what one process writes": 1})


def open_fill_and_close(manifest: Manifest, root: Path, seed: int, stop: Path) -> None:
    rng = random.Random(seed)
    while not stop.exists():
        clips = rng.sample(manifest.clips, rng.randrange(1, len(manifest.clips)))
        part = Manifest(manifest.root, tuple(clips))
        with loader_of(part, root, seed=seed) as loader:
            for batch in loader.epoch(rng.randrange(5)):
                assert len(batch.keys)
                if rng.random() < 0.1:
                    break
        time.sleep(rng.random() * 0.02)


def num_records(root: Path) -> int:
    """Of the one store below `root`, if there is one."""
    bits = [np.fromfile(path, np.uint8) for path in root.glob(f"*/{RECORDS}")]
    return sum(int(it[: len(it) // 64 * 64].reshape(-1, 64).any(axis=1).sum()) for it in bits)


def test_writers_killed_while_others_go_on(manifest, tmp_path, fault_log):
    """One of three is killed while the store fills; the others fill it up."""
    expected = decoded_clips(manifest, VIDEO)
    kills, clips = full_or(5, 28), len(manifest.clips)
    root, stop, rng = tmp_path / "stores", tmp_path / "stop", random.Random(kills)
    for kill in range(kills):
        shutil.rmtree(root, ignore_errors=True)
        writers = [forked(partial(open_fill_and_close, manifest, root, 100 * k + kill, stop)) for k in range(3)]
        wanted = rng.randrange(clips * 3 // 4)
        killed(writers.pop(0), lambda wanted=wanted: num_records(root) >= wanted, rng.uniform(0, 0.02))
        wait_until(lambda: num_records(root) == clips)
        stop.touch()
        assert exit_codes(writers) == [0, 0]
        stop.unlink()
        for _ in range(2):  # the first mends what the killed process left half written
            with loader_of(manifest, root) as loader:
                stored = sum(loader.kept.has(row) for row in range(clips))
                check_epoch(loader, expected)
            assert stored > 0
        assert stored == clips
    fault_log("one of three processes that fill a store killed", {"every stored clip correct, the rest decoded": kills})


# ---- the built-in corpus


def test_processes_that_make_one_corpus_take_turns(cache, monkeypatch, tmp_path, fault_log):
    """The second waits for the first: nothing is made twice, nothing is read half made."""
    calls = tmp_path / "calls"

    def slow(root: Path, config: SyntheticConfig, **_: object) -> Path:
        with calls.open("a") as file:
            file.write("begin\n")
            file.flush()
            time.sleep(0.3)
            synthesize(root, config, workers=1)
            file.write("end\n")
        return root

    monkeypatch.setattr(prepare, "synthesize", slow)
    make = partial(corpus_root, CorpusConfig(synthetic=TINY), Console(show=False))
    assert exit_codes([forked(make) for _ in range(3)]) == [0, 0, 0]
    assert calls.read_text() == "begin\nend\n" * 3
    assert files_of(make()) == files_of(synthesize(tmp_path / "alone", TINY, workers=1))
    assert make().parent == cache / "synthetic"
    fault_log("three processes that make the built-in corpus in one cache", {"one made it, the others used it": 1})


@pytest.mark.slow
def test_a_process_killed_while_it_makes_the_corpus_is_followed_by_one_that_finishes_it(cache, tmp_path, fault_log):
    command, kills = [sys.executable, "-c", MAKE_LARGER], 0
    for wanted in sorted(random.Random(0).sample(range(1, 120), 4)):  # so many of its clips, then it is killed
        process = subprocess.Popen(command)
        while len(list(cache.rglob("*.mp4"))) < wanted and process.poll() is None:
            time.sleep(0.01)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills > 1
    assert [process.wait(600) for process in [subprocess.Popen(command) for _ in range(2)]] == [0, 0]
    (root,) = (cache / "synthetic").glob("*/")
    assert files_of(root) == files_of(synthesize(tmp_path / "alone", LARGER, workers=1))
    fault_log("a process killed while it makes the built-in corpus", {"the next one finished it": kills})


# ---- the remembered scan


def num_remembered(manifest: Manifest, cache: Path) -> int:
    """How many scans are remembered, each as a whole."""
    paths = [*(cache / "manifests").glob("*.csv")]
    assert all(read_manifest(path, manifest.root) == manifest for path in paths)
    return len(paths)


def test_processes_that_remember_one_scan(manifest, cache, fault_log):
    """Each writes the whole file or nothing: whoever reads it reads one of theirs."""
    rounds = full_or(10, 45)

    def scan_again() -> None:
        for _ in range(rounds):
            assert scan_cached(manifest.root, CorpusConfig(root=manifest.root), Console(show=False)) == manifest

    processes, seen = [forked(scan_again) for _ in range(3)], 0
    while seen < rounds:
        seen += num_remembered(manifest, cache)
    assert exit_codes(processes) == [0, 0, 0]
    assert [path.suffix for path in (cache / "manifests").iterdir()] == [".csv"]
    fault_log("three processes that cache one scan at once", {"complete whenever it was read": seen})


def test_a_scan_killed_while_it_is_remembered(manifest, cache, fault_log):
    has_scanned = mmap.mmap(-1, 1)  # shared with the forked process

    def scan_for_ever() -> None:
        while True:
            scan_cached(manifest.root, CorpusConfig(root=manifest.root), Console(show=False))
            has_scanned[0] = 1

    rng = random.Random(0)
    for _ in range(10):
        has_scanned[0] = 0
        killed(forked(scan_for_ever), lambda: has_scanned[0], rng.uniform(0, 0.05))
        num_remembered(manifest, cache)
    once = forked(lambda: scan_cached(manifest.root, CorpusConfig(root=manifest.root), Console(show=False)))
    assert exit_code(once) == 0
    fault_log("a process killed while it caches a scan", {"the last complete one read": 10})
