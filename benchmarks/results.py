"""What a run found: as tables for the terminal, as JSON and a chart for the repository."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.measure import Pass, cpu_costs, paired_ratio, rates, summary
from benchmarks.targets import Rounds, Target
from fastemo.console import Console
from fastemo.machine import cache_folder, describe_machine, replacing, versions, write_text

_GROUPS = {"steps": "#8da0cb", "loader": "#1b7837", "peers": "#d95f02"}


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs; nothing that names a host or a folder."""
    own, has_gpu = describe_machine(), torch.cuda.is_available()
    return {
        "processor": own["processor"],
        "processors_used": own["processors"],
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if has_gpu else [],
        "system": platform.system(),
    }


def machine_slug(found: dict[str, Any]) -> str:
    """A short name for file names, such as `amd-epyc-2-cores`."""
    name = f"{found['gpus'][0] if found['gpus'] else found['processor']} {found['processors_used']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def command(program: str, arguments: Sequence[str]) -> str:
    """The command line, with the last part of any absolute path alone: results name no folder of a machine."""
    return " ".join(["python", program, *(re.sub(r"(^|=)/(?:[^/]*/)*([^/]+)/*$", r"\1.../\2", it) for it in arguments)])


def without_paths(text: str) -> str:
    """A message of an error may name folders of this machine: their names give way to what they are."""
    names = {
        tempfile.gettempdir(): "(temporary folder)",
        str(Path(__file__).resolve().parent.parent): ".",
        sys.prefix: "(environment)",
        str(cache_folder()): "(cache)",
        str(Path.home()): "~",
    }
    for path in sorted(names, key=len, reverse=True):  # one may lie in another
        text = text.replace(f"{path}{os.sep}", f"{names[path]}/")
    return text


def entry(rounds: dict[int, Pass], title: str) -> dict[str, Any]:
    """One rung's or peer's figures, raw and summed up."""
    raw = [{"round": number, **asdict(it)} for number, it in sorted(rounds.items())]
    if not raw:
        return {"title": title, "rounds": []}
    return {
        "title": title,
        "rounds": raw,
        "clips_per_second": summary(list(rates(rounds).values())),
        "cpu_seconds_per_clip": summary(list(cpu_costs(rounds).values())),
    }


def add_shares(entries: dict[str, dict[str, Any]], rounds: Rounds) -> None:
    """What share of the two limits each entry reaches: full and pruned decode on all processors."""
    for name, found in entries.items():
        for limit in ("decode_full", "decode_pruned"):
            share = paired_ratio(rates(rounds.get(name, {})), rates(rounds.get(limit, {})))
            if share is not None:
                found[f"share_of_{limit}"] = share["median"]


def collect_versions() -> dict[str, str]:
    found = dict(versions())
    found["ffmpeg_of_pyav"] = _ffmpeg_of_pyav()
    return found


def _ffmpeg_of_pyav() -> str:
    import av

    return ", ".join(f"{name} {'.'.join(map(str, number))}" for name, number in sorted(av.library_versions.items()))


def show(console: Console, results: dict[str, Any], reached: Sequence[Target]) -> None:
    """The tables."""
    rows: list[dict[str, str | int]] = []
    for part in ("rungs", "peers"):
        for found in results[part].values():
            if found["rounds"]:
                rate, cost = found["clips_per_second"], found["cpu_seconds_per_clip"]
                rows.append(
                    {
                        "what": found["title"],
                        "clips/s": figure_text(rate["median"]),
                        "min-max": f"{figure_text(rate['min'])}-{figure_text(rate['max'])}",
                        "CPU-s/clip": f"{cost['median']:.4f}",
                        "of full decode": _share(found.get("share_of_decode_full")),
                        "of pruned decode": _share(found.get("share_of_decode_pruned")),
                    }
                )
    console.table(f"medians of {results['settings']['rounds']} rounds", rows)
    for part in ("rungs", "peers"):
        for name, found in results[part].items():
            if "skipped" in found:
                console.say(f"{name} skipped: {found['skipped']}")
    for name, found in results["peers"].items():
        if extraction := found.get("extraction"):
            a_clip = extraction["seconds"] / extraction["clips"]
            console.say(f"{name}: extraction beforehand took {a_clip:.2f} s a clip, not part of its figures")
    console.table(
        "targets, stated for T = 10, 128x128, genuine RAVDESS clips, two cores",
        target_rows(reached),
    )


def target_rows(reached: Sequence[Target]) -> list[dict[str, str | int]]:
    """Targets as rows of a table for the terminal."""
    return [
        {
            "figure": it.title,
            "at most" if it.is_upper else "at least": f"{'<=' if it.is_upper else '>='} {it.bound:g} {it.unit}",
            "measured": "-" if it.value is None else f"{figure_text(it.value)} {it.unit}",
            "verdict": it.verdict,
            "note": it.note,
        }
        for it in reached
    ]


def figure_text(value: float) -> str:
    """Three digits that matter, whatever the size."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.1e}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0%}" if value < 10 else f"{value:,.0f} x"


def default_path(found: dict[str, Any], *, quick: bool, program: str = "throughput") -> Path:
    """`results/<program>-<machine>-<date>.json` beside this file."""
    name = f"{program}-{'quick-' if quick else ''}{machine_slug(found)}-{time.strftime('%Y-%m-%d')}.json"
    return Path(__file__).resolve().parent / "results" / name


def write(path: Path, results: dict[str, Any], draw: Callable[[dict[str, Any]], Figure] | None = None) -> None:
    """Write the JSON at `path` and the chart beside it, each whole or not at all; `draw` makes another chart."""
    write_text(path, without_paths(json.dumps(results, indent=1)) + "\n")
    with replacing(path.with_suffix(".png")) as partial:
        (draw or chart)(results).savefig(partial, format="png", dpi=120)


def chart(results: dict[str, Any]) -> Figure:
    """Clips a second of every rung and peer, medians as bars and extremes as whiskers, on a logarithmic axis."""
    figures = {**results["rungs"], **results["peers"]}
    groups = {
        name: "peers" if name in results["peers"] else "loader" if name.startswith("loader") else "steps"
        for name in figures
        if figures[name]["rounds"]
    }
    bars = [(figures[name], group) for wanted in _GROUPS for name, group in groups.items() if group == wanted]
    figure = Figure(figsize=(10, 1.6 + 0.36 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    for place, (found, group) in enumerate(bars):
        rate = found["clips_per_second"]
        whiskers = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
        axes.barh(place, rate["median"], color=_GROUPS[group], xerr=whiskers, ecolor="#444444", capsize=2)
        axes.annotate(
            figure_text(rate["median"]),
            (rate["max"], place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    for name, style in (("decode_full", ":"), ("decode_pruned", "--")):
        if (limit := results["rungs"].get(name, {})).get("rounds"):
            axes.axvline(limit["clips_per_second"]["median"], color="#444444", linestyle=style, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(bars)), [found["title"] for found, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel(
        "clips/s (logarithmic); bars are medians, whiskers extremes; lines: full (:) and pruned (--) decode"
    )
    settings, about = results["settings"], results["corpus"]
    axes.set_title(
        f"T = {settings['num_frames']}, {settings['size']}x{settings['size']}, {about['kind']}, "
        f"{results['machine']['processors_used']} cores of {results['machine']['processor']}",
        fontsize=10,
    )
    axes.legend([Patch(color=colour) for colour in _GROUPS.values()], list(_GROUPS), fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
