"""Order -> batches: the planned clips, in the planned order, whatever the threads, batches and ranks."""

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import check_epoch, decoded_clips, psnr, smooth_frame, write_video

from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.errors import DecodeError
from fastemo.video.augment import training_input
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
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


ALL = AugmentConfig(crop_size=20, color_jitter=0.4, random_erasing=0.5, mixup=0.4, cutmix=1.0)


def inputs(manifest, tmp_path, epoch, *, batch_size, world_size=1, augment=ALL, **options):
    """What a model is trained on, by visit: pixels, and the labels of the clip and of its partner with their share."""
    config, store = replace(SMALL, stored_frames=7), StoreConfig(tier="memory", root=tmp_path)
    options = {"seed": 7, "shuffle": True, "even": True, "mixed": True, "store": store, **options}
    found = {}
    for rank in range(world_size):
        kwargs = {"rank": rank, "world_size": world_size, "batch_size": batch_size, **options}
        with make_loader(manifest, config, **kwargs) as loader:
            for batch in loader.epoch(epoch):
                frames, shares = training_input(batch, augment, seed=7, epoch=epoch)
                assert frames.shape[:2] == (len(batch.keys), 3)
                for slot in np.flatnonzero(~batch.is_padding.numpy()):
                    partner = int(batch.partners.labels[slot]) if shares is not None else None
                    share = float(shares[slot]) if shares is not None else None
                    visit = [frames[slot], int(batch.labels[slot]), partner, share]
                    assert found.setdefault(batch.draw_keys[slot], visit) is visit, "once over all ranks"
    return found


@pytest.mark.parametrize("oversample", [False, True])
def test_law_2_for_everything_that_a_recipe_draws(manifest, tmp_path, oversample):
    """Frames, colours, boxes and partners, in one and two processes and batches of 4 and 16."""
    few = [*manifest.clips[:17], *manifest.clips[20:22]]  # of unequal classes
    options = {"oversample": oversample, "clips": few}
    whole = inputs(manifest, tmp_path, 2, batch_size=16, **options)
    assert len(whole) == (24 if oversample else 19)
    for batch_size, world_size in ((4, 1), (4, 2), (16, 2)):
        found = inputs(manifest, tmp_path, 2, batch_size=batch_size, world_size=world_size, **options)
        assert found.keys() == whole.keys()
        for key, (frames, *rest) in found.items():
            torch.testing.assert_close(frames, whole[key][0], rtol=0, atol=1e-5)
            assert rest == whole[key][1:]
    other = inputs(manifest, tmp_path, 3, batch_size=16, **options)
    assert all(not torch.equal(other[key][0], whole[key][0]) for key in other.keys() & whole.keys())
    if oversample:
        first = next(key for key in whole if "\0" in key)
        assert not torch.equal(whole[first][0], whole[first.partition("\0")[0]][0]), "a further visit draws anew"


def test_one_key_does_not_change_what_another_draws(manifest, tmp_path):
    """Shares and partners are the same without colours and boxes, so that recipes can be compared key by key."""
    whole = inputs(manifest, tmp_path, 1, batch_size=4)
    fewer = inputs(manifest, tmp_path, 1, batch_size=4, augment=replace(ALL, color_jitter=0, random_erasing=0))
    assert {key: rest for key, (_, *rest) in whole.items()} == {key: rest for key, (_, *rest) in fewer.items()}


def test_evaluation_sees_the_same_frames_of_more_stored_ones(manifest, decoded, tmp_path):
    """The store holds seven, of which three are those of a store of three; a second view has others."""
    config, store = replace(SMALL, stored_frames=7), StoreConfig(tier="disk", root=tmp_path)
    with make_loader(manifest, config, store=store) as loader:
        assert loader.kept.num_bytes == 22 * 7 * 3 * 24 * 24
        for _ in range(2):
            for key, _, frames in rows(loader, 0):
                assert np.array_equal(frames, decoded["pyav", "center"][key])
        views = [{key: frames for key, _, frames in rows(loader, epoch)} for epoch in (0, 1, 2, 1)]
    assert all(np.array_equal(views[1][key], views[3][key]) for key in views[1])
    assert any(not np.array_equal(views[1][key], views[other][key]) for key in views[1] for other in (0, 2))


def test_partners_need_a_place_for_cached_clips(manifest, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"read each clip a second time.*\(no room on disk\).*--store.root"):
        make_loader(manifest, mixed=True, store=StoreConfig(tier="disk", root=tmp_path / "file"), say=lambda _: None)


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
