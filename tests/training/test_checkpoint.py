"""A checkpoint is whole or not there, and is read without unpickling."""

import pytest
import torch
from safetensors.torch import save_file

from fastemo.training import checkpoint


def save(folder, value=1.0, **state):
    checkpoint.save(folder, model={"w": torch.full((2, 3), value)}, state=state, info={"epoch": 4})


def test_round_trip_and_replacement(tmp_path):
    folder = tmp_path / "checkpoints" / "last"
    save(folder, 1.0, step=torch.tensor(3))
    save(folder, 2.0)
    weights, info = checkpoint.load_model(folder)
    assert torch.equal(weights["w"], torch.full((2, 3), 2.0))
    assert info == {"epoch": 4}
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


def test_a_permuted_layout_reads_as_it_was(tmp_path):
    kernel = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    checkpoint.save(tmp_path / "c", model={"w": kernel}, state={}, info={})
    assert torch.equal(checkpoint.load_model(tmp_path / "c")[0]["w"], kernel)


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "last"
    save(folder, 1.0)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(folder, 2.0)
    assert checkpoint.load_model(folder)[0]["w"][0, 0] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_the_state_is_read_with_weights_only(tmp_path):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    checkpoint.save(tmp_path / "c", model={}, state={"optimizer": optimizer.state_dict()}, info={})
    state = torch.load(tmp_path / "c" / checkpoint.STATE_FILE, weights_only=True)
    assert state["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_missing_and_damaged_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.load_model(tmp_path / "nothing")
    save(tmp_path / "last")
    (tmp_path / "last" / checkpoint.MODEL_FILE).write_bytes(b"\x08\0\0\0\0\0\0\0damaged!")
    with pytest.raises(ValueError, match="last is damaged"):
        checkpoint.load_model(tmp_path / "last")
    save_file({"w": torch.ones(1)}, tmp_path / "last" / checkpoint.MODEL_FILE)
    (tmp_path / "last" / checkpoint.INFO_FILE).write_text("{")
    with pytest.raises(ValueError, match="last is damaged"):
        checkpoint.load_model(tmp_path / "last")


def test_a_copy_shares_bytes_and_is_replaced_alone(tmp_path):
    state = {"a": torch.ones(2)}
    checkpoint.save(tmp_path / "last", model=state, state={}, info={"epoch": 1})
    checkpoint.copy(tmp_path / "last", tmp_path / "best")
    assert (tmp_path / "last" / "model.safetensors").samefile(tmp_path / "best" / "model.safetensors")
    checkpoint.save(tmp_path / "last", model={"a": torch.zeros(2)}, state={}, info={"epoch": 2})
    weights, info = checkpoint.load_model(tmp_path / "best")
    assert weights["a"].tolist() == [1, 1]
    assert info["epoch"] == 1
    checkpoint.copy(tmp_path / "last", tmp_path / "best")
    assert checkpoint.load_model(tmp_path / "best")[1]["epoch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]


def test_a_disk_without_hard_links_gets_a_copy(tmp_path, monkeypatch):
    def refuse(*_args):
        raise PermissionError(1, "Operation not permitted")

    checkpoint.save(tmp_path / "last", model={"a": torch.ones(2)}, state={}, info={})
    monkeypatch.setattr("os.link", refuse)
    checkpoint.copy(tmp_path / "last", tmp_path / "best")
    assert checkpoint.load_model(tmp_path / "best")[0]["a"].tolist() == [1, 1]


def test_a_snapshot_does_not_follow_the_training():
    tensor = torch.ones(2)
    taken = checkpoint.snapshot({"state": {0: {"step": tensor}}, "groups": [{"lr": 1.0, "betas": (0.9, tensor)}]})
    tensor.zero_()
    assert taken["state"][0]["step"].tolist() == [1, 1]
    assert taken["groups"][0]["betas"][1].tolist() == [1, 1]


def test_the_writer_works_in_order_and_tells_what_failed():
    written, writer = [], checkpoint.Writer()
    for number in range(5):
        writer.submit(lambda number=number: written.append(number))
    writer.wait()
    assert written == list(range(5))

    def fail():
        raise OSError(28, "No space left on device")

    writer.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.submit(lambda: written.append(5))
    writer.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.wait()
    writer.close()
