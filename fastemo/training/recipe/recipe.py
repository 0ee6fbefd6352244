"""What a training recipe does to a model in each epoch and step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastemo.models.fusion import ClipModel
from fastemo.training.config import TrainConfig
from fastemo.training.recipe.averaging import WeightAverage
from fastemo.video.loader import ClipBatch


class Recipe:
    """The loss, frozen weights and averaged weights of a training.

    Args:
        model: On its device, not wrapped for a process group.
        class_counts: int64 [K], training clips of each class, which balanced class weights need; `None`: unknown.
        is_alone: There is one process. In a process group every weight must have a gradient, which is then dropped.
    """

    def __init__(
        self, config: TrainConfig, model: ClipModel, class_counts: np.ndarray | None, *, is_alone: bool
    ) -> None:
        self._config, self._model, self._is_alone = config, model, is_alone
        self._average = WeightAverage(model, config.ema) if config.ema else None
        self._frozen: list[nn.Parameter] = []
        self._class_weights: Tensor | None = None
        if config.class_weights == "balanced" and class_counts is not None:
            weights = torch.from_numpy(balanced_weights(class_counts))
            self._class_weights = weights.to(next(model.parameters()).device)

    def begin_epoch(self, epoch: int) -> None:
        """Freeze the backbone's weights and statistics, or train them again; the model is in training mode."""
        if not self._config.freeze_epochs:
            return
        backbone = [self._model.get_parameter(name) for name in self._model.backbone_layers()]
        is_frozen = epoch <= self._config.freeze_epochs
        for weights in backbone:
            weights.requires_grad_(not (is_frozen and self._is_alone))
        if is_frozen:
            self._model.get_submodule("backbone").eval()
        self._frozen = backbone if is_frozen else []

    def losses(self, logits_BK: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy of each clip, float32 [B], in nats; targets as `soft_labels` returns them."""
        smoothing = self._config.label_smoothing
        return F.cross_entropy(
            logits_BK, targets, weight=self._class_weights, label_smoothing=smoothing, reduction="none"
        )

    def before_update(self) -> None:
        for weights in self._frozen:
            weights.grad = None

    def after_update(self) -> None:
        if self._average is not None:
            self._average.update()

    def in_evaluation(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are evaluated and saved."""
        return nullcontext() if self._average is None else self._average.in_use()

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The model's state dict as it is evaluated, and what training needs besides to resume."""
        if self._average is None:
            return self._model.state_dict(), {}
        return self._average.weights, {"average": self._average.state_dict()}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore what `weights` returned.

        Raises:
            KeyError, RuntimeError: It belongs to another model or recipe.
        """
        if self._average is not None:
            self._average.load_state_dict(state["average"], weights)
            weights = state["average"]["weights"]
        self._model.load_state_dict(weights)


def soft_labels(batch: ClipBatch, shares: Tensor | None, num_classes: int) -> Tensor:
    """What a model is to predict: int64 [B] classes, or float32 [B, num_classes] if the clips are mixed.

    Args:
        shares: float32 [B], each clip's share of its input, the rest being its partner's; `None`: nothing is mixed.
    """
    if shares is None or batch.partners is None:
        return batch.labels
    own, others = (F.one_hot(it, num_classes).float() for it in (batch.labels, batch.partners.labels))
    return others.lerp(own, shares[:, None])


def balanced_weights(class_counts: np.ndarray) -> np.ndarray:
    """Weights of the classes, float32 [K], whose mean over the clips is 1; a class without clips weighs 0.

    As scikit-learn's `balanced`. Source: King and Zeng (2001), "Logistic Regression in Rare Events Data".
    """
    num_classes = np.count_nonzero(class_counts)
    weights = class_counts.sum() / np.maximum(class_counts, 1) / num_classes * (class_counts > 0)
    return weights.astype(np.float32)
