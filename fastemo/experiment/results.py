"""What a test leaves in a folder: metrics, a row for each clip, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fastemo.config import RunConfig
from fastemo.corpus.clip import Clip
from fastemo.corpus.protocol import Splits
from fastemo.errors import DecodeError
from fastemo.evaluation.cost import forward_flops, num_parameters, training_speed
from fastemo.evaluation.evaluate import Predictions, summarise, write_predictions
from fastemo.experiment.examples import most_confident, write_examples
from fastemo.machine import describe_machine, versions, write_text
from fastemo.report import figures
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices


def write_report(
    config: RunConfig,
    run_dir: Path,
    root: Path,
    splits: Splits,
    history: Sequence[dict[str, object]],
    predictions: Predictions,
    probes: Mapping[str, Predictions],
    model: nn.Module,
    *,
    epoch: int,
) -> dict[str, Any]:
    """Write the results of the test: `predictions.csv`, figures, examples and, last, `test.json`, which is returned.

    Args:
        model: That was tested, for what it costs and where it looks.
    """
    names = splits.class_names
    result = {
        "model": config.model.name,
        "corpus": "built-in (generated faces)" if config.corpus.root is None else str(config.corpus.root),
        "protocol": splits.protocol,
        "fold": config.corpus.fold,
        "seed": config.seed,
        "versions": versions(),
        "machine": describe_machine(),
        "epoch": epoch,
        "cost": {
            "parameters": num_parameters(model),
            "flops_per_clip": forward_flops(model, config.video.num_frames, config.augment.crop_size),
            **training_speed(history),
        },
        **summarise(predictions, splits.test, names, probes),
    }
    write_predictions(run_dir / "predictions.csv", predictions, splits.test, names)
    title = f"{config.model.name}, {len(predictions.keys)} test clips, accuracy {result['accuracy']:.1%}"
    figures.save_curves(history, run_dir / "curves.png")
    figures.save_confusion(result["confusion"], names, run_dir / "confusion_matrix.png", title)
    figures.save_per_class(result["per_class"], run_dir / "per_class_accuracy.png", title)
    examples = misclassified(config, root, splits.test, predictions, names)
    figures.save_misclassified(examples, run_dir / "misclassified.png")
    write_examples(config, run_dir, root, splits.test, predictions, names, model, names)
    # A run that has this file is finished.
    write_text(run_dir / "test.json", json.dumps(result, indent=2) + "\n")
    return result


def misclassified(
    config: RunConfig, root: Path, clips: Sequence[Clip], predictions: Predictions, class_names: Sequence[str]
) -> list[figures.Misclassified]:
    """The most confident errors, six frames each."""
    by_key = {clip.key: clip for clip in clips}
    confidence = predictions.probabilities.max(1)
    spec = replace(config.video.spec, num_frames=6, size=max(128, config.video.size))
    examples = []
    for row in most_confident(predictions, wrong=True, most=figures.MAX_MISCLASSIFIED):
        clip = by_key[predictions.keys[row]]
        try:
            frames = decode_clip(root / clip.key, frame_indices(clip.num_frames, 6), spec)
        except DecodeError:
            if config.corpus.on_error == "stop":
                raise
            continue  # it was there for the test, and is gone since
        examples.append(
            figures.Misclassified(
                key=clip.key,
                frames=frames,
                true_name=class_names[predictions.labels[row]],
                predicted_name=class_names[predictions.predicted[row]],
                probability=float(confidence[row]),
            )
        )
    return examples


def results_line(result: dict[str, Any], num_classes: int) -> str:
    low, high = result["intervals"]["accuracy"]
    return (
        f"accuracy {result['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}), UAR {result['uar']:.1%}, "
        f"macro-F1 {result['macro_f1']:.3f} on {result['num_clips']} clips of {result['num_takes']} takes; "
        f"chance {1 / num_classes:.1%}"
    )
