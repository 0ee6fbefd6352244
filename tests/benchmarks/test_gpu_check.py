"""The GPU's check, rehearsed without one; and faults planted in each stage, which it finds."""

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.common.gpu import bench as bench_module
from benchmarks.common.gpu import decoding, training
from benchmarks.common.gpu.bench import Bench
from benchmarks.gpu_check import STAGES, recommended
from fastemo.console import Console

COMMAND = [sys.executable, "benchmarks/gpu_check.py"]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, rehearse=True, decodes=8)


def test_without_a_gpu_it_says_so_in_one_line(run_script, tmp_path):
    done = run_script(COMMAND, "--out", tmp_path / "found.json")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "fastemo: error: gpu_check.py needs a CUDA device, but torch finds none; --rehearse runs its stages on a CPU"
    ]
    assert not (tmp_path / "found.json").exists()


def test_each_stage_is_on_disk_when_it_is_done_and_what_a_deadline_left_out_is_named(bench, tmp_path, monkeypatch):
    path = tmp_path / "found.json"

    def second(bench):
        assert json.loads(path.read_text())["stages"]["here"]["ok"]
        assert not bench.has_time("much", seconds=1000)
        raise ValueError("broken")

    monkeypatch.setitem(gpu_check.STAGES, "tests", (second, 0.5))
    found = gpu_check.run_stages(bench, ["here", "tests"], 1, path, Console(show=False))
    assert json.loads(path.read_text())["stages"]["tests"]["error"] == "ValueError: broken"
    assert found["stages"]["tests"]["not_reached"] == ["much"]
    assert 'ValueError("broken")' in "".join(found["stages"]["tests"]["trace"])
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
    arguments = ("--minutes", 3, "--decodes", 200, "--out", tmp_path / "found.json")
    done = run_script(COMMAND, *arguments, CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("is_over", [True, False])
@pytest.mark.parametrize("outcome", ["PASSED", "FAILED"])
def test_each_tests_outcome_is_reported_also_of_those_that_time_was_left_for(bench, monkeypatch, outcome, is_over):
    said = f"tests/test_cuda.py::test_one[late_fusion] PASSED [ 50%]\ntests/test_cuda.py::test_two {outcome} [100%]\n"

    def run(command, **options):
        if not is_over:
            raise subprocess.TimeoutExpired(command, options["timeout"], said.encode())
        return subprocess.CompletedProcess(command, int(outcome == "FAILED"), said.encode())

    monkeypatch.setattr(bench_module.subprocess, "run", run)
    found = bench_module.tests(bench)
    assert found["tests"] == {
        "tests/test_cuda.py::test_one[late_fusion]": "PASSED",
        "tests/test_cuda.py::test_two": outcome,
    }
    assert (found["ok"], found["is_over"], bool(bench.missed)) == (outcome == "PASSED", is_over, not is_over)


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


def test_memory_that_grows_is_found(bench, monkeypatch):
    taken = iter(range(0, 10000, 50))
    monkeypatch.setattr(decoding, "_taken", lambda bench: {"driver_mib": float(next(taken))})
    assert not decoding.memory(bench)["ok"]


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
    with decoding.engine_use(torch.device("cuda"), use, "a name"):
        threading.Event().wait(0.5)
    assert 60 <= use["a name"] <= 80
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with decoding.engine_use(torch.device("cuda"), use, "another"):
        pass
    assert set(use) == {"a name"}
