"""One run: from a configuration to a trained and tested model in a run folder."""

from __future__ import annotations

import csv
import errno
import io
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fastemo.config import RunConfig, config_leaves, write_config
from fastemo.console import Console
from fastemo.corpus.clip import Clip, Root
from fastemo.corpus.identical import with_identical
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.corpus.prepare import prepare_corpus
from fastemo.corpus.protocol import split_corpus
from fastemo.corpus.splits import Splits
from fastemo.errors import Stopped
from fastemo.evaluation.calibration import fit_temperature
from fastemo.evaluation.evaluate import Predictions
from fastemo.experiment.minutes import time_budget
from fastemo.experiment.results import best_line, calibration_line, results_line, say_left_to_pyav, write_report
from fastemo.experiment.resume import check_same_corpus, epochs_to_extend, recover, restart_patience, with_classes_of
from fastemo.json_files import read_json
from fastemo.machine import only_one, write_text
from fastemo.models.build import build_model, checked
from fastemo.models.weights import weights_file
from fastemo.report.schema import Result
from fastemo.training import checkpoint, faults
from fastemo.training.checkpoint import Checkpoint
from fastemo.training.stopping import StopSignals
from fastemo.training.trainer import Trainer
from fastemo.video.faces.boxes import with_faces
from fastemo.video.loader import ClipLoader


def run(
    config: RunConfig, run_dir: Path | None = None, signals: StopSignals | None = None, started: float | None = None
) -> Path:
    """Train, test and write the results; return the run folder.

    Args:
        run_dir: The run to resume: an interrupted one, or a finished one if `config` has more epochs.
        signals: Checked if they are installed.
        started: When the process started, on `time.monotonic`, for `minutes`; `None`: now.

    Raises:
        ValueError: The configuration, the corpus or the run folder is not usable; nothing was trained.
        DecodeError: A clip no longer decodes.
        WeightsUnavailable: Pretrained weights are not available.
        UserError: As raised by `Trainer.fit`.
        Stopped: By a signal.
    """
    started = time.monotonic() if started is None else started
    with Trainer(config.train, seed=config.seed, signals=signals) as trainer, trainer.plain_faults():
        console = Console(show=trainer.is_main)
        asked, config = config, trainer.on_main(lambda: config)
        if (asked.train, asked.seed) != (config.train, config.seed):
            raise ValueError("this process has other options than the first; start all with the same")
        with ExitStack() as stack:
            found = trainer.on_main(lambda: _open(config, run_dir, stack, console))
            if found.is_finished:
                console.say(f"run {found.folder} is already finished")
                return found.folder
            try:
                _run(config, trainer, found, stack, console, started)
            except Stopped as stop:
                if found.folder.is_dir():
                    stop = Stopped(stop.number, f"resume with the same command and --resume {found.folder}")
                _log_end(console, str(stop))
                raise stop from None
            except Exception as error:
                _log_end(console, f"ended by {type(error).__name__}: {error}")
                # Only errors of opening a file contain its name; everything written here is in the run folder.
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
                    raise faults.not_written(error, found.folder) from error
                raise
    return found.folder


def _log_end(console: Console, text: str) -> None:
    """Write the last line of the log, unless the disk is full or the folder was removed."""
    with suppress(OSError):
        console.log(text)


@dataclass(frozen=True)
class RunFolder:
    """A run folder, locked by this process.

    Attributes:
        is_new: Whether it was created now.
        is_finished: Whether the test is done, and no further epochs are asked for.
        checkpoint: The checkpoint to resume from.
        former: Of a finished run that is trained further: the new name of its `test.json`.
    """

    folder: Path
    is_new: bool
    is_finished: bool = False
    checkpoint: Checkpoint | None = None
    former: Path | None = None


def _open(config: RunConfig, run_dir: Path | None, stack: ExitStack, console: Console) -> RunFolder:
    """Create a run folder, or open that of a run to resume, and lock it until the stack exits."""
    folder = run_dir or _make_run_dir(config)
    stack.enter_context(only_one(folder, f"run folder {folder}"))
    if run_dir is None:
        return RunFolder(folder, is_new=True)
    is_tested = (folder / "test.json").is_file()
    trained = epochs_to_extend(config, folder) if is_tested else None
    if is_tested and trained is None:
        return RunFolder(folder, is_new=False, is_finished=True)
    found = recover(folder, console)
    if is_tested and found is None:
        raise ValueError(f"{folder} has no checkpoint to train further from; start a new run")
    # With the former results of this epoch the run was killed before its next checkpoint.
    if found is not None and (is_tested or _former(folder, found.info["epoch"]).is_file()):
        restart_patience(found, config.train, console)
    return RunFolder(
        folder, is_new=False, checkpoint=found, former=None if trained is None else _former(folder, trained)
    )


def _former(folder: Path, epoch: int) -> Path:
    """The name of the test results of a run that was trained further after this epoch."""
    return folder / f"test-epoch-{epoch}.json"


def _run(
    config: RunConfig, trainer: Trainer, found: RunFolder, stack: ExitStack, console: Console, started: float
) -> None:
    run_dir = found.folder
    try:
        root, splits, loaders = _prepare(config, trainer, found, console, started)
        stack.enter_context(trainer.tracked(config_leaves(config), run_dir, console))
    except BaseException:
        # Nothing was trained yet: free the name for the next attempt.
        if trainer.is_main and found.is_new:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
    for loader in loaders.values():
        stack.callback(loader.close)
    trainer.fit(
        loaders["train"],
        loaders["val"],
        config.augment,
        run_dir,
        console,
        test=loaders["test"] if config.train.test_every_epoch else None,
        resume=found.checkpoint,
        max_dropped=config.corpus.max_dropped if config.corpus.on_error == "drop" else None,
    )
    _test(config, trainer, run_dir, root, splits, loaders, console)
    say_left_to_pyav([*loaders.values()], console)
    if count := len(trainer.progress.dropped):
        console.say(f"{count} clips did not decode and were left out, see {run_dir / 'dropped.csv'}")
    console.say(f"run folder: {run_dir}")


def _test(
    config: RunConfig,
    trainer: Trainer,
    run_dir: Path,
    root: Root,
    splits: Splits,
    loaders: dict[str, ClipLoader],
    console: Console,
) -> None:
    """Test the best checkpoint on all processes; the main one writes the results."""
    # Only the main process reads and writes the run folder: other hosts need no access to it.
    weights, info = trainer.on_main(lambda: checkpoint.load_model(run_dir / "checkpoints" / "best"))
    trainer.load_weights(weights)
    val, test = loaders["val"], loaders["test"]
    validation, predictions = (trainer.predict(it, config.augment, views=config.evaluate.views) for it in (val, test))
    probes = trainer.probe(test, config.augment)
    trainer.note_dropped({"val": val, "test": test}, 0, run_dir)
    if trainer.is_main:
        predictions = replace(predictions, temperature=_temperature(validation, console))
        model = trainer.bare_model
        result = write_report(
            config, run_dir, root, splits, trainer.history, predictions, probes, model, epoch=info["epoch"]
        )
        console.say(f"test: {results_line(result)}")
        for name, group in result["groups"]["corpus"].items():
            scores = f"accuracy {group['accuracy']:.1%}, UAR {group['uar']:.1%}"
            console.say(f"  {name}: {scores} on {group['num_clips']} clips")
        for line in filter(None, (calibration_line(result), best_line(result))):
            console.say(line)


def _temperature(validation: Predictions, console: Console) -> float:
    """The temperature that fits the validation split; 1, with a message, if none can be fitted."""
    try:
        return fit_temperature(validation.logits, validation.labels)
    except ValueError as error:
        console.say(f"probabilities are not calibrated on the validation split: {error}")
        return 1.0


def _prepare(
    config: RunConfig, trainer: Trainer, found: RunFolder, console: Console, started: float
) -> tuple[Root, Splits, dict[str, ClipLoader]]:
    """Prepare corpus, splits, loaders, and the model on its device."""
    manifest = trainer.on_main(lambda: _prepare_folder(config, found, console))
    if trainer.rank != trainer.local_rank:  # another host, whose files may be copies
        manifest = manifest.rebased(manifest.root)
    splits = split_corpus(manifest, config.corpus)
    if found.checkpoint:
        splits = with_classes_of(found.checkpoint.model, splits)
    if trainer.is_main:
        splits = with_identical(splits, manifest.root)
        _show_splits(splits, found.folder, console)
    trainer.seed_everything(epoch=0)
    # A checkpoint holds every weight: nothing is downloaded.
    model_config = replace(config.model, pretrained=False, weights=None) if found.checkpoint else config.model
    same_classes = trainer.on_main(lambda: _has_classes(model_config.weights, splits.class_names))
    model = build_model(model_config, len(splits.class_names), same_classes=same_classes, say=console.say)
    loaders = {
        name: make_loader(
            config, manifest.root, splits[name], splits.class_names, trainer, console, is_train=name == "train"
        )
        for name in ("train", "val", "test")
    }
    train = loaders["train"]
    console.say(
        f"{config.model.name}: {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters, "
        f"{trainer.speed} on {trainer.device}, {trainer.world_size} process{'es' * (trainer.world_size > 1)}"
    )
    console.say(f"decoding by {train.backend} ({train.backend_reason}); {train.kept.description}")
    if train.num_padding:
        console.say(
            f"{train.num_padding} clips are repeated per epoch, with weight 0, for equal shares of the processes"
        )
    budget = time_budget(config, trainer, loaders, console, started)
    for note in (trainer.speed.note, trainer.prepare(model, len(train), train.class_counts, budget)):
        if note:
            console.say(note)
    return manifest.root, splits, loaders


def _prepare_folder(config: RunConfig, found: RunFolder, console: Console) -> Manifest:
    """Scan the corpus and write configuration and manifest; on resuming, compare the clips first.

    The results of a finished run that is trained further get another name, which makes it an unfinished run.
    """
    run_dir = found.folder
    console.log_to(run_dir / "log.txt")
    console.log(f"command: {shlex.join(sys.argv)}")
    complete = replace(config, resume=None, model=checked(config.model))
    if found.former is None:
        write_config(complete, run_dir / "config.yaml")
    if found.checkpoint is None and config.model.weights is not None:
        _check_start(config.model.weights)
    manifest = prepare_corpus(config.corpus, console)
    own = None if found.checkpoint is None else read_manifest(run_dir / "manifest.csv", manifest.root)
    manifest = with_faces(manifest, config.video, config.faces.weights, console, known=own)
    if found.checkpoint is not None and own is not None:
        manifest = check_same_corpus(own, manifest, run_dir)
        console.say(f"resuming after epoch {found.checkpoint.info['epoch']}, clip {found.checkpoint.info['clips']}")
    if found.former is not None:
        # In this order: if the process is killed between the two, the same command still trains the run further.
        (run_dir / "test.json").replace(found.former)
        write_config(complete, run_dir / "config.yaml")
        console.say(f"training further to epoch {config.train.epochs}; the results so far are in {found.former.name}")
    manifest.write_csv(run_dir / "manifest.csv")
    return manifest


def _check_start(weights: Path) -> None:
    """Raises:
    FileNotFoundError, ValueError: `model.weights` is absent, or in a checkpoint that is damaged.
    """
    folder = weights_file(weights).parent
    if weights.is_dir() or (folder / checkpoint.CHECKSUMS_FILE).is_file():
        try:
            checkpoint.verify(folder)
        except checkpoint.CheckpointError as error:
            raise ValueError(f"model.weights: {error}; name another checkpoint of the run") from error


def _has_classes(weights: Path | None, class_names: Sequence[str]) -> bool:
    """Whether `model.weights` is a run folder of these classes; a file, or a run without a test, has none by name."""
    tested = weights / "test.json" if weights is not None else None
    return tested is not None and tested.is_file() and [*read_json(tested, Result).per_class] == [*class_names]


def make_loader(
    config: RunConfig,
    root: Root,
    clips: Sequence[Clip],
    class_names: Sequence[str],
    trainer: Trainer,
    console: Console,
    *,
    is_train: bool = False,
) -> ClipLoader:
    """A loader of this process's share of the clips."""
    return ClipLoader(
        clips,
        root,
        class_names,
        config.video,
        batch_size=config.train.batch_size,
        seed=config.seed,
        shuffle=is_train,
        oversample=is_train and config.train.oversample,
        mixed=is_train and config.augment.mixes,
        even=is_train,
        rank=trainer.rank,
        world_size=trainer.world_size,
        device=trainer.device,
        store=config.store,
        on_error=config.corpus.on_error,
        say=console.say,
    )


def _make_run_dir(config: RunConfig) -> Path:
    name = config.name or f"{config.model.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = config.runs_dir / name
    try:
        run_dir.mkdir(parents=True)
    except FileExistsError as error:
        raise ValueError(
            f"run folder {run_dir} exists and is never overwritten; choose another --name, or resume it with "
            f"--resume {run_dir}"
        ) from error
    except OSError as error:
        raise faults.not_written(error, run_dir) from error
    return run_dir


def _show_splits(splits: Splits, run_dir: Path, console: Console) -> None:
    console.table(f"protocol {splits.protocol}", table := splits.count_table())
    for note in splits.notes:
        console.say(f"note: {note}")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(run_dir / "splits.csv", text.getvalue())
