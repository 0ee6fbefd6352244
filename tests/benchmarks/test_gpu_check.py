"""What can be tested of the GPU's check without one."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import write_video

from benchmarks import corpus, gpu_check, gpu_kernels
from benchmarks.gpu_check import guarded
from fastemo.console import Console
from fastemo.video.config import VideoConfig

REPOSITORY = Path(__file__).resolve().parents[2]


def script(*arguments, **environment):
    command = [sys.executable, "benchmarks/gpu_check.py", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = script("--out", tmp_path / "found.json", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["fastemo: error: gpu_check.py needs a CUDA device, and torch finds none"]
    assert not (tmp_path / "found.json").exists()


def test_a_step_that_fails_is_recorded():
    def step():
        raise RuntimeError("the engine is cold")

    found = guarded("engine", step, Console(show=False))
    assert (found["ok"], found["error"]) == (False, "RuntimeError: the engine is cold")
    assert "raise RuntimeError" in "".join(found["trace"])
    assert guarded("other", lambda: {"ok": True, "value": 3}, Console(show=False))["value"] == 3


def test_bf16_is_held_against_fp32(monkeypatch):
    """On a CPU, which has both."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(gpu_kernels, "_REPEATS", 1)
    small = ("small", (2, 3, 4, 16, 16), (8, 3, 3, 3, 3), (1, 2, 2))
    monkeypatch.setattr(gpu_kernels, "_LAYERS", (small,))
    found = gpu_kernels.conv3d_in_bf16(torch.device("cpu"))
    assert found["ok"]
    assert 0 < found["worst_error"] == max(found["small"]["errors"]) < 0.02
    real = torch.nn.functional.conv3d

    def broken(inputs, *others, **options):
        out = real(inputs, *others, **options)
        return out * float("nan") if inputs.dtype == torch.bfloat16 else out

    monkeypatch.setattr(gpu_kernels.F, "conv3d", broken)
    found = gpu_kernels.conv3d_in_bf16(torch.device("cpu"))
    assert not found["ok"]
    assert found["worst_error"] >= 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nvidia") is None, reason="DALI is not installed")
def test_the_steps_with_dali_on_a_processor(monkeypatch, tmp_path):
    """DALI decodes VP9 there; the driver's figures are invented."""
    for name, value in (("synchronize", None), ("mem_get_info", (100 << 20, 200 << 20)), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, value=value: value)
    monkeypatch.setattr(gpu_check, "_BATCH_SIZES", (2,))
    for number in range(1, 4):
        path = tmp_path / "clips" / f"02-01-0{number}-01-01-01-01.mp4"
        write_video(path, 20, 128, 96, codec="libvpx-vp9", options={"crf": "20", "b": "0", "cpu-used": "8"})
    clips = corpus.lay_out(tmp_path / "clips", 4, tmp_path / "corpus", {})
    check = gpu_check.Check(clips, VideoConfig(num_frames=5, size=48), tmp_path, rounds=1, decodes=8)
    check.device = torch.device("cpu")
    found = {
        name: guarded(name, getattr(check, name), Console(show=False)) for name in ("correctness", "decoding", "memory")
    }
    assert all(step["ok"] for step in found.values()), found
    assert found["correctness"]["psnr_db"]["min"] >= 38
    assert found["decoding"]["pruned_batch_2"]["clips_per_second"]["median"] > 0
    assert found["memory"]["decodes"] >= 8
    assert found["memory"]["taken_mib_after"] == 100


@pytest.mark.slow
@pytest.mark.cuda
def test_on_a_gpu_every_step_is_well(tmp_path):
    done = script("--corpus", "generated", "--clips", 32, "--rounds", 1, "--decodes", 200, "--out", tmp_path / "a.json")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((tmp_path / "a.json").read_text())["steps"]
    assert set(steps) == {"library", "correctness", "bf16", "decoding", "ladder", "memory"}
    assert all(step["ok"] for step in steps.values())
