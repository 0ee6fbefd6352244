"""Measures one model, in a separate process.

A round is: a cold epoch (the run's first, later ones with an emptied store; once for a model that trains slower than
its clips decode), the pruned decode alone, a warm epoch between the halves of the bare loop, one with every key of a
recipe on, an epoch of each peer.
Training outside the warm epochs is undone except for the very first step, so that the model has been trained for as
many epochs as a peer.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.epochs.loops import (
    bare_loop,
    breakdown,
    flops_a_clip,
    for_prediction,
    forward_loop,
    restored,
    train_epoch,
)
from benchmarks.common.epochs.networks import config_of
from benchmarks.common.measure import EpochPass, Pass, Record, total
from benchmarks.common.peers import TRAINED_BY_PEERS, PeerProcess, started
from benchmarks.common.stages import decode_stages, loader_of
from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.protocol import split_clips
from fastemo.evaluation.cost import forward_flops, num_parameters
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video.config import StoreConfig
from fastemo.video.loader import ClipLoader

_BREAKDOWN_STEPS = 8
# Training from scratch, for the accuracy; configs/quick.yaml.
_RECIPE: dict[str, Any] = {"schedule": "onecycle", "lr": 1e-3, "early_stop_patience": None}
# Every key of a recipe that costs time; `drop_path` and `freeze_epochs` save some.
_EVERY_KEY: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup_epochs": 1,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "ema": 0.999,
}
_OF_BACKBONE: dict[str, Any] = {"backbone_lr": 0.5, "layer_decay": 0.75}
_EVERY_AUGMENTATION: dict[str, Any] = {"color_jitter": 0.4, "random_erasing": 0.25, "mixup": 0.2, "cutmix": 1.0}
_STORED_PER_FRAME = 3  # about so many stored frames for each that is drawn
_SEED = 0


@dataclass(frozen=True)
class Job:
    """The settings of a measurement.

    Attributes:
        options: Of the command, among them `num_frames`, `size`, `crop_size`, `batch_size`, `rounds`, `peer_names`, and
            the same as `video` and `crop`.
        timed, learning: The clips that are timed, and those for the accuracy.
        scratch: Folder for stores, extracted frames and checkpoints.
        learning_clips: Number of clips that `fit` trains on for the accuracy.
    """

    model: str
    options: argparse.Namespace
    timed: Manifest
    learning: Manifest
    scratch: Path
    learning_clips: int

    @property
    def model_config(self) -> ModelConfig:
        options = self.options
        # Learning without pretrained weights needs `rnn_norm`.
        return config_of(self.model, num_frames=options.num_frames, size=options.crop_size, rnn_norm=True)

    def trainer(self, **recipe: Any) -> Trainer:
        """A trainer with the fastest settings for this machine, in the precision that is asked for."""
        options = self.options
        config = TrainConfig(batch_size=options.batch_size, speed="auto", precision=options.precision, **recipe)
        return Trainer(config, seed=_SEED)

    def prepare(self, trainer: Trainer, manifest: Manifest, loader: ClipLoader) -> None:
        torch.manual_seed(_SEED)
        trainer.prepare(build_model(self.model_config, len(manifest.class_names)), len(loader), loader.class_counts)

    def loader(
        self,
        manifest: Manifest,
        clips: Sequence[Clip],
        trainer: Trainer,
        store: str,
        train: bool = True,
        every_key: bool = False,
    ) -> ClipLoader:
        """A loader over the named store, or without one if the name is empty."""
        config = StoreConfig(root=self.scratch / "stores" / store) if store else StoreConfig(tier="none")
        video = self.options.video
        if every_key:
            step = video.num_frames - 1 or 2
            video = replace(video, stored_frames=_STORED_PER_FRAME * step + 1)
        options = {"batch_size": self.options.batch_size, "seed": _SEED, "shuffle": train, "even": train}
        options |= {"mixed": every_key, "oversample": every_key}
        return loader_of(manifest, clips, video, device=trainer.device, store=config, **options)


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """High-water marks of this process so far, in MiB."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    allocated = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    # Kibibytes on Linux, bytes on macOS.
    return {"resident_mib": resident / (2**20 if sys.platform == "darwin" else 2**10), "gpu_allocated_mib": allocated}


def learn(job: Job) -> dict[str, Any]:
    """Train with `fit` on the built-in corpus: accuracy on unseen actors, and the speed of its epochs."""
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


def every_key_epoch(job: Job, stack: ExitStack) -> Callable[[int], EpochPass]:
    """A warm epoch with every key of a recipe on, of a trainer of its own, by its number from 1."""
    recipe = _EVERY_KEY | (_OF_BACKBONE if job.model_config.backbone_name else {})
    trainer = stack.enter_context(job.trainer(**recipe))
    crop = replace(job.options.crop, **_EVERY_AUGMENTATION)
    loader = stack.enter_context(job.loader(job.timed, job.timed.clips, trainer, "recipe", every_key=True))
    job.prepare(trainer, job.timed, loader)
    train_epoch(trainer, loader, crop, 0)  # fills the store
    return partial(train_epoch, trainer, loader, crop)


def measure(job: Job) -> dict[str, Any]:
    """All figures of one model."""
    options, clips = job.options, job.timed.clips
    record, console = Record(lambda text: console.say(f"{job.model} {text}"), options.rounds), Console()
    peers: dict[str, PeerProcess] = {}
    with job.trainer(schedule="constant") as trainer, ExitStack() as stack:
        warm = stack.enter_context(job.loader(job.timed, clips, trainer, "warm"))
        job.prepare(trainer, job.timed, warm)
        with job.loader(job.timed, clips[: options.batch_size], trainer, "") as loader:
            (batch,) = loader.epoch(0)
        loop = partial(bare_loop, trainer, batch, options.crop, seed=_SEED)
        first_step_seconds = loop(steps=1).seconds  # compiles kernels and creates the optimiser's state
        bare, cold_epoch = restored(trainer)(loop), restored(trainer)(train_epoch)
        # Fill the store of the warm epochs; only one step has run before.
        record.add("cold", 1, cold_epoch, trainer, warm, options.crop, 0)
        memory = peak_memory(trainer.device)
        predicting = for_prediction(trainer.bare_model, options.num_frames, options.crop_size)
        recipe_epoch = every_key_epoch(job, stack)
        decode = stack.enter_context(decode_stages(job.timed, options.video))["decode_pruned"]
        decode.warm()
        settings = {it: getattr(options, it) for it in ("num_frames", "size", "crop_size", "batch_size")}
        settings |= {"corpus": job.timed.root, "model": job.model, "lr": trainer.config.lr, "seed": _SEED}

        def run_peer(name: str) -> Pass:
            """An epoch of a peer, which is started with the first."""
            if name not in peers:
                peers[name] = stack.enter_context(started(name, settings, job.scratch / "jpegs"))
            return peers[name].run()

        for number in range(1, options.rounds + 1):
            if number == 1 or record.rounds["bare"][1].rate > record.rounds["limit"][1].rate:
                record.add("limit", number, decode.run)
                if number > 1:
                    # Empties the store again.
                    shutil.rmtree(job.scratch / "stores/cold", ignore_errors=True)
                    with job.loader(job.timed, clips, trainer, "cold") as loader:
                        record.add("cold", number, cold_epoch, trainer, loader, options.crop, number)
            # Half of the bare loop runs before the warm epoch and half after it, so that a machine that slows down or
            # speeds up does so for both.
            half = len(warm) // 2
            bares = [bare(steps=len(warm) - half)]
            record.add("warm", number, train_epoch, trainer, warm, options.crop, number)
            bares += [bare(steps=half)] if half else []
            record.add("recipe", number, recipe_epoch, number)
            record.add("bare", number, total, bares)
            record.add("forward", number, partial(forward_loop, steps=len(warm)), predicting, batch, options.crop)
            for name in options.peer_names if job.model in TRAINED_BY_PEERS else ():
                record.add(name, number, run_peer, name)
        with restored(trainer):
            parts = breakdown(trainer, warm, options.crop, options.rounds + 1, most_steps=_BREAKDOWN_STEPS)
        mixed = trainer.accelerator.mixed_precision
        found = {
            "passes": {name: its for name, its in record.rounds.items() if its},
            "skipped": record.skipped,
            "told": {name: peer.told for name, peer in peers.items()},
            "first_step_seconds": first_step_seconds,
            "breakdown": parts,
            "memory": memory,
            "device": trainer.device.type,
            "precision": {"no": "fp32"}.get(mixed, mixed),
            "speed": str(trainer.speed),
            "train": asdict(trainer.config),
            "parameters": num_parameters(trainer.bare_model),
            "forward_flops_a_clip": forward_flops(trainer.bare_model, options.num_frames, options.crop_size),
            "flops_a_clip": flops_a_clip(job.model_config, len(job.timed.class_names), options.crop_size),
        }
    found["learning"] = learn(job)
    # The next model starts with empty stores, too.
    shutil.rmtree(job.scratch / "stores", ignore_errors=True)
    return found
