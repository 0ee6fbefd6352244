"""Each model by itself: classes, confusions, clips with what it saw and where it looked, calibration, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastemo.report import charts
from fastemo.report.charts import percent
from fastemo.report.page_blocks import (
    Block,
    Cell,
    Charts,
    ClipCard,
    Clips,
    Column,
    Figure,
    Fold,
    Heading,
    Items,
    Section,
    Table,
    Text,
)
from fastemo.report.page_data import Part, Tested
from fastemo.report.page_pictures import embedded_file
from fastemo.report.page_results import NONE, number_cell, numbered, share_cell
from fastemo.report.page_rows import chance_of
from fastemo.report.page_words import (
    confusions,
    counted,
    interval_words,
    joined_words,
    missing_words,
    p_words,
    points,
)

_OPEN_MODELS = 3
# Of all models together, so that a page of many stays small; of one, all that a run keeps.
_MOST_STRIPS, _MOST_CLIPS, _LEAST_CLIPS = 240, 12, 3
_STRIP_WIDTH = 640  # pixels


def models(parts: Sequence[Part], retests: Sequence[tuple[str, Tested]]) -> Section | None:
    """A fold for the first run of every row, each run once, and for every later evaluation."""
    chosen: dict[str, tuple[str, Tested]] = {}
    for part, rows in numbered(parts):
        for number, row in rows:
            if row.tested:
                label = f"{number}. {row.label}" + (f" ({part.title})" if len(parts) > 1 else "")
                chosen.setdefault(str(row.tested[0].folder or row.tested[0].name), (label, row.tested[0]))
    shown = [*chosen.values(), *retests]
    if not shown:
        return None
    most = max(_LEAST_CLIPS, min(_MOST_CLIPS, _MOST_STRIPS // (2 * len(shown))))
    folds = [
        Fold(
            title=label,
            summary=f"{percent(tested.result['accuracy'])} of {counted(tested.result['num_clips'], 'clip')}",
            blocks=_model(tested, label, most),
            is_open=len(shown) <= _OPEN_MODELS,
        )
        for label, tested in shown
    ]
    return Section(id="models", title="Each model", blocks=folds)


def retests(found: Sequence[tuple[str, Tested]]) -> Section | None:
    """Runs tested again, on another split or another corpus."""
    if not found:
        return None
    lines = []
    for label, tested in found:
        result = tested.result
        left_out = ", ".join(f"{count} {name}" for name, count in (result["left_out"] or {}).items())
        lines.append(
            [
                Cell(text=label),
                share_cell(result["accuracy"], note=interval_words(result["interval"])),
                share_cell(chance_of(tested)),
                share_cell(result["uar"]),
                number_cell(result["num_clips"]),
                number_cell(result["num_takes"]),
                number_cell(len(tested.class_names)),
                Cell(text=left_out or "–"),
            ]
        )
    columns = [
        Column(name="Run and test", is_number=False),
        Column(name="Accuracy", hint="below it the 95 % interval"),
        Column(name="Chance"),
        Column(name="UAR"),
        Column(name="Clips"),
        Column(name="Takes"),
        Column(name="Classes", hint="those that both corpora have"),
        Column(name="Left out", is_number=False, hint="clips of classes that the run was not trained on"),
    ]
    table = Table(caption="Finished runs tested again by fastemo evaluate", columns=columns, rows=lines)
    return Section(id="retests", title="Tested again", blocks=[table])


def retest_label(run: str, tested: Tested) -> str:
    """`RUN on the split val`, `RUN on FOLDER`."""
    corpus = tested.result["corpus"]
    return f"{run} on {corpus}" if corpus else f"{run} on the split {tested.result['split'] or tested.name}"


def _model(tested: Tested, label: str, most: int) -> list[Block]:
    result = tested.result
    blocks: list[Block] = []
    if missing := missing_words(tested):
        blocks.append(Text(text=missing, is_note=True))
    totals = [sum(line) for line in result["confusion"]]
    notes = {name: f"of {total}" for name, total in zip(tested.class_names, totals, strict=True)}
    told = ", ".join(f"{name} {percent(it, 0)}" for name, it in result["per_class"].items() if it is not None)
    figures = [
        Figure(
            charts=[charts.bars(result["per_class"], notes=notes, alt=f"{label}, share right by class: {told}")],
            caption="Share of each class's clips predicted right.",
        )
    ]
    if result.get("calibration"):
        figures.append(_reliability(result["calibration"], label))
    blocks += [Charts(figures=figures), _confusion_table(tested)]
    if words := confusions(result["confusion"], tested.class_names):
        blocks += [Heading(text="Most frequent confusions"), Items(items=words)]
    blocks += _clips(tested, most)
    blocks += _groups(result)
    return blocks


def _reliability(found: Mapping[str, Any], label: str) -> Figure:
    bins = [(it["confidence"], it["accuracy"], it["num_clips"]) for it in found["bins"] if it["num_clips"]]
    bins = [it for it in bins if None not in it]
    told = "; ".join(f"sure {percent(sure, 0)}, right {percent(right, 0)}" for sure, right, _ in bins)
    mean_sure = sum(sure * count for sure, _, count in bins) / max(1, sum(count for _, _, count in bins))
    hits = sum(right * count for _, right, count in bins) / max(1, sum(count for _, _, count in bins))
    tendency = "too sure" if mean_sure > hits else "not sure enough"
    return Figure(
        charts=[charts.reliability(bins, alt=f"{label}, reliability curve: {told}")],
        caption=f"How often it is right, by how sure it says it is; the dashed line is honest. Expected calibration "
        f"error {percent(found['ece'])}: on the whole {tendency}.",
    )


def _confusion_table(tested: Tested) -> Table:
    names = tested.class_names
    lines = []
    for position, (name, counts) in enumerate(zip(names, tested.result["confusion"], strict=True)):
        total = sum(counts)
        lines.append(
            [
                Cell(text=name),
                *(
                    Cell(
                        text=str(count),
                        sort=count,
                        share=count / total if total else 0.0,
                        is_strong=column == position,
                    )
                    for column, count in enumerate(counts)
                ),
            ]
        )
    return Table(
        caption="Confusion matrix: a row is what was shown, a column what was predicted, in clips; the deeper the "
        "colour, the larger the share of the row",
        columns=[Column(name="Shown", is_number=False), *(Column(name=name) for name in names)],
        rows=lines,
        is_sortable=False,
        is_compact=True,
    )


def _clips(tested: Tested, most: int) -> list[Block]:
    if tested.folder is None or not tested.examples:
        return []
    num_right = most // 3
    wrong = [it for it in tested.examples if it["kind"] == "wrong"]
    right = [it for it in tested.examples if it["kind"] != "wrong"][:num_right]
    blocks: list[Block] = []
    for title, examples in (
        ("Wrong, and surest of it", wrong[: most - num_right]),
        ("Right, and surest of it", right),
    ):
        cards = [card for it in examples if (card := _card(tested, it)) is not None]
        if cards:
            blocks += [Heading(text=title), Clips(cards=cards)]
    if not blocks:
        blocks.append(Text(text="The pictures of its example clips are not in the folder.", is_note=True))
    return blocks


def _card(tested: Tested, example: Mapping[str, Any]) -> ClipCard | None:
    assert tested.folder is not None
    sure = f"{percent(example['probability'], 0)} sure"
    is_right = example["kind"] != "wrong"
    title = (
        f"{example['label']}, recognised, {sure}"
        if is_right
        else f"{example['label']}, taken for {example['prediction']}, {sure}"
    )
    indices = example["frame_indices"]
    frames = f"frames {', '.join(map(str, indices))}" if indices else "six frames"
    wanted = [
        ("frames", f"{frames} of {example['key']} as the model saw them"),
        ("gradcam", f"the same frames of {example['key']}, bright where the evidence for {example['prediction']} lies"),
    ]
    pictures = [
        embedded_file(tested.folder, example[name], most_width=_STRIP_WIDTH, alt=alt)
        for name, alt in wanted
        if example[name]
    ]
    there = [it for it in pictures if it is not None]
    return ClipCard(title=title, key=example["key"], pictures=there, is_right=is_right) if there else None


def _groups(result: Mapping[str, Any]) -> list[Block]:
    """Gaps, the largest named, and each group."""
    gaps, groups = result.get("gaps"), result.get("groups")
    blocks: list[Block] = []
    if gaps:
        first = gaps[0]
        told = (
            f"The largest gap is by {first['by']}: {percent(first['best_accuracy'])} for {first['best']} and "
            f"{percent(first['worst_accuracy'])} for {first['worst']}, {points(first['gap']).lstrip('+')} points"
        )
        if first["p"] is not None:
            told += f"; takes dealt to such groups at random show one as large with p {_p(first['p'])}"
        blocks += [Heading(text="Groups"), Text(text=f"{told}."), _gap_table(gaps)]
    fields = {name: of for name, of in (groups or {}).items() if of}
    if fields:
        blocks.append(
            Fold(title="All groups", summary=joined_words(list(fields)), blocks=[_group_table(fields)], is_open=False)
        )
    return blocks


def _p(p: float) -> str:
    return p_words(p) if p < 0.001 else f"= {p_words(p)}"


def _gap_table(gaps: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        caption="The best and the worst group of each kind; p by dealing takes to the groups at random",
        columns=[
            Column(name="By", is_number=False),
            Column(name="Best", is_number=False),
            Column(name="Accuracy"),
            Column(name="Worst", is_number=False),
            Column(name="Accuracy"),
            Column(name="Gap", hint="percentage points"),
            Column(name="p"),
        ],
        rows=[
            [
                Cell(text=it["by"]),
                Cell(text=it["best"]),
                share_cell(it["best_accuracy"]),
                Cell(text=it["worst"]),
                share_cell(it["worst_accuracy"]),
                Cell(text=points(it["gap"]).lstrip("+"), sort=it["gap"]),
                number_cell(it["p"], p_words(it["p"])),
            ]
            for it in gaps
        ],
    )


def _group_table(fields: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    lines = [
        [
            Cell(text=f"{field}: {value}"),
            number_cell(it["num_clips"]),
            share_cell(it["accuracy"]),
            share_cell(it["uar"]),
            NONE if it["macro_f1"] is None else number_cell(it["macro_f1"], f"{it['macro_f1']:.3f}"),
        ]
        for field, of_field in fields.items()
        for value, it in of_field.items()
    ]
    return Table(
        caption="Results by group",
        columns=[
            Column(name="Group", is_number=False),
            Column(name="Clips"),
            Column(name="Accuracy"),
            Column(name="UAR"),
            Column(name="Macro-F1"),
        ],
        rows=lines,
    )
