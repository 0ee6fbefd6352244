"""Optimiser and learning rate schedule, and the batches that make up an update."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from fastemo.training.config import TrainConfig
from fastemo.video.loader import ClipBatch


def make_optimizer(config: TrainConfig, model: nn.Module, *, fused: bool) -> torch.optim.Adam:
    """Adam with an L2 penalty inside the gradient, as in the reference study; not AdamW."""
    return torch.optim.Adam(
        model.parameters(), lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=fused or None
    )


def make_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer, updates: int) -> Any:
    """Stepped once per epoch with `plateau`, once per update with `onecycle`; by the trainer, not by Accelerate."""
    if config.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.plateau_factor, patience=config.plateau_patience
        )
    if config.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=updates + 1)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def timed(batches: Iterator[ClipBatch]) -> Iterator[tuple[ClipBatch, float]]:
    """Each batch with the seconds spent waiting for it."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def windows(batches: Iterator[tuple[ClipBatch, float]], size: int) -> Iterator[tuple[list[ClipBatch], float]]:
    """`size` batches at a time, with the seconds spent waiting for them; the last window may be shorter."""
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
