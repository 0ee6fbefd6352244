"""Optimiser, the learning rates of a model's layers, and their schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from fastemo.models.fusion import ClipModel
from fastemo.training.config import TrainConfig

PER_UPDATE = ("onecycle", "cosine")  # schedules that are stepped once per update; `plateau` is once per epoch


def make_optimizer(config: TrainConfig, model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """The optimiser of all weights; Adam has its L2 penalty inside the gradient, as in Roy (2025)."""
    groups = parameter_groups(config, model)
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": fused or None}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, betas=(0.9, 0.999), **options)


def parameter_groups(config: TrainConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Weights of equal learning rate; the first group is that of `config.lr`, which holds the model's head.

    A backbone's rate is `config.backbone_lr` times that of its layer, which is `config.layer_decay` for its last layer
    and that factor less for each layer before. Source: Bao et al. (2022), "BEiT"; Clark et al. (2020), "ELECTRA".
    """
    if config.backbone_lr == config.layer_decay == 1:
        return [{"params": [*model.parameters()]}]
    assert isinstance(model, ClipModel)
    distances, groups = model.backbone_layers(), defaultdict(list)
    for name, parameter in model.named_parameters():
        scale = config.backbone_lr * config.layer_decay ** distances[name] if name in distances else 1.0
        groups[scale].append(parameter)
    scales = sorted(groups, key=lambda scale: (scale != 1, -scale))
    return [{"params": groups[scale], "lr": config.lr * scale} for scale in scales]


def make_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer, updates: int) -> Any:
    """Stepped by the trainer, not by Accelerate: once per update for those of `PER_UPDATE`.

    Args:
        updates: Of the whole training.
    """
    if config.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.plateau_factor, patience=config.plateau_patience
        )
    if config.schedule == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=updates + 1)
    if config.schedule == "cosine":
        warmup = round(updates * config.warmup_epochs / config.epochs)
        return lr_scheduler.LambdaLR(optimizer, lambda done: cosine(done, warmup, updates))
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def cosine(done: int, warmup: int, updates: int) -> float:
    """The share of the peak rate after `done` of `updates`: a rise over `warmup`, then half a cosine down to 0."""
    if done < warmup:
        return (done + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (done - warmup) / (updates - warmup))) / 2
