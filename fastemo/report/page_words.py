"""Numbers and findings in words, computed from what was measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastemo.report.charts import percent
from fastemo.report.page_data import Part, Row, Tested
from fastemo.report.page_rows import chance_of, is_order_blind, one_file_of

SIGNIFICANT = 0.05
_LISTED_BLIND = 3


def interval_words(interval: Sequence[float] | None) -> str:
    """`55.8 to 72.5 %`, empty without one."""
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def points(difference: float) -> str:
    """A difference of shares: `+3.1`, in percentage points."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def p_words(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def joined_words(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def machine_words(machine: Mapping[str, Any] | None) -> str:
    """`Intel Xeon, 2 processors, no GPU`."""
    if not machine:
        return ""
    count = machine.get("processors")
    told = [
        machine.get("processor") or "",
        counted(count, "processor") if count else "",
        machine.get("gpu") or "no GPU",
    ]
    return ", ".join(filter(None, told))


def command_words(command: str) -> str:
    """A command as it can be typed anywhere: without the place of the program."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    if words and re.search(r"(^|[/\\])train\.py$", words[0]):
        return shlex.join(["fastemo", "train", *words[1:]])
    if words and re.search(r"(^|[/\\])fastemo$", words[0]):
        return shlex.join(["fastemo", *words[1:]])
    return command


def confusions(counts: Sequence[Sequence[int]], names: Sequence[str], most: int = 5) -> list[str]:
    """The most frequent ones: `fearful was taken for surprised 7 times of 16`."""
    table = np.asarray(counts, dtype=np.float64)
    shown = [(table[i, j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j and table[i, j]]
    shown.sort(key=lambda it: (-it[0], it[1], it[2]))
    return [
        f"{names[i]} was taken for {names[j]} {counted(int(count), 'time')} of {int(table[i].sum())}"
        for count, i, j in shown[:most]
    ]


def finding(parts: Sequence[Part]) -> list[str]:
    """What came of it, a paragraph an item."""
    rows = [(part, row) for part in parts for row in part.rows if row.values["accuracy"] is not None and row.tested]
    if not rows:
        return ["Nothing is finished yet: there is no result to tell."]
    part, best = max(rows, key=lambda it: float(it[1].values["accuracy"]))
    found = [" ".join(filter(None, [_best(best, part, len(rows), len(parts)), _apart(best, part), _twins(best)]))]
    if order := _order(parts):
        found.append(order)
    return found


def _best(row: Row, part: Part, num_rows: int, num_parts: int) -> str:
    label = f"{row.label} ({part.title})" if num_parts > 1 else row.label
    values, chance = row.values, chance_of(row.tested[0])
    told = f"{percent(values['accuracy'])} of the test clips"
    if values["interval"]:
        told += f" (95 % interval {interval_words(values['interval'])})"
    start = f"{label} was right for " if num_rows == 1 else f"Of {num_rows} rows, {label} was right most often: for "
    end = f"; chance is {percent(chance)}."
    if values["interval"] and values["interval"][0] <= chance:
        end = f"; chance is {percent(chance)}, which the interval does not rule out."
    return start + told + end


def _apart(best: Row, part: Part) -> str:
    """How many rows of its table a test tells from the best."""
    mine = [it for it in part.comparisons if best.label in (it["a"], it["b"]) and it["p_bootstrap_holm"] is not None]
    if not mine:
        return ""
    apart = sum(it["p_bootstrap_holm"] < SIGNIFICANT for it in mine)
    return (
        f"On the same clips, the paired bootstrap tells it from {apart} of the {counted(len(mine), 'other row')} of "
        f"its table (Holm-corrected p below {SIGNIFICANT})."
    )


def _twins(row: Row) -> str:
    found = one_file_of(row)
    if found is None:
        return ""
    accuracy, interval, num_clips = found
    told = f" ({interval_words(interval)})" if interval else ""
    return (
        f"These clips hold both files of a take, as the report counted; with one file a take, {num_clips} in all, it "
        f"was right for {percent(accuracy)}{told}."
    )


def _order(parts: Iterable[Part]) -> str:
    """Whether models that see the order of frames tell apart what order alone tells apart."""
    parts = list(parts)
    rows = [row for part in parts for row in part.rows if row.values["order"] and row.tested]
    blind = [row for row in rows if is_order_blind(row.tested[0])]
    seeing = [row for row in rows if not is_order_blind(row.tested[0])]
    if not rows:
        return ""
    told = ["Some classes of the built-in corpus show the same in opposite order; between them, chance is 50 %."]
    if seeing:
        above = sum(row.values["order"]["interval"][0] > 0.5 for row in seeing)
        best = max(seeing, key=lambda row: float(row.values["order"]["accuracy"]))
        told.append(
            f"Of {counted(len(seeing), 'row')} whose model sees the order of frames, {above} told them apart more "
            f"often than chance by the whole 95 % interval; best was {best.label} with {_share(best)}."
        )
    if blind:
        listed = joined_words([f"{row.label} {_share(row)}" for row in blind[:_LISTED_BLIND]])
        inside = sum(row.values["order"]["interval"][0] <= 0.5 <= row.values["order"]["interval"][1] for row in blind)
        told.append(
            f"Models blind to order: {listed}; {inside} of {counted(len(blind), 'interval')} "
            f"{'holds' if inside == 1 else 'hold'} chance."
        )
    told.append(_order_beaten(parts))
    return " ".join(filter(None, told))


def _share(row: Row) -> str:
    order = row.values["order"]
    return f"{percent(order['accuracy'])} ({interval_words(order['interval'])})"


def _order_beaten(parts: Iterable[Part]) -> str:
    """How often a model that sees order was right more often on these classes than one that does not."""
    pairs = wins = 0
    for part in parts:
        blind = {row.label: is_order_blind(row.tested[0]) for row in part.rows if row.tested}
        for it in part.order_comparisons:
            if blind.get(it["a"]) == blind.get(it["b"]) or it["p_bootstrap_holm"] is None:
                continue
            ahead = it["difference"] if blind.get(it["b"]) else -it["difference"]
            pairs += 1
            wins += ahead > 0 and it["p_bootstrap_holm"] < SIGNIFICANT
    if not pairs:
        return ""
    return (
        f"On the clips of these classes, the model that sees order was right more often in {wins} of "
        f"{counted(pairs, 'pair')} of one that does and one that does not (Holm-corrected p below {SIGNIFICANT})."
    )


def missing_words(tested: Tested) -> str:
    """What an older or a copied run cannot show, empty where nothing is missing."""
    if tested.folder is None:
        return "Its run folder is not beside study.json: no curves, clips, calibration or groups can be shown."
    absent = [
        words
        for name, words in (
            ("cost", "its cost"),
            ("probes", "frames in another order"),
            ("calibration", "calibration"),
            ("groups", "results by group"),
            ("machine", "the machine"),
        )
        if tested.result.get(name) is None
    ]
    absent += [] if tested.examples is not None else ["example clips"]
    if not absent:
        return ""
    return f"This folder does not tell {joined_words(absent)}: it was written by an older version, or is not whole."
