"""Upper bound of a study's duration, from steps measured on this machine: `fastemo study FILE --dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fastemo.config import RunConfig
from fastemo.console import Console
from fastemo.corpus.splits import Splits
from fastemo.evaluation.probes import ORDERS
from fastemo.experiment.study.corpora import Corpora
from fastemo.experiment.study.grid import Cell, Study
from fastemo.experiment.study.places import num_places
from fastemo.experiment.study.states import read_states
from fastemo.models.build import build_model
from fastemo.training.trainer import Trainer
from fastemo.video.loader import ClipBatch

# Steps timed after the first; of steps of many seconds only the first is timed.
_STEPS, _LONG_STEP_SECONDS = 2, 5.0
# The forward pass as a share of a step: forward, backward with about twice the work, and the optimiser's update.
_FORWARD_SHARE = 1 / 3
# Start of a process that loads torch; figures; checkpoints.
_START_SECONDS = 20.0


def dry_run(study: Study, out: Path, console: Console, *, jobs: int | None = None) -> None:
    """List the runs with their states in `out`, and the maximum duration of the unfinished ones.

    Raises:
        ValueError: As in `run_study`.
    """
    at_once = num_places(jobs)
    states = read_states(study, out)
    seconds = estimate([cell for cell in study.cells if states[cell.name].status != "finished"], console)
    table: list[dict[str, str | int]] = [
        {
            "run": cell.name,
            "status": states[cell.name].status,
            "max epochs": cell.config.train.epochs,
            "max minutes": f"{seconds[cell.name] / 60:.1f}" if cell.name in seconds else "",
        }
        for cell in study.cells
    ]
    console.table(f"study {study.name}", table)
    for name, state in states.items():
        if state.reason:
            console.say(f"{name} failed: {state.reason}")
    minutes = sum(seconds.values()) / 60
    console.say(
        f"{len(study.cells)} runs, {len(seconds)} to run: at most {minutes:.0f} min in sequence; {at_once} in parallel"
    )


def estimate(cells: Sequence[Cell], console: Console) -> dict[str, float]:
    """Maximum duration of each run in seconds: all of its epochs on cached clips, and the test in every order.

    Early stopping, and the time to decode clips first, are not included.

    Raises:
        ValueError: A corpus is not usable.
    """
    steps: dict[str, float] = {}
    corpora, found = Corpora(console), {}
    with console.track("measuring steps", "runs") as advance:
        for done, cell in enumerate(cells):
            config, splits = cell.config, corpora.splits(cell.config.corpus)
            num_classes = len(splits.class_names)
            known = repr((config.model, config.video.spec, config.augment, config.train, num_classes))
            if known not in steps:
                steps[known] = step_seconds(config, num_classes)
            found[cell.name] = _seconds(config, splits, steps[known])
            advance(done + 1, len(cells))
    return found


def step_seconds(config: RunConfig, num_classes: int) -> float:
    """Seconds of a training step on a whole batch: the shortest of a few on random frames."""
    with Trainer(config.train, seed=config.seed) as trainer:
        trainer.seed_everything(epoch=0)
        # The weights do not affect the time.
        model = build_model(replace(config.model, pretrained=False, weights=None), num_classes)
        trainer.prepare(model, 1 + _STEPS)
        batch = _batch(config, num_classes, trainer.device)
        totals = torch.zeros(3, device=trainer.device, dtype=torch.float64)
        seconds = math.inf
        for _ in range(1 + _STEPS):
            before = time.perf_counter()
            trainer.train_step([batch], config.augment, 1, totals)
            totals.tolist()  # waits for the device
            seconds = min(seconds, time.perf_counter() - before)
            if seconds > _LONG_STEP_SECONDS:
                break
    return seconds


def _batch(config: RunConfig, num_classes: int, device: torch.device) -> ClipBatch:
    """Noise in the shape of clips."""
    size, count = config.video.size, config.train.batch_size
    frames = torch.randint(0, 256, (count, config.video.num_frames, 3, size, size), dtype=torch.uint8)
    return ClipBatch(
        frames=frames.to(device),
        labels=(torch.arange(count) % num_classes).to(device),
        keys=[f"clip {number}" for number in range(count)],
        is_padding=torch.zeros(count, dtype=torch.bool, device=device),
        num_global=count,
    )


def _seconds(config: RunConfig, splits: Splits, step: float) -> float:
    each = step / config.train.batch_size
    held_out = len(splits.val) + len(splits.test) * config.train.test_every_epoch
    epoch = len(splits.train) * each + held_out * each * _FORWARD_SHARE
    test = len(splits.test) * each * _FORWARD_SHARE * len(ORDERS)
    return _START_SECONDS + config.train.epochs * epoch + test
