"""The loop: fit, train_step, stopping and resuming."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastemo.console import Console
from fastemo.errors import Stopped
from fastemo.machine import versions, write_text
from fastemo.training import checkpoint, faults
from fastemo.training.checkpoint import Checkpoint
from fastemo.training.config import TrainConfig
from fastemo.training.processes import Processes, gather_object
from fastemo.training.progress import Progress, epoch_line, json_lines, last_losses
from fastemo.training.recipe.budget import POSITIONS, EpochBudget, TimeBudget
from fastemo.training.recipe.optimizer import PER_UPDATE, make_optimizer, make_scheduler
from fastemo.training.recipe.recipe import Recipe, soft_labels
from fastemo.training.speed import freeze_batch_norm, keep_conv3d_right, pick, set_determinism, to_channels_last
from fastemo.training.state import generators, load_optimizer, restore_rank
from fastemo.training.stopping import FAIL, GO_ON, SAVE, STOP, Agreement, FiniteWatch, StopSignals
from fastemo.training.windows import timed, windows
from fastemo.video.augment import training_input
from fastemo.video.config import AugmentConfig
from fastemo.video.loader import ClipBatch, ClipLoader


class Trainer(Processes):
    """The processes of a run and their joint training.

    Created before the model and the loaders, which need its `rank`, `world_size` and `device`.

    Args:
        signals: Checked at each step for a request to stop.
    """

    def __init__(self, config: TrainConfig, *, seed: int, signals: StopSignals | None = None) -> None:
        self.config, self.signals = config, signals or StopSignals()
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.speed = pick(config, kind.type if kind else "cpu")
        self.speed.set_backends()
        set_determinism(config.deterministic)
        super().__init__(self.speed, seed=seed, every_step=config.accumulate_steps == 1, trackers=config.trackers)
        self._writer, self._agreement = checkpoint.Writer(), Agreement(self.world_size)
        self._watch, self._memory = FiniteWatch(self.device), faults.MemoryUse(self.device)
        self._unfinished: list[dict[str, Any]] | None = None
        self._last_saved = time.monotonic()

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.signals.end()
        self._writer.close()
        self._agreement.close()
        for name in ("model", "optimizer", "_scheduler", "_compiled", "_recipe"):  # what is wrapped for the group
            self.__dict__.pop(name, None)
        super().__exit__(*error)

    def prepare(
        self,
        model: nn.Module,
        steps_per_epoch: int,
        class_counts: np.ndarray | None = None,
        budget: TimeBudget | None = None,
    ) -> str:
        """Move the model to the device and create optimiser and scheduler.

        Args:
            class_counts: int64 [K], training clips of each class, which balanced class weights need.
            budget: The time to end in, instead of after the configuration's epochs.

        Returns:
            A message for the user; empty if everything is as picked.
        """
        if self.speed.channels_last:
            to_channels_last(model)
        if self.config.freeze_batch_norm:
            freeze_batch_norm(model)
        note = keep_conv3d_right(model, self.device, self.speed)
        optimizer = make_optimizer(self.config, model, fused=self.speed.fused)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        updates = -(-steps_per_epoch // self.config.accumulate_steps) * self.config.epochs
        self._scheduler = make_scheduler(self.config, optimizer, updates if budget is None else POSITIONS)
        self._compiled = self.speed.compiled(self.model)
        self._budget = budget or EpochBudget(self.config)
        self._recipe = Recipe(self.config, self.bare_model, class_counts, is_alone=self.world_size == 1)
        self._memory.start()
        return note

    def model_for(self, frames: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model for these frames [B, T, 3, H, W], compiled if that was asked for.

        One shape is compiled. A smaller last batch runs uncompiled: padding would change the statistics of batch
        normalisation, dropping it the epoch.
        """
        # Compared with None: in a boolean context torch's wrapper calls the model's `len`.
        return self.model if self._compiled is None or len(frames) != self.config.batch_size else self._compiled

    def fit(
        self,
        train: ClipLoader,
        val: ClipLoader,
        augment_config: AugmentConfig,
        run_dir: Path,
        console: Console,
        *,
        test: ClipLoader | None = None,
        resume: Checkpoint | None = None,
        max_dropped: int | None = None,
    ) -> None:
        """Train until the last epoch or until validation accuracy stops improving.

        Writes `metrics.jsonl`, `checkpoints/last` and `checkpoints/best` to `run_dir`, each atomically, and
        `dropped.csv` if clips were dropped; `history` holds the rows of the first.

        Args:
            test: The test split, if it is predicted after each epoch too.
            resume: The checkpoint to resume from.
            max_dropped: Clips that loaders may drop; `None`: any number.

        Raises:
            UserError: A write failed, memory ran out, a loss was not finite, too many clips were dropped, or another
                process is gone.
            Stopped: By a signal; a checkpoint of that step is written.
        """
        self.max_dropped, self._last_saved = max_dropped, time.monotonic()
        splits = {"val": val} if test is None else {"val": val, "test": test}
        with self.signals.deferred(), console.track("training", "clips") as advance:
            if resume is not None:
                self._restore(resume, train, run_dir)
            while not self._budget.is_over(self.progress):
                epoch = self.progress.epoch
                scores, speed = self._train_epoch(train, augment_config, epoch, advance, run_dir)
                with self._recipe.in_evaluation():
                    row = {"epoch": epoch, **scores, **self.scores(splits, augment_config), **speed}
                improved = self._end_epoch(row)
                self.note_dropped({"train": train, "val": val}, epoch, run_dir)
                self._budget.end_epoch()
                self._save(run_dir, epoch, train.clips_per_epoch, improved=improved)
                console.say(epoch_line(row, self._budget.epochs, improved))
                self.trackers.log(self.history)
                self._stop_between_epochs()
            self._writer.wait()
        if self.progress.stopped_early(self.config):
            console.say(f"stopped early: {self.config.early_stop_patience} epochs without a better validation accuracy")

    def _end_epoch(self, row: dict[str, Any]) -> bool:
        """Add an epoch's row; return whether it is the best so far."""
        if self.config.schedule == "plateau":
            self._scheduler.step(row["val_accuracy"])
        return self.progress.end_epoch(row)

    def plain_faults(self) -> AbstractContextManager[None]:
        """Inside, faults of the machine or of another process become a `UserError`."""
        return faults.as_user_errors(self.config.batch_size, self.world_size, self._memory)

    def _train_epoch(
        self, loader: ClipLoader, augment_config: AugmentConfig, epoch: int, advance: Any, run_dir: Path
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Train one epoch; return its scores and speed under the names of `metrics.jsonl`."""
        totals, progress = self._begin_epoch(epoch), self.progress
        started = time.perf_counter() - progress.seconds
        note = f"epoch {epoch}/{self._budget.epochs}{last_losses(self.history)}"
        for window, seconds in windows(timed(loader.epoch(epoch)), self.config.accumulate_steps):
            self.train_step(window, augment_config, epoch, totals)
            progress.waited, progress.seconds = progress.waited + seconds, time.perf_counter() - started
            wish = self._agreement.vote(self._wish(loader))
            if wish != GO_ON:
                self._carry_out(wish, loader, epoch, totals, run_dir)
            done = (epoch - 1) * loader.clips_per_epoch + loader.state_dict()["clips"]
            advance(done, self._budget.epochs * loader.clips_per_epoch, note=note)
            if self._budget.update(seconds):
                break
        wish = max(self._agreement.settle(), FAIL if self._watch.found(wait=True) else GO_ON)
        if (wish := self._agreement.now(wish)) >= STOP:
            self._carry_out(wish, loader, epoch, totals, run_dir)
        # The only wait for the device: its sums are read once per epoch.
        loss, correct, clips = self.accelerator.reduce(totals, "sum").tolist()
        seconds = time.perf_counter() - started
        speed = {
            "lr": progress.lr,
            "epoch_seconds": seconds,
            "clips_per_second": clips / seconds,
            "data_wait_fraction": progress.waited / seconds,
        }
        # Avoids a division by zero if no clip decoded.
        return {"train_loss": loss / max(clips, 1), "train_accuracy": correct / max(clips, 1)}, speed

    def _begin_epoch(self, epoch: int) -> torch.Tensor:
        """Seed the generators, or restore those of an unfinished epoch; return its sums so far, float64 [3]."""
        self.model.train()
        self._recipe.begin_epoch(epoch)
        self._budget.begin_epoch()
        self._watch = FiniteWatch(self.device)
        totals = torch.zeros(3, device=self.device, dtype=torch.float64)  # loss, correct, clips
        unfinished, self._unfinished = self._unfinished, None
        self.seed_everything(epoch=epoch)
        if unfinished is None:
            self.progress.lr = self.optimizer.param_groups[0]["lr"]
            return totals
        return restore_rank(unfinished, self.rank, self.world_size, totals)

    def _wish(self, loader: ClipLoader) -> int:
        """The request of this process to all of them."""
        if self._watch.found() or self.too_many_dropped(len(loader.dropped)):
            return FAIL
        if self.signals.received:
            return STOP
        minutes = self.config.checkpoint_minutes
        is_due = minutes and time.monotonic() - self._last_saved > minutes * 60
        return SAVE if self.is_main and is_due else GO_ON

    def _carry_out(self, wish: int, loader: ClipLoader, epoch: int, totals: torch.Tensor, run_dir: Path) -> None:
        """Carry out the agreed request, on every process at the same step."""
        wish = max(wish, self._agreement.settle())
        wish = self._agreement.now(FAIL if self._watch.found(wait=True) else wish)
        if wish == FAIL:
            self._writer.wait()
            self.note_dropped({"train": loader}, epoch, run_dir)
            clips = [key for part in gather_object([self._watch.clips]) for key in part]
            raise faults.not_finite(clips, epoch, loader.state_dict()["clips"])
        self._save(run_dir, epoch, loader.state_dict()["clips"], loader=loader, totals=totals)
        if wish == STOP:
            self._stop()

    def _stop_between_epochs(self) -> None:
        """Stop between epochs if a process asks for it; everything is saved."""
        if self._agreement.now(STOP if self.signals.received else GO_ON) == STOP:
            self._stop()

    def _stop(self) -> None:
        self._writer.wait()
        # The signal may have reached only another process.
        raise Stopped(self.signals.received or signal.SIGTERM)

    def train_step(
        self, window: Sequence[ClipBatch], augment_config: AugmentConfig, epoch: int, totals: torch.Tensor
    ) -> None:
        """One optimiser step on a window of batches.

        Every clip has the same weight, whatever its rank or batch, and padding has none: the loss is the sum over
        clips divided by the clips of the window on all ranks.

        Args:
            totals: float64 [3] on the device, to which this rank's loss, correct clips and clips are added.
        """
        num_clips = sum(batch.num_global for batch in window)
        for position, batch in enumerate(window):
            frames, shares = training_input(batch, augment_config, seed=self._seed, epoch=epoch)
            last = position == len(window) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                logits = self.model_for(frames)(frames).float()
                real = ~batch.is_padding
                targets = soft_labels(batch, shares, logits.shape[1])
                losses = self._recipe.losses(logits, targets) * real
                self._watch.add(batch.keys, losses)
                loss = losses.sum()
                # Gradients are averaged over the ranks; the factor makes that average a sum.
                self.accelerator.backward(loss * (self.world_size / num_clips))
            labels = targets if shares is None else targets.argmax(1)
            correct = ((logits.argmax(1) == labels) & real).sum()
            totals += torch.stack([loss.detach().double(), correct.double(), real.sum().double()])
        self._recipe.before_update()
        if self.config.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._recipe.after_update()
        if self.config.schedule in PER_UPDATE:
            self._budget.step(self._scheduler)

    def _save(
        self,
        run_dir: Path,
        epoch: int,
        clips: int,
        *,
        improved: bool = False,
        loader: ClipLoader | None = None,
        totals: torch.Tensor | None = None,
    ) -> None:
        """Write a checkpoint and the metrics so far, on the main process and in the background.

        Args:
            loader, totals: Of an unfinished epoch; every process has its own sums and generators.
        """
        self._last_saved = time.monotonic()
        weights, state = self._recipe.weights()
        state |= {"optimizer": self.optimizer.state_dict(), "scheduler": self._scheduler.state_dict()}
        if loader is not None and totals is not None:
            mine = {"generators": generators(self.device), "totals": totals.cpu()}
            state |= {"loader": loader.state_dict(), "ranks": gather_object([mine])}
        if not self.is_main:
            return
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        state |= {"progress": self.progress.as_dict(), "budget": self._budget.state_dict()}
        info: dict[str, Any] = {"epoch": epoch, "clips": clips, "is_epoch_end": loader is None}
        info |= {**(self.history[-1] if loader is None else {}), "versions": versions()}
        model, state = checkpoint.snapshot(weights), checkpoint.snapshot(state)
        metrics = json_lines(self.history)

        def write() -> None:
            last = run_dir / "checkpoints" / "last"
            faults.check_weights(model, epoch)
            try:
                checkpoint.save(last, model=model, state=state, info=info, keep=self.config.keep)
                if improved:
                    checkpoint.copy(last, last.with_name("best"))
                if loader is None:
                    write_text(run_dir / "metrics.jsonl", metrics)
            except OSError as error:
                raise faults.not_written(error, last) from error

        self._writer.submit(write)

    def _restore(self, resume: Checkpoint, train: ClipLoader, run_dir: Path) -> None:
        """Restore the state of a checkpoint.

        Raises:
            ValueError: It belongs to another model, or its position does not fit the clips or processes.
        """
        state = resume.state
        try:
            self._recipe.restore(resume.model, state)
            load_optimizer(self.optimizer, state["optimizer"])
            self._scheduler.load_state_dict(state["scheduler"])
            self.progress = Progress.restored(state["progress"])
            self._budget.load_state_dict(state.get("budget", {}))
            if "scaler" in state and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"checkpoint {resume.folder} does not fit this run: {error}") from error
        if not resume.info["is_epoch_end"]:
            train.load_state_dict(state["loader"])
            self._unfinished = state["ranks"]
        if not self.is_main:
            return
        # If a process was killed between two writes, these are older than the checkpoint.
        best = resume.folder.with_name("best")
        if resume.info["is_epoch_end"] and self.progress.best_epoch == resume.info["epoch"]:
            checkpoint.copy(resume.folder, best)
        write_text(run_dir / "metrics.jsonl", json_lines(self.history))
