"""What cannot be measured is an error that says why."""

from functools import partial

import pytest

from fastemo.evaluation.calibration import calibration
from fastemo.evaluation.metrics import compute_metrics
from fastemo.evaluation.uncertainty import interval_of_mean

metrics = partial(compute_metrics, class_names=("neutral", "calm", "happy", "sad"))


@pytest.mark.parametrize(
    ("measure", "first", "second", "message"),
    [
        *((measure, [], [], "no clips") for measure in (metrics, calibration, interval_of_mean)),
        *((measure, [0, 1], [0], "one number per clip") for measure in (metrics, calibration)),
        (metrics, [[0]], [[0]], "one number per clip"),
        (metrics, [4], [0], r"labels range 4 \.\. 4, must be 0 \.\. 3"),
        (metrics, [0], [-1], r"predictions range -1"),
        (metrics, [0.5], [0], "labels are float64, must be integers"),
        (partial(calibration, num_bins=0), [True], [0.5], "at least 1"),
        (interval_of_mean, [True], ["a", "b"], "one per clip"),
        (partial(interval_of_mean, level=1.0), [True], ["a"], "between 0 and 1"),
        (partial(interval_of_mean, num_resamples=0), [True], ["a"], "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_an_error(measure, first, second, message):
    with pytest.raises(ValueError, match=message):
        measure(first, second)
