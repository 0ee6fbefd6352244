"""A model and a split -> one prediction per clip, and their summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastemo.corpus.clip import Clip
from fastemo.evaluation.calibration import calibration
from fastemo.evaluation.groups import gaps, group_metrics
from fastemo.evaluation.metrics import Metrics, compute_metrics
from fastemo.evaluation.probes import Order, check_order, reorder
from fastemo.evaluation.tables import CLIP_COLUMNS, TEXT_COLUMNS
from fastemo.evaluation.uncertainty import first_file_per_take, interval_of_mean, intervals
from fastemo.machine import write_text
from fastemo.video.augment import center_crop
from fastemo.video.config import AugmentConfig
from fastemo.video.loader import ClipLoader


@dataclass(frozen=True)
class Predictions:
    """A model's predictions, one row per clip.

    Attributes:
        keys: N clip keys.
        labels: int64 [N].
        logits: float32 [N, classes], as the model gives them.
        temperature: Divides the logits for `probabilities` and `loss`; 1: not calibrated.
    """

    keys: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray
    temperature: float = 1.0

    @classmethod
    def joined(cls, parts: Iterable[Predictions]) -> Predictions:
        """All ranks' rows sorted by key; a clip that several ranks saw counts once.

        Raises:
            ValueError: There are no rows.
        """
        rows = {
            key: (label, logits)
            for part in parts
            for key, label, logits in zip(part.keys, part.labels, part.logits, strict=True)
        }
        if not rows:
            raise ValueError("nothing to evaluate: no clip of the split could be decoded")
        keys = tuple(sorted(rows))
        return cls(keys, np.array([rows[k][0] for k in keys]), np.stack([rows[k][1] for k in keys]))

    @classmethod
    def averaged(cls, views: Sequence[Predictions]) -> Predictions:
        """The mean logits of the clips that all views have, in the first one's order."""
        if len(views) == 1:
            return views[0]
        shared = set(views[0].keys).intersection(*(it.keys for it in views[1:]))
        places = [{key: row for row, key in enumerate(it.keys)} for it in views]
        keys = [key for key in views[0].keys if key in shared]
        rows = [np.array([place[key] for key in keys], dtype=np.int64) for place in places]
        logits = np.stack([it.logits[of] for it, of in zip(views, rows, strict=True)])
        return replace(views[0].at(rows[0]), logits=logits.mean(axis=0))

    @property
    def predicted(self) -> np.ndarray:
        """int64 [N], the class with the highest logit, the first in case of a tie."""
        return self.logits.argmax(1)

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [N, classes], softmax(logits / temperature): each row sums to 1."""
        shifted = self.logits.astype(np.float64) - self.logits.max(1, keepdims=True)
        exponentials = np.exp(shifted / self.temperature)
        return exponentials / exponentials.sum(1, keepdims=True)

    @property
    def correct(self) -> np.ndarray:
        """Boolean [N]."""
        return self.labels == self.predicted

    @property
    def loss(self) -> float:
        """Mean cross entropy of the probabilities, in nats."""
        shown = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(shown, np.finfo(np.float64).tiny)).mean())

    def metrics(self, class_names: Sequence[str]) -> Metrics:
        return compute_metrics(self.labels, self.predicted, class_names)

    def at(self, rows: np.ndarray) -> Predictions:
        """The predictions at `rows`, int64 [M], in that order."""
        keys = tuple(self.keys[row] for row in rows)
        return replace(self, keys=keys, labels=self.labels[rows], logits=self.logits[rows])


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader: ClipLoader,
    augment: AugmentConfig,
    *,
    order: Order = "recorded",
    seed: int = 0,
    view: int = 0,
) -> Predictions:
    """Run the clips of one rank through the model in evaluation mode; the previous mode is restored.

    Padding is left out, and so are clips that the loader dropped.

    Args:
        order: The order in which the model sees each clip's frames: `probes.reorder`.
        seed: Seed of the order `shuffled`.
        view: Number of the view of each clip: odd ones are mirrored, and each pair after the first has frames of its
            own.

    Raises:
        ValueError: An unknown order.
    """
    check_order(order)
    was_training = model.training
    model.eval()
    keys: list[str] = []
    labels, logits, is_padding = [], [], []
    try:
        for batch in loader.epoch(view // 2):
            frames = center_crop(reorder(batch.frames, batch.keys, order, seed=seed), augment)
            logits.append(model(frames.flip(-1) if view % 2 else frames).float())
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


def summarise(
    predictions: Predictions,
    clips: Sequence[Clip],
    class_names: Sequence[str],
    probes: Mapping[str, Predictions] | None = None,
) -> dict[str, Any]:
    """Summary of a test: metrics, their intervals, calibration, results by group, and temporal-order probes.

    The metrics, calibration and groups count clips, as Roy (2025) does. If both files of a take are among them, every
    interval resamples the two together, and `one_file_a_take` gives the metrics with one file per take. `loss` and
    `calibration` are those of the calibrated probabilities; `ece_before` is the calibration error at temperature 1.

    Args:
        predictions: The model's, with frames in recorded order and the run's temperature.
        clips: The split's clips, in any order; at least those predicted.
        class_names: Class k's name at position k.
        probes: The same model's predictions with frames in another order, by the order's name.

    Returns:
        A JSON-serializable dict; without `probes`, no key of that name.
    """
    by_key = {clip.key: clip for clip in clips}
    shown = [by_key[key] for key in predictions.keys]
    takes = [clip.take for clip in shown]
    num_takes = len(set(takes))
    people = [clip.person for clip in shown]
    groups = group_metrics(predictions.labels, predictions.predicted, shown, len(class_names))
    before, after = (
        calibration(it.correct, it.probabilities.max(1)) for it in (replace(predictions, temperature=1.0), predictions)
    )
    return {
        **predictions.metrics(class_names).to_json(),
        "loss": predictions.loss,
        "num_takes": num_takes,
        "intervals": intervals(predictions.labels, predictions.predicted, takes, people, len(class_names)),
        "one_file_a_take": None if num_takes == len(takes) else _one_file_a_take(predictions, shown, class_names),
        "temperature": predictions.temperature,
        "calibration": {**after, "ece_before": before["ece"]},
        "groups": groups,
        "gaps": gaps(groups, predictions.correct, shown),
        **({} if probes is None else {"probes": _probed(predictions, probes, by_key)}),
    }


def _one_file_a_take(predictions: Predictions, shown: Sequence[Clip], class_names: Sequence[str]) -> dict[str, Any]:
    rows = first_file_per_take([clip.take for clip in shown], [clip.modality for clip in shown])
    chosen = predictions.at(rows)
    metrics = chosen.metrics(class_names)
    interval = interval_of_mean(chosen.correct, [shown[row].take for row in rows])
    return {
        "accuracy": metrics.accuracy,
        "uar": metrics.uar,
        "macro_f1": metrics.macro_f1,
        "num_clips": metrics.num_clips,
        "intervals": {"accuracy": list(interval)},
    }


def _probed(
    recorded: Predictions, probes: Mapping[str, Predictions], by_key: Mapping[str, Clip]
) -> dict[str, dict[str, Any]]:
    """Each probe's accuracy, and its difference from recorded order, on the clips that both have.

    A clip may be missing from either if the loader drops clips that it cannot read.
    """
    row_of = {key: row for row, key in enumerate(recorded.keys)}
    found = {}
    for name, probe in probes.items():
        rows = np.array([row for row, key in enumerate(probe.keys) if key in row_of], dtype=np.int64)
        probe = probe.at(rows)
        same = recorded.at(np.array([row_of[key] for key in probe.keys], dtype=np.int64))
        takes = [by_key[key].take for key in probe.keys]
        change = probe.correct.astype(np.int64) - same.correct
        found[name] = {
            "accuracy": float(probe.correct.mean()),
            "interval": list(interval_of_mean(probe.correct, takes)),
            "agreement": float((probe.predicted == same.predicted).mean()),
            "difference": float(change.mean()),
            "difference_interval": list(interval_of_mean(change, takes)),
        }
    return found


def write_predictions(path: Path, predictions: Predictions, clips: Sequence[Clip], class_names: Sequence[str]) -> None:
    """Write a CSV table, one row per clip: key, classes, a probability for each class, the clip's fields."""
    by_key = {clip.key: clip for clip in clips}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    probability_columns = [f"probability_{name}" for name in class_names]
    writer.writerow(["key", "label", "prediction", *probability_columns, *CLIP_COLUMNS, *TEXT_COLUMNS])
    for key, label, predicted, probabilities in zip(
        predictions.keys, predictions.labels, predictions.predicted, predictions.probabilities, strict=True
    ):
        clip = by_key[key]
        shares = [f"{share:.6f}" for share in probabilities]
        fields = [getattr(clip, name) or "" for name in CLIP_COLUMNS]
        row = [key, class_names[label], class_names[predicted], *shares, *fields, clip.person, clip.corpus]
        writer.writerow(row)
    write_text(path, text.getvalue())
