"""A finished run tested again, on a split of its own or on another corpus."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastemo.config import read_config
from fastemo.console import Console
from fastemo.corpus.manifest import read_manifest
from fastemo.corpus.prepare import corpus_root
from fastemo.corpus.protocol import split_clips
from fastemo.evaluation.evaluate import summarise, write_predictions
from fastemo.machine import write_text
from fastemo.models import build_model
from fastemo.results import results_line
from fastemo.run import make_loader
from fastemo.training import checkpoint
from fastemo.training.trainer import Trainer


def evaluate_run(run_dir: Path, split: str, out: Path | None, console: Console) -> dict[str, Any]:
    """Test the best checkpoint of a run on one of its splits, in one process.

    Writes `SPLIT.json` and `predictions.csv` to `out`, by default `RUN/evaluation/SPLIT`; results of an earlier
    evaluation there are replaced. The clips are those of the run's own manifest.

    Raises:
        ValueError: `run_dir` is no run folder, or its checkpoint is damaged.
        DecodeError: A clip no longer decodes as it did in the run.
    """
    config_file = run_dir / "config.yaml"
    if not config_file.is_file():
        raise ValueError(f"{run_dir} is no run folder: it holds no config.yaml")
    config = read_config(["--config", str(config_file)])
    weights, info = checkpoint.load_model(run_dir / "checkpoints" / "best")
    root = corpus_root(config.corpus, console)
    manifest = read_manifest(run_dir / "manifest.csv", root).at_home(root)
    splits = split_clips(manifest, config.corpus.protocol, fold=config.corpus.fold)
    with Trainer(config.train, seed=config.seed) as trainer:
        # The checkpoint holds every weight: nothing is fetched.
        model = build_model(replace(config.model, pretrained=False, weights=None), len(splits.class_names))
        trainer.prepare(model, 1)
        trainer.load_weights(weights)
        with make_loader(config, manifest.root, splits, split, trainer, console) as loader:
            predictions, probes = trainer.predict(loader, config.augment), trainer.probe(loader, config.augment)
    out = out or run_dir / "evaluation" / split
    result = {
        "split": split,
        "epoch": info["epoch"],
        **summarise(predictions, splits[split], splits.class_names, probes),
    }
    write_text(out / f"{split}.json", json.dumps(result, indent=2) + "\n")
    write_predictions(out / "predictions.csv", predictions, splits[split], splits.class_names)
    console.say(f"{split}: {results_line(result, len(splits.class_names))}")
    console.say(f"written to {out}")
    return result
