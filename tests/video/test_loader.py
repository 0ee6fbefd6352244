"""Order -> batches: the planned clips, in the planned order, whatever the threads, batches and ranks."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastemo.corpus.manifest import scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.video.decode import DecodeError, FrameSpec, decode_clip
from fastemo.video.loader import ClipLoader, VideoConfig
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


def test_a_bad_clip_stops_the_epoch_by_name_and_threads_end(manifest, tmp_path):
    clips = list(manifest.clips[:6])
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
    with pytest.raises(DecodeError, match="changed after the scan"):
        list(loader.epoch())


def test_leaving_an_epoch_early_ends_its_threads(manifest):
    batches = make_loader(manifest).epoch()
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_crop_full_needs_one_frame_shape(manifest):
    clips = [manifest.clips[0], replace(manifest.clips[1], width=72, height=72)]
    with pytest.raises(ValueError, match="choose center, squash or head"):
        make_loader(manifest, replace(SMALL, crop="full"), clips)


def test_no_clips_is_an_error(manifest):
    with pytest.raises(ValueError, match="no clips"):
        make_loader(manifest, clips=[])


@pytest.mark.parametrize("wrong", [{"backend": "x"}, {"decode_threads": 0}, {"prefetch_batches": 0}, {"size": 0}])
def test_config_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VideoConfig(**wrong)
