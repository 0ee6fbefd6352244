"""The training stage of gpu_check.py: milliseconds per step, gain of CUDA graphs, losses, 3D convolutions."""

from __future__ import annotations

import copy
import itertools
import shutil
import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common.epochs.loops import Clock, bare_loop, floor_loop, flops_a_clip, sums
from benchmarks.common.epochs.report import peak_flops
from benchmarks.common.gpu.bench import Bench, attempted, endless
from fastemo.training.speed import MOST_CONV3D_ERROR, conv3d_errors
from fastemo.training.trainer import Trainer
from fastemo.video.augment import center_crop
from fastemo.video.loader import ClipBatch, ClipLoader

MODELS = ("late_fusion", "cnn_lstm", "r3d18", "early_resnet18", "early_cnn")
VARIANTS: dict[str, dict[str, str]] = {
    "fp32": {"speed": "fp32", "compile": "off"},
    "bf16": {"speed": "auto", "compile": "off"},
    "bf16_default": {"speed": "auto", "compile": "default"},
    "bf16_cudagraphs": {"speed": "auto", "compile": "cudagraphs"},
}
_ROUNDS = 3
# R3D-18's convolutions at batch 8, T = 10, 112x112: input [B, C, T, H, W], weight, stride; and a small one.
_LAYERS = {
    "stem": ((8, 3, 10, 112, 112), (64, 3, 3, 7, 7), (1, 2, 2)),
    "layer1": ((8, 64, 10, 56, 56), (64, 64, 3, 3, 3), (1, 1, 1)),
    "layer3": ((8, 128, 5, 28, 28), (256, 128, 3, 3, 3), (2, 2, 2)),
}
Plan = list[tuple[str, int, str]]
_SMALL = {"small": ((1, 3, 2, 16, 16), (8, 3, 3, 3, 3), (1, 2, 2))}


def training(bench: Bench) -> dict[str, Any]:
    """All measurements, the most important first; those that the deadline leaves out are noted."""
    found: dict[str, Any] = {"steps": {}}
    loaders: dict[int, ClipLoader] = {}
    first, compiled = plan(bench.rehearse)
    with ExitStack() as stack:

        def measure(model: str, batch_size: int, variant: str) -> None:
            name = f"{model}, batch {batch_size}, {variant}"
            if bench.has_time(name, seconds=0 if bench.rehearse else 4):
                if batch_size not in loaders:
                    loaders[batch_size] = stack.enter_context(bench.loader(batch_size))
                loader = loaders[batch_size]
                found["steps"][name] = attempted(steps, bench, model, batch_size, VARIANTS[variant], loader)

        for wanted in first:
            measure(*wanted)
        # These are short, and more important than minutes of compilation.
        for check in (losses, conv3d):
            if bench.has_time(check.__name__):
                found[check.__name__] = check(bench)
        for wanted in compiled:
            measure(*wanted)
    results = {**found["steps"], **{name: found[name] for name in ("losses", "conv3d") if name in found}}
    errors = [f"{name}: {it.get('error', 'too far off')}" for name, it in results.items() if not it.get("ok", True)]
    if errors:
        found["error"] = "; ".join(errors)[:1200]
    return {"ok": not errors, **found}


def plan(rehearse: bool) -> tuple[Plan, Plan]:
    """Model, batch size and variant, the most important first; and those after the checks."""
    if rehearse:
        can_compile = any(map(shutil.which, ("gcc", "cc", "clang", "g++")))
        compiled = [("early_cnn", 2, "bf16_default")] if can_compile else []
        return [*itertools.product(MODELS[:2], (2,), ("fp32", "bf16"))], compiled
    graphs = itertools.product(("bf16_cudagraphs", "bf16_default"), (8, 64), MODELS[:3])
    then = [(model, batch_size, variant) for variant, batch_size, model in graphs]
    then += itertools.product(MODELS[:3], (256,), ("fp32", "bf16"))
    then += itertools.product(MODELS[3:], (8, 64, 256), ("bf16", "fp32"))
    then += itertools.product(MODELS[3:], (8, 64), ("bf16_default", "bf16_cudagraphs"))
    return [*itertools.product(MODELS[:3], (8, 64), ("fp32", "bf16"))], then


def steps(bench: Bench, model: str, batch_size: int, variant: dict[str, str], loader: ClipLoader) -> dict[str, Any]:
    """One model, batch and variant: warm from the device, with the bare loop and the floor; medians over rounds."""
    cuda = bench.device.type == "cuda"
    with bench.trainer(model, batch_size, **variant) as trainer:
        is_resident = all(loader.kept.on_device(row) for row in range(len(loader.clips)))
        totals, epochs = sums(bench.device), endless(loader)
        began = time.perf_counter()
        for _ in range(2 + len(loader) * (not is_resident)):
            batch = next(epochs)
            trainer.train_step([batch], bench.crop, 0, totals)
        bench.synchronize()
        warm_up, began = time.perf_counter() - began, time.perf_counter()
        trainer.train_step([next(epochs)], bench.crop, 0, totals)
        bench.synchronize()
        count = 1 if bench.rehearse else max(1, min(20, int(0.25 / (time.perf_counter() - began))))
        if cuda:
            torch.cuda.reset_peak_memory_stats(bench.device)
        # In turns: a machine's speed changes from second to second.
        passes = []
        for _ in range(1 if bench.rehearse else _ROUNDS):
            host_ms, device_ms, seconds = _timed_steps(bench, trainer, epochs, count, totals)
            bare = bare_loop(trainer, batch, bench.crop, steps=count, seed=0)
            floor = floor_loop(trainer, batch, bench.crop, steps=count)
            clips = count * batch_size
            passes.append((host_ms, device_ms, clips / seconds, bare.seconds / seconds, floor.seconds / seconds))
        host_ms, device_ms, rate, of_bare, of_floor = map(statistics.median, zip(*passes, strict=True))
        peak = torch.cuda.max_memory_allocated(bench.device) / 2**20 if cuda else None
        counted = launches(bench, trainer, batch, totals)
    flops = flops_a_clip(bench.model_config(model), len(bench.stored.class_names), bench.crop.crop_size)
    peak_rate = peak_flops(torch.cuda.get_device_name(bench.device), "bf16") if cuda else None
    return {
        "steps": count,
        "host_ms": host_ms,
        "device_ms": device_ms,
        "clips_per_second": rate,
        "of_bare_loop": of_bare,
        "of_floor": of_floor,
        "launches_a_step": counted,
        "flops_per_second": flops * rate,
        "mfu_of_bf16_peak": flops * rate / peak_rate if peak_rate else None,
        "peak_mib": peak,
        "warm_up_seconds": warm_up,
        "speed": str(trainer.speed),
    }


def _timed_steps(
    bench: Bench, trainer: Trainer, epochs: Any, count: int, totals: torch.Tensor
) -> tuple[float, float, float]:
    """Host and device milliseconds per step, and total seconds."""
    clock, began = Clock(bench.device), time.perf_counter()
    with clock.span("steps"):
        for _ in range(count):
            trainer.train_step([next(epochs)], bench.crop, 0, totals)
    host = time.perf_counter() - began
    bench.synchronize()
    seconds = time.perf_counter() - began
    return host * 1e3 / count, clock.seconds("steps") * 1e3 / count, seconds


def launches(bench: Bench, trainer: Trainer, batch: ClipBatch, totals: torch.Tensor) -> int:
    """Kernels and graphs that the host launches per step; on a CPU torch's operations."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device.type == "cuda")
    with profile(activities=activities) as profiler:
        trainer.train_step([batch], bench.crop, 0, totals)
        bench.synchronize()
    names = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch") if bench.device.type == "cuda" else ("aten::",)
    return sum(it.count for it in profiler.key_averages() if it.key.startswith(names))


def losses(bench: Bench) -> dict[str, Any]:
    """Training losses on one batch, bf16 on the device against fp32 on a CPU."""
    count = 5 if bench.rehearse else 50
    generator = torch.Generator().manual_seed(0)
    crop = bench.video.size - bench.crop.crop_size
    pixels = torch.randint(0, 256, (4, bench.video.num_frames, 3, 32 + crop, 32 + crop), generator=generator)
    frames = center_crop(pixels.to(torch.uint8), type(bench.crop)(crop_size=32))
    torch.manual_seed(0)
    model, labels = bench.model("late_fusion"), torch.arange(4)
    curves = []
    for device, half in ((torch.device("cpu"), False), (bench.device, True)):
        ours = copy.deepcopy(model).to(device).train()
        optimizer = torch.optim.Adam(ours.parameters(), lr=1e-4)
        curve = []
        for _ in range(count):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = ours(frames.to(device))
            loss = F.cross_entropy(logits.float(), labels.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curve.append(loss.detach())
        curves.append(torch.stack(curve).cpu())
    apart = float((curves[0] - curves[1]).abs().max() / curves[0][0])
    return {"ok": apart < 0.15, "largest_gap": apart, "fp32_cpu": curves[0].tolist(), "bf16": curves[1].tolist()}


def conv3d(bench: Bench) -> dict[str, Any]:
    """3D convolutions by precision and layout: relative errors against exact fp32, and ms."""
    kinds = {"fp32": (torch.float32, False), "tf32": (torch.float32, True)}
    kinds |= {"bf16": (torch.bfloat16, False), "fp16": (torch.float16, False)}
    found: dict[str, Any] = {}
    for name, layer in (_SMALL if bench.rehearse else _LAYERS).items():
        for kind, (dtype, tf32) in kinds.items():
            for last in (False, True):
                title = f"{name}, {kind}, {'channels_last_3d' if last else 'contiguous'}"
                if not bench.has_time(title):
                    continue
                errors = conv3d_errors(*layer, bench.device, dtype, tf32=tf32, channels_last=last)
                found[title] = {"errors": errors, "ms": _conv3d_ms(bench, layer, dtype, tf32, last)}
    # On a CPU bf16 gives NaN for some shapes, and no model uses it there (models/temporal.py).
    judged = [it for title, it in found.items() if bench.device.type != "cpu" or "bf16" not in title]
    worst = max((max(it["errors"]) for it in judged), default=0.0)
    return {"ok": worst <= MOST_CONV3D_ERROR, "worst_error": worst, **found}


def _conv3d_ms(bench: Bench, layer: Any, dtype: torch.dtype, tf32: bool, last: bool) -> float:
    """Milliseconds of one forward and backward pass."""
    from torch.utils.benchmark import Timer  # warns on a machine without a GPU

    (shape, weight_shape, stride), layout = layer, torch.channels_last_3d if last else torch.contiguous_format
    frames, weight = (
        torch.randn(size, device=bench.device, dtype=dtype).to(memory_format=layout).requires_grad_()
        for size in (shape, weight_shape)
    )

    def work() -> None:
        result = F.conv3d(frames, weight, stride=stride, padding=tuple(size // 2 for size in weight_shape[2:]))
        torch.autograd.grad(result, (frames, weight), result.detach())

    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, tf32
    try:
        # It warms up, which selects the kernels, and waits for the device.
        return Timer("work()", globals={"work": work}).timeit(1 if bench.rehearse else 10).mean * 1e3
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
