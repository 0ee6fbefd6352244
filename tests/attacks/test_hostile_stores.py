"""Stores that were damaged, swapped or booby-trapped: a loader gives what decoding gives, or reports why not.

Everything runs in processes of its own: what would end, hang or fill one must not do so to the tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from attacks.confined import be_nobody_special, exit_code, exit_codes, forked, limit_memory
from helpers import check_epoch, decoded_clips, full_or, wait_until, write_noise_clip
from mutations import few_bits

from fastemo.corpus.manifest import Manifest, scan
from fastemo.video.backends import Decoder
from fastemo.video.config import StoreConfig, Tier, VideoConfig
from fastemo.video.loader import ClipLoader
from fastemo.video.store import FRAMES, HEADER, LOCK, RECORDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stores need Linux's positioned reads and file locks")

Attack = Callable[[Path, random.Random], None]
CONFIG = VideoConfig(num_frames=3, size=20)
FILES = (FRAMES, RECORDS, HEADER)
ROW_BYTES = 3 * 3 * 20 * 20
NUM_CLIPS = 6


def make_corpus(root: Path, first: int = 0) -> Manifest:
    for actor in range(1, NUM_CLIPS + 1):
        write_noise_clip(root / f"02-01-03-01-01-01-{actor:02d}.mp4", first + actor, 5, 32, 32)
    return scan(root)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("one") / "corpus")


@pytest.fixture(scope="module")
def expected(manifest):
    return decoded_clips(manifest, CONFIG)


@pytest.fixture(scope="module")
def filled(manifest, tmp_path_factory):
    root = tmp_path_factory.mktemp("filled")
    with open_loader(manifest, root) as loader:
        assert len(list(loader.epoch())) == NUM_CLIPS // 2
    return root


@pytest.fixture(scope="module")
def of_another_corpus(tmp_path_factory):
    """A whole store of the same keys and shape with other pixels."""
    root = tmp_path_factory.mktemp("foreign")
    with open_loader(make_corpus(tmp_path_factory.mktemp("two") / "corpus", first=1000), root) as loader:
        list(loader.epoch())
    return next(root.iterdir())


def open_loader(manifest: Manifest, root: Path, tier: Tier = "disk", say: Callable[[str], None] = print) -> ClipLoader:
    store = StoreConfig(tier=tier, root=root)
    return ClipLoader(manifest.clips, manifest.root, ("happy",), CONFIG, batch_size=2, store=store, say=say)


# ---- what is done to a store


def flip_bits(name: str, folder: Path, rng: random.Random) -> None:
    (folder / name).write_bytes(few_bits((folder / name).read_bytes(), rng))


def overwrite(name: str, folder: Path, rng: random.Random) -> None:
    with (folder / name).open("r+b") as file:
        file.seek(rng.randrange((folder / name).stat().st_size))
        file.write(rng.choice((bytes(rng.randrange(1, 900)), rng.randbytes(300))))


def truncate(name: str, folder: Path, rng: random.Random) -> None:
    size = (folder / name).stat().st_size
    os.truncate(folder / name, rng.choice((0, 1, size // 2, size - 1, rng.randrange(size))))


def grow(name: str, folder: Path, rng: random.Random) -> None:
    size = (folder / name).stat().st_size
    os.truncate(folder / name, rng.choice((size + 1, 2 * size, 2**31, 2**36, 2**40)))


def delete(name: str, folder: Path, rng: random.Random) -> None:
    (folder / name).unlink()


def make_folder(name: str, folder: Path, rng: random.Random) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    if rng.random() < 0.5:
        (folder / name / "inside").touch()


def make_pipe(name: str, folder: Path, rng: random.Random) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def make_link(name: str, folder: Path, rng: random.Random) -> None:
    """To a user's file, to itself, to nothing, to an endless device, to another file of the store."""
    (folder / name).unlink(missing_ok=True)
    targets = (folder.parent / "victim", folder / name, folder / "nothing", "/dev/zero", "/dev/full", folder / RECORDS)
    (folder / name).symlink_to(rng.choice(targets))


def signed(content: dict[str, object]) -> str:
    """A header's text as the store writes it, its checksum right."""
    plain = {name: value for name, value in content.items() if name != "sha256"}
    return json.dumps({**plain, "sha256": hashlib.sha256(json.dumps(plain).encode()).hexdigest()}, indent=1)


STRANGE = [None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, "", "x", [], {}, [[1]], [None] * 9, ["a"] * 9, [{}], "\0"]


def rewrite_header(folder: Path, rng: random.Random) -> None:
    """Other types and numbers in the header, with a checksum that is right or one that is not."""
    content = json.loads((folder / HEADER).read_text())
    for _ in range(rng.choice((1, 1, 3))):
        key = rng.choice([*content, "keys", "keys"])
        if key == "keys" and rng.random() < 0.5:
            keys = list(content["keys"]) if isinstance(content["keys"], list) else []
            rng.shuffle(keys)
            content["keys"] = rng.choice((keys, keys[1:], keys * 2, keys + keys[:1], keys * 500, ["../../x", *keys]))
        else:
            content[key] = rng.choice(STRANGE)
    (folder / HEADER).write_text(signed(content) if rng.random() < 0.7 else json.dumps(content, indent=1))


def no_header(folder: Path, rng: random.Random) -> None:
    texts = ("[" * 100_000, "{}", "null", "[]", '{"keys": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}', "\ufeff{}", "NaN")
    (folder / HEADER).write_text(rng.choice(texts))


def swap_rows(folder: Path, rng: random.Random) -> None:
    one, other = rng.sample(range(NUM_CLIPS), 2)
    for name, size in rng.choice((((FRAMES, ROW_BYTES),), ((RECORDS, 64),), ((FRAMES, ROW_BYTES), (RECORDS, 64)))):
        rows = np.fromfile(folder / name, np.uint8).reshape(NUM_CLIPS, size)
        rows[[one, other]] = rows[[other, one]]
        rows.tofile(folder / name)


def swap_in(foreign: Path, folder: Path, rng: random.Random) -> None:
    """Files of another corpus's store in place of some of its own."""
    for name in rng.choice(((FRAMES,), (RECORDS,), (HEADER,), (FRAMES, RECORDS), FILES)):
        shutil.copy(foreign / name, folder / name)


def attacks(foreign: Path) -> dict[str, list[Attack]]:
    def each(*works: Callable[[str, Path, random.Random], None], names: tuple[str, ...] = FILES) -> list[Attack]:
        return [partial(work, name) for work in works for name in names]

    replacements = (make_folder, make_pipe, make_link)
    return {
        "bit flips in a store's frames, checksums or header": each(flip_bits, overwrite),
        "a store's file cut off, emptied or deleted": each(truncate, delete),
        "a store's file grown, up to a terabyte": each(grow),
        "a store's file or lock replaced by a folder, pipe or link": each(*replacements, names=(*FILES, LOCK)),
        "a header with wrong types, huge numbers, other clips": [rewrite_header, rewrite_header, no_header],
        "rows swapped, or files of another corpus's store": [swap_rows, partial(swap_in, foreign)],
    }


def try_one(attack: Attack, seed: int, work: Path, filled: Path, manifest: Manifest, expected: dict) -> str:
    """Damage a copy of a store and load from it by two tiers; returns the outcome."""
    rng = random.Random(seed)
    root = Path(shutil.copytree(filled, work / "stores"))
    (root / "victim").write_text("precious")
    folder = next(it for it in root.iterdir() if it.is_dir())
    attack(folder, rng)
    messages: list[str] = []
    decoded = []
    with mock.patch.object(Decoder, "decode", autospec=True, side_effect=Decoder.decode) as decode:
        for tier in rng.sample(("disk", "memory"), 2):
            with open_loader(manifest, root, tier, messages.append) as loader:
                assert check_epoch(loader, expected) == NUM_CLIPS
                decoded.append(decode.call_count)
                assert check_epoch(loader, expected, epoch=1) == NUM_CLIPS
    assert (root / "victim").read_text() == "precious"
    assert all("\n" not in line and str(root) in line and "; training continues without" in line for line in messages)
    header = None if messages else (folder / HEADER).read_text()
    shutil.rmtree(root)
    if header is None:
        return "store not used, and reported, clips decoded"
    assert header == signed(json.loads(header)), "a damaged header is written anew"
    assert decode.call_count == decoded[0], "what was decoded once was stored and served"
    return "damaged clips decoded again, the rest read" if decoded[0] else "all clips read, none was damaged"


def test_damaged_stores(filled, of_another_corpus, manifest, expected, tmp_path, fault_log):
    """In a process with little memory to spare, which a hang ends."""
    kinds, each, results = attacks(of_another_corpus), full_or(12, 112), tmp_path / "results.json"

    def try_all() -> None:
        limit_memory(2**31)
        found: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
        for kind, works in kinds.items():
            for number in range(each):
                work = works[number % len(works)]
                found[kind][try_one(work, number, tmp_path, filled, manifest, expected)] += 1
        results.write_text(json.dumps(found))

    assert exit_code(forked(try_all)) == 0
    outcomes = json.loads(results.read_text())
    assert {kind: sum(counts.values()) for kind, counts in outcomes.items()} == dict.fromkeys(kinds, each)
    for kind, counts in outcomes.items():
        fault_log(kind, counts)


def test_a_store_that_may_not_be_read_or_written(filled, manifest, expected, tmp_path, fault_log):
    for number, (name, mode) in enumerate((name, mode) for name in (*FILES, LOCK, ".") for mode in (0o000, 0o444)):
        root = Path(shutil.copytree(filled, tmp_path / str(number)))
        folder = next(root.iterdir())
        (folder / name).chmod(mode)

        def attack(root: Path = root) -> None:
            be_nobody_special()
            for tier in ("disk", "memory"):
                messages: list[str] = []
                with open_loader(manifest, root, tier, messages.append) as loader:
                    assert check_epoch(loader, expected) == NUM_CLIPS
                (line,) = messages or ["Permission denied, or only the header, which is not written to;"]
                assert "Permission denied" in line
                assert "\n" not in line

        assert exit_code(forked(attack)) == 0, (name, oct(mode))
        folder.chmod(0o755)
    fault_log("a store without permission to read or write", {"not used, and reported, clips decoded": 10})


def test_a_store_that_is_damaged_while_two_processes_train_on_it(
    filled, of_another_corpus, manifest, expected, tmp_path, fault_log
):
    """Reads and writes go by system calls: a file that shrinks under a reader ends no process, as a mapping would.

    Each attack comes after another epoch of the three, so that a busy machine tries as many.
    """
    root = Path(shutil.copytree(filled, tmp_path / "stores"))
    (root / "victim").write_text("precious")
    folder = next(it for it in root.iterdir() if it.is_dir())
    every = [attack for works in attacks(of_another_corpus).values() for attack in works]
    stop, epochs, attempts = tmp_path / "stop", tmp_path / "epochs", full_or(60, 600)
    epochs.touch()

    def train(tier: Tier) -> None:
        while not stop.exists():
            with open_loader(manifest, root, tier, lambda line: None) as loader:
                for epoch in range(20):
                    assert check_epoch(loader, expected, epoch) == NUM_CLIPS
                    with epochs.open("ab", buffering=0) as file:
                        file.write(b".")

    trainings = [forked(partial(train, tier)) for tier in ("disk", "disk", "memory")]
    rng, tried = random.Random(0), 0
    while tried < attempts:
        wait_until(lambda tried=tried: epochs.stat().st_size > tried)
        if is_harmless(folder):
            # What others left may not suit this attack: no header, or one that holds nothing that it expects.
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
                rng.choice(every)(folder, rng)
                tried += 1
        else:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # the trainings make and set aside files of that name at the same time
                shutil.copytree(next(filled.iterdir()), folder, dirs_exist_ok=True)
        time.sleep(rng.choice((0, 0, 0.005)))
    stop.touch()
    assert exit_codes(trainings) == [0, 0, 0]
    assert (root / "victim").read_text() == "precious"
    fault_log("a store damaged while three processes train on it", {"every frame correct, no process ended": tried})


def test_damage_after_a_row_was_checked_is_noticed(filled, manifest, expected, tmp_path, fault_log):
    """A checked row is not checked at every read: but at the first after anybody wrote to the file."""
    root = Path(shutil.copytree(filled, tmp_path / "stores"))
    folder = next(root.iterdir())

    def flip_bits_of_each_row() -> None:
        rows = np.fromfile(folder / FRAMES, np.uint8).reshape(NUM_CLIPS, ROW_BYTES)
        rows[:, 17] ^= 1
        with (folder / FRAMES).open("r+b") as file:
            file.write(rows.tobytes())

    shorten = partial(os.truncate, folder / FRAMES, ROW_BYTES)

    def shorten_and_fill_up() -> None:  # by zeros, as whoever opens the store does
        shorten()
        open_loader(manifest, root).close()

    with open_loader(manifest, root) as loader:
        for damage in (flip_bits_of_each_row, shorten, shorten_and_fill_up):
            for epoch in range(3):
                assert check_epoch(loader, expected, epoch) == NUM_CLIPS
                time.sleep(0.12)
            damage()
            assert check_epoch(loader, expected, 3) == NUM_CLIPS
    fault_log("frames damaged after they were checked", {"noticed, clips decoded again": 3})


def is_harmless(folder: Path) -> bool:
    """Whether an attack can read what the last one left: a pipe would hang it, a terabyte take its memory."""
    try:
        found = [(folder / name).lstat() for name in (*FILES, LOCK)]
    except OSError:
        return False
    return all(stat.S_ISREG(it.st_mode) and it.st_size < 2**24 for it in found)


def test_an_ended_process_is_told_from_a_clean_one():
    """A test of the harness: a crash, a hang and an error of a process are noticed."""
    assert exit_code(forked(partial(time.sleep, 60), seconds=1)) == -signal.SIGALRM
    assert exit_code(forked(partial(sys.exit, 3))) == 1
    assert exit_code(forked(lambda: os.kill(os.getpid(), signal.SIGBUS))) == -signal.SIGBUS
