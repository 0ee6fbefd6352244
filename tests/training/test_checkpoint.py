"""A checkpoint is whole or not there, and is read without unpickling."""

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path
from random import Random
from unittest.mock import Mock

import pytest
import torch
from mutations import damaged

from fastemo.training import checkpoint
from fastemo.training.checkpoint import CheckpointError
from fastemo.training.state import unflatten

FILES = ("model.safetensors", "state.safetensors", "state.json", "info.json")


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


def test_the_state_comes_back_as_it_was(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "best": -math.inf, "rows": [{"a": 1.5, "b": None}], "pair": (1, "x")}
    checkpoint.save(tmp_path / "c", model={}, state=state, info={})
    found = checkpoint.load(tmp_path / "c").state
    before, after = optimizer.state_dict()["state"][0], found["optimizer"]["state"][0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert found["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert (found["best"], found["rows"], found["pair"]) == (-math.inf, [{"a": 1.5, "b": None}], (1, "x"))


def test_nothing_is_unpickled(tmp_path):
    save(tmp_path / "c", step=torch.tensor(3))
    assert {it.name for it in (tmp_path / "c").iterdir()} == {*FILES, "checksums.json"}
    with pytest.raises(TypeError, match="function cannot be saved"):
        save(tmp_path / "d", code=test_nothing_is_unpickled)


def test_missing_and_damaged_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing is not a checkpoint"):
        checkpoint.load_model(tmp_path / "nothing")
    for name in (*FILES, "checksums.json"):
        for damage in (b"", b"\x08\0\0\0\0\0\0\0damaged!", b"[" * 100_000):
            folder = tmp_path / "c"
            save(folder, step=torch.tensor(3))
            (folder / name).write_bytes(damage)
            with pytest.raises(CheckpointError, match=f"{folder} is damaged"):
                checkpoint.load(folder)
        (folder / name).unlink()
        for make in (Path, os.mkfifo):  # nothing, and then a pipe
            make(folder / name)
            with pytest.raises(CheckpointError, match=f"{folder} is not a checkpoint: {name} is missing"):
                checkpoint.load_model(folder)


def resum(folder):
    """Checksums that fit whatever the files hold now."""
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "checksums.json").write_text(json.dumps(sums))


def test_hostile_files_with_checksums_that_fit(tmp_path, fault_log):
    """A checkpoint from elsewhere may hold anything: it is read or refused, and nothing runs."""
    folder, outcomes = tmp_path / "c", Counter()
    for seed in range(150):
        rng = Random(seed)
        save(folder, step=torch.tensor(3), rows=[{"a": 1}])
        path = folder / rng.choice(FILES)
        path.write_bytes(damaged(path.read_bytes(), rng))
        resum(folder)
        try:
            found = checkpoint.load(folder)
            assert isinstance(found.state, dict)
            assert isinstance(found.info, dict)
            outcomes["read as written"] += 1
        except CheckpointError as error:
            outcomes["refused by name" if str(folder) in str(error) else f"refused: {error}"] += 1
    assert outcomes.keys() == {"read as written", "refused by name"}
    assert min(outcomes.values()) >= 3
    fault_log("mutated checkpoint files whose checksums fit", outcomes)


WRONG = [{"a": 1, "b": 2}, *({"dict": it} for it in (3, [["a"]], [[{}, 1]]))]


@pytest.mark.parametrize("plain", [[], {"tensor": "9"}, {"tensor": {}}, {"list": {}}, {"code": []}, *WRONG])
def test_a_tree_that_is_none(plain):
    with pytest.raises(ValueError, match=r".+"):
        unflatten(plain, {})


def test_older_ones_stay_and_the_oldest_are_removed(tmp_path):
    for epoch in range(1, 6):
        checkpoint.save(tmp_path / "last", model={}, state={}, info={"epoch": epoch, "clips": 8}, keep=2)
    names = sorted(it.name for it in tmp_path.iterdir())
    assert names == ["epoch-00003-clips-0000008", "epoch-00004-clips-0000008", "last"]


def test_the_furthest_whole_one_is_found(tmp_path):
    assert checkpoint.recover(tmp_path / "nothing").checkpoint is None
    for epoch in range(1, 5):
        info = {"epoch": epoch, "clips": 8, "is_epoch_end": True}
        checkpoint.save(tmp_path / "last", model={}, state={}, info=info, keep=3)
    (tmp_path / ".last.0123").mkdir()  # a write that was killed
    (tmp_path / ".last.0123" / "info.json").write_text('{"epoch": 9}')
    assert checkpoint.recover(tmp_path).checkpoint.info["epoch"] == 4
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", [".last.replaced", ".last.0123"])
def test_killed_between_two_renames(tmp_path, name):
    """The new one is whole, under a name for the time being, or the old one is."""
    info = {"epoch": 3, "clips": 8, "is_epoch_end": True}
    checkpoint.save(tmp_path / name, model={}, state={}, info=info)
    found = checkpoint.recover(tmp_path).checkpoint
    assert (found.folder, found.info["epoch"]) == (tmp_path / "last", 3)
    assert [it.name for it in tmp_path.iterdir()] == ["last"]


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
    checkpoint.save(tmp_path / "last", model={"a": torch.ones(2)}, state={}, info={})
    monkeypatch.setattr("os.link", Mock(side_effect=PermissionError(1, "Operation not permitted")))
    checkpoint.copy(tmp_path / "last", tmp_path / "best")
    assert checkpoint.load_model(tmp_path / "best")[0]["a"].tolist() == [1, 1]


def test_a_snapshot_does_not_follow_the_training():
    tensor = torch.ones(2)
    taken = checkpoint.snapshot({"state": {0: {"step": tensor}}, "groups": [{"lr": 1.0, "betas": (0.9, tensor)}]})
    tensor.zero_()
    assert taken["state"][0]["step"].tolist() == [1, 1]
    assert taken["groups"][0]["betas"][1].tolist() == [1, 1]


def test_the_writer_works_in_order_and_raises_what_failed():
    written, writer = [], checkpoint.Writer()
    for number in range(5):
        writer.submit(lambda number=number: written.append(number))
    writer.wait()
    assert written == list(range(5))

    fail = Mock(side_effect=OSError(28, "No space left on device"))
    writer.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.submit(lambda: written.append(5))
    writer.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.wait()
    writer.close()


def test_a_killed_write_beside_two_of_the_same_clips(tmp_path):
    """The last step of an epoch, its end, and what was written next and never renamed."""
    for is_epoch_end in (False, True):
        info = {"epoch": 2, "clips": 8, "is_epoch_end": is_epoch_end}
        checkpoint.save(tmp_path / "last", model={}, state={}, info=info, keep=1)
    checkpoint.save(tmp_path / ".last.0123", model={}, state={}, info={"epoch": 3, "clips": 4})
    found = checkpoint.recover(tmp_path).checkpoint
    assert (found.folder.name, found.info["epoch"]) == ("last", 3)
    assert sorted(it.name for it in tmp_path.iterdir()) == ["epoch-00002-clips-0000008", "last"]
