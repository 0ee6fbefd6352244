"""A model and a split -> what it said of every clip, each clip once."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastemo.corpus.manifest import Clip
from fastemo.evaluation.metrics import Metrics, accuracy_interval, compute_metrics
from fastemo.machine import write_text
from fastemo.video.augment import AugmentConfig, center_crop
from fastemo.video.loader import ClipLoader

_CLIP_COLUMNS = ("actor", "modality", "channel", "intensity", "statement", "repetition")


@dataclass(frozen=True)
class Predictions:
    """What a model said, one row a clip.

    Attributes:
        keys: N clip keys.
        labels: int64 [N].
        logits: float32 [N, classes].
    """

    keys: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable[Predictions]) -> Predictions:
        """All ranks' rows sorted by key, a clip that several ranks saw only once.

        Raises:
            ValueError: There is no row at all.
        """
        rows = {
            key: (label, logits)
            for part in parts
            for key, label, logits in zip(part.keys, part.labels, part.logits, strict=True)
        }
        if not rows:
            raise ValueError("there is nothing to evaluate: no clip of the split could be decoded")
        keys = tuple(sorted(rows))
        return cls(keys, np.array([rows[k][0] for k in keys]), np.stack([rows[k][1] for k in keys]))

    @property
    def predicted(self) -> np.ndarray:
        """int64 [N], the class with the highest logit, the first of equals."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [N, classes], each row summing to 1."""
        shifted = np.exp(self.logits.astype(np.float64) - self.logits.max(1, keepdims=True))
        return shifted / shifted.sum(1, keepdims=True)

    @property
    def loss(self) -> float:
        """Mean cross entropy, in nats."""
        shown = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(shown, np.finfo(np.float64).tiny)).mean())

    def metrics(self, class_names: Sequence[str]) -> Metrics:
        return compute_metrics(self.labels, self.predicted, class_names)


@torch.inference_mode()
def predict(model: nn.Module, loader: ClipLoader, augment: AugmentConfig) -> Predictions:
    """Run the clips of one rank through the model, in evaluation mode; its training mode is put back.

    Padding is left out, and with it clips that the loader dropped.
    """
    was_training = model.training
    model.eval()
    keys: list[str] = []
    labels, logits, is_padding = [], [], []
    try:
        for batch in loader.epoch():
            logits.append(model(center_crop(batch.frames, augment)).float())
            labels.append(batch.labels)
            is_padding.append(batch.is_padding)
            keys += batch.keys
    finally:
        model.train(was_training)
    if not keys:  # more ranks than clips
        return Predictions((), np.empty(0, np.int64), np.empty((0, 0), np.float32))
    real = ~torch.cat(is_padding).cpu().numpy()
    return Predictions(
        tuple(compress(keys, real)),
        torch.cat(labels).cpu().numpy()[real],
        torch.cat(logits).cpu().numpy()[real],
    )


def summarise(predictions: Predictions, clips: Sequence[Clip], class_names: Sequence[str]) -> dict[str, Any]:
    """Metrics with a 95 % interval of the accuracy, and how many takes the clips are."""
    takes_by_key = {clip.key: clip.take for clip in clips}
    takes = [takes_by_key[key] for key in predictions.keys]
    low, high = accuracy_interval(predictions.labels == predictions.predicted, takes)
    return {
        **predictions.metrics(class_names).to_json(),
        "loss": predictions.loss,
        "intervals": {"accuracy": [low, high], "level": 0.95, "resampled": "takes"},
        "num_takes": len(set(takes)),
    }


def write_predictions(path: Path, predictions: Predictions, clips: Sequence[Clip], class_names: Sequence[str]) -> None:
    """Write a CSV table, one row a clip: key, classes, a probability for each class, the clip's fields."""
    by_key = {clip.key: clip for clip in clips}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    probability_columns = [f"probability_{name}" for name in class_names]
    writer.writerow(["key", "label", "prediction", *probability_columns, *_CLIP_COLUMNS])
    for key, label, predicted, probabilities in zip(
        predictions.keys, predictions.labels, predictions.predicted, predictions.probabilities, strict=True
    ):
        clip = by_key[key]
        shares = [f"{share:.6f}" for share in probabilities]
        fields = [getattr(clip, name) or "" for name in _CLIP_COLUMNS]
        writer.writerow([key, class_names[label], class_names[predicted], *shares, *fields])
    write_text(path, text.getvalue())
