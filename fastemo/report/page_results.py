"""The sections that hold rows beside each other: results, comparisons, order of frames, curves, classes, cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastemo.report import charts
from fastemo.report.charts import percent
from fastemo.report.page_blocks import Block, Cell, Charts, Column, Figure, Heading, Section, Table, Text
from fastemo.report.page_data import Part, Row
from fastemo.report.page_rows import chance_of, counts_of, is_order_blind, one_file_of, per_class_of
from fastemo.report.page_words import SIGNIFICANT, counted, interval_words, p_words, points
from fastemo.report.published import ANCHORS

NONE = Cell(text="–")


def share_cell(share: float | None, *, note: str = "", is_strong: bool = False) -> Cell:
    return NONE if share is None else Cell(text=percent(share), sort=share, note=note, is_strong=is_strong)


def number_cell(value: float | None, shown: str = "") -> Cell:
    return NONE if value is None else Cell(text=shown or f"{value:g}", sort=float(value))


def numbered(parts: Sequence[Part]) -> Iterator[tuple[Part, list[tuple[int, Row]]]]:
    """Every part with its rows, which are numbered through the page."""
    number = 0
    for part in parts:
        rows = list(enumerate(part.rows, start=number + 1))
        number += len(rows)
        yield part, rows


def results(parts: Sequence[Part], corpus_note: str) -> Section:
    blocks: list[Block] = []
    for part, rows in numbered(parts):
        blocks += [Heading(text=part.title), _results_table(part, rows)]
        finished = [(number, row) for number, row in rows if row.tested]
        if finished:
            blocks.append(Charts(figures=[_interval_figure(part, finished)]))
    blocks.append(Text(text=corpus_note, is_note=True))
    anchors = [[Cell(text=it.what), share_cell(it.accuracy), Cell(text=it.how), Cell(text=it.source)] for it in ANCHORS]
    blocks.append(
        Table(
            caption="Published accuracies on RAVDESS from the picture alone",
            columns=[
                Column(name="Who", is_number=False),
                Column(name="Accuracy"),
                Column(name="How", is_number=False),
                Column(name="Source", is_number=False),
            ],
            rows=anchors,
        )
    )
    return Section(id="results", title="Results", blocks=blocks)


def _results_table(part: Part, rows: Sequence[tuple[int, Row]]) -> Table:
    one_file = {number: one_file_of(row) for number, row in rows if row.tested}
    has_twins, has_report = any(one_file.values()), any(row.values["report"] is not None for _, row in rows)
    columns = [
        Column(name="Row", is_number=False),
        Column(name="Accuracy", hint="share of the test clips; below it the 95 % interval"),
        *([Column(name="One file a take", hint="of a take's two files the video-only one")] if has_twins else []),
        *(
            [Column(name="Report", hint="the report's accuracy for this configuration, on RAVDESS")]
            if has_report
            else []
        ),
        Column(name="UAR", hint="mean recall of the classes"),
        Column(name="Macro-F1"),
        Column(name="Clips"),
        Column(name="Takes"),
        Column(name="Epochs"),
        Column(name="Runs"),
    ]
    best = max((row.values["accuracy"] for _, row in rows if row.tested), default=None)
    lines = []
    for number, row in rows:
        name = Cell(text=f"{number}. {row.label}", sort=number)
        if not row.tested:
            lines.append([name, Cell(text="not finished"), *[NONE] * (len(columns) - 2)])
            continue
        counts, values = counts_of(row), row.values
        honest = one_file[number]
        accuracy = values["accuracy"]
        lines.append(
            [
                name,
                share_cell(accuracy, note=interval_words(values["interval"]), is_strong=accuracy == best),
                *([share_cell(honest[0], note=interval_words(honest[1])) if honest else NONE] if has_twins else []),
                *([share_cell(values["report"])] if has_report else []),
                share_cell(counts.uar),
                number_cell(counts.macro_f1, f"{counts.macro_f1:.3f}"),
                number_cell(counts.num_clips),
                number_cell(counts.num_takes),
                number_cell(counts.epochs),
                number_cell(len(row.tested), _runs_words(counts.num_seeds, counts.num_folds)),
            ]
        )
    return Table(caption=f"{part.title}: what each row got right", columns=columns, rows=lines)


def _runs_words(num_seeds: int, num_folds: int) -> str:
    if num_folds == 1:
        return "1" if num_seeds == 1 else f"{num_seeds} seeds"
    return f"{num_folds} folds" if num_seeds == 1 else f"{num_seeds} seeds, {num_folds} folds"


def _interval_figure(part: Part, rows: Sequence[tuple[int, Row]]) -> Figure:
    drawn = [
        charts.Interval(
            label=f"{number}. {row.label}",
            value=row.values["accuracy"],
            low=row.values["interval"][0] if row.values["interval"] else None,
            high=row.values["interval"][1] if row.values["interval"] else None,
            reference=row.values["report"],
        )
        for number, row in rows
    ]
    told = "; ".join(
        f"{it.label} {percent(it.value)}"
        + ("" if it.low is None else f" ({100 * it.low:.0f} to {100 * (it.high or 0):.0f})")
        for it in drawn
    )
    chance = chance_of(rows[0][1].tested[0])
    chart = charts.intervals(
        drawn,
        chance=chance,
        reference="the report, on RAVDESS",
        alt=f"{part.title}, accuracy with 95 % interval: {told}; chance {percent(chance)}",
    )
    return Figure(charts=[chart], caption="Accuracy, 95 % interval by bootstrap over takes.")


def comparisons(parts: Sequence[Part]) -> Section | None:
    blocks: list[Block] = []
    for part in parts:
        if len(parts) > 1 and (part.comparisons or part.note):
            blocks.append(Heading(text=part.title))
        if part.comparisons:
            blocks += [Text(text=_apart_words(part)), _comparison_table(f"{part.title}: all clips", part.comparisons)]
        if part.order_comparisons:
            caption = f"{part.title}: the clips of classes that differ in the order of frames alone"
            blocks.append(_comparison_table(caption, part.order_comparisons))
        if part.note:
            blocks.append(Text(text=part.note, is_note=True))
    if not blocks:
        return None
    return Section(id="comparisons", title="Paired comparisons on the same clips", blocks=blocks)


def _apart_words(part: Part) -> str:
    known = [it for it in part.comparisons if it["p_bootstrap_holm"] is not None]
    apart = sum(it["p_bootstrap_holm"] < SIGNIFICANT for it in known)
    return (
        f"{apart} of {counted(len(known), 'pair')} differ beyond the choice of takes (paired bootstrap, Holm-corrected "
        f"p below {SIGNIFICANT})."
    )


def _comparison_table(caption: str, rows: Sequence[dict[str, Any]]) -> Table:
    lines = []
    for it in rows:
        p = it["p_bootstrap_holm"]
        lines.append(
            [
                Cell(text=it["a"]),
                Cell(text=it["b"]),
                Cell(
                    text=points(it["difference"]),
                    sort=it["difference"],
                    note=f"{points(it['interval'][0])} to {points(it['interval'][1])}",
                    is_strong=p is not None and p < SIGNIFICANT,
                ),
                number_cell(p, p_words(p)),
                number_cell(it["p_mcnemar_holm"], p_words(it["p_mcnemar_holm"])),
                number_cell(it["only_a"]),
                number_cell(it["only_b"]),
            ]
        )
    return Table(
        caption=f"{caption}; differences in percentage points with 95 % interval, bold where p is below {SIGNIFICANT}",
        columns=[
            Column(name="A", is_number=False),
            Column(name="B", is_number=False),
            Column(name="A less B"),
            Column(name="p, bootstrap", hint="paired bootstrap over takes, corrected by Holm's method"),
            Column(name="p, McNemar", hint="McNemar's test over takes, corrected by Holm's method"),
            Column(name="only A right", hint="takes"),
            Column(name="only B right", hint="takes"),
        ],
        rows=lines,
    )


def time(parts: Sequence[Part]) -> Section | None:
    blocks: list[Block] = []
    probed = [
        (number, row) for _, rows in numbered(parts) for number, row in rows if row.tested and row.values["probes"]
    ]
    if probed:
        blocks += [
            Text(
                text="Each model saw the test clips again with their frames in another order: reversed, shuffled, or "
                "the middle frame alone in the place of all. A model whose accuracy stays the same does not use time. "
                "Differences are in percentage points from the order recorded, with 95 % interval; of a row of several "
                "runs, the first was probed."
            ),
            _probe_table(probed),
        ]
    ordered = [
        (number, row) for _, rows in numbered(parts) for number, row in rows if row.tested and row.values["order"]
    ]
    if ordered:
        blocks += [
            Text(
                text="In the built-in corpus, surprised and fearful, and sad and disgust, show the same faces in "
                "opposite order. Of the clips of these classes that were given to one of their own pair, the share "
                "given to the right one tells whether a model reads the order; chance is 50 %."
            ),
            _order_table(ordered),
        ]
    return Section(id="time", title="Does a model use time?", blocks=blocks) if blocks else None


def _probe_table(rows: Sequence[tuple[int, Row]]) -> Table:
    names = list(dict.fromkeys(name for _, row in rows for name in row.values["probes"]))
    lines = []
    for number, row in rows:
        probes = row.values["probes"]
        recorded = row.tested[0].result["accuracy"]
        line = [Cell(text=f"{number}. {row.label}", sort=number), share_cell(recorded)]
        for name in names:
            it = probes.get(name)
            if it is None:
                line.append(NONE)
                continue
            spread = it["difference_interval"]
            note = points(it["difference"]) + (f" ({points(spread[0])} to {points(spread[1])})" if spread else "")
            line.append(share_cell(it["accuracy"], note=note, is_strong=bool(spread and spread[0] * spread[1] > 0)))
        lines.append(line)
    return Table(
        caption="Accuracy by the order of frames; bold where the interval of the difference leaves out zero",
        columns=[
            Column(name="Row", is_number=False),
            Column(name="Recorded"),
            *(Column(name=name.capitalize()) for name in names),
        ],
        rows=lines,
    )


def _order_table(rows: Sequence[tuple[int, Row]]) -> Table:
    lines = []
    for number, row in rows:
        order = row.values["order"]
        lines.append(
            [
                Cell(text=f"{number}. {row.label}", sort=number),
                Cell(text="no" if is_order_blind(row.tested[0]) else "yes"),
                share_cell(
                    order["accuracy"], note=interval_words(order["interval"]), is_strong=order["interval"][0] > 0.5
                ),
                number_cell(order["right"]),
                number_cell(order["swapped"]),
                number_cell(order["elsewhere"]),
            ]
        )
    return Table(
        caption="Classes told apart by the order of frames alone, 95 % interval; bold where all of it is above chance",
        columns=[
            Column(name="Row", is_number=False),
            Column(name="Sees order", is_number=False),
            Column(name="Right of its pair"),
            Column(name="Right"),
            Column(name="Swapped"),
            Column(name="Elsewhere", hint="clips of these classes given to a class outside their pair"),
        ],
        rows=lines,
    )


def classes(parts: Sequence[Part]) -> Section | None:
    rows = [(number, row, per_class_of(row)) for _, of in numbered(parts) for number, row in of if row.tested]
    names = list(dict.fromkeys(name for _, _, recalls in rows for name in recalls))
    if not rows:
        return None
    lines = [
        [
            Cell(text=f"{number}. {row.label}", sort=number),
            *(
                NONE if (share := recalls.get(name)) is None else Cell(text=percent(share, 0), sort=share, share=share)
                for name in names
            ),
        ]
        for number, row, recalls in rows
    ]
    table = Table(
        caption="Share of each class's clips that were predicted right: the deeper the colour, the more",
        columns=[Column(name="Row", is_number=False), *(Column(name=name) for name in names)],
        rows=lines,
        is_compact=True,
    )
    return Section(id="classes", title="Accuracy by emotion", blocks=[table])
