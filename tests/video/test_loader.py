"""Order -> batches: the planned clips, in the planned order, whatever the threads, batches and ranks."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import psnr, write_video

from fastemo.corpus.manifest import scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.errors import DecodeError
from fastemo.video.bitstream.pruning import PrunedClip, prune
from fastemo.video.config import FrameSpec, StoreConfig, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import frame_indices

SMALL = VideoConfig(num_frames=3, size=24)


@pytest.fixture(scope="module")
def manifest(tiny_corpus):
    return scan(tiny_corpus)


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


def test_batches_hold_what_decoding_gives(manifest):
    seen = rows(make_loader(manifest))
    assert [key for key, _, _ in seen] == [clip.key for clip in manifest.clips[:22]]
    for (key, label, frames), clip in zip(seen, manifest.clips, strict=False):
        assert EMOTIONS[label] == clip.emotion
        indices = frame_indices(clip.num_frames, 3)
        assert np.array_equal(frames, decode_clip(manifest.root / key, indices, FrameSpec(num_frames=3, size=24)))


@pytest.mark.parametrize("options", [{"batch_size": 16}, {"batch_size": 1}, {"world_size": 2}, {"threads": 1}])
def test_order_and_pixels_do_not_depend_on_how_they_are_loaded(manifest, options):
    expected = rows(make_loader(manifest, replace(SMALL, decode_threads=4), shuffle=True, seed=7))
    if "threads" in options:
        got = rows(make_loader(manifest, replace(SMALL, decode_threads=1), shuffle=True, seed=7))
    elif "world_size" in options:
        ranks = [rows(make_loader(manifest, shuffle=True, even=True, seed=7, rank=r, world_size=2)) for r in (0, 1)]
        got = [row for pair in zip(*ranks, strict=True) for row in pair]
    else:
        got = rows(make_loader(manifest, shuffle=True, seed=7, **options))
    assert [row[:2] for row in got] == [row[:2] for row in expected]
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(got, expected, strict=True))


def test_ranks_pad_to_equal_steps_and_say_so(manifest):
    loaders = [make_loader(manifest, shuffle=True, even=True, rank=r, world_size=3) for r in range(3)]
    assert [loader.num_padding for loader in loaders] == [2, 2, 2]
    assert len({len(loader) for loader in loaders}) == 1
    batches = [list(loader.epoch(1)) for loader in loaders]
    real = [k for rank in batches for b in rank for k, pad in zip(b.keys, b.is_padding, strict=True) if not pad]
    assert sorted(real) == sorted(clip.key for clip in manifest.clips[:22])
    assert sum(int(b.is_padding.sum()) for rank in batches for b in rank) == 2


def test_batch_types(manifest):
    batch = next(make_loader(manifest).epoch())
    assert (batch.frames.dtype, tuple(batch.frames.shape)) == (torch.uint8, (4, 3, 3, 24, 24))
    assert batch.labels.dtype == torch.int64
    assert batch.num_global == 4


def without_fingerprints(clips):
    """Rows that no scan made: that a file is another one is left to the decoder to find."""
    return [replace(clip, size_bytes=0, mtime_ns=0) for clip in clips]


def test_a_bad_clip_stops_the_epoch_by_name_and_threads_end(manifest, tmp_path):
    clips = without_fingerprints(manifest.clips[:6])
    (tmp_path / clips[3].key).parent.mkdir(parents=True)
    for clip in clips:
        data = (manifest.root / clip.key).read_bytes()
        (tmp_path / clip.key).write_bytes(data[: len(data) // 3] if clip is clips[3] else data)
    loader = ClipLoader(clips, tmp_path, EMOTIONS, SMALL, batch_size=2)
    batches = loader.epoch()
    next(batches)
    with pytest.raises(DecodeError, match=clips[3].key):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_file_that_changed_since_the_scan_is_named(manifest):
    clips = [replace(clip, width=200, height=72) for clip in manifest.clips[:2]]
    loader = make_loader(manifest, VideoConfig(num_frames=2, size=24, crop="full"), clips)
    with pytest.raises(DecodeError, match="where the manifest promises"):
        list(loader.epoch())


@pytest.mark.parametrize("field", ["size_bytes", "mtime_ns"])
def test_the_file_is_looked_at_before_it_is_decoded(manifest, monkeypatch, field):
    clip = manifest.clips[0]
    without_decoding(monkeypatch)
    loader = make_loader(manifest, clips=[replace(clip, **{field: getattr(clip, field) + 1})])
    with pytest.raises(DecodeError, match="the file changed after the scan; start again, which scans it again"):
        list(loader.epoch())


def test_leaving_an_epoch_early_ends_its_threads(manifest):
    batches = make_loader(manifest).epoch()
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("tier", ["none", "disk", "memory"])
def test_closing_ends_an_epoch_that_something_holds_on_to(manifest, tmp_path, tier):
    loader = make_loader(manifest, store=StoreConfig(tier=tier, root=tmp_path))
    batches = loader.epoch()
    next(batches)
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    with pytest.raises(AssertionError, match="the loader was closed"):
        next(batches)


def test_crop_full_needs_one_frame_shape(manifest):
    clips = [manifest.clips[0], replace(manifest.clips[1], width=72, height=72)]
    with pytest.raises(ValueError, match="choose center, squash or head"):
        make_loader(manifest, replace(SMALL, crop="full"), clips)


def test_no_clips_is_an_error(manifest):
    with pytest.raises(ValueError, match="no clips"):
        make_loader(manifest, clips=[])


@pytest.fixture(scope="module")
def decoded(manifest):
    """What decoding gives: {backend: {key: pixels}}."""
    spec, clips = SMALL.spec, manifest.clips[:22]
    return {
        backend: {
            c.key: decode_clip(manifest.root / c.key, frame_indices(c.num_frames, 3), spec, backend=backend)
            for c in clips
        }
        for backend in ("pyav", "decord")
    }


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("tier", ["none", "disk", "memory", "device"])
@pytest.mark.parametrize(("threads", "world_size"), [(1, 1), (4, 1), (2, 2)])
def test_laws_2_and_3_for_every_backend_tier_threads_and_ranks(
    manifest, decoded, tmp_path, backend, tier, threads, world_size
):
    """Three epochs, of which the first decodes: the planned order, and the bytes that decoding gives."""
    config = replace(SMALL, backend=backend, decode_threads=threads)
    options = {"shuffle": True, "even": True, "seed": 7, "world_size": world_size}
    store = StoreConfig(tier=tier, root=tmp_path)
    loaders = [make_loader(manifest, config, rank=rank, store=store, **options) for rank in range(world_size)]
    plain = [make_loader(manifest, config, rank=rank, **options) for rank in range(world_size)]
    for epoch in (1, 2, 3):
        for loader, without_store in zip(loaders, plain, strict=True):
            seen = rows(loader, epoch)
            assert [key for key, _, _ in seen] == [
                manifest.clips[i].key for step in without_store.steps(epoch) for i in step.indices
            ]
            for key, label, frames in seen:
                assert np.array_equal(frames, decoded[backend][key])
                assert EMOTIONS[label] == next(clip.emotion for clip in manifest.clips if clip.key == key)
    for loader in loaders:
        loader.close()
    assert any(tmp_path.iterdir()) == (tier != "none")


def without_decoding(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("decoded again")

    monkeypatch.setattr("fastemo.video.backends.decode_clip", refuse)


@pytest.mark.parametrize("tier", ["disk", "memory"])
def test_what_was_decoded_once_is_not_decoded_again(manifest, decoded, tmp_path, monkeypatch, tier):
    store = StoreConfig(tier=tier, root=tmp_path)
    with make_loader(manifest, store=store, shuffle=True) as loader:
        first = rows(loader, 1)
        with monkeypatch.context() as patch:
            without_decoding(patch)
            assert {key for key, _, _ in rows(loader, 2)} == {key for key, _, _ in first}
    without_decoding(monkeypatch)
    with make_loader(manifest, store=store) as loader:  # a later run
        assert all(np.array_equal(frames, decoded["pyav"][key]) for key, _, frames in rows(loader))


def test_memory_serves_without_the_file(manifest, tmp_path, monkeypatch):
    """The disk cannot hold the clips: said once, and the memory holds them all the same."""
    said = []
    (tmp_path / "file").write_text("in the way")
    store = StoreConfig(tier="memory", root=tmp_path / "file")
    with make_loader(manifest, store=store, say=said.append) as loader:
        first = rows(loader)
        without_decoding(monkeypatch)
        again = rows(loader)
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(first, again, strict=True))
    assert len(said) == 1
    assert "training goes on" in said[0]


def test_disk_tier_goes_on_without_a_disk(manifest, decoded, tmp_path):
    said = []
    (tmp_path / "file").write_text("in the way")
    with make_loader(manifest, store=StoreConfig(tier="disk", root=tmp_path / "file"), say=said.append) as loader:
        assert loader.kept.tier == "none"
        for _ in range(2):
            assert all(np.array_equal(frames, decoded["pyav"][key]) for key, _, frames in rows(loader))
    assert len(said) == 1


def test_a_disk_that_fills_up_is_said_once_and_the_epoch_goes_on(manifest, decoded, tmp_path, monkeypatch):
    said = []
    with make_loader(manifest, store=StoreConfig(tier="disk", root=tmp_path), say=said.append) as loader:

        def full(*_args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)
        for _ in range(2):
            assert all(np.array_equal(frames, decoded["pyav"][key]) for key, _, frames in rows(loader))
    assert len(said) == 1
    assert "No space left" in said[0]


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
    """After 8 clips by one process in batches of 4, two processes go on in batches of 2."""
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
        write_video(folder / name, 20, 96, 64, codec=codec, options=options, draw=moving_frame)
    return scan(folder)


def moving_frame(number, width, height):
    """Colours without hard edges, as of a face: how chroma is brought to full size differs between decoders."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [np.sin(x / 9 + number / 3), np.sin(y / 7 - number / 5), np.sin((x + y) / 12 + number)]
    return (128 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("tier", ["none", "disk", "memory"])
def test_dali_fills_the_same_batches(mixed_corpus, tmp_path, tier):
    """Order and labels are PyAV's, frames within law 1, kept bytes those that were decoded (law 3)."""
    config, clips = VideoConfig(num_frames=4, size=32, backend="dali"), mixed_corpus.clips
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


def test_a_clip_that_dali_cannot_decode_is_named_and_the_next_epoch_works(mixed_corpus, tmp_path):
    for clip in mixed_corpus.clips:
        (tmp_path / clip.key).write_bytes((mixed_corpus.root / clip.key).read_bytes())
    bad = tmp_path / mixed_corpus.clips[2].key
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 4])
    config = VideoConfig(num_frames=4, size=32, backend="dali")
    clips = without_fingerprints(mixed_corpus.clips)
    with ClipLoader(clips, tmp_path, EMOTIONS, config, batch_size=2) as loader:
        batches = loader.epoch()
        next(batches)
        with pytest.raises(DecodeError, match=bad.name):
            next(batches)
        bad.write_bytes(whole)
        assert len(rows(loader)) == 8


def test_what_pruning_leaves_whole_goes_past_dali(mixed_corpus, monkeypatch):
    """DALI orders frames by timestamps, which are what pruning may not have trusted."""
    config, clips = VideoConfig(num_frames=4, size=32, backend="dali"), mixed_corpus.clips
    expected = rows(make_loader(mixed_corpus, replace(config, backend="pyav"), clips))
    odd = clips[1].key

    def left_whole(path, indices):
        clip = prune(path, indices)
        return PrunedClip(path.read_bytes(), np.array(indices), is_whole=True) if path.name == odd else clip

    monkeypatch.setattr("fastemo.video.backends.pruned_clip", left_whole)
    with make_loader(mixed_corpus, config, clips, store=StoreConfig(tier="memory")) as loader:
        for _ in range(2):
            seen = rows(loader)
            assert [row[:2] for row in seen] == [row[:2] for row in expected]
            assert np.array_equal(seen[1][2], expected[1][2])
            assert all(psnr(one[2], other[2]) >= 38 for one, other in zip(seen, expected, strict=True))
