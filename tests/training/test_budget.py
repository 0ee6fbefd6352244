"""A training in a given time, by a clock that the test turns."""

import pytest
import torch

from fastemo.errors import UserError
from fastemo.training.config import TrainConfig
from fastemo.training.progress import Progress
from fastemo.training.recipe.budget import _RESULTS_SECONDS, POSITIONS, EpochBudget, TimeBudget
from fastemo.training.recipe.optimizer import make_scheduler


class World:
    """A training whose updates and evaluations take the given seconds."""

    def __init__(self, seconds, *, update, evaluation, steps_per_epoch, before=10.0):
        self.now, self.said, self.planned = before, [], 0
        self._update, self._evaluation = update, evaluation
        self.budget = TimeBudget(
            config=TrainConfig(),
            seconds=seconds,
            started=0.0,
            steps_per_epoch=steps_per_epoch,
            val_passes=0.2,
            test_passes=1.0,
            loading="decoding",
            agree=self._agree,
            say=self.said.append,
            clock=lambda: self.now,
        )

    def _agree(self, plan):
        self.planned += 1
        return plan()

    def train(self, most_updates=10**9):
        """Train to the end, or for so many updates; the updates of every epoch."""
        budget, epochs = self.budget, []
        while not budget.is_over(Progress()):
            budget.begin_epoch()
            epochs.append(0)
            for _ in range(budget.steps_per_epoch):
                seconds = self._update(budget.done)
                self.now, epochs[-1] = self.now + seconds, epochs[-1] + 1
                if budget.update(seconds / 10):
                    break
                if budget.done == most_updates:
                    return epochs
            self.now += self._evaluation
            budget.end_epoch()
        return epochs

    @property
    def end(self):
        """When the results are written; the test predicts five times as many clips as an evaluation."""
        return self.now + 5 * self._evaluation + _RESULTS_SECONDS


@pytest.mark.parametrize(("steps_per_epoch", "evaluation"), [(1, 0.3), (3, 4.0), (30, 4.0), (400, 20.0), (1500, 50.0)])
def test_it_ends_in_time_and_uses_it(steps_per_epoch, evaluation):
    """Of 1,500 steps not one epoch fits: its evaluation, and the test's, are guessed from an update."""
    world = World(600, update=lambda _: 0.5, evaluation=evaluation, steps_per_epoch=steps_per_epoch)
    epochs = world.train()
    slack = 0.5 if steps_per_epoch > 1 else 0.8
    assert 600 - slack - 1e-6 <= world.end <= 600 + 1e-6
    assert epochs[:-1] == [steps_per_epoch] * (len(epochs) - 1)
    assert len(epochs) == world.budget.epochs


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_machine_that_changes_its_speed_ends_in_time_too(factor):
    """In the middle of the training every update begins to take another time."""
    world = World(600, update=lambda done: 0.5 * (factor if done > 400 else 1), evaluation=1.0, steps_per_epoch=40)
    world.train()
    assert world.end == pytest.approx(600, rel=0.02)


def test_the_first_plan_is_reported_with_what_binds():
    world = World(300, update=lambda _: 0.25, evaluation=1.0, steps_per_epoch=100)
    world.train()
    (line,) = world.said
    assert line.startswith("5 minutes: an update takes 0.25 s, 10% of it waiting for clips, so the step binds; about ")
    assert line.endswith(" epochs fit, in one cycle")


def test_it_plans_after_the_same_updates_whatever_the_clock_says():
    """Every process plans with the first, so all must do so at the same update."""
    places = []
    for seconds in (0.1, 0.4):
        world = World(600, update=lambda _, it=seconds: it, evaluation=1.0, steps_per_epoch=24)
        found = []
        world.budget.agree = lambda plan, world=world, found=found: (found.append(world.budget.done), plan())[1]
        world.train(most_updates=60)
        places.append(found)
    assert places[0] == places[1] == [4, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 51, 54, 57, 60]


def test_a_time_that_is_too_short_is_refused():
    world = World(60, update=lambda _: 1.0, evaluation=20.0, steps_per_epoch=300)
    with pytest.raises(
        UserError, match=r"--minutes 1 is too short: the test takes about 1.7 minutes, .* from minute 0.2"
    ):
        world.train()
    assert World(25, update=lambda _: 1.0, evaluation=0.1, steps_per_epoch=6).train() == [6, 4]


def test_a_resumed_run_has_the_time_that_is_left():
    one = World(600, update=lambda _: 0.5, evaluation=4.0, steps_per_epoch=30)
    one.train(most_updates=100)
    other = World(600, update=lambda _: 0.5, evaluation=4.0, steps_per_epoch=30)
    other.budget.load_state_dict(one.budget.state_dict())
    assert (other.budget.done, other.budget.updates) == (100, one.budget.updates)
    assert other.budget.elapsed == pytest.approx(one.now + other.now)
    # It resumes within an epoch of 30 updates, of which 10 were done.
    other.train()
    assert other.end + one.now == pytest.approx(600, abs=10)


def test_one_cycle_is_spread_over_the_planned_updates():
    """As of a scheduler that knows their number, but for the positions, of which there are finitely many."""

    def cycle(total):
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, make_scheduler(TrainConfig(schedule="onecycle", lr=0.1), optimizer, total)

    world = World(600, update=lambda _: 1.0, evaluation=0.0, steps_per_epoch=100)
    world.budget.updates = 250
    (ours, scheduler), (theirs, reference) = cycle(POSITIONS), cycle(250)
    for done in range(250):
        world.budget.done = done
        ours.step()
        theirs.step()
        world.budget.step(scheduler)
        reference.step()
        for name in ("lr", "betas"):
            assert ours.param_groups[0][name] == pytest.approx(theirs.param_groups[0][name], rel=0.03, abs=2e-5), done
    world.budget.done, world.budget.updates = 250, 200  # planned anew: over
    world.budget.step(scheduler)
    assert ours.param_groups[0]["lr"] < 1e-5


def test_without_a_time_the_configurations_epochs_count():
    budget = EpochBudget(TrainConfig(epochs=2))
    assert (budget.epochs, budget.update(0.0), budget.state_dict()) == (2, False, {})
    assert [budget.is_over(Progress(epoch=it)) for it in (1, 2, 3)] == [False, False, True]
