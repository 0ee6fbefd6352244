"""Order -> batches: the planned clips, in the planned order, whatever the threads, batches and ranks."""

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
from helpers import check_epoch, decoded_clips, psnr, smooth_frame, write_video

from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.errors import DecodeError
from fastemo.video.config import StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import epoch_order

SMALL = VideoConfig(num_frames=3, size=24)


def make_loader(manifest, config=SMALL, clips=None, **options):
    clips = manifest.clips[:22] if clips is None else clips
    return ClipLoader(clips, manifest.root, EMOTIONS, config, **{"batch_size": 4, **options})


def rows(loader, epoch=1):
    """Every clip of an epoch: key, label, pixels."""
    return [
        (key, int(label), frames.numpy())
        for batch in loader.epoch(epoch)
        for key, label, frames in zip(batch.keys, batch.labels, batch.frames, strict=True)
    ]


def test_a_file_that_is_not_as_in_the_manifest_is_named(manifest):
    """Rows that no scan made: that a file is another one is left to the decoder to find."""
    clips = [replace(clip, width=200, size_bytes=0, mtime_ns=0) for clip in manifest.clips[:2]]
    loader = make_loader(manifest, VideoConfig(num_frames=2, size=24, crop="full"), clips)
    with pytest.raises(DecodeError, match="in the manifest") as raised:
        list(loader.epoch())
    assert any(clip.key in str(raised.value) for clip in clips)


def test_clips_that_make_no_batch_are_refused(manifest):
    with pytest.raises(ValueError, match="no clips"):
        make_loader(manifest, clips=[])
    clips = [manifest.clips[0], replace(manifest.clips[1], width=72, height=72)]
    with pytest.raises(ValueError, match="choose center, squash or head"):
        make_loader(manifest, replace(SMALL, crop="full"), clips)


def decoding_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_leaving_an_epoch_early_ends_its_threads(manifest):
    batches = make_loader(manifest).epoch()
    next(batches)
    batches.close()
    assert not decoding_threads()


@pytest.mark.parametrize("tier", ["none", "disk", "memory"])
def test_closing_ends_an_epoch_that_something_holds_on_to(manifest, tmp_path, tier):
    loader = make_loader(manifest, store=StoreConfig(tier=tier, root=tmp_path))
    batches = loader.epoch()
    next(batches)
    loader.close()
    assert not decoding_threads()
    with pytest.raises(AssertionError, match="the loader was closed"):
        next(batches)


@pytest.fixture(scope="module")
def decoded(manifest):
    """What decoding gives: {backend: {key: pixels}}."""
    part = Manifest(manifest.root, with_boxes(manifest.clips[:22]))
    return {
        (backend, crop): decoded_clips(part, replace(SMALL, backend=backend, crop=crop))
        for backend in ("pyav", "decord")
        for crop in ("center", "face")
    }


def with_boxes(clips):
    """Each clip's face is elsewhere; every fifth has none."""
    boxes = [f"{5 * n % 90} {3 * n % 40} {20 + n % 7} {24 + n % 5}" if n % 5 else "" for n in range(len(clips))]
    return tuple(replace(clip, face=box) for clip, box in zip(clips, boxes, strict=True))


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("tier", ["none", "disk", "memory", "device"])
@pytest.mark.parametrize(
    ("crop", "threads", "world_size", "batch_size"),
    [("center", 1, 1, 4), ("center", 4, 1, 1), ("face", 4, 1, 16), ("center", 2, 2, 4), ("face", 2, 2, 4)],
    ids=str,
)
def test_laws_2_and_3_for_every_backend_tier_crop_threads_ranks_and_batch_size(
    manifest, decoded, tmp_path, backend, tier, crop, threads, world_size, batch_size
):
    """Three epochs, of which the first decodes: order by (seed, epoch, key), and the bytes that decoding gives."""
    config = replace(SMALL, backend=backend, decode_threads=threads, crop=crop)
    clips = with_boxes(manifest.clips[:22])
    options = {"shuffle": True, "even": True, "seed": 7, "world_size": world_size, "batch_size": batch_size}
    store = StoreConfig(tier=tier, root=tmp_path)
    loaders = [make_loader(manifest, config, clips, rank=rank, store=store, **options) for rank in range(world_size)]
    for epoch in (1, 2, 3):
        order = epoch_order([clip.key for clip in clips], seed=7, epoch=epoch)
        for rank, loader in enumerate(loaders):
            seen = rows(loader, epoch)
            assert [(key, label) for key, label, _ in seen] == [
                (clips[i].key, EMOTIONS.index(clips[i].emotion)) for i in order[rank::world_size]
            ]
            for key, _, frames in seen:
                assert np.array_equal(frames, decoded[backend, crop][key])
    for loader in loaders:
        loader.close()
    assert any(tmp_path.iterdir()) == (tier != "none")


@pytest.mark.parametrize("tier", ["disk", "memory"])
def test_without_a_disk_for_the_store_the_memory_still_holds_the_clips(manifest, decoded, tmp_path, monkeypatch, tier):
    messages = []
    (tmp_path / "file").write_text("in the way")
    store = StoreConfig(tier=tier, root=tmp_path / "file")
    with make_loader(manifest, store=store, say=messages.append) as loader:
        assert loader.kept.tier == ("memory" if tier == "memory" else "none")
        check_epoch(loader, decoded["pyav", "center"])
        if tier == "memory":
            monkeypatch.setattr("fastemo.video.backends.decode_clip", None)
        check_epoch(loader, decoded["pyav", "center"], 1)
    (message,) = messages
    assert re.search(r"cannot store decoded clips in .*Not a directory; .*--store.root.*tier none; training", message)


@pytest.mark.parametrize("tier", ["none", "memory"])
@pytest.mark.parametrize("done", [0, 1, 3, 6])
def test_an_epoch_continues_where_it_was_left(manifest, tmp_path, tier, done):
    store = StoreConfig(tier=tier, root=tmp_path)
    options = {"shuffle": True, "even": True, "seed": 3, "store": store}
    expected = [batch.keys for batch in make_loader(manifest, **options).epoch(2)]
    assert len(expected) == 6
    first = make_loader(manifest, **options)
    batches = first.epoch(2)
    assert [next(batches).keys for _ in range(done)] == expected[:done]
    state = first.state_dict() if done else {"epoch": 2, "clips": 0, "seed": 3, "num_clips": 22}
    batches.close()
    second = make_loader(manifest, **options)
    second.load_state_dict(state)
    assert [batch.keys for batch in second.epoch(2)] == expected[done:]
    assert [batch.keys for batch in second.epoch(2)] == expected  # once only
    second.load_state_dict(state)
    assert len(list(second.epoch(3))) == 6  # another epoch begins at its beginning


def test_an_epoch_continues_with_other_batches_and_ranks(manifest):
    """After 8 clips by one process in batches of 4, two processes resume in batches of 2."""
    options = {"shuffle": True, "even": True, "seed": 3}
    whole = make_loader(manifest, **options)
    expected = [key for batch in whole.epoch(1) for key in batch.keys]
    batches = whole.epoch(1)
    next(batches), next(batches)
    ranks = []
    for rank in (0, 1):
        loader = make_loader(manifest, batch_size=2, rank=rank, world_size=2, **options)
        loader.load_state_dict(whole.state_dict())
        ranks.append([key for batch in loader.epoch(1) for key in batch.keys])
    assert [key for pair in zip(*ranks, strict=True) for key in pair] == expected[8:]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 4}, "seed 3"), ({"clips": 21}, "num_clips 22"), ({"batch_size": 3}, "after 8 clips")],
)
def test_a_position_that_does_not_fit_is_refused(manifest, options, message):
    first = make_loader(manifest, seed=3, shuffle=True)
    batches = first.epoch(1)
    next(batches), next(batches)
    options = {**options, "clips": manifest.clips[: options.get("clips", 22)]}
    other = make_loader(manifest, **{"seed": 3, "shuffle": True, **options})
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(first.state_dict())


def test_only_a_bounded_number_of_batches_is_put_together_ahead(manifest):
    config = replace(SMALL, prefetch_batches=2, decode_threads=4)
    loader = make_loader(manifest, config, batch_size=2)
    started = []
    decode = loader._decoder.decode
    loader._decoder.decode = lambda row: started.append(row) or decode(row)
    batches = loader.epoch()
    for number in range(11):
        next(batches)
        assert max(started) < 2 * (number + 1 + 2)
    batches.close()


@pytest.fixture(scope="module")
def mixed_corpus(tmp_path_factory):
    """Six clips that DALI decodes on a CPU (VP9), two that it does not (H.264)."""
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(8):
        codec, options = ("libvpx-vp9", {"g": "8", "cpu-used": "8"}) if number < 6 else ("libx264", {})
        name = f"02-01-0{number + 1}-01-01-01-01.mp4"
        write_video(folder / name, 20, 96, 64, codec=codec, options=options, draw=smooth_frame)
    return scan(folder)


@pytest.mark.parametrize(("tier", "crop"), [("none", "center"), ("disk", "center"), ("memory", "face")])
def test_dali_fills_the_same_batches(mixed_corpus, tmp_path, tier, crop):
    """Order and labels are PyAV's, frames within law 1, cached bytes those that were decoded (law 3)."""
    config = VideoConfig(num_frames=4, size=32, backend="dali", crop=crop)
    clips = with_boxes(mixed_corpus.clips)
    expected = rows(make_loader(mixed_corpus, replace(config, backend="pyav"), clips, batch_size=3, shuffle=True))
    store = StoreConfig(tier=tier, root=tmp_path)
    with make_loader(mixed_corpus, config, clips, batch_size=3, shuffle=True, store=store) as loader:
        assert sorted(loader._decoder.by_dali(row) for row in range(8)) == [False] * 2 + [True] * 6
        first, again = rows(loader), rows(loader)
    with make_loader(mixed_corpus, config, clips, batch_size=3, shuffle=True, store=store) as loader:
        later = rows(loader)
    assert [row[:2] for row in first] == [row[:2] for row in expected]
    for one, two, three, true in zip(first, again, later, expected, strict=True):
        assert psnr(one[2], true[2]) >= 38
        assert np.array_equal(one[2], two[2])
        assert np.array_equal(one[2], three[2])
