"""What the rounds of a scaling run say: ratios, targets, tables and a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import results
from benchmarks.common.measure import Rounds, Target, paired_ratio, rates, summary
from fastemo.console import Console

# On a CPU they agree to the seventh digit. Where kernels add in another order (a GPU's), a ReLU or a maximum that turns
# moves the fourth, of a norm the third. A batch dealt wrongly, padding that counts or gradients of a wrong scale change
# them by far more.
LOSS_TOLERANCE = 1e-3
NORM_TOLERANCE = 0.02
KINDS = {"strong": "same global batch", "weak": "same batch a process"}
_TITLES = {
    "same_batches": "steps whose clips or their order differ from one process's",
    "same_losses": "largest difference of a step's loss from one process's",
    "same_gradients": "largest difference of a step's gradient norm, as a share",
}
_COLOURS = {"strong": "#1b7837", "weak": "#8da0cb"}


def title(name: str) -> str:
    """`weak_local_2` in words."""
    *kind, count = name.split("_")
    processes = "1 process" if count == "1" else f"{count} processes, {KINDS[kind[0]]}"
    return f"{processes}, no exchange of gradients" if kind[-1] == "local" else processes


def compare(rounds: Rounds, processors: Mapping[int, int], steps: int) -> dict[str, dict[str, Any]]:
    """By number of processes and kind of scaling: speed-up, efficiency and the cost of the exchange.

    Every figure is taken within a round and then summed up over rounds. The speed-up is over one process; efficiency is
    the speed-up a unit of hardware, in units of what the one process has: a GPU is one, and on a CPU all processors of
    a host are, which one process and several share.

    Args:
        processors: By number of processes, the GPUs or the processors that they run on.
        steps: Steps of each pass.
    """
    found: dict[str, dict[str, Any]] = {}
    for count in sorted(processors):
        for kind in KINDS:
            with_exchange, local = rounds.get(f"{kind}_{count}"), rounds.get(f"{kind}_local_{count}")
            if count == 1 or not with_exchange or not local:
                continue
            speed_up = paired_ratio(rates(with_exchange), rates(rounds["strong_1"]))
            shares = {n: 1 - local[n].seconds / with_exchange[n].seconds for n in with_exchange}
            costs = {n: (with_exchange[n].seconds - local[n].seconds) / steps * 1000 for n in with_exchange}
            assert speed_up is not None
            units = processors[count] / processors[1]
            found.setdefault(str(count), {})[kind] = {
                "speed_up": speed_up,
                "efficiency": {k: v if k == "spread" else v / units for k, v in speed_up.items()},
                "exchange_share_of_step": summary(shares.values()),
                "exchange_ms_a_step": summary(costs.values()),
            }
    return found


def same_training(checks: Mapping[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Compare each check with the one-process one: global batches in their order, losses, norms of the gradients."""
    one = checks[1]["steps"]
    found = {}
    for count in sorted(checks.keys() - {1}):
        steps = checks[count]["steps"]
        pairs = list(zip(one, steps, strict=False))
        found[str(count)] = {
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
    """Infinite where there is no loss to compare: what diverged is not the same."""
    return abs(one - other) if math.isfinite(one) and math.isfinite(other) else math.inf


def targets(
    scaling: Mapping[str, Any], equality: Mapping[str, Any], processors: Mapping[int, int], *, on_gpu: bool
) -> list[Target]:
    """Speed-up, and whether it is the same training."""
    shared = not on_gpu and processors.get(2) == processors[1]
    two = scaling["2"]["strong"]["speed_up"]["median"] if shared and "2" in scaling else None
    why = "" if two is not None else "2 processes ran on other hardware than 1" if "2" in scaling else "not run"
    title = "2 processes over 1 on the same processors, same global batch"
    found = [Target("two_over_one", title, two, 0.9, "x", note=why)]
    note = f"{', '.join(equality)} processes" if equality else ""
    rows = {
        "same_batches": ("different_batches", 0, "steps"),
        "same_losses": ("largest_loss_difference", LOSS_TOLERANCE, "nats"),
        "same_gradients": ("largest_norm_difference", NORM_TOLERANCE, ""),
    }
    for name, (key, bound, unit) in rows.items():
        largest = max((float(it[key]) for it in equality.values()), default=None)
        found.append(Target(name, _TITLES[name], largest, bound, unit, is_upper=True, note=note))
    return found


def headlines(runs: Mapping[str, Any], scaling: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the README's table shows besides the targets."""
    rows = [("1 process", runs["strong_1"]["clips_per_second"]["median"], "clips/s")]
    for count, kinds in scaling.items():
        for kind, it in kinds.items():
            name = f"{count} processes, {KINDS[kind]}"
            rows.append((name, runs[f"{kind}_{count}"]["clips_per_second"]["median"], "clips/s"))
            rows.append((f"{name}: efficiency", it["efficiency"]["median"], "x"))
            rows.append((f"{name}: exchange, share of a step", it["exchange_share_of_step"]["median"], ""))
    return [{"title": title, "value": value, "unit": unit} for title, value, unit in rows]


def show(console: Console, found: Mapping[str, Any]) -> None:
    """The tables."""
    rows: list[dict[str, str | int]] = []
    for name, run in found["runs"].items():
        *kind, count = name.split("_")
        it = found["scaling"].get(count, {}).get(kind[0], {}) if kind[-1] != "local" else {}
        more = {
            "speed-up": ("speed_up", ".2f"),
            "efficiency": ("efficiency", ".2f"),
            "exchange": ("exchange_share_of_step", ".1%"),
            "ms a step": ("exchange_ms_a_step", ".1f"),
        }
        cells = {column: f"{it[key]['median']:{spec}}" if it else "-" for column, (key, spec) in more.items()}
        rows.append({**results.entry_row(run), **cells})
    console.table(f"medians of {found['settings']['rounds']} rounds, {found['settings']['steps']} steps each", rows)
    results.show_targets(console, "targets", found["targets"])


def chart(found: Mapping[str, Any]) -> Figure:
    """Clips a second by number of processes, and what a step's time goes into."""
    runs, scaling, settings = found["runs"], found["scaling"], found["settings"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, step = figure.subplots(1, 2)
    counts = [1, *map(int, scaling)]
    for kind, words in KINDS.items():
        rates = [runs[f"{kind if count > 1 else 'strong'}_{count}"]["clips_per_second"] for count in counts]
        style = {"color": _COLOURS[kind], "marker": "o", "capsize": 3, "label": words}
        speed.errorbar(counts, [it["median"] for it in rates], yerr=results.whiskers(rates), **style)
    units = [found["processors"][str(count)] / found["processors"]["1"] for count in counts]
    one = runs["strong_1"]["clips_per_second"]["median"]
    speed.plot(counts, [one * unit for unit in units], color="#444444", linestyle=":", label="as the hardware grows")
    speed.set_xticks(counts)
    speed.set_ylim(bottom=0)
    speed.set_xlabel("processes")
    speed.set_ylabel("clips/s, medians and extremes")
    speed.legend(fontsize=8, frameon=False)
    bars = [(count, kind) for count, kinds in scaling.items() for kind in kinds]
    for place, (count, kind) in enumerate(bars):
        local = summary(it["seconds"] for it in runs[f"{kind}_local_{count}"]["rounds"])["median"]
        compute = local / settings["steps"] * 1000
        step.barh(place, compute, color=_COLOURS[kind])
        cost = scaling[count][kind]["exchange_ms_a_step"]["median"]
        step.barh(place, max(0.0, cost), left=compute, color="#d95f02")
    step.set_yticks(range(len(bars)), [f"{count} processes,\n{KINDS[kind]}" for count, kind in bars], fontsize=8)
    step.set_xlabel("ms a step; orange: the gradient all-reduce")
    results.without_frame(speed, step)
    size = f"{settings['crop_size']}x{settings['crop_size']}"
    text = f"{settings['model']}, T = {settings['num_frames']}, {size}, batch {settings['batch_size']}"
    arithmetic = found["launches"]["1"]["arithmetic"]
    figure.suptitle(f"{text}, {arithmetic}, {results.cores_text(found['machine'])}", fontsize=10)
    return figure
