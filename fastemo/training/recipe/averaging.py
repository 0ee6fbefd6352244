"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The moving average of a model's weights and running statistics; its counters are the model's own.

    Sources: Polyak and Juditsky (1992), "Acceleration of Stochastic Approximation by Averaging"; the decay that rises
    with the number of updates is that of TensorFlow's `ExponentialMovingAverage`.

    Args:
        model: On its device. Its weights may only be changed in place.
        decay: Of each update; after n updates (1 + n) / (10 + n) if that is less.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay, self._updates, self._model = decay, 0, model.state_dict()
        self._average = {name: it.clone() for name, it in self._model.items() if it.is_floating_point()}

    def update(self) -> None:
        """Add the model's weights to the average, after an optimiser's step."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        get_ema_multi_avg_fn(decay)([*self._average.values()], [self._model[name] for name in self._average], None)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the model has the average of its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._average.items():
            own = self._model[name].clone()
            self._model[name].copy_(average)
            average.copy_(own)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict of a model with the average."""
        return {**self._model, **self._average}

    def state_dict(self) -> dict[str, Any]:
        """What training resumes from besides `weights`."""
        return {"updates": self._updates, "weights": self._model}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` and `weights` returned, but for the model's own weights.

        Raises:
            KeyError, RuntimeError: They belong to another model.
        """
        self._updates = state["updates"]
        for name, average in self._average.items():
            average.copy_(weights[name])
