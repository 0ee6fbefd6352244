"""The files of a test: metrics, predictions per clip, figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastemo.config import RunConfig
from fastemo.console import Console
from fastemo.corpus.clip import Root
from fastemo.corpus.splits import Splits
from fastemo.evaluation.cost import forward_flops, num_parameters, training_speed
from fastemo.evaluation.evaluate import Predictions, summarise, write_predictions
from fastemo.experiment.examples import write_examples
from fastemo.json_files import parse_json, read_json
from fastemo.machine import describe_machine, versions, write_text
from fastemo.models.fusion import ClipModel
from fastemo.report import figures, words
from fastemo.report.schema import Epoch, Examples, Result
from fastemo.report.view import Run
from fastemo.training.progress import best_epoch_on_test
from fastemo.video.loader import ClipLoader


def write_report(
    config: RunConfig,
    run_dir: Path,
    root: Root,
    splits: Splits,
    history: Sequence[dict[str, object]],
    predictions: Predictions,
    probes: Mapping[str, Predictions],
    model: ClipModel,
    *,
    epoch: int,
) -> dict[str, Any]:
    """Write the test results: `predictions.csv`, figures, examples and, last, `test.json`, which is returned.

    Args:
        model: The tested model, for its cost and Grad-CAM.
    """
    names = splits.class_names
    result = {
        "model": config.model.name,
        "corpus": config.corpus.title,
        "protocol": splits.protocol,
        "fold": config.corpus.fold,
        **splits.about_people,
        "identical_to_training": splits.identical_to_training,
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
    if best := best_epoch_on_test(history):
        result["best_epoch_on_test"] = best
    write_predictions(run_dir / "predictions.csv", predictions, splits.test, names)
    write_examples(config, run_dir, root, splits.test, predictions, names, model, names)
    text = json.dumps(result, indent=2) + "\n"
    epochs = [Epoch.model_validate(row) for row in history]
    run = Run(name=run_dir.name, result=parse_json(text.encode(), Result, "test.json"), history=epochs)
    title = f"{config.model.name}, {len(predictions.keys)} test clips, accuracy {result['accuracy']:.1%}"
    figures.save_figures("run", run, run_dir, title)
    figures.save_figures("runs", [run], run_dir, title)
    figures.save_misclassified(run_dir, read_json(run_dir / "examples.json", Examples).examples)
    # A run with this file is finished.
    write_text(run_dir / "test.json", text)
    return result


def results_line(result: dict[str, Any]) -> str:
    low, high = result["intervals"]["accuracy"]
    hardest = words.hardest_pair(result.get("protocol"), result.get("corpus"))
    return (
        f"accuracy {result['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}), UAR {result['uar']:.1%}, "
        f"macro-F1 {result['macro_f1']:.3f} on {result['num_clips']} clips of {result['num_takes']} takes; "
        + "; ".join(filter(None, (f"chance {result['chance']:.1%}", hardest, result.get("caveat"))))
    )


def calibration_line(result: dict[str, Any]) -> str:
    """The line about the run's temperature; empty if that is 1."""
    if result["temperature"] == 1:
        return ""
    before, after = result["calibration"]["ece_before"], result["calibration"]["ece"]
    return (
        f"calibrated by temperature {result['temperature']:.2f}: expected calibration error {before:.1%} -> "
        f"{after:.1%} on the test split"
    )


def best_line(result: dict[str, Any]) -> str:
    """The line about the best epoch on the test split; empty unless each epoch was tested."""
    best = result.get("best_epoch_on_test")
    if best is None:
        return ""
    scores = f"accuracy {best['accuracy']:.1%}, UAR {best['uar']:.1%}"
    return f"{words.BEST_ON_TEST}: {scores} after epoch {best['epoch']}"


def say_left_to_pyav(loaders: Sequence[ClipLoader], console: Console) -> None:
    """Log how many clips PyAV decoded instead of the backend, by reason."""
    left: Counter[str] = Counter()
    for loader in loaders:
        left.update(loader.left_to_pyav)
    for reason, count in left.items():
        console.say(f"PyAV decoded {count} clips instead of {loaders[0].backend}: {reason}")
