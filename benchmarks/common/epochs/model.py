"""One model, measured in a process of its own.

A round is: a cold epoch (the run's first, later ones with an emptied store; once for a model that trains slower than
its clips decode), the pruned decode alone, a warm epoch between the halves of the bare loop, an epoch of each peer.
What is trained outside the warm epochs is undone but for the very first step, so that the model has learned what as
many epochs teach, as a peer has.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.epochs.loops import bare_loop, breakdown, flops_a_clip, restored, train_epoch
from benchmarks.common.measure import Pass, Rounds, Skipped, total
from benchmarks.common.peers import PeerProcess, started
from benchmarks.common.stages import decode_stages, loader_of
from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.protocol import split_clips
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video.config import StoreConfig
from fastemo.video.loader import ClipLoader

_BREAKDOWN_STEPS = 8
# Training from scratch, for the accuracy; configs/quick.yaml.
_RECIPE: dict[str, Any] = {"schedule": "onecycle", "lr": 1e-3, "early_stop_patience": None}
_SEED = 0


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        options: The command's, among them `num_frames`, `size`, `crop_size`, `batch_size`, `rounds`, `peer_names`, and
            the same as `video` and `crop`.
        timed, learning: The clips that are timed and those whose accuracy is measured.
        scratch: Stores, extracted frames and checkpoints go there.
        learning_clips: What `fit` trains on for the accuracy.
    """

    model: str
    options: argparse.Namespace
    timed: Manifest
    learning: Manifest
    scratch: Path
    learning_clips: int

    @property
    def model_config(self) -> ModelConfig:
        # `rnn_norm` as learning without pretrained weights needs it.
        return ModelConfig(name=self.model, num_frames=self.options.num_frames, pretrained=False, rnn_norm=True)

    def trainer(self, **recipe: Any) -> Trainer:
        """With what is fastest here."""
        return Trainer(TrainConfig(batch_size=self.options.batch_size, speed="auto", **recipe), seed=_SEED)

    def prepare(self, trainer: Trainer, manifest: Manifest, loader: ClipLoader) -> None:
        torch.manual_seed(_SEED)
        trainer.prepare(build_model(self.model_config, len(manifest.class_names)), len(loader))

    def loader(
        self, manifest: Manifest, clips: Sequence[Clip], trainer: Trainer, store: str, train: bool = True
    ) -> ClipLoader:
        """A loader over the named store, or without one where the name is empty."""
        config = StoreConfig(root=self.scratch / "stores" / store) if store else StoreConfig(tier="none")
        options = {"batch_size": self.options.batch_size, "seed": _SEED, "shuffle": train, "even": train}
        return loader_of(manifest, clips, self.options.video, device=trainer.device, store=config, **options)


class ModelRuns:
    """A trainer and what is done with it in a round.

    Attributes:
        passes: By name and round.
        skipped: By name, why something was not measured.
        peers: Those that run, by name.
        first_step_seconds: The very first step, which compiles kernels and makes the optimiser's state.
    """

    def __init__(self, job: Job, trainer: Trainer, stack: ExitStack) -> None:
        self.job, self.trainer, self._console = job, trainer, Console()
        self.passes: Rounds = {}
        self.skipped: dict[str, str] = {}
        self.peers: dict[str, PeerProcess] = {}
        self.warm = stack.enter_context(job.loader(job.timed, job.timed.clips, trainer, "warm"))
        job.prepare(trainer, job.timed, self.warm)
        with job.loader(job.timed, job.timed.clips[: job.options.batch_size], trainer, "") as loader:
            (batch,) = loader.epoch(0)
        bare = partial(bare_loop, trainer, batch, job.options.crop, seed=_SEED)
        self.first_step_seconds = bare(steps=1).seconds
        # What these train is undone.
        self._bare, self._cold_epoch = restored(trainer)(bare), restored(trainer)(self._epoch)
        # The store of the warm epochs is filled; before, nothing but a step has run.
        self._record("cold", 1, partial(self._cold_epoch, self.warm, 0))

    def _epoch(self, loader: ClipLoader, number: int) -> Pass:
        return train_epoch(self.trainer, loader, self.job.options.crop, number)

    def _record(self, name: str, number: int, work: Callable[[], Pass]) -> None:
        took = self.passes.setdefault(name, {})[number] = work()
        self._console.say(f"{self.job.model} round {number}/{self.job.options.rounds} {name}: {took.rate:.1f} clips/s")

    def start_peers(self, stack: ExitStack) -> None:
        options = {it: getattr(self.job.options, it) for it in ("num_frames", "size", "crop_size", "batch_size")}
        options |= {"corpus": self.job.timed.root, "model": self.job.model, "lr": self.trainer.config.lr, "seed": _SEED}
        for name in self.job.options.peer_names:
            try:
                self.peers[name] = stack.enter_context(started(name, options, self.job.scratch / "jpegs"))
            except Skipped as reason:
                self.skipped[name] = str(reason)

    def round(self, number: int, decode: Callable[[], Pass]) -> None:
        """Everything once, but for the first epoch.

        Half of the bare loop runs before the warm epoch and half after it, so that a machine that slows down or speeds
        up does so for both.
        """
        if number == 1 or self._is_decode_bound:
            self._record("limit", number, decode)
        if number > 1 and self._is_decode_bound:
            # The store is empty again.
            shutil.rmtree(self.job.scratch / "stores/cold", ignore_errors=True)
            with self.job.loader(self.job.timed, self.job.timed.clips, self.trainer, "cold") as loader:
                self._record("cold", number, partial(self._cold_epoch, loader, number))
        half = len(self.warm) // 2
        bare = [self._bare(steps=len(self.warm) - half)]
        self._record("warm", number, partial(self._epoch, self.warm, number))
        if half:
            bare.append(self._bare(steps=half))
        self._record("bare", number, lambda: total(bare))
        for name in [it for it in self.peers if it not in self.skipped]:
            try:
                self._record(name, number, self.peers[name].run)
            except Skipped as reason:
                self.skipped[name] = str(reason)

    @property
    def _is_decode_bound(self) -> bool:
        return self.passes["bare"][1].rate > self.passes["limit"][1].rate


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
    with (
        job.trainer(epochs=job.options.learning_epochs, **_RECIPE) as trainer,
        job.loader(job.learning, train, trainer, "learning") as train_loader,
        job.loader(job.learning, splits.val, trainer, "learning", train=False) as val_loader,
    ):
        job.prepare(trainer, job.learning, train_loader)
        run_dir = job.scratch / "runs" / job.model
        trainer.fit(train_loader, val_loader, job.options.crop, run_dir, Console(show=False))
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
    with job.trainer(schedule="constant") as trainer, ExitStack() as stack:
        runs, mixed = ModelRuns(job, trainer, stack), trainer.accelerator.mixed_precision
        memory = peak_memory(trainer.device)
        decode = stack.enter_context(decode_stages(job.timed, job.options.video))["decode_pruned"]
        decode.warm()
        runs.start_peers(stack)
        for number in range(1, job.options.rounds + 1):
            runs.round(number, decode.run)
        with restored(trainer):
            parts = breakdown(trainer, runs.warm, job.options.crop, job.options.rounds + 1, most_steps=_BREAKDOWN_STEPS)
        found = {
            "passes": runs.passes,
            "skipped": runs.skipped,
            "told": {name: peer.told for name, peer in runs.peers.items()},
            "first_step_seconds": runs.first_step_seconds,
            "breakdown": parts,
            "memory": memory,
            "device": trainer.device.type,
            "precision": {"no": "fp32"}.get(mixed, mixed),
            "speed": str(trainer.speed),
            "train": asdict(trainer.config),
            "flops_a_clip": flops_a_clip(job.model_config, len(job.timed.class_names), job.options.crop.crop_size),
        }
    found["learning"] = learn(job)
    # The next model begins with empty stores, too.
    shutil.rmtree(job.scratch / "stores", ignore_errors=True)
    return found
