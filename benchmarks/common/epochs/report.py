"""Results of the epochs of all models: ratios within rounds, limits, utilisation, targets, tables and a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import measure, results
from benchmarks.common.epochs.loops import PARTS
from benchmarks.common.measure import EpochPass, Rounds, Target, rates, summary
from benchmarks.common.peers import TRAINING_PEERS
from fastemo.console import Console

TITLES = {
    "warm": "warm epoch",
    "bare": "bare loop on one resident batch (the ceiling)",
    "recipe": "warm epoch, every key of a recipe on",
    "cold": "cold epoch",
    "limit": "pruned decode alone",
    "forward": "the model alone, as in prediction, fp32",
    **{name: peer.title for name, peer in TRAINING_PEERS.items()},
}
# Dense bf16 and fp16 FLOP/s on tensor cores by GPU name, longer names first. Source: NVIDIA's data sheets.
_PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "T4": 65e12,
}
_H100_RATES = {"late_fusion": 3500, "r3d18": 650}  # clips/s
_H100_LEAST_BATCH = 64
_LIGHT = "late_fusion:mobilenetv3_small_100"
# Keys of a model's entry that the terminal shows.
_SHOWN = ("clips", "data_wait", "memory", "utilisation", "learning", "breakdown")


def peak_flops(gpu: str | None, precision: str) -> float | None:
    """A device's peak operations per second; `None` if unknown, as for CPUs."""
    if gpu is None or precision not in ("bf16", "fp16"):
        return None
    words = set(gpu.replace("-", " ").split())
    return next((peak for name, peak in _PEAK_FLOPS.items() if set(name.split()) <= words), None)


def utilisation(clips_per_second: float, flops_a_clip: float, peak: float | None) -> dict[str, float | None]:
    """Operations per second, and their share of the peak (MFU)."""
    done = clips_per_second * flops_a_clip
    return {"flops_per_second": done, "peak_flops_per_second": peak, "mfu": done / peak if peak else None}


def joint_rates(passes: Rounds) -> dict[int, float]:
    """Clips/s by round if the same processors decode and train: from the sum of both times per clip."""
    limits, ceilings = (rates(passes.get(name, {})) for name in ("limit", "bare"))
    return {it: 1 / (1 / limits[it] + 1 / ceilings[it]) for it in limits.keys() & ceilings.keys()}


def is_decode_bound(passes: Rounds) -> bool | None:
    """Whether the model trains faster than its clips can be decoded."""
    ratio = measure.paired_ratio(*(rates(passes.get(name, {})) for name in ("bare", "limit")))
    return None if ratio is None else ratio["median"] > 1


def ratios(passes: Rounds) -> dict[str, dict[str, float]]:
    """One model's `<what>_over_<what>`: medians and extremes of ratios of clips/s within a round."""
    speed = {name: rates(rounds) for name, rounds in passes.items()}
    pairs = [("warm", "bare"), ("cold", "limit"), ("cold", "joint_limit")]
    pairs += [("warm", other) for other in ("report", "plain", "recipe")]
    return measure.paired_ratios({**speed, "joint_limit": joint_rates(passes)}, pairs)


def data_wait(passes: Rounds) -> dict[str, float] | None:
    """Share of warm epochs spent waiting for batches."""
    shares = [it.waited / it.seconds for it in passes.get("warm", {}).values() if isinstance(it, EpochPass)]
    return summary(shares) if shares else None


def _times(measured: Mapping[str, Rounds], name: str, one: str, other: str) -> float | None:
    """How many times as long a pass of one network takes as the other's with as many clips."""
    mine, its = (measure.median_rate(measured.get(network, {}), name) for network in (one, other))
    return its / mine if mine and its else None


def epoch_ratios(measured: Mapping[str, Rounds]) -> dict[str, float | None]:
    """How many times as long a network's warm epoch, or the model alone, takes as another's with as many clips."""
    return {
        "r3d18_epoch_over_late_fusion_epoch": _times(measured, "warm", "r3d18", "late_fusion"),
        "tsm_epoch_over_late_fusion_epoch": _times(measured, "warm", "tsm", "late_fusion"),
        "late_fusion_epoch_over_mobilenet_epoch": _times(measured, "warm", "late_fusion", _LIGHT),
        "late_fusion_forward_over_mobilenet_forward": _times(measured, "forward", "late_fusion", _LIGHT),
    }


def model_entry(found: Mapping[str, Any], clips: int, gpu: str | None) -> dict[str, Any]:
    """A model's entry in the JSON file: raw passes and derived figures."""
    passes: Rounds = found["passes"]
    entries = {}
    for name in filter(passes.get, TITLES):
        seconds = summary(it.seconds for it in passes[name].values())
        told = {"epoch_seconds": seconds, **found["told"].get(name, {})}
        entries[name] = results.entry(passes[name], TITLES[name]) | told
    joint, warm = joint_rates(passes), entries["warm"]["clips_per_second"]["median"]
    return {
        "clips": clips,
        "passes": entries,
        "joint_limit_clips_per_second": summary(joint.values()) if joint else None,
        "is_decode_bound": is_decode_bound(passes),
        "ratios": ratios(passes),
        "data_wait": data_wait(passes),
        "utilisation": utilisation(warm, found["flops_a_clip"], peak_flops(gpu, found["precision"])),
        **{name: value for name, value in found.items() if name not in ("passes", "told")},
    }


def targets(measured: Mapping[str, Rounds], *, gpu: str | None, batch_size: int) -> list[Target]:
    """The targets for epochs; `measured` holds every model's passes."""
    medians = {(model, name): it["median"] for model in measured for name, it in ratios(measured[model]).items()}
    found = []
    for model in measured:
        title = f"{model}: warm epoch over the bare loop's ceiling"
        found.append(Target(f"warm_over_bare_{model}", title, medians.get((model, "warm_over_bare")), 0.95, "x"))
        title = f"{model}: warm epoch with every key of a recipe on over one with all off, time"
        times = medians.get((model, "warm_over_recipe"))
        found.append(Target(f"recipe_{model}", title, times, 1.1, "x", is_upper=True))
    waits = {model: share["median"] for model, passes in measured.items() if (share := data_wait(passes))}
    longest = max(waits, key=waits.__getitem__, default="")
    title = "share of a warm epoch spent waiting for data, the highest of any model"
    found.append(Target("data_wait", title, waits.get(longest), 0.02, "", is_upper=True, note=longest))
    title, over = (
        "late_fusion: warm epoch over the JPEG-frame baseline",
        medians.get(("late_fusion", "warm_over_report")),
    )
    found.append(Target("late_fusion_over_report", title, over, 4, "x", note="stated for 112 px, T = 10"))
    for model in filter(lambda it: is_decode_bound(measured[it]), measured):
        alone, joint = medians.get((model, "cold_over_limit")), medians.get((model, "cold_over_joint_limit"))
        note = "of 1/(1/decode + 1/ceiling), as both share the processors"
        note += f"; {alone:.2f} x of the decode alone" if alone is not None else ""
        if gpu:  # it decodes with NVDEC
            joint, note = None, "gpu_check.py measures NVDEC's limit"
        title = f"{model}: cold first epoch over the limit of pruned decode and training"
        found.append(Target(f"cold_over_limit_{model}", title, joint, 0.85, "x", note=note))
    over = epoch_ratios(measured)
    title, ratio = "tsm: warm epoch over late_fusion's", over["tsm_epoch_over_late_fusion_epoch"]
    found.append(Target("tsm_over_late_fusion", title, ratio, 1.1, "x", is_upper=True))
    for what, words, bound in (("epoch", "warm epoch", 5.0), ("forward", "model alone, as in prediction,", 8.0)):
        title = f"late_fusion: {words} with ResNet-18 over MobileNetV3-small"
        ratio = over[f"late_fusion_{what}_over_mobilenet_{what}"]
        found.append(Target(f"light_{what}", title, ratio, bound, "x", note="stated for fp32"))
    is_h100 = gpu is not None and "H100" in gpu and batch_size >= _H100_LEAST_BATCH
    for model, bound in _H100_RATES.items():
        rate = measure.median_rate(measured.get(model, {}), "warm") if is_h100 else None
        title = f"{model}: warm epoch on an H100, batch of {_H100_LEAST_BATCH} or more"
        found.append(Target(f"h100_{model}", title, rate, bound, "clips/s"))
    return found


def show(console: Console, found: dict[str, Any]) -> None:
    """Show the tables."""
    passes, figures, notes = [], {}, []
    for model, it in found["models"].items():
        notes += [f"{model}: {name} skipped: {reason}" for name, reason in it.get("skipped", {}).items()]
        if "failed" in it:
            notes.append(f"{model} failed: {it['failed']}")
            continue
        for entry in it["passes"].values():
            loss = entry["rounds"][-1].get("loss")
            more = {"s/epoch": f"{entry['epoch_seconds']['median']:.2f}", "loss": f"{loss:.2f}" if loss else "-"}
            passes.append({"model": model, **results.entry_row(entry), **more})
        figures[model] = results.figures_of({name: it[name] for name in _SHOWN})
    console.table(f"epochs, medians of {found['settings']['rounds']} rounds; the last round's loss", passes)
    names = next(iter(figures.values()), {})
    rows = [{"figure": name, **{model: its[name] for model, its in figures.items()}} for name in names]
    console.table("models: validation accuracy of fit (unseen actors), and the breakdown of a warm step", rows)
    if slower := found["ratios"]["r3d18_epoch_over_late_fusion_epoch"]:
        notes.append(f"an r3d18 epoch takes {slower:.2f} x a late_fusion epoch of as many clips (1.5 x in Roy, 2025)")
    for note in notes:
        console.say(note)
    title = "targets, stated for batch 8, T = 10, 128 -> 112 px, two cores"
    results.show_targets(console, title, found["targets"])


def chart(found: dict[str, Any]) -> Figure:
    """Clips/s of every model's passes above, the parts of a warm step below."""
    models = {model: it for model, it in found["models"].items() if "failed" not in it}
    passes = [{**it, "title": f"{model}: {it['title']}"} for model in models for it in models[model]["passes"].values()]
    figure = Figure(figsize=(10, 4 + 0.3 * (len(passes) + len(models))), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(2 + len(passes), 2 + len(models)))
    results.draw_rates(above, found, passes)
    left = np.zeros(len(models))
    for part in (*PARTS, "rest"):
        shares = [it["breakdown"]["shares"][part] for it in models.values()]
        below.barh([*models], shares, left=left, label=part.replace("_", " "))
        left += shares
    below.invert_yaxis()
    below.set_xlabel("share of a warm step")
    figure.legend(loc="outside lower center", ncols=6)
    return figure
