"""Batches on their way to a device, by a double that behaves on a processor as if copies took time."""

from functools import partial

import pytest
import torch
from doubles import RecordingTransfer

from fastemo.corpus.manifest import scan
from fastemo.errors import DecodeError
from fastemo.video import loader as loader_module
from fastemo.video import tiers
from fastemo.video.config import StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader
from fastemo.video.transfer import Transfer


@pytest.fixture
def allocated(monkeypatch):
    """The shapes of the buffers that were made, in order."""
    shapes, real = [], RecordingTransfer._allocate
    monkeypatch.setattr(RecordingTransfer, "_allocate", lambda self, shape: shapes.append(shape) or real(self, shape))
    monkeypatch.setattr(loader_module, "Transfer", RecordingTransfer)
    return shapes


CONFIG = VideoConfig(num_frames=2, size=32, backend="pyav", prefetch_batches=2)


@pytest.fixture
def make_loader(few_clips):
    manifest = scan(few_clips)

    def make(count, **options):
        clips, names = manifest.clips[:count], manifest.class_names
        return ClipLoader(clips, manifest.root, names, CONFIG, batch_size=3, **options)

    return make


@pytest.mark.parametrize("tier", ["none", "disk", "memory", "device"])
def test_batches_are_those_of_any_loader_and_buffers_are_few(make_loader, tmp_path, monkeypatch, allocated, tier):
    monkeypatch.setattr(tiers, "choose_tier", lambda *_: (tier, "as asked"))
    with make_loader(24, shuffle=True, store=StoreConfig(root=tmp_path)) as ours, monkeypatch.context() as patch:
        patch.setattr(tiers, "choose_tier", lambda *_: ("none", "as asked"))
        patch.setattr(loader_module, "Transfer", Transfer)
        with make_loader(24, shuffle=True) as plain:
            for epoch in range(3):
                before = len(allocated)
                for one, other in zip(ours.epoch(epoch), plain.epoch(epoch), strict=True):
                    ours.transfer.check_batch(one)
                    assert one.keys == other.keys
                    assert torch.equal(one.frames, other.frames)
                    assert torch.equal(one.labels, other.labels)
                assert tier != "device" or epoch == 0 or len(allocated) == before, "all of it is there already"
        ours.transfer.check_over()
    assert 0 < len(allocated) <= CONFIG.prefetch_batches + 2


def test_clips_that_do_not_decode_are_left_out_on_the_device(make_loader, monkeypatch, allocated):
    """The others are picked there: a copy of the host's buffer would lie in other memory, which is waited for."""
    real, bad = loader_module.Decoder.decode, 1

    def decode(self, row):
        if row == bad:
            raise DecodeError(self._root / self.clips[row].key, 0, "no")
        return real(self, row)

    monkeypatch.setattr(loader_module.Decoder, "decode", decode)
    with make_loader(3, on_error="drop") as loader:
        (batch,) = loader.epoch()
        loader.transfer.check_batch(batch)
        assert batch.is_padding.tolist() == [False, True, False]
        assert torch.equal(batch.frames[1], batch.frames[0])
        assert torch.equal(batch.frames[2], torch.from_numpy(real(loader._decoder, 2)))
        loader.transfer.check_over()


def test_loaders_on_one_device_know_of_each_other_until_they_are_closed(make_loader, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tiers, "choose_tier", lambda *given: (seen.append(given[3]), ("device", "as asked"))[1])
    loader = partial(make_loader, store=StoreConfig(root=tmp_path))
    a_clip = 2 * 3 * 32 * 32
    with loader(2), loader(3):
        pass
    with loader(1):
        forgotten = loader(4)
        del forgotten
        with loader(1):
            pass
    assert seen == [0, 2 * a_clip, 0, a_clip, a_clip]


def handed_over(transfer, *, is_late=False, is_released_first=False):
    """What a loader does for a batch; returns it."""
    buffer = transfer.buffer(2, 3)
    with transfer.active():
        event = transfer.mark() if is_late else None
        if is_released_first:
            transfer.release(buffer, transfer.mark())
        batch = transfer.upload(buffer)
        event = event or transfer.mark()
    transfer.release(buffer, event)
    transfer.hand_over(batch, event)
    return batch


def test_a_loader_in_order_passes():
    transfer = RecordingTransfer(torch.device("cpu"))
    for _ in range(40):
        assert handed_over(transfer).data_ptr() in transfer.handed
    transfer.check_over()


def test_faults_of_order_are_found(monkeypatch):
    with pytest.raises(AssertionError, match="marked before its uploads"):
        handed_over(RecordingTransfer(torch.device("cpu")), is_late=True)
    with pytest.raises(AssertionError, match="a buffer that was given back"):
        handed_over(RecordingTransfer(torch.device("cpu")), is_released_first=True)
    leaking = RecordingTransfer(torch.device("cpu"))
    kept = leaking.buffer(2, 3)
    with pytest.raises(AssertionError, match="1 buffers were not given back"):
        leaking.check_over()
    hasty = RecordingTransfer(torch.device("cpu"))
    monkeypatch.setattr(hasty, "_is_done", lambda event: True)
    with hasty.active():
        hasty.upload(kept)
        hasty.release(hasty.buffer(2, 3), hasty.mark())
    with pytest.raises(AssertionError, match="before its copy is over"):
        hasty.buffer(2, 3)
