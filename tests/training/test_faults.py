"""Faults outside the program: reported plainly, and nothing good is overwritten."""

import errno
import json
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from training.fakes import FakeLoader

from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.training import checkpoint, faults
from fastemo.training.checkpoint import CheckpointError
from fastemo.training.config import TrainConfig
from fastemo.training.faults import MemoryUse, NotFinite, batch_that_fits, out_of_memory, process_lost
from fastemo.training.stopping import FiniteWatch
from fastemo.training.trainer import Trainer
from fastemo.video.config import AugmentConfig

AUGMENT = AugmentConfig(crop_size=8)
GIB = 2**30


class Breaking(nn.Module):
    """Does something to its logits in one forward pass of training."""

    def __init__(self, at, breaks):
        super().__init__()
        self.linear, self._left, self._breaks = nn.Linear(2 * 3 * 8 * 8, 4), at, breaks

    def forward(self, frames):
        logits = self.linear(frames.flatten(1))
        if self.training:
            self._left -= 1
            if self._left == 0:
                return self._breaks(logits)
        return logits


def fit(tmp_path, at, breaks, **config):
    with Trainer(TrainConfig(epochs=3, precision="fp32", **config), seed=0) as trainer, trainer.plain_faults():
        trainer.prepare(Breaking(at, breaks), 3)
        train, val = (FakeLoader([2, 2, 2], prefix=name) for name in ("clip", "val"))
        trainer.fit(train, val, AUGMENT, tmp_path, Console(show=False))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_names_its_clips(tmp_path, value, fault_log):
    def spoil(logits):
        return torch.stack([logits[0], logits[1] * value])

    with pytest.raises(NotFinite, match=r"in epoch 2, at clip 4 or before, on clip3\.mp4; .*lower --train\.lr"):
        fit(tmp_path, 5, spoil)
    last = checkpoint.load(tmp_path / "checkpoints" / "last")
    assert last.info["epoch"] == 1
    assert all(torch.isfinite(it).all() for it in last.model.values())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    fault_log(f"a loss that is {value}", {"training ended, clip named, last checkpoint intact": 1})


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(FiniteWatch, "found", lambda self, wait=False: False)
    with pytest.raises(NotFinite, match=r"weight .*linear.* is infinite or NaN in epoch 1"):
        fit(tmp_path, 2, lambda logits: logits * torch.nan, clip_norm=0.0)
    assert not (tmp_path / "checkpoints").exists()


def test_out_of_memory_reports_the_batch_size_that_fits(tmp_path, monkeypatch, fault_log):
    monkeypatch.setattr(MemoryUse, "peak", lambda self: self.fixed + 2 * GIB)
    monkeypatch.setattr(MemoryUse, "capacity", lambda self: self.fixed + GIB)

    fail = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    with pytest.raises(
        UserError, match=r"cpu is out of memory with train\.batch_size 8: 2,048 MiB.*at most 4 clips fit"
    ):
        fit(tmp_path, 1, fail)
    fault_log("memory of the device runs out", {"ended, naming a batch size that fits": 1})


def test_the_batch_that_fits_is_arithmetic():
    # Ten clips took 20 GiB beside 4; 12 are left: six.
    assert batch_that_fits(10, fixed=4 * GIB, peak=24 * GIB, capacity=16 * GIB) == 6
    assert batch_that_fits(10, fixed=4 * GIB, peak=5 * GIB, capacity=64 * GIB) == 9, "fewer than what failed"
    assert batch_that_fits(1, fixed=4 * GIB, peak=5 * GIB, capacity=64 * GIB) == 0
    assert batch_that_fits(8, fixed=4 * GIB, peak=4 * GIB, capacity=3 * GIB) == 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_cpus_memory_counts_as_well(error):
    memory = MemoryUse(torch.device("cpu"))
    memory.start()
    assert memory.fixed > 2**20
    plain = out_of_memory(error, 4, memory)
    assert "cpu is out of memory with train.batch_size 4" in str(plain)
    assert out_of_memory(RuntimeError("shape mismatch"), 4, memory) is None


def test_a_lost_process_is_told_from_a_wrong_shape():
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    assert "another process of this training ended" in str(process_lost(lost, 2))
    assert process_lost(lost, 1) is None
    assert process_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2) is None


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "the file system is read-only")]
)
def test_a_disk_that_takes_no_more_leaves_the_last_checkpoint(tmp_path, monkeypatch, number, words, fault_log):
    real, writes = checkpoint.save_file, []

    def failing(*args, **kwargs):
        writes.append(1)
        if len(writes) > 3:
            raise OSError(number, "no")
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", failing)
    with pytest.raises(UserError, match=f"last could not be written: {words}.*The previous contents are unchanged"):
        fit(tmp_path, 0, None)
    last = checkpoint.load(tmp_path / "checkpoints" / "last")
    assert last.info["epoch"] == 1
    assert sorted(it.name for it in (tmp_path / "checkpoints").iterdir()) == ["best", "last"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["epoch"] == 1
    fault_log(f"writing a checkpoint fails: {words}", {"ended with advice, last checkpoint intact": 1})


def test_errors_of_safetensors_are_the_disks(tmp_path, monkeypatch):
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    monkeypatch.setattr(checkpoint, "save_file", Mock(side_effect=checkpoint.SafetensorError(text)))
    with pytest.raises(OSError, match="No space left") as error:
        checkpoint.save(tmp_path / "c", model={}, state={}, info={})
    assert error.value.errno == errno.ENOSPC
    assert faults.not_written(error.value, tmp_path).args[0].startswith(f"{tmp_path} could not be written: the disk is")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "c")
