"""The GPU's check, rehearsed without one; and faults planted in each stage, which it finds."""

import json
import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.common.gpu import bench as bits
from benchmarks.common.gpu import frames, training
from benchmarks.common.gpu.bench import Bench
from benchmarks.common.gpu.doubles import RecordingTransfer, no_stops
from benchmarks.common.gpu.frames import Sample
from benchmarks.gpu_check import STAGES, guarded, recommended
from fastemo.console import Console
from fastemo.training import trainer as trainer_module
from fastemo.video import backends, dali
from fastemo.video.tiers import KeptClips

COMMAND = [sys.executable, "benchmarks/gpu_check.py"]
CPU = torch.device("cpu")
needs_dali = pytest.mark.skipif(dali.why_unavailable() is not None, reason="DALI cannot be had here")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, rehearse=True, decodes=8)


def test_without_a_gpu_it_says_so_in_one_line(run_script, tmp_path):
    done = run_script(COMMAND, "--out", tmp_path / "found.json")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "fastemo: error: gpu_check.py needs a CUDA device, and torch finds none; --rehearse runs its stages on a "
        "processor"
    ]
    assert not (tmp_path / "found.json").exists()


def test_a_stage_that_fails_is_recorded():
    def step():
        raise RuntimeError("the engine is cold")

    found = guarded("engine", step, Console(show=False))
    assert (found["ok"], found["error"]) == (False, "RuntimeError: the engine is cold")
    assert "raise RuntimeError" in "".join(found["trace"])
    assert guarded("other", lambda: {"ok": True, "value": 3}, Console(show=False))["value"] == 3


def test_each_stage_is_on_disk_when_it_is_done_and_what_a_deadline_left_out_is_named(bench, tmp_path, monkeypatch):
    path = tmp_path / "found.json"

    def second(bench):
        assert json.loads(path.read_text())["stages"]["here"]["ok"]
        assert not bench.has_time("much", seconds=1000)
        raise ValueError("broken")

    monkeypatch.setitem(gpu_check.STAGES, "bits", (second, 0.5))
    found = gpu_check.run_stages(bench, ["here", "bits"], 1, path, Console(show=False))
    assert json.loads(path.read_text())["stages"]["bits"]["error"] == "ValueError: broken"
    assert found["stages"]["bits"]["not_reached"] == ["much"]
    assert [row["verdict"] for row in gpu_check.rows(found)] == ["ok", "failed"]


def test_what_auto_should_pick_follows_from_the_measurements():
    rates = {"fp32": 10, "bf16": 20, "bf16_default": 20.5, "bf16_cudagraphs": 30}
    steps = {f"r3d18, batch 8, {name}": {"clips_per_second": rate} for name, rate in rates.items()}
    steps |= {f"early_cnn, batch 8, {name}": {"clips_per_second": rates[name]} for name in ("bf16", "bf16_default")}
    cold = {"loader cold, pyav, batch 8": 90.0, "loader cold, dali, batch 8": 300.0}
    picks = recommended({"training": {"steps": steps}, "nvdec": {"ok": True, "1280x720": cold}})
    assert {name: it["pick"] for name, it in picks["train.compile"].items()} == {
        "early_cnn, batch 8": "off",
        "r3d18, batch 8": "cudagraphs",
    }
    assert picks["train.speed"] == {"r3d18, batch 8": "bf16"}
    assert picks["video.backend"]["pick"] == "dali"


@pytest.mark.slow
def test_the_rehearsal_runs_every_stage(run_script, tmp_path):
    done = run_script(COMMAND, "--rehearse", "--out", tmp_path / "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "found.json").read_text())["stages"]
    assert set(stages) == set(STAGES)
    assert all(stage["ok"] and not stage["not_reached"] for stage in stages.values())


@pytest.mark.slow
@pytest.mark.cuda
def test_on_a_gpu_every_stage_is_ok(run_script, tmp_path):
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    arguments = ("--minutes", 3, "--decodes", 200, "--out", tmp_path / "found.json")
    done = run_script(COMMAND, *arguments, CUDA_VISIBLE_DEVICES=devices)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stop_in_the_step_is_found(bench, monkeypatch):
    real = trainer_module.augment

    def stopping(frames, *arguments, **options):
        assert frames.float().mean().item() >= 0
        return real(frames, *arguments, **options)

    monkeypatch.setattr(trainer_module, "augment", stopping)
    with pytest.raises(AssertionError, match=r"waits for the device: Tensor\.item"):
        bits.stops(bench)


def test_a_copy_of_pageable_memory_in_the_step_is_found():
    with no_stops(CPU), pytest.raises(AssertionError, match=r"torch\.tensor"):
        torch.tensor([1.0], device="cpu")
    assert torch.tensor([1.0], device="cpu").item() == 1


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
    transfer = RecordingTransfer(CPU)
    for _ in range(40):
        assert handed_over(transfer).data_ptr() in transfer.handed
    transfer.check_over()


def test_faults_of_order_are_found(monkeypatch):
    with pytest.raises(AssertionError, match="marked before its uploads"):
        handed_over(RecordingTransfer(CPU), is_late=True)
    with pytest.raises(AssertionError, match="a buffer that was given back"):
        handed_over(RecordingTransfer(CPU), is_released_first=True)
    leaking = RecordingTransfer(CPU)
    kept = leaking.buffer(2, 3)
    with pytest.raises(AssertionError, match="1 buffers were not given back"):
        leaking.check_over()
    hasty = RecordingTransfer(CPU)
    monkeypatch.setattr(hasty, "_is_done", lambda event: True)
    with hasty.active():
        hasty.upload(kept)
        hasty.release(hasty.buffer(2, 3), hasty.mark())
    with pytest.raises(AssertionError, match="before its copy is over"):
        hasty.buffer(2, 3)


def test_batches_with_other_bytes_are_found(bench, monkeypatch):
    real = KeptClips.from_device
    monkeypatch.setattr(KeptClips, "from_device", lambda self, rows: real(self, rows) + 1)
    with pytest.raises(AssertionError, match=r"epoch 1: .* have other bytes"):
        bits.batches(bench)


def test_an_rnn_that_takes_the_wrong_type_is_found(bench):
    found = bits.rnn(bench)
    assert found["ok"]
    real = torch.autocast

    def never_off(kind, dtype=None, enabled=True):
        return real(kind, torch.bfloat16, enabled=enabled or torch.is_autocast_enabled(kind))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", never_off)
        # Where the processor has no such kernel, it raises.
        assert not guarded("rnn", lambda: bits.rnn(bench), Console())["ok"]


def test_a_wrong_convolution_is_found(bench, monkeypatch):
    assert training.conv3d(bench)["ok"]
    real = torch.nn.functional.conv3d

    def broken(inputs, *others, **options):
        out = real(inputs, *others, **options)
        return out * float("nan") if inputs.dtype == torch.float16 else out

    monkeypatch.setattr(torch.nn.functional, "conv3d", broken)
    found = training.conv3d(bench)
    assert not found["ok"]
    assert found["worst_error"] >= 1


@pytest.fixture
def two_clips(monkeypatch):
    clips = [Sample("libvpx-vp9", 160, 90), Sample("libvpx-vp9", 320, 180, matrix=1)]
    monkeypatch.setattr(frames, "samples", lambda rehearse: clips)
    monkeypatch.setattr(frames, "CROPS", ("center",))


@needs_dali
@pytest.mark.usefixtures("two_clips")
def test_right_frames_are_ok_and_a_wrong_frame_index_is_found(bench, monkeypatch):
    assert frames.frames(bench)["ok"]
    real = backends.pruned_clip
    monkeypatch.setattr(backends, "pruned_clip", lambda path, wanted: real(path, [min(i + 1, 23) for i in wanted]))
    found = frames.frames(bench)
    assert not found["ok"]
    assert all(clip["astray"] for clip in found["clips"]["center, pruned"].values())
    assert all(clip["ok"] for clip in found["clips"]["center, full"].values())


@needs_dali
@pytest.mark.usefixtures("two_clips")
def test_a_wrong_matrix_is_found(bench, monkeypatch):
    monkeypatch.setattr(dali, "_LUMA", {})
    found = frames.frames(bench)
    assert not found["ok"]
    ok = {key: clip["ok"] for key, clip in found["clips"]["center, pruned"].items()}
    assert ok == {key: "matrix5" in key for key in ok}


def test_memory_that_grows_is_found(bench, monkeypatch):
    taken = iter(range(0, 10000, 50))
    monkeypatch.setattr(frames, "_taken", lambda bench: {"driver_mib": float(next(taken))})
    assert not frames.memory(bench)["ok"]


def test_the_decoders_use_is_sampled_where_a_driver_tells_it(monkeypatch):
    readings = iter([0, *[60, 80] * 1000])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-1234": "card"}[uuid],
        nvmlDeviceGetDecoderUtilization=lambda card: (next(readings), 1000),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    use = {}
    with frames.engine_use(torch.device("cuda"), use, "a name"):
        threading.Event().wait(0.5)
    assert 60 <= use["a name"] <= 80
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with frames.engine_use(torch.device("cuda"), use, "another"):
        pass
    assert set(use) == {"a name"}
