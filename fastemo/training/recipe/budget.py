"""How long a training lasts: its epochs, or what fits into a given time, planned anew several times an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastemo.errors import UserError
from fastemo.training.config import TrainConfig
from fastemo.training.progress import Progress

POSITIONS = 10_000  # of the schedule, which the planned updates are spread over
_PLANS_PER_EPOCH = 8
_FIRST_PLAN = 4  # updates before the first plan; the first update allocates memory and is not counted
_FORWARD_SHARE = 1 / 3  # of an update, whose backward pass takes twice the forward's time
_RESULTS_SECONDS = 4.0  # figures, tables and a few clips with Grad-CAM
_SAVED = ("updates", "done", "_timed", "_training", "_waited", "_evaluation")


@dataclass
class EpochBudget:
    """The epochs of a configuration, or fewer by early stopping."""

    config: TrainConfig

    @property
    def epochs(self) -> int:
        """Epochs of the whole training, as far as is known."""
        return self.config.epochs

    def is_over(self, progress: Progress) -> bool:
        """Whether the training is over, between epochs."""
        return progress.is_over(self.config)

    def begin_epoch(self) -> None:
        """Before an epoch's first update."""

    def update(self, waited: float) -> bool:
        """After an update, which waited so many seconds for its clips; whether it was the training's last."""
        return False

    def step(self, scheduler: Any) -> None:
        """Set the learning rate of the next update, by a schedule that is stepped once per update."""
        scheduler.step()

    def end_epoch(self) -> None:
        """After the evaluation that follows an epoch's last update."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@dataclass(kw_only=True)
class TimeBudget(EpochBudget):
    """The time of a run, what was measured in it, and the plan that follows.

    Attributes:
        seconds: From the start of the first process to the end of the test.
        started: When this process started, on `clock`.
        steps_per_epoch: Updates of an epoch.
        val_passes, test_passes: Clips that an epoch's evaluation predicts, and the final test in all its passes, both
            as a share of the training clips.
        loading: What a wait for clips is due to.
        agree: Gets the first process's plan to all of them.
        say: Gets the message about the first plan.
        updates: Planned for the whole training, whose last epoch may be partial; before the first plan a guess, by
            which the learning rate rises.
        done: Updates done.
    """

    seconds: float
    started: float
    steps_per_epoch: int
    val_passes: float
    test_passes: float
    loading: str
    agree: Callable[[Callable[[], int]], int]
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    updates: int = 0
    done: int = 0
    _spent: float = 0.0  # in earlier sessions
    _timed: int = 0
    _training: float = 0.0
    _waited: float = 0.0
    _evaluation: float | None = None
    _mark: float = 0.0

    def __post_init__(self) -> None:
        self.updates = 10 * self.steps_per_epoch

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far."""
        return self._spent + self.clock() - self.started

    @property
    def epochs(self) -> int:
        return -(-self.updates // self.steps_per_epoch)

    def is_over(self, progress: Progress) -> bool:
        return self.done >= self.updates

    def begin_epoch(self) -> None:
        self._mark = self.clock()

    def update(self, waited: float) -> bool:
        now, self.done = self.clock(), self.done + 1
        if self.done > 1:
            self._training, self._timed = self._training + now - self._mark, self._timed + 1
            self._waited += waited
        self._mark = now
        # When to plan depends on nothing but the number of updates: every process plans with the first.
        place = self.done % self.steps_per_epoch
        is_due = self.done > _FIRST_PLAN and place % max(1, self.steps_per_epoch // _PLANS_PER_EPOCH) == 0
        if place and (is_due or self.done == _FIRST_PLAN):
            self._plan()
        if self.done == _FIRST_PLAN:
            self.say(self._report())
        return self.done >= self.updates

    def step(self, scheduler: Any) -> None:
        # One cycle is a function of its position alone.
        scheduler.last_epoch = min(POSITIONS, round(POSITIONS * (self.done + 1) / self.updates)) - 1
        scheduler.step()

    def end_epoch(self) -> None:
        self._evaluation = self.clock() - self._mark
        self._plan()

    def _plan(self) -> None:
        self.updates = self.agree(self.planned)

    def _report(self) -> str:
        share = self._waited / self._training
        binds = f"{self.loading} binds" if share > 1 / 2 else "the step binds"
        epochs = self.updates / self.steps_per_epoch
        return (
            f"{self.seconds / 60:g} minutes: an update takes {self._update_seconds:.2g} s, {share:.0%} of it waiting "
            f"for clips, so {binds}; about {epochs:.1f} epochs fit, in one cycle"
        )

    @property
    def _update_seconds(self) -> float:
        """Mean duration of an update, with the wait for its clips."""
        return self._training / self._timed

    def planned(self) -> int:
        """The updates of the whole training that end in time for the test.

        Raises:
            UserError: The first plan finds no time for any.
        """
        if not self._timed:
            return self.updates
        epoch = self.steps_per_epoch * self._update_seconds
        evaluation, test = (share * epoch * _FORWARD_SHARE for share in (self.val_passes, self.test_passes))
        if self._evaluation is not None and self.val_passes:
            evaluation, test = self._evaluation, self._evaluation * self.test_passes / self.val_passes
        left = self.seconds - self.elapsed - test - _RESULTS_SECONDS
        if left < evaluation and self.done == _FIRST_PLAN:
            raise UserError(
                f"--minutes {self.seconds / 60:g} is too short: the test takes about {test / 60:.1f} minutes, and the "
                f"training could begin from minute {self.elapsed / 60:.1f}; give more"
            )
        return max(1, self.done + self._fitting(left, evaluation))

    def _fitting(self, left: float, evaluation: float) -> int:
        """Updates that fit into the seconds left, each epoch's followed by its evaluation."""
        more = 0
        while True:
            rest = self.steps_per_epoch - (self.done + more) % self.steps_per_epoch
            seconds = rest * self._update_seconds + evaluation
            if left < seconds:
                return more + max(0, math.floor((left - evaluation) / self._update_seconds))
            more, left = more + rest, left - seconds

    def state_dict(self) -> dict[str, Any]:
        return {"_spent": self.elapsed, **{name: getattr(self, name) for name in _SAVED}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("_spent", *_SAVED):
            setattr(self, name, state[name])
