"""Testing a finished run again, on one of its own splits or on another corpus."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastemo.config import RunConfig
from fastemo.console import Console
from fastemo.corpus.clip import Clip, Root, class_name, folders
from fastemo.corpus.config import LABELS, CorpusConfig
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.corpus.prepare import corpus_root, named_root, prepare_corpus
from fastemo.corpus.protocol import first_file_per_take, split_corpus
from fastemo.corpus.splits import Splits
from fastemo.evaluation.calibration import temperature_of
from fastemo.evaluation.evaluate import Predictions, summarise, write_predictions
from fastemo.experiment.examples import write_examples
from fastemo.experiment.results import results_line, say_left_to_pyav
from fastemo.experiment.resume import with_classes_of
from fastemo.experiment.run import make_loader
from fastemo.inference.runs import config_of
from fastemo.machine import write_text
from fastemo.models.build import build_model
from fastemo.training import checkpoint
from fastemo.training.trainer import Trainer
from fastemo.video.faces.boxes import with_faces
from fastemo.video.faces.detector import weights_of_run


def evaluate_run(
    run_dir: Path,
    console: Console,
    *,
    split: str | None = None,
    out: Path | None = None,
    root: list[Path] | Path | None = None,
    face_weights: Path | None = None,
    **other: Any,
) -> dict[str, Any]:
    """Test the best checkpoint of a run in one process.

    Without `root`, on one of the run's own splits, as its manifest lists them; with `root` and `split`, the same, with
    the corpus at `root`. With `root` alone, on another corpus: on all its labelled clips of shared classes, one file
    per take. Clips of other classes are left out and counted, and the model chooses only among the shared classes.

    Writes `SPLIT.json` (`all.json` for another corpus) and `predictions.csv`, calibrated by the run's temperature, to
    `out`, by default `RUN/evaluation/SPLIT` (`all-FOLDER`), and replaces earlier results there.

    Args:
        split: `train`, `val` or `test`; `None` is `test` without `root`.
        face_weights, other: Of another corpus: as `load` takes them; `labels`, `subjects`, `classes`, `max_rejected`.

    Raises:
        ValueError: The run is damaged, or the other corpus shares fewer than two classes or has clips of its training.
        DecodeError: A clip no longer decodes as it did in the run.
    """
    config = config_of(run_dir)
    is_other = root is not None and split is None
    if not is_other and any(value is not None for value in other.values()):
        raise ValueError(f"{', '.join(other)} need another corpus: give its --corpus.root without --split")
    weights, info = checkpoint.load_model(run_dir / "checkpoints" / "best")
    there = config.corpus if root is None or is_other else replace(config.corpus, root=root)
    home = named_root(there) if is_other else corpus_root(there, console)  # for another corpus, its names suffice
    own = read_manifest(run_dir / "manifest.csv", home)
    own = own if is_other else _rebased(own, home, console)
    splits = with_classes_of(weights, split_corpus(own, config.corpus))
    if is_other:
        chosen = _other_corpus(config.corpus, root=root, **other)
        clips, names, head = _shared_clips(chosen, config, splits, face_weights, console)
        home, split = named_root(chosen), "all"
        where = "-".join(["all", *(folder.resolve().name for folder in folders(home).values())])
    else:
        split = where = split or "test"
        clips, names, head = splits[split], splits.class_names, {} if split == "train" else splits.about_people
    out = out or run_dir / "evaluation" / where
    with Trainer(config.train, seed=config.seed) as trainer:
        model = build_model(replace(config.model, pretrained=False, weights=None), len(splits.class_names))
        trainer.prepare(model, 1)
        trainer.load_weights(weights)
        with make_loader(config, home, clips, splits.class_names, trainer, console) as loader:
            predictions = trainer.predict(loader, config.augment, views=config.evaluate.views)
            probes = trainer.probe(loader, config.augment)
            say_left_to_pyav([loader], console)
        predictions = restricted(replace(predictions, temperature=temperature_of(run_dir)), splits.class_names, names)
        write_examples(config, out, home, clips, predictions, names, trainer.bare_model, splits.class_names)
    probes = {order: restricted(found, splits.class_names, names) for order, found in probes.items()}
    result = {"split": split, "epoch": info["epoch"], **head, **summarise(predictions, clips, names, probes)}
    _write(result, predictions, clips, names, out, console)
    return result


def _other_corpus(own: CorpusConfig, **options: Any) -> CorpusConfig:
    """A run's configuration of its corpus, with another one in its place."""
    given = {name: value for name, value in options.items() if value is not None}
    # The run's own table, expression and map of classes are about its own files.
    labels = own.labels if own.labels in [*LABELS] else "folder"
    return replace(own, **{"labels": labels, "subjects": None, "classes": None, **given})


def _rebased(own: Manifest, home: Root, console: Console) -> Manifest:
    """A run's own clips below `home`; reports those whose pixels changed since a version that took them as stored."""
    found = own.rebased(home)
    old = {clip.key for clip in own.clips if clip.orientation == 0}
    changed = [it for it in found.clips if it.key in old and not it.is_shown_as_stored]
    if changed:
        console.say(f"note: {len(changed)} clips are upright and in shape now; the run was trained on them as stored")
    return found


def _write(
    result: dict[str, Any],
    predictions: Predictions,
    clips: Sequence[Clip],
    names: Sequence[str],
    out: Path,
    console: Console,
) -> None:
    write_text(out / f"{result['split']}.json", json.dumps(result, indent=2) + "\n")
    write_predictions(out / "predictions.csv", predictions, clips, names)
    console.say(f"{result['split']}: {results_line(result)}")
    console.say(f"written to {out}")


def restricted(predictions: Predictions, class_names: Sequence[str], chosen: Sequence[str]) -> Predictions:
    """Restrict predictions to some of the classes; every label must be one of these.

    Args:
        class_names: Of the logits' columns.
        chosen: The classes to keep, in their new order.

    Returns:
        Logits [N, chosen] and labels that index `chosen`: probabilities sum to 1 over the chosen classes.
    """
    columns = [class_names.index(name) for name in chosen]
    position = np.full(len(class_names), -1)
    position[columns] = np.arange(len(columns))
    labels = position[predictions.labels]
    assert (labels >= 0).all(), "clips of other classes are left out before"
    # Not [:, columns], which is transposed in memory: sums over the classes would round differently.
    return replace(predictions, labels=labels, logits=predictions.logits.take(columns, axis=1))


def _shared_clips(
    chosen: CorpusConfig, config: RunConfig, splits: Splits, face_weights: Path | None, console: Console
) -> tuple[tuple[Clip, ...], tuple[str, ...], dict[str, Any]]:
    """The clips of another corpus that a run's model can be tested on, their classes, and notes about them."""
    weights = weights_of_run(config.faces.weights, face_weights)
    manifest = with_faces(prepare_corpus(chosen, console), config.video, weights, console)
    own = {class_name(name): name for name in splits.class_names}  # version 0.1.0 spelled classes as the folders
    found = [replace(clip, emotion=own.get(clip.emotion, clip.emotion)) for clip in manifest.clips]
    trained_on = {(clip.path, clip.size_bytes) for clip in splits.train}
    if seen := [clip.key for clip in found if (clip.path, clip.size_bytes) in trained_on]:
        raise ValueError(
            f"{len(seen)} clips of {chosen.title} were trained on, such as {seen[0]}: it is the run's own corpus; add "
            f"--split test, to test on unseen clips only"
        )
    known, there = {clip.emotion for clip in splits.train}, {clip.emotion for clip in found}
    names = tuple(name for name in splits.class_names if name in known & there)
    if len(names) < 2:
        raise ValueError(
            f"{chosen.title} has the classes {', '.join(sorted(there))}, the run was trained on "
            f"{', '.join(sorted(known))}: a test needs at least two shared classes"
        )
    files = first_file_per_take(found)
    clips = tuple(clip for clip in files if clip.emotion in names)
    left_out = Counter(clip.emotion for clip in files if clip.emotion not in names)
    head: dict[str, Any] = {
        "corpus": chosen.title,
        "trained_on": config.corpus.title,
        "classes": list(names),
        "left_out": dict(sorted(left_out.items())),
    }
    for emotion, count in head["left_out"].items():
        console.say(f"note: {count} clips of {emotion} left out: not a class of both corpora")
    if unheard := sorted(known - set(names)):
        console.say(f"note: the model cannot choose {', '.join(unheard)}: not in {chosen.title}")
    return clips, names, head
