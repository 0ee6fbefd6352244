"""Configuration of evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a trained model is tested.

    Attributes:
        views: Views of each clip whose logits are averaged: its frames, the same mirrored, and then in pairs of the
            same kind other frames, drawn from the segments of `video.stored_frames`.
    """

    views: int = 1

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"evaluate.views must be at least 1, not {self.views}")
