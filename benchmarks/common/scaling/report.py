"""Results of a scaling run: ratios, targets, tables and a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import results
from benchmarks.common.measure import Rounds, Target, summary
from fastemo.console import Console

KINDS = {"strong": "same global batch", "weak": "same batch a process"}
# By entry of `same_training`: name, bound, unit and title of a target. The first steps agree to the sixth digit. Sums
# in another order can flip a ReLU or a maximum, which changes the fourth digit, of a norm the third. A batch split
# wrongly, padding with weight or gradients of a wrong scale change them by far more.
_SAME = {
    "different_batches": ("same_batches", 0, "steps", "steps whose clips or their order differ from one process's"),
    "largest_loss_difference": ("same_losses", 1e-3, "nats", "largest difference of a step's loss from one process's"),
    "largest_norm_difference": ("same_gradients", 0.02, "", "largest difference of a step's gradient norm, as a share"),
}
_COLOURS = {"strong": "#1b7837", "weak": "#8da0cb"}


def title(name: str) -> str:
    """`weak_local_2` as text."""
    *kind, count = name.split("_")
    processes = "1 process" if count == "1" else f"{count} processes, {KINDS[kind[0]]}"
    return f"{processes}, no gradient all-reduce" if kind[-1] == "local" else processes


def compare(rounds: Rounds, processors: Mapping[str, int], steps: int) -> dict[str, dict[str, Any]]:
    """Speed-up, efficiency and cost of the gradient all-reduce, by number of processes and kind of scaling.

    Every figure is computed within a round and summarised over rounds. The speed-up is relative to one process;
    efficiency is the speed-up divided by the hardware relative to one process's: a GPU, or on a CPU all processors of
    a host, which its processes share.

    Args:
        processors: By number of processes, the number of GPUs or processors that they run on.
        steps: Steps per pass.
    """
    found: dict[str, dict[str, Any]] = {}
    one = rounds["strong_1"]
    for count, kind in product([it for it in processors if it != "1"], KINDS):
        whole, local = rounds[f"{kind}_{count}"], rounds[f"{kind}_local_{count}"]
        speed_ups = [it.rate / one[number].rate for number, it in whole.items()]
        seconds = [(it.seconds, local[number].seconds) for number, it in whole.items()]
        found.setdefault(count, {})[kind] = {
            "speed_up": summary(speed_ups),
            "efficiency": summary(it * processors["1"] / processors[count] for it in speed_ups),
            "exchange_share_of_step": summary(1 - without / with_it for with_it, without in seconds),
            "exchange_ms_a_step": summary((with_it - without) / steps * 1000 for with_it, without in seconds),
        }
    return found


def same_training(checks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Compare each check with that of one process: global batches in order, losses, gradient norms."""
    one = checks["1"]["steps"]
    found = {}
    for count in [it for it in checks if it != "1"]:
        steps = checks[count]["steps"]
        pairs = list(zip(one, steps, strict=False))
        found[count] = {
            "steps": len(steps),
            "padding": checks[count]["padding"],
            "different_batches": sum(a["keys"] != b["keys"] for a, b in pairs) + abs(len(one) - len(steps)),
            "largest_loss_difference": max(difference(a["loss"], b["loss"]) for a, b in pairs),
            "largest_norm_difference": max(difference(b["norm"] / a["norm"], 1.0) for a, b in pairs),
            "losses": [it["loss"] for it in steps],
            "losses_of_one_process": [it["loss"] for it in one],
        }
    return found


def difference(one: float, other: float) -> float:
    """The difference; infinite if a loss is not finite, as diverged runs are not the same."""
    return abs(one - other) if math.isfinite(one) and math.isfinite(other) else math.inf


def targets(scaling: Mapping[str, Any], equality: Mapping[str, Any], processors: Mapping[str, int]) -> list[Target]:
    """Targets: speed-up, and whether it is the same training."""
    two, why = None, "not run"
    if "2" in scaling and processors["2"] == processors["1"]:
        two, why = scaling["2"]["strong"]["speed_up"]["median"], ""
    elif "2" in scaling:
        why = "2 processes ran on other hardware than 1"
    words = "2 processes over 1 on the same processors, same global batch"
    found = [Target("two_over_one", words, two, 0.9, "x", note=why)]
    note = f"{', '.join(equality)} processes" if equality else ""
    for key, (name, bound, unit, words) in _SAME.items():
        largest = max((float(it[key]) for it in equality.values()), default=None)
        found.append(Target(name, words, largest, bound, unit, is_upper=True, note=note))
    return found


def headlines(runs: Mapping[str, Any], scaling: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures of the documentation's table besides the targets."""
    rows = [("1 process", runs["strong_1"]["clips_per_second"], "clips/s")]
    for count, kind in product(scaling, KINDS):
        it, name = scaling[count][kind], title(f"{kind}_{count}")
        rows.append((name, runs[f"{kind}_{count}"]["clips_per_second"], "clips/s"))
        rows.append((f"{name}: efficiency", it["efficiency"], "x"))
        rows.append((f"{name}: gradient all-reduce, share of a step", it["exchange_share_of_step"], ""))
    return [{"title": name, "value": it["median"], "unit": unit} for name, it, unit in rows]


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Show the tables."""
    columns = {
        "speed-up": ("speed_up", ".2f"),
        "efficiency": ("efficiency", ".2f"),
        "all-reduce": ("exchange_share_of_step", ".1%"),
        "ms/step": ("exchange_ms_a_step", ".1f"),
    }
    rows: list[dict[str, str | int]] = []
    for name, run in found["runs"].items():
        kind, _, count = name.rpartition("_")
        it = found["scaling"].get(count, {}).get(kind)  # none for runs without the all-reduce
        cells = {column: f"{it[key]['median']:{spec}}" if it else "-" for column, (key, spec) in columns.items()}
        rows.append({**results.entry_row(run), **cells})
    console.table(f"medians of {found['settings']['rounds']} rounds, {found['settings']['steps']} steps each", rows)
    results.show_targets(console, "targets", found["targets"])


def chart(found: Mapping[str, Any]) -> Figure:
    """Clips/s by number of processes, and the parts of a step's time."""
    runs, scaling, settings = found["runs"], found["scaling"], found["settings"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, step = figure.subplots(1, 2)
    counts = [1, *map(int, scaling)]
    one = runs["strong_1"]["clips_per_second"]
    for kind, words in KINDS.items():
        rates = [one, *(runs[f"{kind}_{count}"]["clips_per_second"] for count in scaling)]
        style = {"color": _COLOURS[kind], "marker": "o", "capsize": 3, "label": words}
        speed.errorbar(counts, [it["median"] for it in rates], yerr=results.whiskers(rates), **style)
    ideal = [one["median"] * found["processors"][str(count)] / found["processors"]["1"] for count in counts]
    speed.plot(counts, ideal, color="#444444", linestyle=":", label="proportional to the hardware")
    speed.set(xticks=counts, ylim=(0, None), xlabel="processes", ylabel="clips/s, medians and extremes")
    speed.legend(fontsize=8, frameon=False)
    for count, kind in product(scaling, KINDS):
        place = f"{count} processes,\n{KINDS[kind]}"
        seconds = summary(it["seconds"] for it in runs[f"{kind}_local_{count}"]["rounds"])["median"]
        compute, exchange = seconds / settings["steps"] * 1000, scaling[count][kind]["exchange_ms_a_step"]["median"]
        step.barh(place, compute, color=_COLOURS[kind])
        step.barh(place, max(0.0, exchange), left=compute, color="#d95f02")
    step.tick_params(axis="y", labelsize=8)
    step.set_xlabel("ms per step; orange: gradient all-reduce")
    text = "{model}, T = {num_frames}, {crop_size}x{crop_size}, batch {batch_size}".format_map(settings)
    arithmetic, cores = found["launches"]["1"]["arithmetic"], results.cores_text(found["machine"])
    figure.suptitle(f"{text}, {arithmetic}, {cores}", fontsize=10)
    return figure
