"""The process group of a run. Only this module and `trackers.py` use Accelerate."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import nn

from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.evaluation.evaluate import Predictions, predict
from fastemo.evaluation.probes import PROBES, Order
from fastemo.machine import available_processors
from fastemo.models.fusion import ClipModel
from fastemo.training import faults
from fastemo.training.progress import Progress, split_scores
from fastemo.training.speed import Speed
from fastemo.training.state import join_after_restart
from fastemo.training.trackers import Trackers, check_installed
from fastemo.video.config import AugmentConfig
from fastemo.video.loader import ClipLoader
from fastemo.video.sampling import keyed_seed

__all__ = ["Processes", "gather_object"]

T = TypeVar("T")
P = TypeVar("P", bound="Processes")


class Processes:
    """This process among those of its run, with its device and its copy of the model.

    A context manager, whose exit destroys the process group.

    Args:
        every_step: Whether gradients are averaged after every batch.
        trackers: Names of experiment trackers.

    Attributes:
        device, rank, local_rank, world_size, is_main: Of this process.
        model: Wrapped for the process group, once prepared.
        trackers: What logs the run; nothing outside `tracked`, and on every process but the main one.
        progress: Of the training so far.
        max_dropped: Clips that loaders may drop; `None`: any number.

    Raises:
        ValueError: The precision is not available on this device, or a tracker's package is not installed.
    """

    model: nn.Module
    max_dropped: int | None

    def __init__(self, speed: Speed, *, seed: int, every_step: bool, trackers: Sequence[str] = ()) -> None:
        check_installed(trackers)
        self.progress, self.max_dropped = Progress(), None
        self._seed, self._tracker_names, self.trackers = seed, trackers, Trackers()
        hook = DDPCommunicationHookType.BF16 if speed.exchange == "bf16" else DDPCommunicationHookType.NO
        ddp = DistributedDataParallelKwargs(
            gradient_as_bucket_view=True,
            bucket_cap_mb=speed.bucket_mib,
            comm_hook=hook,
            # Every step uses every weight. A static graph does not support gradient accumulation.
            static_graph=every_step,
        )
        join_after_restart()
        # Accelerate keeps the first precision that a process set; a later training may set another.
        AcceleratorState._reset_state()
        # Without an accelerator, several processes use gloo only if told to use the CPU.
        mixed_precision = "no" if speed.precision == "fp32" else speed.precision
        try:
            self.accelerator = Accelerator(
                mixed_precision=mixed_precision, cpu=not torch.accelerator.is_available(), kwargs_handlers=[ddp]
            )
        except ValueError as error:
            raise ValueError(f"train.precision {speed.precision} is not available here: {error}") from error
        if not torch.accelerator.is_available():
            # Launchers set OMP_NUM_THREADS=1 for any number of processors.
            torch.set_num_threads(available_processors())
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.local_rank = self.accelerator.local_process_index

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *error: object) -> None:
        # Gloo's threads free the tensors of the last all-reduce some time after it, and abort the process if the
        # interpreter is gone by then. Deleting the process group waits for them, and everything wrapped for the
        # group keeps it alive: a subclass must delete that first.
        self.accelerator.free_memory()
        self.accelerator.end_training()
        gc.collect()

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row per finished epoch, as in `metrics.jsonl`."""
        return self.progress.history

    def seed_everything(self, *, epoch: int) -> None:
        """Seed torch's own generators (initial weights, dropout) from (seed, epoch, rank)."""
        rank = 0 if epoch == 0 else self.rank
        torch.manual_seed(keyed_seed(self._seed, epoch, f"torch on rank {rank}") % 2**63)

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on the main process and return its result on every process; the others wait.

        Raises:
            ValueError, OSError, UserError: It failed; raised on every process.
        """
        if self.world_size == 1:
            return work()
        made: list[Any] = [None, None]
        failed: Exception | None = None
        if self.is_main:
            try:
                made[0] = work()
            except (ValueError, OSError, UserError) as error:
                failed, made[1] = error, str(error)
        value, trouble = broadcast_object_list(made)
        if failed is not None:
            raise failed
        if trouble is not None:
            raise UserError(f"process {self.rank}: the first process ended: {trouble}")
        result: T = value
        return result

    @contextmanager
    def tracked(self, config: Iterable[tuple[str, object]], run_dir: Path, console: Console) -> Iterator[None]:
        """Inside, the trackers log every epoch; at the end, unless it failed, also the test.

        Args:
            config: Every key of the run's configuration, and its value.

        Raises:
            UserError: A tracker cannot be started; raised on every process.
        """
        with self.trackers:
            self.on_main(lambda: self.trackers.start(self._tracker_names, config, run_dir, console))
            yield

    def note_dropped(self, loaders: dict[str, ClipLoader], epoch: int, run_dir: Path) -> None:
        """Collect the clips that the loaders of all processes dropped, and list them in `dropped.csv`.

        Raises:
            UserError: There are more than may be dropped.
        """
        mine = {key: (split, reason) for split, it in loaders.items() for key, reason in it.dropped.items()}
        for part in gather_object([mine]):
            for key, (split, reason) in part.items():
                self.progress.dropped.setdefault(key, {"split": split, "epoch": epoch, "reason": reason})
        if self.is_main and self.progress.dropped:
            faults.write_dropped(run_dir / "dropped.csv", self.progress.dropped)
        if self.too_many_dropped(len(self.progress.dropped)):
            assert self.max_dropped is not None
            raise faults.too_many_dropped(self.progress.dropped, self.max_dropped, run_dir / "dropped.csv")

    def too_many_dropped(self, count: int) -> bool:
        return self.max_dropped is not None and count > self.max_dropped

    @property
    def bare_model(self) -> ClipModel:
        """The model without the wrapper that averages gradients, still with mixed precision."""
        model: ClipModel = self.accelerator.unwrap_model(self.model)
        return model

    def predict(
        self, loader: ClipLoader, augment_config: AugmentConfig, order: Order = "recorded", *, views: int = 1
    ) -> Predictions:
        """Predictions of every clip of a split once, its frames in that order, gathered on all ranks.

        Args:
            views: Views of each clip whose logits are averaged, as in `EvaluateConfig`.
        """
        local = [
            predict(self.bare_model, loader, augment_config, order=order, seed=self._seed, view=view)
            for view in range(views)
        ]
        return Predictions.joined(gather_object([Predictions.averaged(local)]))

    def scores(self, splits: Mapping[str, ClipLoader], augment_config: AugmentConfig) -> dict[str, Any]:
        """What an epoch's row holds of these splits."""
        found = (split_scores(name, self.predict(loader, augment_config)) for name, loader in splits.items())
        return {key: value for of_split in found for key, value in of_split.items()}

    def probe(self, loader: ClipLoader, augment_config: AugmentConfig) -> dict[str, Predictions]:
        """Predictions of the same clips with their frames in other orders, by the order's name."""
        return {order: self.predict(loader, augment_config, order) for order in PROBES}

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        self.bare_model.load_state_dict(weights)
