"""The clip store, a cache of decoded clips: what is read is what was decoded, whatever happened in between."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from attacks.confined import exit_codes, forked

from fastemo import machine
from fastemo.corpus.clip import Clip
from fastemo.corpus.files.examining import fingerprint
from fastemo.video import store as store_module
from fastemo.video.config import FrameSpec, StoreConfig
from fastemo.video.store import FRAMES, HEADER, LOCK, RECORDS, ClipStore, StoreUnavailable
from fastemo.video.tiers import choose_tier

SPEC = FrameSpec(num_frames=3, size=20)
SHAPE = (3, 3, 20, 20)
ROW_BYTES = 3 * 3 * 20 * 20
DECODER = "tests 1"
SCAN_NS = 1_700_000_000_123_456_789


def make_clips(corpus: Path, count: int) -> list[Clip]:
    """Files that stand for videos, of one size and one age: the store looks at no more of them."""
    clips = []
    for number in range(count):
        path = corpus / f"Actor_{number % 3:02d}" / f"clip é {number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
        os.utime(path, ns=(SCAN_NS, SCAN_NS))
        clips.append(scanned(corpus, path))
    return clips


def scanned(corpus: Path, path: Path) -> Clip:
    size_bytes, mtime_ns = fingerprint(path)
    key = path.relative_to(corpus).as_posix()
    return Clip(key=key, num_frames=12, size_bytes=size_bytes, mtime_ns=mtime_ns)


def changed(corpus: Path, clip: Clip) -> Clip:
    path = corpus / clip.key
    os.utime(path, ns=(clip.mtime_ns, clip.mtime_ns + 1_000_000_000))
    return scanned(corpus, path)


def pixels(clip: Clip, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """What decoding gives: a function of the file."""
    seed = [*clip.key.encode("utf-8", "surrogateescape"), clip.size_bytes, clip.mtime_ns]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def is_stored(store: ClipStore, clip: Clip, shape: tuple[int, ...] = SHAPE) -> bool:
    """Read; whatever is served must be what decoding gives."""
    slot = np.full(shape, 7, dtype=np.uint8)
    if not store.read(clip, slot):
        return False
    np.testing.assert_array_equal(slot, pixels(clip, shape))
    return True


def fill(store: ClipStore, clips: list[Clip]) -> None:
    for clip in clips:
        store.write(clip, pixels(clip))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return tmp_path / "my corpus"


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    return StoreConfig(tier="disk", root=tmp_path / "stores")


def open_store(config: StoreConfig, corpus: Path, clips: list[Clip], **changes: object) -> ClipStore:
    arguments = {"spec": SPEC, "frame_size": (20, 20), "decoder": DECODER, **changes}
    return ClipStore(config, corpus, clips, **arguments)  # type: ignore[arg-type]


# ---- what is stored


def test_a_stored_clip_and_a_fresh_one_are_the_same_bytes(config, corpus):
    clips = make_clips(corpus, 5)
    with open_store(config, corpus, clips) as store:
        assert not any(store.has(clip) or is_stored(store, clip) for clip in clips)
        # As the decoder gives them: channels last in memory.
        store.write(clips[0], pixels(clips[0]).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2))
        fill(store, clips[1:])
        for _ in range(3):
            assert all(store.has(clip) and is_stored(store, clip) for clip in clips)
        assert store.num_bytes == 5 * ROW_BYTES
        assert store.trouble is None
    with open_store(config, corpus, clips) as again:
        assert all(is_stored(again, clip) for clip in clips)


@pytest.mark.parametrize("width", [20, 36])
def test_the_file_is_the_array_of_all_clips(config, corpus, width):
    clips, shape = make_clips(corpus, 4), (3, 3, 20, width)
    with open_store(config, corpus, clips, frame_size=(width, 20)) as store:
        for clip in clips:
            store.write(clip, pixels(clip, shape))
        assert all(is_stored(store, clip, shape) for clip in clips)
        rows = np.memmap(store.folder / FRAMES, np.uint8, "r", shape=(4, *shape))
    header = json.loads((store.folder / HEADER).read_text())
    assert header["keys"] == [clip.key for clip in clips]
    assert header["spec"] == {"num_frames": 3, "crop": "center", "size": 20}
    assert header["decoder"] == DECODER
    for row, clip in zip(rows, clips, strict=True):
        np.testing.assert_array_equal(row, pixels(clip, shape))


@pytest.mark.parametrize(
    "changes",
    [{"spec": FrameSpec(num_frames=3, size=20, crop="head")}, {"decoder": "tests 2"}],
    ids=["spec", "decoder"],
)
def test_what_was_made_differently_is_not_served(config, corpus, changes):
    clips = make_clips(corpus, 2)
    with open_store(config, corpus, clips) as store, open_store(config, corpus, clips, **changes) as other:
        fill(store, clips)
        assert other.folder != store.folder
        assert not any(is_stored(other, clip) for clip in clips)
        # Nor where its files are put in the other's place, checksums and all.
        for name in (FRAMES, RECORDS, HEADER):
            shutil.copy(store.folder / name, other.folder / name)
    with open_store(config, corpus, clips, **changes) as other:
        assert not any(is_stored(other, clip) for clip in clips)


def test_a_clip_with_another_frame_count_is_another_sample(config, corpus):
    [clip] = make_clips(corpus, 1)
    with open_store(config, corpus, [clip]) as store:
        fill(store, [clip])
        assert not is_stored(store, replace(clip, num_frames=13))


def test_a_clip_whose_face_is_elsewhere_is_another_sample(config, corpus):
    [clip] = (replace(it, face="1 2 3 4") for it in make_clips(corpus, 1))
    moved, spec = replace(clip, face="1 2 3 5"), replace(SPEC, crop="face")
    with open_store(config, corpus, [clip], spec=spec) as store:
        fill(store, [clip])
        assert store.has(clip)
        assert is_stored(store, clip)
        assert not store.has(moved)
        assert not is_stored(store, moved)
    for other in (replace(spec, face_margin=0.5), replace(spec, num_frames=2)):
        with open_store(config, corpus, [clip], spec=other) as another:
            assert another.folder != store.folder
    with open_store(config, corpus, [clip]) as center:  # which does not depend on the face
        fill(center, [clip])
        assert center.has(moved)
        assert is_stored(center, moved)
    with open_store(config, corpus, [clip], spec=replace(SPEC, face_margin=0.5)) as same:
        assert same.folder == center.folder


def test_stores_with_different_clips_share_a_folder(config, corpus):
    clips = make_clips(corpus, 9)
    train, val = clips[:6], clips[4:]
    with open_store(config, corpus, train) as one:
        fill(one, train[:3])
        with open_store(config, corpus, val) as other:
            assert other.folder == one.folder
            fill(one, train[3:])
            assert is_stored(other, clips[4])
            assert is_stored(other, clips[5])
            fill(other, val)
            assert not one.has(clips[8])
            one.write(clips[8], pixels(clips[8]))  # not one of its own: passed over
            assert all(is_stored(one, clip) for clip in train)
    with open_store(config, corpus, clips[::-1]) as whole:
        assert all(is_stored(whole, clip) for clip in clips)
        keys = json.loads((whole.folder / HEADER).read_text())["keys"]
        assert sorted(keys) == sorted(clip.key for clip in clips)


def test_a_key_that_is_not_utf_8(config, corpus):
    path = Path(os.fsdecode(os.fsencode(corpus) + b"/caf\xe9.mp4"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"video")
    clip = scanned(corpus, path)
    with open_store(config, corpus, [clip]) as store:
        fill(store, [clip])
    with open_store(config, corpus, [clip]) as store:
        assert is_stored(store, clip)


def test_the_default_place_is_the_cache_folder(cache_folder, corpus):
    with open_store(StoreConfig(), corpus, make_clips(corpus, 1)) as store:
        assert store.folder.parent == cache_folder / "store"
        assert store.folder.name.startswith("my_corpus-")


# ---- changed files


def test_another_process_that_stores_a_changed_file_is_noticed(config, corpus):
    [clip] = make_clips(corpus, 1)
    with open_store(config, corpus, [clip]) as store:
        fill(store, [clip])
        assert is_stored(store, clip)
        new = changed(corpus, clip)
        with open_store(config, corpus, [new]) as other:
            fill(other, [new])
        assert not is_stored(store, clip)
        assert is_stored(store, new)


@pytest.mark.parametrize("how", ["touched", "deleted"])
def test_a_file_that_changed_after_the_scan_is_not_stored(config, corpus, how):
    [clip] = make_clips(corpus, 1)
    with open_store(config, corpus, [clip]) as store:
        if how == "touched":
            changed(corpus, clip)
        else:
            (corpus / clip.key).unlink()
        store.write(clip, pixels(clip))
        assert not store.has(clip)
        assert not is_stored(store, clip)
        assert store.trouble is None


# ---- damage


def test_a_process_with_an_open_store_is_not_harmed_when_it_is_made_anew(config, corpus):
    clips = make_clips(corpus, 3)
    with open_store(config, corpus, clips) as old:
        fill(old, clips)
        assert is_stored(old, clips[0])
        os.truncate(old.folder / HEADER, 99)
        with open_store(config, corpus, clips[::-1]) as new:
            assert not any(is_stored(new, clip) for clip in clips)
            fill(new, clips[::-1])
            assert all(is_stored(old, clip) for clip in clips)
            fill(old, clips)
            assert all(is_stored(store, clip) for clip in clips for store in (old, new))


def test_a_disk_that_fails_to_read_is_a_miss(config, corpus, monkeypatch):
    [clip] = make_clips(corpus, 1)
    with open_store(config, corpus, [clip]) as store:
        fill(store, [clip])
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", Mock(side_effect=OSError(5, "Input/output error")))
            assert not is_stored(store, clip)
        assert is_stored(store, clip)


# ---- many at once


def test_threads_and_processes_read_and_write_files_that_change(config, corpus):
    paths = [corpus / clip.key for clip in make_clips(corpus, 4)]
    spec, shape = FrameSpec(num_frames=10, size=64), (10, 3, 64, 64)

    def work(store: ClipStore, seed: int) -> int:
        hits = 0
        for number in np.random.default_rng(seed).integers(0, 10**6, 150):
            path = paths[number % len(paths)]
            if number % 11 == 0:
                os.utime(path)
            clip = scanned(corpus, path)
            if is_stored(store, clip, shape):
                hits += 1
            else:
                store.write(clip, pixels(clip, shape))
        return hits

    def work_in_threads(seed: int) -> None:
        clips = [scanned(corpus, path) for path in paths]
        with open_store(config, corpus, clips, spec=spec, frame_size=(64, 64)) as store, ThreadPoolExecutor(3) as pool:
            assert sum(pool.map(work, [store] * 3, range(seed, seed + 3))) > 0
            assert store.trouble is None

    processes = [forked(partial(work_in_threads, seed)) for seed in (0, 10, 20)]
    assert exit_codes(processes) == [0] * 3


def test_at_no_moment_of_a_rewrite_a_record_belies_its_bytes(config, corpus, monkeypatch):
    old = make_clips(corpus, 2)
    moments = 0

    def write_at_with_a_look_around(file: int, data: memoryview | bytes, offset: int) -> None:
        nonlocal moments
        for start, end in ((0, 0), (0, len(data) // 2), (len(data) // 2, len(data))):
            machine.write_at(file, data[start:end], offset + start)
            moments += 1
            for clip in (old[0], new):
                # One has the row verified since long, the other sees it for the first time.
                assert is_stored(reader, clip) in (True, False)
                fresh._verified.clear()
                assert is_stored(fresh, old[1])
                assert is_stored(fresh, clip) == fresh.has(clip) or 0 < end < len(data)

    open_again = partial(open_store, config, corpus, old)
    with open_again() as store, open_again() as reader, open_again() as fresh:
        fill(store, old)
        assert is_stored(reader, old[0])
        new = changed(corpus, old[0])
        monkeypatch.setattr(store_module, "write_at", write_at_with_a_look_around)
        store.write(new, pixels(new))
        assert is_stored(reader, new)
    assert moments == 9


def test_a_row_that_is_rewritten_while_it_is_read_is_a_miss(config, corpus, monkeypatch):
    [old] = make_clips(corpus, 1)
    with open_store(config, corpus, [old]) as store:
        fill(store, [old])
        assert is_stored(store, old)
        new = changed(corpus, old)

        def read_at_after_a_write(file: int, view: memoryview, offset: int) -> bool:
            store.write(new, pixels(new))
            return machine.read_at(file, view, offset)

        with monkeypatch.context() as patch:
            patch.setattr(store_module, "read_at", read_at_after_a_write)
            assert not is_stored(store, old)
        assert is_stored(store, new)


def test_one_at_a_time_opens_or_writes(config, corpus):
    clips = make_clips(corpus, 2)
    with open_store(config, corpus, clips) as store, ThreadPoolExecutor(2) as pool:
        with machine.locked(store.folder / LOCK):
            jobs = [
                pool.submit(store.write, clips[0], pixels(clips[0])),
                pool.submit(lambda: open_store(config, corpus, clips).close()),
            ]
            time.sleep(0.2)
            assert not any(job.done() for job in jobs)
            assert not store.has(clips[0])
        for job in jobs:
            job.result(timeout=300)
        assert is_stored(store, clips[0])


@pytest.mark.parametrize("step", ["touch", "ftruncate", "write_text", "replace"])
@pytest.mark.parametrize("count", [0, 3])
def test_ended_while_rows_are_added(config, corpus, monkeypatch, step, count):
    clips = make_clips(corpus, 6)
    before = clips[:count]
    with open_store(config, corpus, before) as store:
        fill(store, before)

    owner = {"touch": Path, "ftruncate": os, "write_text": store_module, "replace": Path}[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_store(config, corpus, clips)
    (store.folder / f".{HEADER}.of a killed process").touch()
    with open_store(config, corpus, clips) as store:
        assert not list(store.folder.glob(".*"))
        assert [is_stored(store, clip) for clip in clips] == [clip in before for clip in clips]
        fill(store, clips)
        assert all(is_stored(store, clip) for clip in clips)


# ---- no room


def test_a_store_that_is_deleted_while_open_ends_the_storing(config, corpus):
    clips = make_clips(corpus, 2)
    with open_store(config, corpus, clips) as store:
        fill(store, clips[:1])
        shutil.rmtree(store.folder)
        fill(store, clips)
        assert store.trouble is not None
        assert is_stored(store, clips[0])
        assert not is_stored(store, clips[1])


def test_the_limit_holds_over_all_stores(config, corpus, tmp_path):
    clips, others = make_clips(corpus, 20), make_clips(tmp_path / "other", 20)
    limited = replace(config, max_gib=30 * 4096 / 2**30)
    with open_store(limited, corpus, clips) as store:
        fill(store, clips)
        assert store.trouble is None
    with pytest.raises(StoreUnavailable, match=r"need .* MiB more, .* take .* of the 0\.1 MiB that --store.max_gib"):
        open_store(limited, tmp_path / "other", others)
    with open_store(limited, corpus, clips) as store:
        assert all(is_stored(store, clip) for clip in clips)


def test_stores_that_fit_alone_keep_the_limit_together(config, corpus):
    clips = make_clips(corpus, 40)
    limited = replace(config, max_gib=25 * ROW_BYTES / 2**30)
    with open_store(limited, corpus, clips[:20]) as train, open_store(limited, corpus, clips[20:]) as val:
        fill(train, clips[:20])
        fill(val, clips[20:])
        assert train.trouble is None
        assert val.trouble is not None
        assert "--store.max_gib" in val.trouble
        assert (val.folder / FRAMES).stat().st_blocks * 512 <= 25 * ROW_BYTES + 4096
        # A changed file takes its own old place.
        new = changed(corpus, clips[0])
        train.write(new, pixels(new))
        assert is_stored(train, new)


def test_where_there_are_no_file_locks(config, corpus, monkeypatch):
    monkeypatch.setattr(machine, "fcntl", None)
    with pytest.raises(StoreUnavailable, match=r"no file locks; .*--store.tier none"):
        open_store(config, corpus, make_clips(corpus, 1))


# ---- what is chosen


@pytest.mark.parametrize(
    ("tier", "device", "gpu_free", "available", "chosen"),
    [
        ("auto", "cuda", 4000, 0, "device"),
        ("auto", "cuda", 3999, 2000, "memory"),
        ("auto", "cuda", 3999, 1999, "disk"),
        ("auto", "cpu", 0, 2000, "memory"),
        ("auto", "cpu", 0, 1999, "disk"),
        ("none", "cuda", 4000, 2000, "none"),
        ("disk", "cuda", 4000, 2000, "disk"),
        ("memory", "cpu", 0, 0, "memory"),
        ("device", "cuda", 1334, 0, "device"),
        ("device", "cpu", 0, 0, "memory"),
    ],
)
def test_the_tier(tier, device, gpu_free, available, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gpu_free, 10**6))
    monkeypatch.setattr("fastemo.video.tiers.available_memory", lambda: available)
    got, reason = choose_tier(StoreConfig(tier=tier), 1000, torch.device(device))
    assert got == chosen
    assert reason
    assert "\n" not in reason
    assert (reason == "as asked") == (tier == chosen)


def test_all_splits_share_one_budget_of_the_gpu(monkeypatch):
    card, held = 4000, 0
    monkeypatch.setattr("fastemo.video.tiers.available_memory", lambda: 10**6)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (card - held, card))
    tiers = []
    for num_bytes in (600, 400, 1):
        tier, _ = choose_tier(StoreConfig(), num_bytes, torch.device("cuda"), held)
        tiers.append(tier)
        held += num_bytes if tier == "device" else 0
    assert tiers == ["device", "device", "memory"]
    with pytest.raises(ValueError, match=r"store\.tier device: .* take .*--store.tier memory, disk or auto"):
        choose_tier(StoreConfig(tier="device"), 2001, torch.device("cuda"), held)
    assert choose_tier(StoreConfig(tier="device"), 2000, torch.device("cuda"), held)[0] == "device"
