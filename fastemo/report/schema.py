"""Schemas of the JSON files of runs and studies, as far as figures and the page need them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastemo.json_files import Record

Text = Annotated[str, Field(max_length=10_000)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Share, Share]
Difference = Annotated[float, Field(ge=-1, le=1)]
Machine = dict[Text, Text | Count | None]
Setting = bool | Annotated[int, Field(gt=-(2**63), lt=2**63)] | float | Text | list[Text] | None


class Probe(Record):
    accuracy: Share
    difference: Difference
    difference_interval: tuple[Difference, Difference] | None = None


class Cost(Record):
    parameters: Count
    flops_per_clip: Count
    clips_per_second: Amount | None = None
    epoch_seconds: Amount | None = None


class Order(Record):
    """Clips of classes that differ only in the order of frames."""

    right: Count
    swapped: Count
    elsewhere: Count
    accuracy: Share
    interval: Interval


class Resampled(Record):
    num_groups: Count
    accuracy: Interval
    uar: Interval


class Intervals(Record):
    """Over takes; `actors`: over people, if they are known."""

    accuracy: Interval
    actors: Resampled | None = None


class Bin(Record):
    num_clips: Count
    confidence: Annotated[float, Field(ge=0, le=1.001)] | None = None
    accuracy: Share | None = None


class Calibration(Record):
    """Of the calibrated probabilities; `ece_before`: of those at temperature 1."""

    ece: Share
    bins: list[Bin]
    ece_before: Share | None = None


class Group(Record):
    num_clips: Count
    accuracy: Share
    uar: Share | None = None
    macro_f1: Share | None = None
    intervals: Intervals | None = None


class Gap(Record):
    by: Text
    best: Text
    best_accuracy: Share
    worst: Text
    worst_accuracy: Share
    gap: Share
    p: Share | None = None


class BestOnTest(Record):
    """Of the best epoch on the test split; of a row that of its folds, pooled."""

    accuracy: Share
    uar: Share


class Result(Record):
    """`test.json`, and the result of a study's run, which has fewer keys, but also `interval`, `epochs` and `order`."""

    accuracy: Share
    uar: Share
    macro_f1: Share
    per_class: Annotated[dict[Text, Share | None], Field(min_length=1)]
    confusion: list[list[Count]]
    num_clips: Count
    num_takes: Count | None = None
    one_file_a_take: Group | None = None
    probes: dict[Text, Probe] | None = None
    cost: Cost | None = None
    corpus: Text | None = None
    protocol: Text | None = None
    model: Text | None = None
    split: Text | None = None
    seed: Count | None = None
    fold: Count | None = None
    versions: dict[Text, Text] | None = None
    machine: Machine | None = None
    intervals: Intervals | None = None
    interval: Interval | None = None
    epochs: Count | None = None
    order: Order | None = None
    calibration: Calibration | None = None
    groups: dict[Text, dict[Text, Group]] | None = None
    gaps: list[Gap] | None = None
    left_out: dict[Text, Count] | None = None
    subjects: Literal["unseen", "shared", "unknown"] = "unseen"
    best_epoch_on_test: BestOnTest | None = None

    @model_validator(mode="after")
    def _is_square(self) -> Result:
        size = len(self.per_class)
        if [len(line) for line in self.confusion] != [size] * size:
            raise ValueError(f"confusion must be {size} x {size}, for the classes of per_class")
        return self


class Epoch(Record):
    """A line of `metrics.jsonl`. A loss that was not finite is None."""

    epoch: Count
    train_loss: float | None = None
    train_accuracy: Share | None = None
    val_loss: float | None = None
    val_accuracy: Share | None = None


class Example(Record):
    key: Text
    kind: Text
    label: Text
    prediction: Text
    probability: Share
    frames: Text
    gradcam: Text | None = None
    frame_indices: list[Count] | None = None
    frame_weights: list[Share] | None = None


class Examples(Record):
    examples: list[Example]


class Comparison(Record):
    a: Text
    b: Text
    difference: Difference
    interval: tuple[Difference, Difference]
    only_a: Count | None = None
    only_b: Count | None = None
    p_mcnemar_holm: Share | None = None
    p_bootstrap_holm: Share | None = None
    interval_people: tuple[Difference, Difference] | None = None
    p_people_holm: Share | None = None


class StudyRow(Record):
    label: Text
    settings: dict[Text, Setting]
    cells: list[Text]
    has_learned: bool | None = None
    accuracy: Share | None = None
    interval: Interval | None = None
    uar: Share | None = None
    macro_f1: Share | None = None
    intervals: Intervals | None = None
    best_epoch_on_test: BestOnTest | None = None
    report: Share | None = None
    order: Order | None = None
    probes: dict[Text, Probe] | None = None
    cost: Cost | None = None


class StudyPart(Record):
    name: Text
    rows: list[StudyRow]
    title: Text | None = None
    comparisons: list[Comparison] | None = None
    order_comparisons: list[Comparison] | None = None
    comparison_note: Text | None = None


class StudyRun(Record):
    name: Text
    status: Text
    folder: Text
    settings: dict[Text, Setting] | None = None
    seed: Count | None = None
    reason: Text | None = None
    attempts: Count | None = None
    result: Result | None = None


class StudyFile(Record):
    """`study.json`."""

    name: Text
    cells: list[StudyRun]
    parts: list[StudyPart]
    description: Text | None = None
    command: Text | None = None
    date: Text | None = None
    machine: Machine | None = None
    versions: dict[Text, Text] | None = None
    corpus: Text | None = None
    protocol: Text | None = None
    minutes: Amount | None = None
