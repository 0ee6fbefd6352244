"""Shared parts of the stages of gpu_check.py, and its first two stages: the environment, and the tests for a GPU."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.common import corpus
from benchmarks.common.epochs.loops import wait_for
from benchmarks.common.results import REPOSITORY
from benchmarks.common.stages import loader_of
from fastemo.corpus.manifest import Manifest
from fastemo.machine import available_processors
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video import dali, tiers
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipBatch, ClipLoader


@dataclass
class Bench:
    """Device, sizes and time of a stage.

    Attributes:
        scratch: A folder to write to.
        rehearse: Run on a CPU, in tiny sizes.
        decodes: Number of decodes over which memory is measured.
        deadline: When the stage must stop measuring, by the monotonic clock.
        missed: Measurements skipped because of the deadline.
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
        # Only one backend: another stage measures DALI.
        return VideoConfig(num_frames=frames, size=size, backend="pyav")

    @property
    def crop(self) -> AugmentConfig:
        return AugmentConfig(crop_size=32 if self.rehearse else 112)

    @cached_property
    def stored(self) -> Manifest:
        """Clips that decode quickly."""
        count = 4 if self.rehearse else 512
        return corpus.stored_corpus(count, self.video.num_frames, self.video.size, self.scratch / "stored")

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def has_time(self, name: str, seconds: float = 0.0) -> bool:
        """Whether there is time to start a measurement; otherwise it is noted as missed."""
        if self.left() > seconds:
            return True
        self.missed.append(name)
        return False

    def synchronize(self) -> None:
        wait_for(self.device)

    def model(self, name: str) -> nn.Module:
        """A model of this size, on the host; in a rehearsal with a backbone that compiles in seconds."""
        return build_model(self.model_config(name), len(self.stored.class_names))

    def model_config(self, name: str) -> ModelConfig:
        backbone = "test_resnet" if self.rehearse else "resnet18"
        frames = self.video.num_frames
        return ModelConfig(name=name, num_frames=frames, pretrained=False, rnn_norm=True, backbone=backbone)  # type: ignore[arg-type]

    def loader(self, batch_size: int) -> ClipLoader:
        """A loader of the stored clips from the device's memory; in a rehearsal from the CPU's."""
        store = StoreConfig(tier="device", root=self.scratch / "store")
        options: dict[str, Any] = {"shuffle": True, "even": True, "device": self.device, "say": lambda text: None}
        # On a CPU the tier `device` becomes `memory`; a rehearsal must run the other path.
        stands_in = patch.object(tiers, "choose_tier", lambda *_: ("device", "rehearsed"))
        with stands_in if self.rehearse else nullcontext():
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
    """The output of a program, or why it could not run."""
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
    """The result of a step; an exception becomes its result."""
    try:
        return step(*arguments)
    except Exception as error:
        trace = traceback.format_exc().splitlines()[-12:]
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:600], "trace": trace}


def endless(loader: ClipLoader) -> Iterator[ClipBatch]:
    """The batches of one epoch after the other."""
    return itertools.chain.from_iterable(loader.epoch(number) for number in itertools.count())


def tests(bench: Bench) -> dict[str, Any]:
    """Run every test marked cuda: no synchronisation, correct arithmetic and decoding; a rehearsal collects them."""
    # Only files with such tests, as others may need packages that the GPU machine lacks; the main path's first.
    files = [it for it in sorted((REPOSITORY / "tests").rglob("test_*.py")) if "mark.cuda" in it.read_text("utf-8")]
    files = [it for it in sorted(files, key=lambda it: it.name != "test_cuda.py") if it.parent.name != "benchmarks"]
    command = [sys.executable, "-m", "pytest", "-v", "-n", "0", "-p", "no:cacheprovider", "-m", "cuda", *files]
    options: dict[str, Any] = {"cwd": REPOSITORY, "env": {**os.environ, "FASTEMO_REQUIRE_CUDA": "1"}}
    command += ["--collect-only"] if bench.rehearse else []
    left = max(1.0, bench.left())
    try:
        done = subprocess.run(command, **options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=left)
        said, is_over, status = done.stdout, True, done.returncode
    except subprocess.TimeoutExpired as error:
        bench.missed.append("the tests after these")
        said, is_over, status = error.stdout or b"", False, 0
    text = said.decode(errors="replace")
    outcomes = dict(re.findall(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", text, re.MULTILINE))
    is_right = not status and not {"FAILED", "ERROR"} & {*outcomes.values()}
    return {"ok": is_right, "is_over": is_over, "tests": outcomes, "last_lines": text.splitlines()[-8:]}
