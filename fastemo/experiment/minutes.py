"""`--minutes N`: what a run does before its training, so that it can tell how many epochs fit."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastemo.config import RunConfig
from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.evaluation.probes import PROBES
from fastemo.training.recipe.budget import TimeBudget
from fastemo.training.trainer import Trainer
from fastemo.video.loader import ClipLoader


def time_budget(
    config: RunConfig, trainer: Trainer, loaders: Mapping[str, ClipLoader], console: Console, started: float
) -> TimeBudget | None:
    """Cache every clip of the run, so that all epochs take the same time, and begin to count; `None`: without limit.

    Args:
        loaders: `train`, `val` and `test`.
        started: When the process started, on `time.monotonic`.

    Raises:
        UserError: The time is over before the training.
        DecodeError: A clip does not decode.
    """
    if config.minutes is None:
        return None
    train, val, test = (len(loaders[name].clips) for name in ("train", "val", "test"))
    seconds, views = config.minutes * 60, config.evaluate.views
    before, done, is_late = time.monotonic(), 0, False
    for loader in loaders.values() if loaders["train"].kept.tier != "none" else ():
        for batch in loader.epoch():
            done += int((~batch.is_padding).sum())
            is_late = trainer.on_main(lambda: time.monotonic() - started > seconds)
            if is_late:
                break
    if is_late:
        minutes = (before - started + (time.monotonic() - before) * (train + val + test) / max(done, 1)) / 60
        raise UserError(
            f"--minutes {config.minutes:g} is too short: decoding the clips takes until minute {minutes:.1f}; give "
            f"more, or run the same command again, which finds the clips that are cached by now"
        )
    passed = time.monotonic() - before
    console.say(
        f"{done} clips decoded or read from the store in {passed:.1f} s ({done / max(passed, 1e-3):.1f} clips/s)"
    )
    per_epoch = loaders["train"].clips_per_epoch
    return TimeBudget(
        config=config.train,
        seconds=seconds,
        started=started,
        steps_per_epoch=-(-len(loaders["train"]) // config.train.accumulate_steps),
        val_passes=(val + config.train.test_every_epoch * test) / per_epoch,
        test_passes=(views * val + (views + len(PROBES)) * test) / per_epoch,
        loading="decoding" if loaders["train"].kept.tier == "none" else "loading cached clips",
        agree=trainer.on_main,
        say=console.say,
    )
