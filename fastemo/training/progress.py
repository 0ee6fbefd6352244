"""The progress of a training: what a checkpoint holds besides weights, and where `fit` resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fastemo.evaluation.evaluate import Predictions
from fastemo.training.config import TrainConfig


@dataclass
class Progress:
    """The progress of a training.

    Attributes:
        epoch: The current epoch, from 1; after its end the next one.
        history: A row per finished epoch, as in `metrics.jsonl`.
        best_accuracy, best_epoch: On the validation split; -1 and 0 before the first epoch.
        epochs_without_gain: Epochs since the best one.
        seconds, waited: Of the unfinished epoch so far, over all sessions: in total, and waiting for batches.
        lr: Learning rate at the start of the unfinished epoch; `None`: none has started.
        dropped: Clips that did not decode: split, epoch and reason by key.
    """

    epoch: int = 1
    history: list[dict[str, Any]] = field(default_factory=list)
    best_accuracy: float = -1.0
    best_epoch: int = 0
    epochs_without_gain: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    lr: float | None = None
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Progress:
        """The progress from what `as_dict` returned.

        Raises:
            ValueError: It is something else.
        """
        if set(state) != {it.name for it in fields(cls)}:
            raise ValueError("the checkpoint's progress is from another version of fastemo")
        return cls(**state)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def end_epoch(self, row: dict[str, Any]) -> bool:
        """Add an epoch's row; return whether it is the best so far."""
        self.history.append(row)
        accuracy = row["val_accuracy"]
        is_best = accuracy > self.best_accuracy
        if is_best:
            self.best_accuracy, self.best_epoch, self.epochs_without_gain = accuracy, self.epoch, 0
        else:
            self.epochs_without_gain += 1
        self.epoch, self.seconds, self.waited, self.lr = self.epoch + 1, 0.0, 0.0, None
        return is_best

    def forget_best(self) -> None:
        """The best checkpoint is lost: the next epoch counts as the best."""
        self.best_accuracy, self.best_epoch = -math.inf, 0

    def is_over(self, config: TrainConfig) -> bool:
        return self.epoch > config.epochs or self.stopped_early(config)

    def stopped_early(self, config: TrainConfig) -> bool:
        return self.epochs_without_gain == config.early_stop_patience


def split_scores(split: str, predictions: Predictions) -> dict[str, Any]:
    """What an epoch's row holds of a split; of the test also the confusion matrix, which folds are pooled by."""
    metrics = predictions.metrics(range(predictions.logits.shape[1]))  # type: ignore[arg-type]
    found = {f"{split}_loss": predictions.loss, f"{split}_accuracy": metrics.accuracy, f"{split}_uar": metrics.uar}
    return found if split == "val" else {**found, f"{split}_confusion": metrics.confusion.tolist()}


def best_epoch_on_test(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The epoch with the highest test accuracy, the first in case of a tie; None without `train.test_every_epoch`."""
    tested = [row for row in history if "test_accuracy" in row]
    if not tested:
        return None
    best = max(tested, key=lambda row: row["test_accuracy"])
    return {"epoch": best["epoch"], **{name: best[f"test_{name}"] for name in ("accuracy", "uar", "confusion")}}


def json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def last_losses(history: Sequence[dict[str, Any]]) -> str:
    """The latest losses known without waiting for the device: those of the last epoch."""
    if not history:
        return ""
    row = history[-1]
    return f", loss {row['train_loss']:.3f}, val {row['val_loss']:.3f} {row['val_accuracy']:.1%}"


def epoch_line(row: dict[str, Any], epochs: int, improved: bool) -> str:
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train {row['train_loss']:.3f} {row['train_accuracy']:6.1%}  "
        f"val {row['val_loss']:.3f} {row['val_accuracy']:6.1%}  lr {row['lr']:.1e}  "
        f"{row['epoch_seconds']:.1f} s  {row['clips_per_second']:.1f} clips/s  "
        f"waiting {row['data_wait_fraction']:.0%}{'  best' if improved else ''}"
    )
