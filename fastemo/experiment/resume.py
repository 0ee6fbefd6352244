"""Resuming: which run a command line resumes, whether that is allowed, and from which checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastemo.config import RunConfig, config_leaves, read_config
from fastemo.console import Console
from fastemo.corpus.clip import class_name
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.corpus.splits import Splits
from fastemo.inference.runs import LATEST, config_of, find_run
from fastemo.training.config import TrainConfig
from fastemo.training.progress import Progress

if TYPE_CHECKING:
    from fastemo.training.checkpoint import Checkpoint

_TIME = r"\d{8}-\d{6}"  # in the folder name of an unnamed run
_MOST_NAMES = 5
# Keys that may differ from the run's own configuration: paths, data loading, when to save and when to stop.
_MAY_CHANGE = re.compile(
    r"name|runs_dir|resume|store\..+|video\.(prefetch_batches|decode_threads)|"
    r"corpus\.(root|verify|on_error|max_dropped|max_rejected)|"
    r"train\.(checkpoint_minutes|keep|trackers|epochs|early_stop_patience|batch_size|accumulate_steps)"
)
# Fields of a clip that another file of the same name would change; copying a corpus only changes times.
_LABEL_FIELDS = (
    "emotion",
    "actor",
    "modality",
    "channel",
    "intensity",
    "statement",
    "repetition",
    "split",
    "subject",
    "columns",
)
_CLIP_FIELDS = ("emotion", "num_frames", "width", "height", "codec", "size_bytes")


def resolve(arguments: Sequence[str], *, prog: str | None = None) -> tuple[RunConfig, Path | None]:
    """The configuration of a command line, and the folder of the run to resume.

    With `--resume` the command line overrides the run's own configuration. `model.weights: latest` becomes the folder
    of the newest finished run; on resuming it stands for the run's own weights.

    Raises:
        ValueError: There is no such run, or the command line changes its settings; the message names the keys.
    """
    config = read_config(arguments, prog=prog)
    run_dir = _run_to_resume(config)
    if run_dir is None:
        return _with_weights(config), None
    saved = run_dir / "config.yaml"
    if saved.is_file():
        own = config_of(run_dir)
        config = _with_weights(read_config(["--config", str(saved), *arguments], prog=prog), own.model.weights)
        if config.model.architecture is None:  # the hub's, which the run has saved
            config = replace(config, model=replace(config.model, architecture=own.model.architecture))
        check_same(own, config, run_dir)
    else:
        config = _with_weights(config)
    return replace(config, name=run_dir.name, runs_dir=run_dir.parent), run_dir


def _run_to_resume(config: RunConfig) -> Path | None:
    """The folder that `resume` means; `None`: nothing is to be resumed, or `auto` found nothing.

    Raises:
        ValueError: The named run does not exist.
    """
    if config.resume is None:
        return None
    if config.resume != "auto":
        return _named("--resume", config.resume, config.runs_dir)
    if config.name is not None:
        folder = config.runs_dir / config.name
        return folder if folder.is_dir() else None
    pattern = re.compile(re.escape(config.model.name) + "-" + _TIME)
    if not config.runs_dir.is_dir():
        return None
    return max((it for it in config.runs_dir.iterdir() if it.is_dir() and pattern.fullmatch(it.name)), default=None)


def _with_weights(config: RunConfig, own: Path | None = None) -> RunConfig:
    """The configuration with a folder where `model.weights` is `latest`: `own`, or that of the newest finished run."""
    weights = config.model.weights
    if weights is None or weights.name != LATEST or weights.exists():
        return config
    found = own or _named("--model.weights", weights, config.runs_dir)
    return replace(config, model=replace(config.model, weights=found))


def _named(option: str, name: Path | str, runs_dir: Path) -> Path:
    try:
        return find_run(name, runs_dir)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from error


def check_same(own: RunConfig, asked: RunConfig, run_dir: Path) -> None:
    """Refuse to resume a run with other settings than it was started with.

    Raises:
        ValueError: They differ; the message names the keys and both values.
    """
    before, now = dict(config_leaves(own)), dict(config_leaves(asked))
    changed = [key for key in before if before[key] != now[key] and not _MAY_CHANGE.fullmatch(key)]
    if own.train.schedule in ("onecycle", "cosine") and own.train.epochs != asked.train.epochs:
        changed.append("train.epochs")  # the schedule depends on it
    if changed:
        listed = "; ".join(f"{key} was {before[key]} and is {now[key]}" for key in changed)
        why = f" (the {own.train.schedule} schedule spans all epochs)" if "train.epochs" in changed else ""
        raise ValueError(
            f"run {run_dir} cannot be resumed with another configuration: {listed}{why}. Start a new run; with "
            f"--model.weights {run_dir} it starts from the weights of this one"
        )


def epochs_to_extend(config: RunConfig, run_dir: Path) -> int | None:
    """The epochs that a finished run was trained, if the configuration asks for more; `None`: for its own number.

    Raises:
        ValueError: It asks for another number, but for no more than were trained.
    """
    if config.train.epochs == read_config(["--config", str(run_dir / "config.yaml")]).train.epochs:
        return None
    trained = len((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    if config.train.epochs <= trained:
        raise ValueError(
            f"run {run_dir} is finished after {trained} epochs: to train it further, set train.epochs to more than "
            f"{trained}, not {config.train.epochs}"
        )
    return trained


def restart_patience(chosen: Checkpoint, config: TrainConfig, console: Console) -> None:
    """Count the epochs without a better validation accuracy anew if early stopping ended the run at a checkpoint."""
    progress = Progress.restored(chosen.state["progress"])
    if progress.stopped_early(config):
        progress.epochs_without_gain = 0
        chosen.state["progress"] = progress.as_dict()
        console.say(
            f"early stopping had ended the run after epoch {chosen.info['epoch']}: epochs without a better validation "
            f"accuracy are counted anew"
        )


def check_same_corpus(own: Manifest, found: Manifest, run_dir: Path) -> Manifest:
    """Refuse to resume a run with other clips than it was started with; return these with the run's own labels.

    A version may label the same path otherwise than the one before, which must not move a clip to another split.

    Raises:
        ValueError: They differ; the message names some of them.
    """
    before, now = ({clip.key: clip for clip in manifest.clips} for manifest in (own, found))
    troubles = [f"{key} is missing" for key in before if key not in now]
    troubles += [f"{key} is new" for key in now if key not in before]
    for key in sorted(before.keys() & now.keys()):
        one, other = before[key], now[key]
        if class_name(one.emotion) == class_name(other.emotion):
            other = now[key] = replace(other, **{name: getattr(one, name) for name in _LABEL_FIELDS})
        changed = [name for name in _CLIP_FIELDS if getattr(one, name) != getattr(other, name)]
        # Version 0.1.0 did not record it, and trained on pictures as they are stored.
        changed += ["orientation"] if max(1, other.orientation) != max(1, one.orientation) else []
        changed += ["pixel_aspect"] if other.pixel_aspect != one.pixel_aspect else []
        if changed:
            values = ", ".join(f"{name} {getattr(one, name)} -> {getattr(other, name)}" for name in changed)
            troubles.append(f"{key} changed ({values})")
    if troubles:
        more = f" and {len(troubles) - _MOST_NAMES} more" if len(troubles) > _MOST_NAMES else ""
        raise ValueError(
            f"run {run_dir} was started with another corpus: {'; '.join(troubles[:_MOST_NAMES])}{more}. Put the clips "
            f"back as they were, or start a new run"
        )
    return replace(found, clips=tuple(now.values()))


def with_classes_of(weights: Mapping[str, Any], splits: Splits) -> Splits:
    """The splits with the classes of a checkpoint's outputs.

    Version 0.1.0 gave every model RAVDESS's eight if the corpus's classes are among them.
    """
    last = max((name for name in weights if re.fullmatch(r"classifier\.(\d+\.)?bias", name)), default=None)
    is_fixed = last is not None and len(weights[last]) == len(EMOTIONS) and set(splits.class_names) <= set(EMOTIONS)
    return replace(splits, class_names=EMOTIONS) if is_fixed else splits


def recover(run_dir: Path, console: Console) -> Checkpoint | None:
    """The checkpoint to resume from, with `checkpoints/best` repaired; `None`: nothing was saved yet.

    Raises:
        ValueError: There are checkpoints, but none is intact.
    """
    from fastemo.training import checkpoint  # loads torch, which `resolve` does not need

    found = checkpoint.recover(run_dir / "checkpoints")
    for note in found.notes:
        console.say(note)
    chosen = found.checkpoint
    if chosen is None:
        if found.notes:
            raise ValueError(f"{run_dir}: no checkpoint is intact; start a new run")
        return None
    try:
        progress = Progress.restored(chosen.state["progress"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {chosen.folder} does not fit this version of fastemo: {error}") from error
    is_at_end = chosen.info.get("is_epoch_end", False)
    best = run_dir / "checkpoints" / "best"
    if progress.best_epoch and not (is_at_end and chosen.info["epoch"] == progress.best_epoch):
        try:
            checkpoint.verify(best)
        except checkpoint.CheckpointError as error:
            console.say(f"{error}; the checkpoint of epoch {chosen.info['epoch']} replaces it until a better one")
            checkpoint.copy(chosen.folder, best)
            progress.forget_best()
            chosen.state["progress"] = progress.as_dict()
    return chosen
