"""The loop: fit, train_step, early stopping. The only module that knows Accelerate."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import nn
from torch.optim import lr_scheduler

from fastemo.console import Console
from fastemo.evaluation.evaluate import Predictions, predict
from fastemo.machine import available_processors, versions, write_text
from fastemo.training import checkpoint
from fastemo.training.config import TrainConfig
from fastemo.training.speed import keep_conv3d_right, pick, to_channels_last
from fastemo.video.augment import AugmentConfig, augment
from fastemo.video.loader import ClipBatch, ClipLoader
from fastemo.video.sampling import keyed_seed

T = TypeVar("T")


class Trainer:
    """Joins the processes of a run and trains on all of them.

    Made before the model and the loaders, because they need its `rank`, `world_size` and `device`. A context
    manager: its end is the end of the group of processes.
    """

    def __init__(self, config: TrainConfig, *, seed: int) -> None:
        self.config, self._seed = config, seed
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.speed = pick(config, kind.type if kind else "cpu")
        self.speed.set_backends()
        hook = DDPCommunicationHookType.BF16 if self.speed.exchange == "bf16" else DDPCommunicationHookType.NO
        ddp = DistributedDataParallelKwargs(
            gradient_as_bucket_view=True,
            bucket_cap_mb=self.speed.bucket_mib,
            comm_hook=hook,
            # Every step uses every weight. Batches whose gradients wait for others' are not what it is made for.
            static_graph=config.accumulate_steps == 1,
        )
        # Accelerate keeps the first precision that a process asked for; a later training may ask for another.
        AcceleratorState._reset_state()
        # Where there is no accelerator, several processes join over gloo only if told that it is the CPU.
        mixed_precision = "no" if self.speed.precision == "fp32" else self.speed.precision
        try:
            self.accelerator = Accelerator(
                mixed_precision=mixed_precision, cpu=not torch.accelerator.is_available(), kwargs_handlers=[ddp]
            )
        except ValueError as error:
            raise ValueError(f"train.precision {self.speed.precision} cannot be had here: {error}") from error
        if not torch.accelerator.is_available():
            # Launchers set OMP_NUM_THREADS=1, whatever processors there are.
            torch.set_num_threads(available_processors())
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.history: list[dict[str, Any]] = []
        self._writer = checkpoint.Writer()

    def seed_everything(self, *, epoch: int) -> None:
        """Seed torch's own generators (initial weights, dropout) from (seed, epoch, rank)."""
        rank = 0 if epoch == 0 else self.rank
        torch.manual_seed(keyed_seed(self._seed, epoch, f"torch on rank {rank}") % 2**63)

    def from_main(self, value: T) -> T:
        """The main process's value, on every process; the others wait for it."""
        return broadcast_object_list([value])[0]

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()
        # Gloo's threads drop the last exchange's tensors some time after it is over, and abort the process if the
        # interpreter is gone by then. They are waited for when the group of processes is deleted, which
        # everything wrapped for it keeps alive.
        for name in ("model", "optimizer", "_scheduler", "_compiled"):
            self.__dict__.pop(name, None)
        self.accelerator.free_memory()
        self.accelerator.end_training()
        gc.collect()

    def prepare(self, model: nn.Module, steps_per_epoch: int) -> str:
        """Put the model on the device and make what trains it.

        Returns:
            What to tell the user about it; empty where all is as picked.
        """
        if self.speed.channels_last:
            to_channels_last(model)
        note = keep_conv3d_right(model, self.device, self.speed.precision)
        # Adam with an L2 penalty inside the gradient, as in the report; not AdamW.
        optimizer = torch.optim.Adam(
            model.parameters(),
            lr=self.config.lr,
            betas=(0.9, 0.999),
            weight_decay=self.config.weight_decay,
            fused=self.speed.fused_adam or None,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        updates = -(-steps_per_epoch // self.config.accumulate_steps) * self.config.epochs
        self._scheduler = _make_scheduler(self.config, optimizer, updates)
        self._compiled = self._compile()
        return note

    def _compile(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        if self.speed.compile == "off":
            return None
        mode = "reduce-overhead" if self.speed.compile == "cudagraphs" else None
        compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(self.model, mode=mode)
        return compiled

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper that averages gradients, with mixed precision still on."""
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return model

    def fit(
        self,
        train: ClipLoader,
        val: ClipLoader,
        augment_config: AugmentConfig,
        run_dir: Path,
        console: Console,
    ) -> None:
        """Train until the last epoch or until validation accuracy stops rising.

        Leaves `metrics.jsonl` and `checkpoints/last` and `checkpoints/best` in `run_dir`, each whole at any time and at
        most one epoch behind; `history` holds the same rows.

        Raises:
            OSError: They could not be written.
        """
        best_accuracy, epochs_without_gain = -1.0, 0
        with console.track("training", "clips") as advance:
            for epoch in range(1, self.config.epochs + 1):
                scores, speed = self._train_epoch(train, augment_config, epoch, advance)
                predictions = self.predict(val, augment_config)
                metrics = predictions.metrics(range(predictions.logits.shape[1]))  # type: ignore[arg-type]
                row = {
                    "epoch": epoch,
                    **scores,
                    "val_loss": predictions.loss,
                    "val_accuracy": metrics.accuracy,
                    "val_uar": metrics.uar,
                    **speed,
                }
                self.history.append(row)
                if self.config.schedule == "plateau":
                    self._scheduler.step(metrics.accuracy)
                improved = metrics.accuracy > best_accuracy
                best_accuracy = max(best_accuracy, metrics.accuracy)
                epochs_without_gain = 0 if improved else epochs_without_gain + 1
                self._save(run_dir, improved=improved)
                console.say(_epoch_line(row, self.config.epochs, improved))
                if epochs_without_gain == self.config.early_stop_patience:
                    console.say(f"stopped early: {epochs_without_gain} epochs without a better validation accuracy")
                    break
        self._writer.wait()

    def predict(self, loader: ClipLoader, augment_config: AugmentConfig) -> Predictions:
        """Every clip of a split once, from all ranks, on all ranks."""
        local = predict(self.bare_model, loader, augment_config)
        return Predictions.joined(gather_object([local]))

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        self.bare_model.load_state_dict(weights)

    def _train_epoch(
        self, loader: ClipLoader, augment_config: AugmentConfig, epoch: int, advance: Any
    ) -> tuple[dict[str, float], dict[str, float]]:
        """One pass over the training clips: what it scored and how fast it was, as the metrics name them."""
        self.seed_everything(epoch=epoch)
        self.model.train()
        totals = torch.zeros(3, device=self.device, dtype=torch.float64)  # loss, correct, clips
        started, waited, done = time.perf_counter(), 0.0, (epoch - 1) * len(loader.clips)
        lr = self.optimizer.param_groups[0]["lr"]
        batches = _timed(loader.epoch(epoch))
        note = f"epoch {epoch}/{self.config.epochs}{_last_losses(self.history)}"
        for window, seconds in _windows(batches, self.config.accumulate_steps):
            waited += seconds
            self.train_step(window, augment_config, epoch, totals)
            done += sum(batch.num_global for batch in window)
            advance(done, self.config.epochs * len(loader.clips), note=note)
        # The one place where the device is waited for: what it added up is read once an epoch.
        loss, correct, clips = self.accelerator.reduce(totals, "sum").tolist()
        seconds = time.perf_counter() - started
        speed = {
            "lr": lr,
            "epoch_seconds": seconds,
            "clips_per_second": clips / seconds,
            "data_wait_fraction": waited / seconds,
        }
        return {"train_loss": loss / clips, "train_accuracy": correct / clips}, speed

    def train_step(
        self, window: Sequence[ClipBatch], augment_config: AugmentConfig, epoch: int, totals: torch.Tensor
    ) -> None:
        """One step of the optimiser on the batches whose gradients it takes together.

        Every clip weighs the same, whatever rank or batch it came in, and padding weighs nothing: the loss is the
        sum over clips divided by the clips of the window on all ranks.

        Args:
            totals: float64 [3] on the device; the loss, the correct clips and the clips of this rank are added.
        """
        num_clips = sum(batch.num_global for batch in window)
        for position, batch in enumerate(window):
            frames = augment(batch.frames, augment_config, batch.keys, seed=self._seed, epoch=epoch)
            last = position == len(window) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                # One shape is compiled. A last batch of fewer clips runs as it is: padded, it would change the
                # statistics of batch normalisation; dropped, the epoch.
                model = self._compiled if self._compiled and len(frames) == self.config.batch_size else self.model
                logits = model(frames).float()
                real = ~batch.is_padding
                loss = (F.cross_entropy(logits, batch.labels, reduction="none") * real).sum()
                # Gradients are averaged over the ranks; the factor makes that average a sum.
                self.accelerator.backward(loss * (self.world_size / num_clips))
            correct = ((logits.argmax(1) == batch.labels) & real).sum()
            totals += torch.stack([loss.detach().double(), correct.double(), real.sum().double()])
        if self.config.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.schedule == "onecycle":
            self._scheduler.step()

    def _save(self, run_dir: Path, *, improved: bool) -> None:
        """Write the checkpoints and the metrics so far, on the main process and beside the training."""
        if not self.is_main:
            return
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self._scheduler.state_dict()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        info = {**self.history[-1], "versions": versions()}
        model, state = checkpoint.snapshot(self.bare_model.state_dict()), checkpoint.snapshot(state)
        metrics = "".join(json.dumps(row) + "\n" for row in self.history)

        def write() -> None:
            last = run_dir / "checkpoints" / "last"
            checkpoint.save(last, model=model, state=state, info=info)
            if improved:
                checkpoint.copy(last, last.with_name("best"))
            write_text(run_dir / "metrics.jsonl", metrics)

        self._writer.submit(write)


def _make_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer, updates: int) -> Any:
    """Steps once an epoch with `plateau`, once an update with `onecycle`; the trainer steps it, not Accelerate."""
    if config.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.plateau_factor, patience=config.plateau_patience
        )
    if config.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=updates + 1)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _timed(batches: Iterator[ClipBatch]) -> Iterator[tuple[ClipBatch, float]]:
    """Each batch with the seconds it was waited for."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def _windows(batches: Iterator[tuple[ClipBatch, float]], size: int) -> Iterator[tuple[list[ClipBatch], float]]:
    """`size` batches at a time, with the seconds they were waited for; the last window may be shorter."""
    window: list[ClipBatch] = []
    waited = 0.0
    for batch, seconds in batches:
        window.append(batch)
        waited += seconds
        if len(window) == size:
            yield window, waited
            window, waited = [], 0.0
    if window:
        yield window, waited


def _last_losses(history: Sequence[dict[str, Any]]) -> str:
    """The newest losses that can be shown without waiting for the device: those of the last epoch."""
    if not history:
        return ""
    row = history[-1]
    return f", loss {row['train_loss']:.3f}, val {row['val_loss']:.3f} {row['val_accuracy']:.1%}"


def _epoch_line(row: dict[str, Any], epochs: int, improved: bool) -> str:
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train {row['train_loss']:.3f} {row['train_accuracy']:6.1%}  "
        f"val {row['val_loss']:.3f} {row['val_accuracy']:6.1%}  lr {row['lr']:.1e}  "
        f"{row['epoch_seconds']:.1f} s  {row['clips_per_second']:.1f} clips/s  "
        f"waiting {row['data_wait_fraction']:.0%}{'  best' if improved else ''}"
    )
