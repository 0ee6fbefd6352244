"""Training without clips that do not decode: what the batches then hold, and which errors are never passed over."""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import decoded_clips, write_noise_clip

from fastemo.corpus.manifest import scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.errors import DecodeError
from fastemo.video import backends, tiers
from fastemo.video.bitstream.pruning import PrunedClip, prune
from fastemo.video.config import StoreConfig, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader

SMALL = VideoConfig(num_frames=3, size=24)
BAD = (1, 4, 5)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Eight clips of eight emotions, each with pictures of its own."""
    folder = tmp_path_factory.mktemp("whole")
    for number in range(8):
        write_noise_clip(folder / f"02-01-0{number + 1}-01-01-01-01.mp4", number, 6, 32, 32)
    return folder


@pytest.fixture(scope="module")
def expected(template):
    return decoded_clips(scan(template), SMALL)


@pytest.fixture
def corpus(template, tmp_path):
    """The clips as scanned, three of them cut since."""
    manifest = scan(shutil.copytree(template, tmp_path / "corpus"))
    for number in BAD:
        cut(manifest.root / manifest.clips[number].key)
    return manifest


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def make_loader(manifest, *, config=SMALL, **options):
    options = {"batch_size": 4, "on_error": "drop", **options}
    return ClipLoader(manifest.clips, manifest.root, EMOTIONS, config, **options)


def real_rows(batches):
    """Of the rows that weigh something: key -> label and pixels."""
    return {
        key: (int(label), frames.numpy())
        for batch in batches
        for key, label, frames, padding in zip(batch.keys, batch.labels, batch.frames, batch.is_padding, strict=True)
        if not padding
    }


def store_of(tier, root, monkeypatch):
    if tier == "device":  # where there is no GPU: cached in a tensor all the same
        monkeypatch.setattr(tiers, "choose_tier", lambda *_: ("device", "a test"))
    return StoreConfig(tier="disk" if tier == "device" else tier, root=root)


def keys_of(manifest, numbers):
    return {manifest.clips[number].key for number in numbers}


def assert_all_but_the_bad(manifest, expected, loader, epoch=1, bad=BAD):
    rows = real_rows(loader.epoch(epoch))
    assert set(rows) == keys_of(manifest, set(range(8)) - {*bad})
    for clip in manifest.clips:
        if clip.key in rows:
            label, frames = rows[clip.key]
            assert EMOTIONS[label] == clip.emotion
            assert np.array_equal(frames, expected[clip.key])


def test_a_dropped_clip_leaves_a_row_of_padding(corpus, expected):
    with make_loader(corpus) as loader:
        first, second = loader.epoch()
        keys = [clip.key for clip in corpus.clips]
        assert first.keys == [keys[0], keys[0], keys[2], keys[3]]
        assert first.is_padding.tolist() == [False, True, False, False]
        assert second.keys == [keys[6], keys[6], keys[6], keys[7]]
        assert second.is_padding.tolist() == [True, True, False, False]
        for batch in (first, second):
            assert batch.num_global == 4
            assert tuple(batch.frames.shape) == (4, 3, 3, 24, 24)
            for key, label, frames in zip(batch.keys, batch.labels, batch.frames, strict=True):
                clip = corpus.clips[keys.index(key)]
                assert EMOTIONS[label] == clip.emotion
                assert np.array_equal(frames, expected[key])
        assert list(loader.dropped) == [keys[number] for number in BAD]
        assert all(key in reason and "changed after the scan" in reason for key, reason in loader.dropped.items())


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3}, {"batch_size": 8, "threads": 1}])
def test_what_is_dropped_depends_on_the_files_alone(corpus, expected, options):
    threads = options.pop("threads", 4)
    with make_loader(corpus, config=replace(SMALL, decode_threads=threads), shuffle=True, **options) as loader:
        assert_all_but_the_bad(corpus, expected, loader)
        assert set(loader.dropped) == keys_of(corpus, BAD)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_batch_of_which_nothing_decodes_is_zeros(corpus, backend):
    for number in (0, 2, 3):
        cut(corpus.root / corpus.clips[number].key)
    with make_loader(corpus, config=replace(SMALL, backend=backend), batch_size=3) as loader:
        empty, rest, _ = loader.epoch()
    assert not empty.frames.any()
    assert not empty.labels.any()
    assert empty.is_padding.all()
    assert empty.keys == [clip.key for clip in corpus.clips[:3]]
    assert empty.num_global == 3
    assert tuple(empty.frames.shape) == tuple(rest.frames.shape)


def test_ranks_keep_their_steps(corpus, expected):
    ranks = [make_loader(corpus, batch_size=2, even=True, shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    batches = [list(loader.epoch(1)) for loader in ranks]
    assert {len(of_rank) for of_rank in batches} == {2}
    assert [b.num_global for b in batches[0]] == [6, 2]
    rows = [real_rows(of_rank) for of_rank in batches]
    assert sorted(key for of_rank in rows for key in of_rank) == sorted(keys_of(corpus, {*range(8)} - {*BAD}))
    dropped = {key for loader in ranks for key in loader.dropped}
    assert dropped == keys_of(corpus, BAD)


@pytest.mark.parametrize("tier", ["none", "disk", "memory", "device"])
def test_nothing_of_a_dropped_clip_is_cached_and_it_is_tried_again(
    corpus, template, expected, tmp_path, monkeypatch, tier
):
    store = store_of(tier, tmp_path / "store", monkeypatch)
    with make_loader(corpus, store=store) as loader:
        assert loader.kept.tier == tier
        for epoch in (1, 2):
            assert_all_but_the_bad(corpus, expected, loader, epoch)
            if tier != "none":
                held = [loader.kept.has(row) or loader.kept.on_device(row) for row in range(8)]
                assert held == [row not in BAD for row in range(8)]
        first = loader.dropped
        # The disk comes back: one clip is as it was.
        shutil.copy2(template / corpus.clips[4].key, corpus.root / corpus.clips[4].key)
        (corpus.root / corpus.clips[5].key).unlink()
        assert_all_but_the_bad(corpus, expected, loader, 3, bad=(1, 5))
        assert loader.dropped == first  # the first failure is the one reported
    with make_loader(corpus, store=store) as loader:  # a later run reads what was stored
        assert_all_but_the_bad(corpus, expected, loader, bad=(1, 5))


def test_an_epoch_resumes_after_a_dropped_clip(corpus):
    with make_loader(corpus, batch_size=2, shuffle=True) as loader:
        expected = [batch.keys for batch in loader.epoch(1)]
        batches = loader.epoch(1)
        assert [next(batches).keys, next(batches).keys] == expected[:2]
        state = loader.state_dict()
        batches.close()
    assert state["clips"] == 4
    with make_loader(corpus, batch_size=2, shuffle=True) as loader:
        loader.load_state_dict(state)
        assert [batch.keys for batch in loader.epoch(1)] == expected[2:]


def test_only_batches_handed_out_count(corpus):
    with make_loader(corpus, batch_size=1) as loader:
        batches = loader.epoch()
        assert loader.dropped == {}
        next(batches)
        assert loader.dropped == {}
        next(batches)
        assert list(loader.dropped) == [corpus.clips[1].key]
        batches.close()


def test_epochs_on_several_threads_at_once(corpus, expected):
    with make_loader(corpus, batch_size=2) as loader, ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda epoch: real_rows(loader.epoch(epoch)), range(8)):
            assert len(rows) == 5
        assert set(loader.dropped) == keys_of(corpus, BAD)


def failing(monkeypatch, error):
    """Decoding raises for every second clip."""

    def fail(path, indices, spec, **options):
        if path.stem[7] in "1357":
            raise error
        return decode_clip(path, indices, spec, **options)

    monkeypatch.setattr(backends, "decode_clip", fail)


NOT_OF_THE_CLIP = [AssertionError(), TypeError(), ValueError(), MemoryError(), OSError(errno.EMFILE, "Too many files")]


@pytest.mark.parametrize("error", NOT_OF_THE_CLIP, ids=lambda error: type(error).__name__)
def test_what_is_not_the_clips_fault_is_not_passed_over(template, monkeypatch, error):
    failing(monkeypatch, error)
    with make_loader(scan(template)) as loader:
        with pytest.raises(DecodeError if isinstance(error, OSError) else type(error)):
            list(loader.epoch())
        assert not loader.dropped


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT])
def test_a_disks_error_is_the_clips(template, monkeypatch, code):
    failing(monkeypatch, OSError(code, "the disk says no"))
    manifest = scan(template)
    with make_loader(manifest) as loader:
        assert len(real_rows(loader.epoch())) == 4
        assert sum("cannot be read: the disk says no" in reason for reason in loader.dropped.values()) == 4
    with make_loader(manifest, on_error="stop") as loader, pytest.raises(DecodeError, match="the disk says no"):
        list(loader.epoch())


def test_stop_is_the_default(corpus):
    loader = ClipLoader(corpus.clips, corpus.root, EMOTIONS, SMALL, batch_size=4)
    with pytest.raises(DecodeError, match=f"{corpus.clips[1].key}.*changed after the scan; start again to rescan it"):
        list(loader.epoch())
    assert loader.dropped == {}
    with pytest.raises(ValueError, match="stop or drop, not 'skip'"):
        make_loader(corpus, on_error="skip")


@pytest.fixture(scope="module")
def vp9_template(tmp_path_factory):
    """Seven clips that DALI decodes on a CPU and one that it does not."""
    pytest.importorskip("nvidia.dali", reason="DALI is a dependency on Linux x86-64 only")
    folder = tmp_path_factory.mktemp("vp9")
    for number in range(8):
        options = {"codec": "libvpx-vp9", "options": {"g": "8", "cpu-used": "8"}} if number != 3 else {}
        write_noise_clip(folder / f"02-01-0{number + 1}-01-01-01-01.mp4", number, 6, 32, 32, **options)
    return folder


@pytest.mark.parametrize("tier", ["none", "disk", "memory", "device"])
@pytest.mark.parametrize("bad", [(2,), (1, 4, 5), (0, 1, 2, 3), (0, 1, 2, 4, 5, 6, 7)])
def test_dali_drops_every_clip_that_fails(vp9_template, tmp_path, monkeypatch, tier, bad):
    """The file is as scanned, and DALI fails on what it holds: found on the device, several in one call."""
    manifest, config = scan(vp9_template), replace(SMALL, backend="dali")
    names = keys_of(manifest, bad)
    with make_loader(manifest, config=config) as loader:
        expected = real_rows(loader.epoch())

    def damaged(path, indices, _anchor=None):
        clip = prune(path, indices)
        if path.name not in names:
            return clip
        if path.name == manifest.clips[3].key:
            raise DecodeError(path, 0, "a test says so")
        return PrunedClip(clip.data, clip.positions + 100)

    def decode(path, *arguments, **options):
        damaged(path, arguments[0])
        return decode_clip(path, *arguments, **options)

    monkeypatch.setattr(backends, "pruned_clip", damaged)
    monkeypatch.setattr(backends, "decode_clip", decode)
    store = store_of(tier, tmp_path, monkeypatch)
    with make_loader(manifest, config=config, store=store) as loader:
        for epoch in (1, 2):
            rows = real_rows(loader.epoch(epoch))
            assert set(rows) == set(expected) - names
            for key, (label, frames) in rows.items():
                assert label == expected[key][0]
                assert np.array_equal(frames, expected[key][1])
        assert set(loader.dropped) == names
        if tier != "none":
            held = [loader.kept.has(row) or loader.kept.on_device(row) for row in range(8)]
            assert held == [row not in bad for row in range(8)]
    loader = make_loader(manifest, config=config, on_error="stop")
    with loader, pytest.raises(DecodeError, match="|".join(names)):
        list(loader.epoch())


@pytest.mark.cuda
@pytest.mark.parametrize("tier", ["none", "memory", "device"])
def test_on_a_gpu_the_same_clips_are_dropped(corpus, template, tmp_path, tier):
    store = StoreConfig(tier=tier, root=tmp_path / "store")
    with make_loader(scan(template), device="cuda") as loader:
        expected = real_rows(map(on_the_host, loader.epoch()))
    with make_loader(corpus, device="cuda", store=store) as loader:
        for epoch in (1, 2):
            rows = real_rows(map(on_the_host, loader.epoch(epoch)))
            assert set(rows) == keys_of(corpus, {*range(8)} - {*BAD})
            assert all(np.array_equal(frames, expected[key][1]) for key, (_, frames) in rows.items())
        assert set(loader.dropped) == keys_of(corpus, BAD)


def on_the_host(batch):
    return replace(batch, frames=batch.frames.cpu(), labels=batch.labels.cpu(), is_padding=batch.is_padding.cpu())


def test_a_dropped_clip_is_nobodys_partner(corpus, expected, tmp_path):
    """Another clip of the batch takes its place, whole: pixels, label and draws."""
    store = StoreConfig(tier="memory", root=tmp_path / "store")
    by_key = {clip.key: clip for clip in corpus.clips}
    with make_loader(corpus, mixed=True, store=store) as loader:
        for batch in loader.epoch(1):
            found = batch.partners
            assert torch.equal(batch.frames, found.frames[:4])
            assert batch.is_padding.tolist() == [slot in BAD for slot in range(4)] or batch.is_padding.sum() == 2
            for frames, key in zip(found.frames.numpy(), found.draw_keys, strict=True):
                assert np.array_equal(frames, expected[key])
            for row, label in zip(found.rows.tolist(), found.labels.tolist(), strict=True):
                assert EMOTIONS.index(by_key[found.draw_keys[row]].emotion) == label
        assert loader.dropped.keys() == {corpus.clips[number].key for number in BAD}
