"""An epoch as `fit` runs it, the bare loop that is its ceiling, and the breakdown of a step's time."""

from __future__ import annotations

import copy
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.measure import EpochPass, Pass, timed
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.models.folding import fold_batch_norm
from fastemo.models.fusion import ClipModel
from fastemo.training import trainer as trainer_module
from fastemo.training.speed import to_channels_last
from fastemo.training.trainer import Trainer
from fastemo.training.windows import timed as timed_batches
from fastemo.video.augment import augment, center_crop
from fastemo.video.config import AugmentConfig
from fastemo.video.loader import ClipBatch, ClipLoader

PARTS = ("data_wait", "augment", "forward", "backward", "optimizer")


def sums(device: torch.device) -> torch.Tensor:
    """The sums that `Trainer.train_step` adds to: loss, correct, clips."""
    return torch.zeros(3, device=device, dtype=torch.float64)


def train_epoch(trainer: Trainer, loader: ClipLoader, config: AugmentConfig, epoch: int) -> EpochPass:
    """One pass over the loader's clips with `Trainer.train_step`, synchronised once, at the end."""
    trainer.model.train()
    totals, waits = sums(trainer.device), []

    def work() -> int:
        for batch, seconds in timed_batches(loader.epoch(epoch)):
            trainer.train_step([batch], config, epoch, totals)
            waits.append(seconds)
        return int(totals[2])

    took = timed(work)
    loss, correct, clips = totals.tolist()
    means = {"loss": loss / clips, "accuracy": correct / clips}
    return EpochPass(**asdict(took), steps=len(waits), waited=sum(waits), **means)


def bare_loop(trainer: Trainer, batch: ClipBatch, config: AugmentConfig, *, steps: int, seed: int) -> Pass:
    """The ceiling: one batch on the device, with the same model, augmentation, arithmetic and optimiser."""
    frames = (augment(batch.frames, config, batch.keys, seed=seed, epoch=number) for number in range(steps))
    return _bare_steps(trainer, batch.labels, frames)[0]


def floor_loop(trainer: Trainer, batch: ClipBatch, config: AugmentConfig, *, steps: int) -> Pass:
    """The lower bound of any data path: forward, backward and update on ready tensors.

    On a GPU the seconds are the device's, measured by events.
    """
    frames = augment(batch.frames, config, batch.keys, seed=0, epoch=0)
    wait_for(trainer.device)
    passed, clock = _bare_steps(trainer, batch.labels, itertools.repeat(frames, steps))
    return replace(passed, seconds=clock.seconds("steps"))


def _bare_steps(trainer: Trainer, labels: torch.Tensor, batches: Iterable[torch.Tensor]) -> tuple[Pass, Clock]:
    """An optimiser step on each batch's frames [B, T, 3, H, W], timed until the device is done.

    Returns:
        Their pass, and a clock with the span `steps`.
    """
    clock = Clock(trainer.device)

    def work() -> int:
        clips = 0
        with clock.span("steps"):
            for frames in batches:
                loss = F.cross_entropy(trainer.model_for(frames)(frames).float(), labels)
                trainer.accelerator.backward(loss)
                if trainer.config.clip_norm:
                    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.config.clip_norm)
                trainer.optimizer.step()
                trainer.optimizer.zero_grad(set_to_none=True)
                clips += len(frames)
        wait_for(trainer.device)
        return clips

    trainer.model.train()
    return timed(work), clock


def for_prediction(model: ClipModel, num_frames: int, size: int) -> ClipModel:
    """A copy of the model as `fastemo predict` has it: without dropout and, on a CPU, batch normalisation."""
    copied = copy.deepcopy(model).eval()
    copied.__dict__.pop("forward", None)  # the instance's, wrapped for mixed precision, is the original's
    if next(copied.parameters()).device.type == "cpu":
        fold_batch_norm(copied, num_frames, size)
        to_channels_last(copied)
    return copied


def forward_loop(model: ClipModel, batch: ClipBatch, config: AugmentConfig, *, steps: int) -> Pass:
    """The model of `for_prediction` alone, on ready tensors, in fp32."""
    frames = center_crop(batch.frames, config)
    wait_for(frames.device)

    def work() -> int:
        with torch.inference_mode():
            for _ in range(steps):
                model(frames)
        wait_for(frames.device)
        return steps * len(frames)

    return timed(work)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def restored(trainer: Trainer) -> Iterator[None]:
    """Restore weights, statistics and the optimiser's state at the end."""
    changing = (trainer.model, trainer.optimizer)
    before = [copy.deepcopy(it.state_dict()) for it in changing]
    try:
        yield
    finally:
        for it, state in zip(changing, before, strict=True):
            it.load_state_dict(state)


class Clock:
    """Spans of a step: on a GPU by events, synchronised only when read, otherwise by the system clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Add a span; as a decorator, one per call."""
        start = self._now()
        try:
            yield
        finally:
            self._spans[part].append((start, self._now()))

    def seconds(self, part: str) -> float:
        spans = self._spans[part]
        if self._on_gpu:
            torch.cuda.synchronize()
            return sum(start.elapsed_time(end) for start, end in spans) / 1000
        return sum(end - start for start, end in spans)


def breakdown(
    trainer: Trainer, loader: ClipLoader, config: AugmentConfig, epoch: int, *, most_steps: int
) -> dict[str, Any]:
    """Breakdown of a warm step's time, in a separate pass, because measuring costs time.

    On a GPU the spans are those of its stream, including idle time. A batch's copy to the device overlaps the previous
    step: its time is reported, but is not part of the shares.

    Returns:
        Steps, seconds per step, the shares of its parts and of the rest, which sum to 1, and the time of a copy.
    """
    clock, totals, steps = Clock(trainer.device), sums(trainer.device), 0
    batches = itertools.islice(loader.epoch(epoch), most_steps)
    take = clock.span("data_wait")(lambda: next(batches, None))
    trainer.model.train()
    with ExitStack() as stack:
        for owner, name, part in (
            (trainer_module, "training_input", "augment"),
            (trainer.model, "forward", "forward"),
            (trainer.accelerator, "backward", "backward"),
            (trainer.accelerator, "clip_grad_norm_", "optimizer"),
            (trainer.optimizer, "step", "optimizer"),
        ):
            stack.enter_context(patch.object(owner, name, clock.span(part)(getattr(owner, name))))
        stack.enter_context(clock.span("step"))
        for batch in iter(take, None):
            trainer.train_step([batch], config, epoch, totals)
            steps += 1
    seconds = clock.seconds("step")
    shares = {part: clock.seconds(part) / seconds for part in PARTS}
    copying = copy_seconds(batch.frames, trainer.device)
    return {
        "steps": steps,
        "step_seconds": seconds / steps,
        "shares": {**shares, "rest": 1 - sum(shares.values())},
        "host_to_device_seconds": copying,
        "host_to_device_share": copying * steps / seconds,
    }


def copy_seconds(frames: torch.Tensor, device: torch.device, repeats: int = 10) -> float:
    """Seconds of a batch's copy from pinned memory to the device; 0 if it is there already."""
    if device.type != "cuda":
        return 0.0
    host, clock = frames.cpu().pin_memory(), Clock(device)
    host.to(device, non_blocking=True)
    for _ in range(repeats):
        with clock.span("copy"):
            host.to(device, non_blocking=True)
    return clock.seconds("copy") / repeats


def flops_a_clip(config: ModelConfig, num_classes: int, crop_size: int) -> float:
    """Floating-point operations per clip, forward and backward, as torch counts them (a multiply-add is two).

    Counted on a model on the meta device, so that nothing is computed.
    """
    model = build_model(config, num_classes).to("meta")
    frames = torch.empty(2, config.num_frames or 1, 3, crop_size, crop_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(frames).sum().backward()
    return counter.get_total_flops() / len(frames)
