"""What the epochs of all models were, as tables for the terminal and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.epoch_peers import TRAINING_PEERS
from benchmarks.results import figure_text
from benchmarks.targets import Target
from fastemo.console import Console

TITLES = {
    "warm": "warm epoch",
    "bare": "bare loop on one resident batch (the ceiling)",
    "cold": "cold epoch",
    "limit": "pruned decode alone",
    **{name: peer.title for name, peer in TRAINING_PEERS.items()},
}
_COLOURS = {
    "warm": "#1b7837",
    "bare": "#a6dba0",
    "cold": "#5e8fc6",
    "limit": "#c6dbef",
    "report": "#d95f02",
    "plain": "#f1a340",
}
_PART_COLOURS = ("#d73027", "#fdae61", "#1b7837", "#5aae61", "#762a83", "#bbbbbb")


def show(console: Console, results: dict[str, Any], reached: Sequence[Target]) -> None:
    """The tables."""
    measured = {model: found for model, found in results["models"].items() if "failed" not in found}
    rounds = results["settings"]["rounds"]
    console.table(
        f"clips/s, medians of {rounds} rounds",
        [{"model": model, **{name: _rate(found, name) for name in TITLES}} for model, found in measured.items()],
    )
    console.table("epochs", [_epoch_row(model, found) for model, found in measured.items()])
    console.table(
        f"learned: loss after {rounds} timed epochs, and accuracy on strangers by fit on the built-in corpus",
        [_learning_row(model, found) for model, found in measured.items()],
    )
    console.table(
        "where a warm step's time goes",
        [
            {"model": model, "ms a step": f"{1000 * it['step_seconds']:.1f}"}
            | {part.replace("_", " "): f"{share:.1%}" for part, share in it["shares"].items()}
            | {"copy to device (beside)": f"{it['host_to_device_share']:.1%}"}
            for model, it in ((model, found["breakdown"]) for model, found in measured.items())
        ],
    )
    for model, found in results["models"].items():
        for name, reason in found.get("skipped", {}).items():
            console.say(f"{model}: {name} skipped: {reason}")
        if "failed" in found:
            console.say(f"{model} failed: {found['failed']}")
    slower = results["ratios"]["r3d18_epoch_over_late_fusion_epoch"]
    if slower is not None:
        console.say(f"r3d18's epoch takes {slower:.2f} x late_fusion's over as many clips (1.5 x in the report)")
    console.table("targets, stated for batch 8, T = 10, 128 -> 112 px, two cores", [_target_row(it) for it in reached])


def _rate(found: dict[str, Any], name: str) -> str:
    entry = found["passes"].get(name)
    return figure_text(entry["clips_per_second"]["median"]) if entry else "-"


def _epoch_row(model: str, found: dict[str, Any]) -> dict[str, str | int]:
    memory, wait, used = found["memory"], found["data_wait"], found["utilisation"]
    gpu = memory["gpu_allocated_mib"]
    return {
        "model": model,
        "clips": found["clips"],
        "cold s": _seconds(found, "cold"),
        "warm s": _seconds(found, "warm"),
        "waiting": f"{wait['median']:.2%}" if wait else "-",
        "resident MiB": f"{memory['resident_mib']:,.0f}",
        "GPU MiB": "-" if gpu is None else f"{gpu:,.0f}",
        "GFLOP/s": figure_text(used["flops_per_second"] / 1e9),
        "MFU": "-" if used["mfu"] is None else f"{used['mfu']:.1%}",
    }


def _learning_row(model: str, found: dict[str, Any]) -> dict[str, str | int]:
    learning = found["learning"]
    return {
        "model": model,
        **{name: _last_loss(found, name) for name in ("warm", *TRAINING_PEERS)},
        "fit's clips": learning["train_clips"],
        "epochs": learning["epochs"],
        "train accuracy": f"{learning['train_accuracy']:.1%}",
        "val accuracy": f"{learning['val_accuracy']:.1%}",
        "UAR": f"{learning['val_uar']:.1%}",
    }


def _seconds(found: dict[str, Any], name: str) -> str:
    entry = found["passes"].get(name)
    return f"{entry['epoch_seconds']['median']:.2f}" if entry else "-"


def _last_loss(found: dict[str, Any], name: str) -> str:
    entry = found["passes"].get(name)
    return f"{entry['rounds'][-1]['loss']:.2f}" if entry else "-"


def _target_row(it: Target) -> dict[str, str | int]:
    is_share = it.unit == ""
    bound = f"{it.bound:.0%}" if is_share else f"{it.bound:g} {it.unit}"
    value = "-" if it.value is None else f"{it.value:.2%}" if is_share else f"{figure_text(it.value)} {it.unit}"
    return {
        "figure": it.title,
        "at most" if it.is_upper else "at least": f"{'<=' if it.is_upper else '>='} {bound}",
        "measured": value,
        "verdict": it.verdict,
        "note": it.note,
    }


def chart(results: dict[str, Any]) -> Figure:
    """Above, clips/s of every model on a logarithmic axis; below, the parts of a warm step."""
    measured = {model: found for model, found in results["models"].items() if "failed" not in found}
    figure = Figure(figsize=(10, 8), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    width = 0.8 / len(TITLES)
    for offset, (name, title) in enumerate(TITLES.items()):
        places, medians, whiskers = [], [], []
        for place, found in enumerate(measured.values()):
            if entry := found["passes"].get(name):
                rate = entry["clips_per_second"]
                places.append(place + (offset - (len(TITLES) - 1) / 2) * width)
                medians.append(rate["median"])
                whiskers.append((rate["median"] - rate["min"], rate["max"] - rate["median"]))
        if places:
            ends = list(zip(*whiskers, strict=True))
            above.bar(places, medians, width, yerr=ends, color=_COLOURS[name], ecolor="#444444", capsize=2, label=title)
    above.set_yscale("log")
    above.set_ylabel("clips/s (logarithmic)")
    above.set_xticks(range(len(measured)), list(measured))
    above.legend(fontsize=8, frameon=False, ncols=2)
    above.margins(y=0.25)
    lefts = [0.0] * len(measured)
    parts = next(iter(measured.values()))["breakdown"]["shares"] if measured else {}
    for part, colour in zip(parts, _PART_COLOURS, strict=False):
        shares = [found["breakdown"]["shares"][part] for found in measured.values()]
        below.barh(range(len(measured)), shares, left=lefts, color=colour, label=part.replace("_", " "))
        lefts = [left + share for left, share in zip(lefts, shares, strict=True)]
    below.set_yticks(range(len(measured)), list(measured))
    below.invert_yaxis()
    below.set_xlim(0, 1)
    below.set_xlabel("share of a warm step")
    below.legend(fontsize=8, frameon=False, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1))
    settings, machine = results["settings"], results["machine"]
    device = machine["gpus"][0] if machine["gpus"] else f"{machine['processors_used']} cores of {machine['processor']}"
    figure.suptitle(
        f"batch {settings['batch_size']}, T = {settings['num_frames']}, "
        f"{settings['size']} -> {settings['crop_size']} px, {results['corpus']['kind']}, {device}",
        fontsize=10,
    )
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
