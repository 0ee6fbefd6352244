"""Several processes that write to one place at once, and processes killed while they do."""

from __future__ import annotations

import mmap
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from attacks.confined import exit_code, exit_codes, forked, killed, wait_until
from helpers import full_or

from fastemo.console import Console
from fastemo.corpus.config import CorpusConfig
from fastemo.corpus.manifest import Manifest, read_manifest, scan
from fastemo.corpus.prepare import corpus_root, scan_cached
from fastemo.corpus.synthetic.synthesis import SyntheticConfig, synthesize
from fastemo.video.config import VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices
from fastemo.video.store import FRAMES, HEADER, RECORDS, StoreConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and stores need file locks")

FaultLog = Callable[[str, Mapping[str, int]], None]
VIDEO = VideoConfig(num_frames=3, size=20)
TINY = SyntheticConfig(actors=2, clips_per_actor=4, width=64, height=64, num_frames=4)
# A corpus that several processes make: the tests' own process is not a script that workers could import again.
MAKE = (
    "import sys; from pathlib import Path; from fastemo.console import Console; "
    "from fastemo.corpus.config import CorpusConfig; from fastemo.corpus.prepare import corpus_root; "
    "from fastemo.corpus.synthetic.synthesis import SyntheticConfig; "
    "print(corpus_root(CorpusConfig(synthetic=SyntheticConfig(actors={actors}, clips_per_actor={takes}, width=64, "
    "height=64, num_frames=4)), Console(show=False)))"
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    config = SyntheticConfig(actors=4, clips_per_actor=8, width=64, height=64, num_frames=4)
    return scan(synthesize(tmp_path_factory.mktemp("two") / "corpus", config, workers=1))


@pytest.fixture(scope="module")
def expected(manifest: Manifest) -> dict[str, np.ndarray]:
    return {
        clip.key: decode_clip(manifest.root / clip.key, frame_indices(clip.num_frames, 3), VIDEO.spec)
        for clip in manifest.clips
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTEMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def loader_of(manifest: Manifest, root: Path, **options: object) -> ClipLoader:
    given = {"batch_size": 2, "shuffle": True, "say": pytest.fail, **options}
    store = StoreConfig(tier="disk", root=root)
    names = manifest.class_names
    return ClipLoader(manifest.clips, manifest.root, names, VIDEO, store=store, **given)  # type: ignore[arg-type]


def files_of(root: Path) -> dict[str, bytes]:
    """The one store below `root`."""
    (folder,) = root.iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    alone, together = files_of(tmp_path / "alone"), files_of(tmp_path / "together")
    assert sorted(alone) == sorted(together) == sorted([FRAMES, RECORDS, HEADER, "lock"])
    for name in alone:
        assert alone[name] == together[name], name
    fault_log("a store filled by two or three processes at once", {"byte for byte what one process writes": 1})


def check(manifest: Manifest, root: Path, expected: Mapping[str, np.ndarray]) -> int:
    """Every clip as decoding gives it; returns how many the store had."""
    with loader_of(manifest, root) as loader:
        stored = sum(loader.kept.has(row) for row in range(len(manifest.clips)))
        for batch in loader.epoch(0):
            for key, frames in zip(batch.keys, batch.frames.numpy(), strict=True):
                np.testing.assert_array_equal(frames, expected[key], err_msg=key)
    return stored


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


def test_writers_killed_while_others_go_on(manifest, expected, tmp_path, fault_log):
    """One of three is killed while the store fills; the others fill it up."""
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
        assert check(manifest, root, expected) > 0
        assert check(manifest, root, expected) == clips
    fault_log("one of three processes that fill a store killed", {"every stored row right, the rest decoded": kills})


# ---- the built-in corpus


def making(actors: int = 2, takes: int = 4) -> subprocess.Popen[str]:
    code = MAKE.format(actors=actors, takes=takes)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def finished(processes: list[subprocess.Popen[str]]) -> Path:
    """Every process ends well, and all have used one folder."""
    roots = set()
    for process in processes:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        roots.add(out.strip())
    (root,) = roots
    return Path(root)


def test_processes_that_make_one_corpus_take_turns(cache, tmp_path, fault_log):
    root = finished([making() for _ in range(3)])
    assert root.parent == cache / "synthetic"
    assert contents(root) == contents(synthesize(tmp_path / "alone", TINY, workers=1))
    fault_log("three processes that make the built-in corpus in one cache", {"one made it, the others used it": 1})


def test_the_second_waits_for_the_first(cache, monkeypatch, tmp_path):
    """What the second finds is whole: nothing is made twice, nothing is looked at half made."""
    from fastemo.corpus import prepare

    calls = tmp_path / "calls"

    def slow(root: Path, config: SyntheticConfig, **others: object) -> Path:
        with calls.open("a") as file:
            file.write("begin\n")
        time.sleep(0.3)
        synthesize(root, config, workers=1)
        with calls.open("a") as file:
            file.write("end\n")
        return root

    monkeypatch.setattr(prepare, "synthesize", slow)
    make = partial(corpus_root, CorpusConfig(synthetic=TINY), Console(show=False))
    assert exit_codes([forked(make) for _ in range(3)]) == [0, 0, 0]
    assert calls.read_text() == "begin\nend\n" * 3


@pytest.mark.slow
def test_a_process_killed_while_it_makes_the_corpus_is_followed_by_one_that_finishes_it(cache, tmp_path, fault_log):
    actors, takes = 4, 30
    kills = 0
    for wanted in sorted(random.Random(0).sample(range(1, actors * takes), 4)):  # so many files, then it is killed
        process = making(actors, takes)
        while len(list(cache.rglob("*.mp4"))) < wanted and process.poll() is None:
            time.sleep(0.01)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills > 1
    root = finished([making(actors, takes) for _ in range(2)])
    config = SyntheticConfig(actors=actors, clips_per_actor=takes, width=64, height=64, num_frames=4)
    assert contents(root) == contents(synthesize(tmp_path / "alone", config, workers=1))
    fault_log("a process killed while it makes the built-in corpus", {"the next one finished it": kills})


def test_a_whole_corpus_needs_no_lock(cache, monkeypatch):
    """A cache that is read-only, or on a file system without locks, serves what lies there."""
    from fastemo import machine

    config = CorpusConfig(synthetic=TINY)
    monkeypatch.setattr(machine, "fcntl", None)
    root = corpus_root(config, Console(show=False))
    before = contents(root)
    assert corpus_root(config, Console(show=False)) == root
    assert contents(root) == before


# ---- the remembered scan


def test_processes_that_remember_one_scan(manifest, cache, fault_log):
    """Each writes the whole file or nothing: whoever reads it reads one of theirs."""
    rounds = full_or(10, 45)

    def scan_again() -> None:
        for _ in range(rounds):
            assert scan_cached(manifest.root, CorpusConfig(root=manifest.root), Console(show=False)) == manifest

    processes = [forked(scan_again) for _ in range(3)]
    (cache / "manifests").mkdir(parents=True, exist_ok=True)
    seen = 0
    while seen < rounds:
        for path in (cache / "manifests").glob("*.csv"):
            assert read_manifest(path, manifest.root) == manifest
            seen += 1
    assert exit_codes(processes) == [0, 0, 0]
    assert [path.suffix for path in (cache / "manifests").iterdir()] == [".csv"]
    fault_log("three processes that remember one scan at once", {"whole whenever it was read": seen})


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
        for path in (cache / "manifests").glob("*.csv"):
            assert read_manifest(path, manifest.root) == manifest
    once = forked(lambda: scan_cached(manifest.root, CorpusConfig(root=manifest.root), Console(show=False)))
    assert exit_code(once) == 0
    fault_log("a process killed while it remembers a scan", {"the last whole one read": 10})
