"""Shared parts of all benchmarks' results: machine, versions, entries, tables of targets, files."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import torch
from matplotlib.axes import Axes

from benchmarks.common.measure import REPOSITORY, Pass, Target, cpu_costs, rates, summary
from fastemo.console import Console
from fastemo.errors import one_line_errors
from fastemo.machine import cache_folder, describe_machine, versions, write_text
from fastemo.report.drawing import write_figure

Step = Callable[..., Any]


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs, without names of hosts or folders."""
    own = describe_machine()
    return {
        "processor": own["processor"],
        "processors_used": own["processors"],
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": platform.system(),
    }


def machine_slug(found: Mapping[str, Any]) -> str:
    """A short name for file names, such as `amd-epyc-2-cores`."""
    name = f"{found['gpus'][0] if found['gpus'] else found['processor']} {found['processors_used']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def command(program: str, arguments: Sequence[str]) -> str:
    """The command line, with absolute paths cut to their last part, so that results name no folders of a machine."""
    return " ".join(["python", program, *(re.sub(r"(^|=)/(?:[^/]*/)*([^/]+)/*$", r"\1.../\2", it) for it in arguments)])


def provenance() -> dict[str, Any]:
    """Date, machine and versions."""
    ffmpeg = ", ".join(f"{name} {'.'.join(map(str, it))}" for name, it in sorted(av.library_versions.items()))
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": {**versions(), "ffmpeg_of_pyav": ffmpeg},
    }


def header(script: str, arguments: Sequence[str], started: float) -> dict[str, Any]:
    """The first entries of a JSON file.

    Args:
        started: Start time on the monotonic clock.
    """
    found, minutes = provenance(), round((time.monotonic() - started) / 60, 1)
    return {"date": found["date"], "command": command(f"benchmarks/{script}", arguments), "minutes": minutes, **found}


def without_paths(text: str) -> str:
    """Replace folders of this machine, which an error message may contain, by their meaning."""
    names = {
        tempfile.gettempdir(): "(temporary folder)",
        str(REPOSITORY): ".",
        sys.prefix: "(environment)",
        str(cache_folder()): "(cache)",
        str(Path.home()): "~",
    }
    for path in sorted(names, key=len, reverse=True):  # one may contain another
        text = text.replace(f"{path}{os.sep}", f"{names[path]}/")
    return text


def entry(rounds: Mapping[int, Pass], title: str) -> dict[str, Any]:
    """The figures of one stage or peer, raw and summarised."""
    raw = [{"round": number, **asdict(it)} for number, it in sorted(rounds.items())]
    found: dict[str, Any] = {"title": title, "rounds": raw}
    if raw:
        found["clips_per_second"] = summary(rates(rounds).values())
        found["cpu_seconds_per_clip"] = summary(cpu_costs(rounds).values())
    return found


def figure_text(value: float, unit: str = "") -> str:
    """Three significant digits, or all digits of large numbers, and the unit."""
    is_whole = value == int(value) or abs(value) >= 100
    digits = f"{value:,.0f}" if is_whole else f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.1e}"
    return f"{digits} {unit}".strip()


def entry_row(found: Mapping[str, Any]) -> dict[str, str | int]:
    """The first columns of an entry's row on the terminal."""
    rate = found["clips_per_second"]
    return {
        "what": found["title"],
        "clips/s": figure_text(rate["median"]),
        "min-max": f"{figure_text(rate['min'])}-{figure_text(rate['max'])}",
        "CPU-s/clip": f"{found['cpu_seconds_per_clip']['median']:.4f}",
    }


def figures_of(found: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Every number of nested entries as text, by its name with the entries' names as prefix."""
    texts: dict[str, str] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            texts |= figures_of(value, f"{name}: ")
        elif value is None or isinstance(value, int | float):
            texts[f"{above}{name}"] = "-" if value is None else figure_text(value)
    return texts


def show_targets(console: Console, title: str, targets: Sequence[Target]) -> None:
    rows: list[dict[str, str | int]] = []
    for it in targets:
        is_share = it.unit == ""
        bound = f"{'<=' if it.is_upper else '>='} " + (f"{it.bound:.0%}" if is_share else f"{it.bound:g} {it.unit}")
        value = "-" if it.value is None else f"{it.value:.2%}" if is_share else figure_text(it.value, it.unit)
        rows.append({"figure": it.title, "target": bound, "measured": value, "verdict": it.verdict, "note": it.note})
    console.table(title, rows)


def whiskers(rates: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Distances from the medians to the extremes, in the form of matplotlib's error bars."""
    return [[it["median"] - it["min"] for it in rates], [it["max"] - it["median"] for it in rates]]


def draw_rates(axes: Axes, found: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Clips/s on a logarithmic axis, medians as bars and extremes as whiskers, titled with settings and machine.

    Args:
        found: Contents of the JSON file.
        entries: From top to bottom.
    """
    rates = [it["clips_per_second"] for it in entries]
    style = {"tick_label": [it["title"] for it in entries], "xerr": whiskers(rates), "capsize": 2}
    bars = axes.barh(range(len(rates)), [it["median"] for it in rates], **style)
    axes.bar_label(bars, fmt=figure_text, padding=5)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="clips/s (logarithmic); bars: medians, whiskers: extremes")
    axes.margins(x=0.15, y=0.02)
    settings, machine = found["settings"], found["machine"]
    where = machine["gpus"][0] if machine["gpus"] else cores_text(machine)
    words = [*(f"{name} {value}" for name, value in settings.items()), found["corpus"]["kind"], where]
    axes.figure.suptitle(", ".join(words), fontsize="small")


def cores_text(found: Mapping[str, Any]) -> str:
    return f"{found['processors_used']} cores of {found['processor']}"


def default_path(found: Mapping[str, Any], *, quick: bool, program: str) -> Path:
    """`results/<program>-<machine>-<date>.json`."""
    name = f"{program}-{'quick-' if quick else ''}{machine_slug(found)}-{time.strftime('%Y-%m-%d')}.json"
    return REPOSITORY / "benchmarks" / "results" / name


def run_command(
    program: str,
    arguments: list[str] | None,
    parse: Step,
    run: Step,
    show: Step,
    draw: Step | None = None,
    kind: Callable[[dict[str, Any]], str] = lambda found: "",
) -> dict[str, Any]:
    """Run a benchmark's command: parse, measure, show tables, write files; an error ends it with one line.

    Args:
        program: The script's name without `.py`.
        arguments: Of the command line, or `None` for those of this process.
        parse: Parses the arguments to options, among them `out` and `quick`.
        run: Measures with options and console; returns the contents of the JSON file after its first entries, among
            them `settings` with `quick`, or nothing if another host writes it.
        show: Writes the tables to the console from the contents of the JSON file.
        draw: Draws its chart, if there is one.
        kind: Gives a part of the file name.

    Returns:
        The contents of the JSON file.
    """
    arguments, started = sys.argv[1:] if arguments is None else arguments, time.monotonic()
    with one_line_errors():
        options, console = parse(arguments), Console()
        if not (measured := run(options, console)):
            return {}
        found = {**header(f"{program}.py", arguments, started), **measured}
        show(console, found)
        name, quick = program.replace("_", "-") + kind(found), found["settings"]["quick"]
        write(options.out or default_path(found["machine"], quick=quick, program=name), found, console, draw)
    return found


def write(path: Path, found: dict[str, Any], console: Console, draw: Step | None = None) -> None:
    """Write the JSON file, and with `draw` a chart beside it, each atomically."""
    text = json.dumps(found, indent=1, default=lambda it: it.as_dict() if isinstance(it, Target) else str(it))
    write_text(path, without_paths(text) + "\n")
    if draw:
        write_figure(draw(found), path.with_suffix(".png"))
    console.say(f"written: {path}{f' and {path.stem}.png' if draw else ''}")
