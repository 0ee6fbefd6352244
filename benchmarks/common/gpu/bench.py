"""What the stages of gpu_check.py share; its first two: what is there, and bits and stops."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.common import corpus
from benchmarks.common.epochs.loops import sums, wait_for
from benchmarks.common.gpu.doubles import DelayedTransfer, RecordingTransfer, no_stops
from benchmarks.common.results import REPOSITORY
from benchmarks.common.stages import loader_of
from fastemo.corpus.manifest import Manifest
from fastemo.machine import available_processors
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training import faults
from fastemo.training.checkpoint import snapshot
from fastemo.training.config import TrainConfig
from fastemo.training.resume import generators, load_optimizer, set_generators
from fastemo.training.trainer import Trainer
from fastemo.video import dali, tiers
from fastemo.video import loader as loader_module
from fastemo.video.augment import augment, center_crop
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipBatch, ClipLoader

_MOST_GRADIENT_ERROR = 0.05


@dataclass
class Bench:
    """Device, sizes and time of a stage.

    Attributes:
        scratch: A folder to write to.
        rehearse: On a processor, in tiny sizes.
        decodes: Over which memory is watched.
        deadline: When the stage is to stop measuring, by the monotonic clock.
        missed: Measurements that the deadline left out.
    """

    scratch: Path
    rehearse: bool
    decodes: int = 3000
    deadline: float = float("inf")
    missed: list[str] = field(default_factory=list)

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.rehearse else torch.device("cuda", torch.cuda.current_device())

    @property
    def video(self) -> VideoConfig:
        frames, size = (2, 36) if self.rehearse else (10, 128)
        # By one backend: DALI's frames are another stage's.
        return VideoConfig(num_frames=frames, size=size, backend="pyav")

    @property
    def crop(self) -> AugmentConfig:
        return AugmentConfig(crop_size=32 if self.rehearse else 112)

    @cached_property
    def stored(self) -> Manifest:
        """Clips that decode in a moment."""
        count = 4 if self.rehearse else 512
        return corpus.stored_corpus(count, self.video.num_frames, self.video.size, self.scratch / "stored")

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def has_time(self, name: str, seconds: float = 0.0) -> bool:
        """Whether a measurement may begin; one that may not is noted."""
        if self.left() > seconds:
            return True
        self.missed.append(name)
        return False

    def synchronize(self) -> None:
        wait_for(self.device)

    def model(self, name: str) -> nn.Module:
        """A model of this size, on the host; in a rehearsal on a backbone that compiles in seconds."""
        return build_model(self.model_config(name), len(self.stored.class_names))

    def model_config(self, name: str) -> ModelConfig:
        backbone = "test_resnet" if self.rehearse else "resnet18"
        frames = self.video.num_frames
        return ModelConfig(name=name, num_frames=frames, pretrained=False, rnn_norm=True, backbone=backbone)  # type: ignore[arg-type]

    def loader(self, batch_size: int, *, device: torch.device | None = None, **options: Any) -> ClipLoader:
        """Over the stored clips, from the device's own memory; a processor stands in for it in a rehearsal."""
        store = options.pop("store", StoreConfig(tier="device", root=self.scratch / "store"))
        options = {"shuffle": True, "device": device or self.device, "say": lambda text: None, **options}
        # A processor's memory is otherwise tier `memory`: the path of the other one is to run.
        stands_in = patch.object(tiers, "choose_tier", lambda *_: ("device", "rehearsed"))
        with stands_in if self.rehearse and store.tier == "device" else ExitStack():
            return loader_of(self.stored, self.stored.clips, self.video, batch_size=batch_size, store=store, **options)

    @contextmanager
    def trainer(self, name: str, batch_size: int, **config: Any) -> Iterator[Trainer]:
        config = {"schedule": "constant", **config}
        with Trainer(TrainConfig(batch_size=batch_size, **config), seed=0) as trainer:
            torch.manual_seed(0)
            trainer.prepare(self.model(name), 10)
            trainer.model.train()
            yield trainer


def output(command: list[str]) -> str:
    """What a program says, or why it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"absent: {error}"
    return (done.stdout or done.stderr).strip()


def here(bench: Bench) -> dict[str, Any]:
    """GPU, driver, NVDEC, libraries."""
    fields = "name,driver_version,power.draw,power.limit,clocks.sm,clocks.max.sm,temperature.gpu,memory.total"
    is_there = find_spec("PyNvVideoCodec") is not None
    return {
        "ok": True,
        "capabilities": dali.capabilities(bench.device.index or 0),
        "dali_unavailable": dali.why_unavailable(bench.device),
        "PyNvVideoCodec": "installed" if is_there else "not installed",
        "nvidia_smi": output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "processors": available_processors(),
    }


def attempted(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a step found; what goes wrong becomes its result."""
    try:
        return step(*arguments)
    except Exception as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}


def bits(bench: Bench) -> dict[str, Any]:
    """Nothing waits in a step, and what is computed is right; every check is tried, whatever another found."""
    checks = (stops, rnn, batches, scaler, out_of_memory, resume, cuda_tests)
    found = {check.__name__: attempted(check, bench) for check in checks if bench.has_time(check.__name__)}
    errors = [f"{name}: {it.get('error', 'not ok')}" for name, it in found.items() if not it["ok"]]
    return {"ok": not errors, **found, **({"error": "; ".join(errors)} if errors else {})}


def endless(loader: ClipLoader) -> Iterator[ClipBatch]:
    """One epoch after the other."""
    return itertools.chain.from_iterable(loader.epoch(number) for number in itertools.count())


def stops(bench: Bench) -> dict[str, Any]:
    """Three training steps and one of evaluation, batches taken from the loader meanwhile where the device is one."""
    for name in ("late_fusion", "cnn_lstm"):
        size = 2 if bench.rehearse else 8
        with bench.trainer(name, size) as trainer, bench.loader(size) as loader:
            epochs, totals = endless(loader), sums(bench.device)
            for _ in range(len(loader) + 2):
                trainer.train_step([next(epochs)], bench.crop, 0, totals)
            # The loader's own threads may wait; on a processor one cannot tell them apart.
            ready = iter([next(epochs) for _ in range(3)]) if bench.rehearse else epochs
            bench.synchronize()
            with no_stops(bench.device):
                for _ in range(3):
                    batch = next(ready)
                    trainer.train_step([batch], bench.crop, 0, totals)
                with torch.inference_mode():
                    trainer.bare_model(center_crop(batch.frames, bench.crop))
    return {"ok": True, "stops": 0}


def rnn(bench: Bench) -> dict[str, Any]:
    """The RNN's types under bf16 autocast, and the features' gradients a frame against fp32."""
    torch.manual_seed(0)
    model: Any = bench.model("cnn_lstm").to(bench.device).train()
    frames = torch.zeros(4, bench.video.num_frames, 3, 32, 32, device=bench.device)
    features = torch.randn(frames.shape[0] * frames.shape[1], model.rnn.input_size, device=bench.device)
    labels = torch.arange(4, device=bench.device)
    seen: set[str] = set()
    model.rnn.register_forward_hook(lambda _, given, out: seen.update(str(it.dtype) for it in (given[0], out[0])))
    gradients = []
    for half in (False, True):
        leaf = features.clone().requires_grad_()
        given = patch.object(model.backbone, "forward", lambda frames, leaf=leaf: leaf)
        with given, torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
            logits = model(frames)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
        gradients.append(gradient.view(4, bench.video.num_frames, -1).transpose(0, 1).flatten(1))
    errors = ((gradients[1] - gradients[0]).norm(dim=1) / gradients[0].norm(dim=1)).tolist()
    is_right = seen == {"torch.float32"} and max(errors) < _MOST_GRADIENT_ERROR
    return {"ok": is_right, "dtypes": sorted(seen), "error_by_frame": errors}


def batches(bench: Bench) -> dict[str, Any]:
    """The device tier's batches over two epochs against a processor's, by checksum, though the copies come late."""
    double = RecordingTransfer if bench.rehearse else DelayedTransfer
    RecordingTransfer.made.clear()
    none = StoreConfig(tier="none")
    count = 0
    with ExitStack() as stack:
        host = stack.enter_context(bench.loader(2, device=torch.device("cpu"), store=none))
        stack.enter_context(patch.object(loader_module, "Transfer", double))
        # A store of its own, empty: the first epoch decodes and uploads.
        ours = stack.enter_context(bench.loader(2, store=StoreConfig(tier="device", root=bench.scratch / "bits")))
        for epoch in range(2):
            pairs = zip(host.epoch(epoch), ours.epoch(epoch), strict=True)
            for one, other in itertools.islice(pairs, None if bench.rehearse else 24):
                for transfer in RecordingTransfer.made:
                    transfer.check_batch(other)
                assert one.keys == other.keys, "the batches come in another order"
                assert _digest(one) == _digest(other), f"epoch {epoch}: {one.keys} have other bytes"
                ways = [augment(it.frames, bench.crop, it.keys, seed=0, epoch=epoch).cpu() for it in (one, other)]
                torch.testing.assert_close(*ways, rtol=0, atol=0.02)
                count += 1
        for transfer in RecordingTransfer.made:
            transfer.check_over()
        assert RecordingTransfer.made or not bench.rehearse, "the loader made no Transfer"
    return {"ok": True, "batches": count}


def _digest(batch: ClipBatch) -> str:
    parts = (batch.frames, batch.labels, batch.is_padding)
    return hashlib.sha256(b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)).hexdigest()


def _resident_batches(bench: Bench, size: int) -> list[ClipBatch]:
    with bench.loader(size, store=StoreConfig(tier="none")) as loader:
        return list(itertools.islice(loader.epoch(0), 2))


def scaler(bench: Bench) -> dict[str, Any]:
    """fp16 with GradScaler, which there is on GPUs only: a processor computes in what it has."""
    totals, batch = sums(bench.device), _resident_batches(bench, 2)[0]
    with bench.trainer("late_fusion", 2, precision="bf16" if bench.rehearse else "fp16") as trainer:
        for _ in range(4):
            trainer.train_step([batch], bench.crop, 0, totals)
        loss, scale = float(totals[0]), None
        if trainer.accelerator.scaler is not None:
            scale = trainer.accelerator.scaler.get_scale()
    is_right = loss == loss and abs(loss) < float("inf") and (scale is None or scale > 0)
    return {"ok": is_right and (bench.rehearse or scale is not None), "loss": loss, "scale": scale}


def out_of_memory(bench: Bench) -> dict[str, Any]:
    """Memory that runs out, told with what to do."""
    batch, cuda = _resident_batches(bench, 2 if bench.rehearse else 64)[0], bench.device.type == "cuda"
    with bench.trainer("late_fusion", len(batch.keys)) as trainer, ExitStack() as stack:
        if cuda:
            total = torch.cuda.get_device_properties(bench.device).total_memory
            torch.cuda.empty_cache()
            share = (torch.cuda.memory_reserved(bench.device) + (64 << 20)) / total
            torch.cuda.set_per_process_memory_fraction(share, bench.device)
            stack.callback(torch.cuda.set_per_process_memory_fraction, 1.0, bench.device)
        else:
            short = patch.object(trainer, "model_for", side_effect=torch.OutOfMemoryError("CUDA out of memory"))
            stack.enter_context(short)
        try:
            with trainer.plain_faults():
                trainer.train_step([batch], bench.crop, 0, sums(bench.device))
        except faults.OutOfMemory as error:
            text = str(error)
        else:
            return {"ok": False, "error": "memory did not run out"}
    return {"ok": "--train.batch_size" in text or "--store.tier memory" in text, "message": text}


def resume(bench: Bench) -> dict[str, Any]:
    """Two steps after a saved state, and again after it was put back: the same weights."""
    window = _resident_batches(bench, 2)
    with bench.trainer("late_fusion", 2, precision="fp32") as trainer:

        def two_steps(epoch: int) -> dict[str, torch.Tensor]:
            for batch in window:
                trainer.train_step([batch], bench.crop, epoch, sums(bench.device))
            weights: dict[str, torch.Tensor] = snapshot(trainer.bare_model.state_dict())
            return weights

        model, optimizer = two_steps(0), snapshot(trainer.optimizer.state_dict())
        states = generators(bench.device)
        first = two_steps(1)
        trainer.load_weights(model)
        load_optimizer(trainer.optimizer, optimizer)
        set_generators(states, bench.device)
        again = two_steps(1)
    error = max(
        float((first[name].double() - again[name].double()).norm() / first[name].double().norm().clamp(min=1e-6))
        for name in first
    )
    return {"ok": error <= 1e-3, "largest_relative_difference": error}


def _cuda_test_files() -> list[str]:
    """The files with a test for a card; the rest may want packages that a card's machine lacks."""
    files = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    return [
        str(path) for path in files if path.parent.name != "benchmarks" and "mark.cuda\n" in path.read_text("utf-8")
    ]


def cuda_tests(bench: Bench) -> dict[str, Any]:
    """Every test marked cuda; a rehearsal collects them."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command = [*pytest, "-m", "cuda", *_cuda_test_files()]
    command += ["--collect-only"] if bench.rehearse else []
    env = {**os.environ, "FASTEMO_REQUIRE_CUDA": "1"}
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=max(1.0, bench.left())
        )
    except subprocess.TimeoutExpired as error:
        bench.missed.append("cuda_tests")
        lines = (error.stdout or b"").decode(errors="replace").splitlines()[-8:]
        return {"ok": True, "timed_out": True, "last_lines": lines}
    return {"ok": done.returncode == 0, "last_lines": (done.stdout + done.stderr).splitlines()[-8:]}
