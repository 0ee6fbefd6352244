"""One model, measured in a process of its own.

A round is: a cold epoch (the run's first, later ones with an emptied store; once for a model that trains slower than
its clips decode), the pruned decode alone, a warm epoch between the halves of the bare loop, an epoch of each peer.
What is trained outside the warm epochs is undone but for the very first step, so that the model has learned what as
many epochs teach, as a peer has.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.epochs.loops import bare_loop, breakdown, flops_a_clip, restored, train_epoch
from benchmarks.common.measure import Pass, Rounds, Skipped, total
from benchmarks.common.peers import TrainingProcess, started
from benchmarks.common.stages import decode_stages, loader_of
from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.protocol import split_clips
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader

_BREAKDOWN_STEPS = 8
_PEAK_LR = 1e-3  # of training from scratch, for the accuracy; configs/quick.yaml


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured.

    Attributes:
        timed, learning: The clips that are timed and those whose accuracy is measured.
        scratch: Stores, extracted frames and checkpoints go there.
        rounds: How often everything is measured.
        learning_clips, learning_epochs: What `fit` trains on for the accuracy, and how long.
        peers: Names of `TRAINING_PEERS`.
    """

    model: str
    timed: Manifest
    learning: Manifest
    scratch: Path
    rounds: int
    batch_size: int
    num_frames: int
    size: int
    crop_size: int
    learning_clips: int
    learning_epochs: int
    peers: Sequence[str]
    seed: int = 0

    @property
    def model_config(self) -> ModelConfig:
        # `rnn_norm` as learning without pretrained weights needs it.
        return ModelConfig(name=self.model, num_frames=self.num_frames, pretrained=False, rnn_norm=True)  # type: ignore[arg-type]

    @property
    def video(self) -> VideoConfig:
        return VideoConfig(num_frames=self.num_frames, size=self.size)

    @property
    def crop(self) -> AugmentConfig:
        return AugmentConfig(crop_size=self.crop_size)

    def train_config(self, **changes: Any) -> TrainConfig:
        """The recipe with what is fastest here."""
        return TrainConfig(**{"batch_size": self.batch_size, "schedule": "constant", "speed": "auto", **changes})

    def loader(
        self, manifest: Manifest, clips: Sequence[Clip], device: torch.device, store: StoreConfig, train: bool = True
    ) -> ClipLoader:
        options = {"batch_size": self.batch_size, "seed": self.seed, "shuffle": train, "even": train}
        return loader_of(manifest, clips, self.video, device=device, store=store, **options)


class ModelRuns:
    """A trainer and what is done with it in a round.

    Attributes:
        passes: By name and round.
        skipped: By name, why something was not measured.
        told: By name, what a peer reports of itself.
    """

    def __init__(self, job: Job, trainer: Trainer, stack: ExitStack, console: Console) -> None:
        self.job, self.trainer, self._stack, self._console = job, trainer, stack, console
        self.passes: Rounds = {}
        self.skipped: dict[str, str] = {}
        self.told: dict[str, Any] = {}
        self._peers: dict[str, TrainingProcess] = {}
        torch.manual_seed(job.seed)
        self._warm = stack.enter_context(self._loader(job.timed.clips, StoreConfig(root=job.scratch / "stores/warm")))
        trainer.prepare(build_model(job.model_config, len(job.timed.class_names)), len(self._warm))
        with self._loader(job.timed.clips[: job.batch_size], StoreConfig(tier="none")) as loader:
            (self._resident,) = loader.epoch(0)
        before = time.perf_counter()
        self._bare_loop(1)  # compiles kernels and makes the optimiser's state
        self.first_step_seconds = time.perf_counter() - before
        # The store of the warm epochs is filled; before, nothing but a step has run.
        self._record("cold", 1, lambda: self._cold_epoch(self._warm, 0))

    def _loader(self, clips: Sequence[Clip], store: StoreConfig) -> ClipLoader:
        return self.job.loader(self.job.timed, clips, self.trainer.device, store)

    def _bare_loop(self, steps: int) -> Pass:
        return bare_loop(self.trainer, self._resident, self.job.crop, steps=steps, seed=self.job.seed)

    def _record(self, name: str, number: int, work: Callable[[], Pass]) -> None:
        if name in self.skipped:
            return
        try:
            took = work()
        except Skipped as reason:
            self.skipped[name] = str(reason)
            self._console.say(f"{self.job.model} {name} skipped: {reason}")
            return
        self.passes.setdefault(name, {})[number] = took
        self._console.say(f"{self.job.model} round {number}/{self.job.rounds} {name}: {took.rate:.1f} clips/s")

    def start_peers(self) -> None:
        job = self.job
        names = ("model", "num_frames", "size", "crop_size", "batch_size", "seed")
        options = {"corpus": job.timed.root, "lr": self.trainer.config.lr, **{it: getattr(job, it) for it in names}}
        for name in job.peers:
            try:
                process = self._stack.enter_context(started(name, options, job.scratch / "jpegs"))
            except Skipped as reason:
                self.skipped[name] = str(reason)
            else:
                self._peers[name], self.told[name] = process, process.told

    def round(self, number: int, decode: Callable[[], Pass]) -> None:
        """Everything once, but for the first epoch.

        Half of the bare loop runs before the warm epoch and half after it, so that a machine that slows down or speeds
        up does so for both.
        """
        if number == 1 or self._is_decode_bound:
            self._record("limit", number, decode)
        if number > 1 and self._is_decode_bound:
            self._record("cold", number, lambda: self._emptied_epoch(number))
        half = len(self._warm) // 2
        bare = [self._bare(len(self._warm) - half)]
        self._record("warm", number, lambda: train_epoch(self.trainer, self._warm, self.job.crop, number))
        bare += [self._bare(half)] if half else []
        self._record("bare", number, lambda: total(bare))
        for name, process in self._peers.items():
            self._record(name, number, process.epoch)

    @property
    def _is_decode_bound(self) -> bool:
        return self.passes["bare"][1].rate > self.passes["limit"][1].rate

    def _bare(self, steps: int) -> Pass:
        with restored(self.trainer):
            return self._bare_loop(steps)

    def _cold_epoch(self, loader: ClipLoader, epoch: int) -> Pass:
        with restored(self.trainer):
            return train_epoch(self.trainer, loader, self.job.crop, epoch)

    def _emptied_epoch(self, epoch: int) -> Pass:
        """An epoch whose store is empty again."""
        root = self.job.scratch / "stores/cold"
        with self._loader(self.job.timed.clips, StoreConfig(root=root)) as loader:
            took = self._cold_epoch(loader, epoch)
        shutil.rmtree(root, ignore_errors=True)
        return took

    def breakdown(self) -> dict[str, Any]:
        epoch = self.job.rounds + 1
        with restored(self.trainer):
            return breakdown(self.trainer, self._warm, self.job.crop, epoch, most_steps=_BREAKDOWN_STEPS)


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """High-water marks of this process so far, in MiB."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    allocated = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    # Kibibytes on Linux, bytes on macOS.
    return {"resident_mib": resident / (2**20 if sys.platform == "darwin" else 2**10), "gpu_allocated_mib": allocated}


def learn(job: Job) -> dict[str, Any]:
    """Train by `fit` on the built-in corpus: accuracy on unseen actors, and how fast its own epochs were."""
    splits = split_clips(job.learning, "speech")
    train = splits.train[:: max(1, len(splits.train) // job.learning_clips)][: job.learning_clips]
    recipe: dict[str, Any] = {"schedule": "onecycle", "lr": _PEAK_LR, "early_stop_patience": None}
    config = job.train_config(epochs=job.learning_epochs, **recipe)
    store = StoreConfig(root=job.scratch / "stores/learning")
    with (
        Trainer(config, seed=job.seed) as trainer,
        job.loader(job.learning, train, trainer.device, store) as train_loader,
        job.loader(job.learning, splits.val, trainer.device, store, train=False) as val_loader,
    ):
        torch.manual_seed(job.seed)
        trainer.prepare(build_model(job.model_config, len(job.learning.class_names)), len(train_loader))
        trainer.fit(train_loader, val_loader, job.crop, job.scratch / "runs" / job.model, Console(show=False))
        history = trainer.history
    warm = history[1:]
    return {
        "train_clips": len(train),
        "val_clips": len(splits.val),
        "epochs": len(history),
        **{name: history[-1][name] for name in ("val_accuracy", "val_uar", "train_accuracy")},
        "train_loss": [row["train_loss"] for row in history],
        "warm_clips_per_second": statistics.median(row["clips_per_second"] for row in warm) if warm else None,
        "data_wait_fraction": statistics.median(row["data_wait_fraction"] for row in warm) if warm else None,
    }


def measure(job: Job) -> dict[str, Any]:
    """All figures of one model."""
    with Trainer(job.train_config(), seed=job.seed) as trainer, ExitStack() as stack:
        runs, mixed = ModelRuns(job, trainer, stack, Console()), trainer.accelerator.mixed_precision
        memory = peak_memory(trainer.device)
        decode = stack.enter_context(decode_stages(job.timed, job.video))["decode_pruned"]
        decode.warm()
        runs.start_peers()
        for number in range(1, job.rounds + 1):
            runs.round(number, decode.run)
        found = {
            "passes": runs.passes,
            "skipped": runs.skipped,
            "told": runs.told,
            "first_step_seconds": runs.first_step_seconds,
            "breakdown": runs.breakdown(),
            "memory": memory,
            "device": trainer.device.type,
            "precision": {"no": "fp32"}.get(mixed, mixed),
            "speed": str(trainer.speed),
            "train": asdict(trainer.config),
            "flops_a_clip": flops_a_clip(job.model_config, len(job.timed.class_names), job.crop_size),
        }
    found["learning"] = learn(job)
    # The next model begins with empty stores, too.
    shutil.rmtree(job.scratch / "stores", ignore_errors=True)
    return found
