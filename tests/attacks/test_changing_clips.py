"""Clips that change under a running training: what was scanned, or an error by name, never other frames unnoticed."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers import check_epoch, decoded_clips, full_or, write_images, write_noise_clip

from fastemo.corpus.files.examining import fingerprint
from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.errors import DecodeError
from fastemo.video import backends
from fastemo.video.config import StoreConfig, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader

CONFIG = VideoConfig(num_frames=3, size=24, prefetch_batches=1, decode_threads=2)
NUM_CLIPS, NUM_FRAMES, SIZE = 6, 8, (48, 32)
VICTIM = NUM_CLIPS - 1  # the last of an epoch
TIERS = ("none", "disk", "memory")
GARBAGE = np.random.default_rng(5).bytes(100_000)


@dataclass(frozen=True)
class Template:
    """Clips, what decoding gives of them by key, and videos to put in a clip's place."""

    folder: Path
    pixels: dict[str, np.ndarray]
    spare: Path


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder, spare = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("spare")
    for number in range(NUM_CLIPS):
        write_noise_clip(folder / f"02-01-0{number + 1}-01-01-01-01.mp4", number, NUM_FRAMES, *SIZE)
    pixels = decoded_clips(scan(folder), CONFIG)
    assert len({frames.tobytes() for frames in pixels.values()}) == NUM_CLIPS
    write_noise_clip(spare / "alike.mp4", 77, NUM_FRAMES, *SIZE)
    write_noise_clip(spare / "wider.mp4", 78, NUM_FRAMES, 96, 32)
    write_noise_clip(spare / "longer.mp4", 79, 20, *SIZE)
    write_noise_clip(spare / "shorter.mp4", 80, 2, *SIZE)
    write_noise_clip(spare / "other codec.mp4", 81, NUM_FRAMES, *SIZE, codec="mpeg4")
    return Template(folder, pixels, spare)


@pytest.fixture
def manifest(template, tmp_path):
    return scan(shutil.copytree(template.folder, tmp_path / "corpus"))


def moved_in(name: str) -> Callable[[Path, Template], None]:
    """Another file takes the clip's name, as a download that is renamed at its end."""

    def replace_it(path: Path, template: Template) -> None:
        new = path.with_name("new")
        shutil.copyfile(template.spare / name, new)
        new.replace(path)

    return replace_it


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path, Template], None]:
    def replace_it(path: Path, _: Template) -> None:
        path.unlink()
        make(path)

    return replace_it


def unreadable(path: Path, _: Template) -> None:
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("permissions do not bind this user")


def clock_moved(seconds: int) -> Callable[[Path, Template], None]:
    def touch(path: Path, _: Template) -> None:
        stamp = path.stat().st_mtime_ns + seconds * 10**9
        os.utime(path, ns=(stamp, stamp))

    return touch


FAULTS: dict[str, Callable[[Path, Template], object]] = {
    "clip deleted": lambda path, _: path.unlink(),
    "clip replaced by a video of the same size and length": moved_in("alike.mp4"),
    "clip overwritten by a video of the same size and length": lambda path, template: shutil.copyfile(
        template.spare / "alike.mp4", path
    ),
    "clip replaced by another clip of the corpus": lambda path, template: shutil.copyfile(
        template.folder / min(template.pixels), path
    ),
    "clip replaced by a wider video": moved_in("wider.mp4"),
    "clip replaced by a longer video": moved_in("longer.mp4"),
    "clip replaced by a shorter video": moved_in("shorter.mp4"),
    "clip replaced by a video of another codec": moved_in("other codec.mp4"),
    "clip cut in half": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "clip cut by one byte": lambda path, _: os.truncate(path, path.stat().st_size - 1),
    "clip overwritten by garbage": lambda path, _: path.write_bytes(GARBAGE[:500]),
    "clip overwritten by garbage of its length": lambda path, _: path.write_bytes(GARBAGE[: path.stat().st_size]),
    "clip emptied": lambda path, _: path.write_bytes(b""),
    "clip made unreadable": unreadable,
    "clip turned into an empty folder": in_its_place(Path.mkdir),
    "clip turned into a folder of images": in_its_place(lambda path: write_images(path, NUM_FRAMES, *SIZE)),
    "clip turned into a dangling link": in_its_place(lambda path: path.symlink_to("nowhere.mp4")),
    "clip turned into a link to itself": in_its_place(lambda path: path.symlink_to(path.name)),
    "clip turned into a pipe": in_its_place(os.mkfifo),
    "modification time moved a second back": clock_moved(-1),
    "modification time moved ten years ahead": clock_moved(10 * 365 * 86400),
}


def make_loader(manifest: Manifest, store: StoreConfig, on_error: str) -> ClipLoader:
    return ClipLoader(manifest.clips, manifest.root, EMOTIONS, CONFIG, batch_size=1, store=store, on_error=on_error)


def rest_of_epoch(template: Template, loader: ClipLoader, batches: Iterator, victim: str) -> str:
    """Take the rest of an epoch; every frame must be as scanned, and the altered clip alone may be missing.

    Returns:
        The outcome for that clip.
    """
    shown = set()
    try:
        for batch in batches:
            for key, frames, padding in zip(batch.keys, batch.frames.numpy(), batch.is_padding, strict=True):
                if not padding:
                    shown.add(key)
                    np.testing.assert_array_equal(frames, template.pixels[key])
    except DecodeError as error:
        assert not any(thread.name.startswith("decode") for thread in threading.enumerate())
        return "stopped by name" if Path(victim).name in str(error) else "stopped without a name"
    if victim in shown:
        return "served as scanned, from the cache"
    assert set(loader.dropped) == {victim}
    assert Path(victim).name in loader.dropped[victim]
    return "dropped by name"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_clip_that_changes_after_the_scan(template, manifest, tmp_path, fault_log, fault):
    """Before the first epoch, within it, and after it; every tier; with `stop` and with `drop`.

    In the sample of one fault every second of these: each tier at each time, and what one leaves out the next has.
    """
    clip = manifest.clips[VICTIM]
    path, outcomes = manifest.root / clip.key, Counter()
    cases = list(product(TIERS, ("stop", "drop"), ("before", "within", "after")))
    for tier, on_error, when in full_or(cases[list(FAULTS).index(fault) % 2 :: 2], cases):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        shutil.copy2(template.folder / clip.key, path)
        assert fingerprint(path) == (clip.size_bytes, clip.mtime_ns)
        store = StoreConfig(tier=tier, root=tmp_path / f"{tier} {on_error} {when}")
        with make_loader(manifest, store, on_error) as loader:
            batches = loader.epoch(1)
            if when == "within":
                next(batches)
            if when == "after":
                assert rest_of_epoch(template, loader, batches, clip.key) == "served as scanned, from the cache"
                batches = loader.epoch(2)
            FAULTS[fault](path, template)
            outcome = rest_of_epoch(template, loader, batches, clip.key)
        is_cached = when == "after" and tier != "none"
        failed = "stopped by name" if on_error == "stop" else "dropped by name"
        assert outcome == ("served as scanned, from the cache" if is_cached else failed), (tier, on_error, when)
        outcomes[outcome] += 1
        if on_error == "stop" and when == "after":
            outcomes[f"next start: {scanned_anew(template, manifest, store, clip.key)}"] += 1
    fault_log(fault, outcomes)


def scanned_anew(template: Template, manifest: Manifest, store: StoreConfig, victim: str) -> str:
    """The next start: the file that now has the clip's name is rejected, or decoded as it is now.

    Returns:
        The outcome for the clip.
    """
    again = scan(manifest.root)
    with make_loader(again, store, "stop") as loader:
        check_epoch(loader, decoded_clips(again, CONFIG))
    names = {clip.key for clip in again.clips}
    assert names >= set(template.pixels) - {victim}
    if victim in names:
        return "decoded anew"
    if victim in {clip.key for clip in again.rejected}:
        return "rejected by name"
    return "unlabelled" if victim in {clip.key for clip in again.unlabelled} else "not found"


@pytest.mark.parametrize("tier", TIERS)
def test_a_clip_replaced_while_it_is_read(template, manifest, tmp_path, monkeypatch, fault_log, tier):
    """Between the look at the file and its bytes: noticed by a second look, and nothing is cached."""
    clip, outcomes = manifest.clips[VICTIM], Counter()
    path = manifest.root / clip.key
    for on_error in ("stop", "drop"):
        shutil.copy2(template.folder / clip.key, path)

        def read(name: Path, *arguments, **options) -> np.ndarray:
            if name == path:
                moved_in("alike.mp4")(path, template)
            return decode_clip(name, *arguments, **options)

        monkeypatch.setattr(backends, "decode_clip", read)
        store = StoreConfig(tier=tier, root=tmp_path / on_error)
        with make_loader(manifest, store, on_error) as loader:
            outcomes[rest_of_epoch(template, loader, loader.epoch(1), clip.key)] += 1
            assert not loader.kept.has(VICTIM)
        monkeypatch.undo()
    assert outcomes == {"stopped by name": 1, "dropped by name": 1}
    fault_log(f"clip replaced while it is read, tier {tier}", outcomes)


@pytest.mark.parametrize("change", ["deleted", "added"])
def test_a_folder_of_images_that_changes(tmp_path, fault_log, change):
    for tier in TIERS:
        root = tmp_path / tier
        folder, _ = (write_images(root / "train" / name, NUM_FRAMES, *SIZE) for name in ("happy/one", "sad/two"))
        manifest, last = scan(root), folder / f"frame{NUM_FRAMES:04d}.jpg"
        options = {"batch_size": 2, "store": StoreConfig(tier=tier, root=tmp_path / "store"), "on_error": "drop"}
        with ClipLoader(manifest.clips, root, EMOTIONS, CONFIG, **options) as loader:
            if change == "deleted":
                last.unlink()
            else:
                shutil.copy2(last, folder / f"frame{NUM_FRAMES + 1:04d}.jpg")
            (batch,) = loader.epoch(1)
            assert batch.is_padding.tolist() == [True, False]
            assert "changed after the scan" in loader.dropped["train/happy/one"]
    fault_log(f"folder of images: one {change}", {"dropped by name": len(TIERS)})


YEAR_NS = 365 * 86400 * 10**9
CLOCKS = {"1902": -68 * YEAR_NS, "1970": 0, "now": None, "2100": 130 * YEAR_NS, "2400": 430 * YEAR_NS}


@pytest.mark.parametrize("tier", ["disk", "memory"])
def test_the_store_goes_by_equal_times_not_by_later_ones(template, manifest, tmp_path, monkeypatch, fault_log, tier):
    """The clock jumps to and fro between scans: the store serves a clip as scanned, and never an older one's frames."""
    clip, outcomes = manifest.clips[VICTIM], Counter()
    path, store = manifest.root / clip.key, StoreConfig(tier=tier, root=tmp_path / "store")
    for year, stamp in CLOCKS.items():
        for name in ("alike.mp4", "longer.mp4"):
            shutil.copyfile(template.spare / name, path)
            if stamp is not None:
                os.utime(path, ns=(stamp, stamp))
            if stamp is not None and path.stat().st_mtime_ns != stamp:
                outcomes[f"this file system has no {year}"] += 1
                continue
            again = scan(manifest.root)
            expected = decoded_clips(again, CONFIG)
            for is_stored in (False, True):
                with make_loader(again, store, "stop") as loader, monkeypatch.context() as patch:
                    if is_stored:
                        patch.setattr(backends, "decode_clip", lambda *_, **__: pytest.fail("decoded again"))
                    else:
                        assert not loader.kept.has(VICTIM)
                    assert check_epoch(loader, expected) == NUM_CLIPS
            outcomes["decoded anew, then served from the store"] += 1
    fault_log(f"modification times from 1902 to 2400, tier {tier}", outcomes)


def padded(data: bytes, length: int) -> bytes:
    """An MP4 made longer by a box that says nothing."""
    box = length - len(data)
    return data + box.to_bytes(4, "big") + b"free" + bytes(box - 8)


def test_an_equal_size_and_time_cannot_be_told(template, manifest, fault_log):
    """The limit of a fingerprint: the clip is taken for the scanned one, whether it was cached or not."""
    clip = manifest.clips[VICTIM]
    path = manifest.root / clip.key
    one, other = path.read_bytes(), (template.spare / "alike.mp4").read_bytes()
    length = max(len(one), len(other)) + 8
    path.write_bytes(padded(one, length))
    again = scan(manifest.root)
    row = again.clips[VICTIM]
    path.write_bytes(padded(other, length))
    os.utime(path, ns=(row.mtime_ns, row.mtime_ns))
    assert fingerprint(path) == (row.size_bytes, row.mtime_ns)
    expected = decoded_clips(again, CONFIG)
    assert not np.array_equal(expected[clip.key], template.pixels[clip.key])
    with make_loader(again, StoreConfig(tier="none"), "stop") as loader:
        check_epoch(loader, expected)
    fault_log("clip replaced by one of equal size and modification time", {"cannot be told from the scanned one": 1})
