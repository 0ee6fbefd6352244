"""Ratios within rounds, targets, tables and the chart of the benchmark of inference."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import measure, results
from fastemo.console import Console

_STARTS = ("imports", "command")


def ratios(rounds: measure.Rounds) -> dict[str, dict[str, float]]:
    """Medians and extremes of ratios within a round.

    Names are `<a>_over_<b>`: of clips or windows per second, and of the starts their times. The sum is the rate of
    decoding and the model one after the other, each with all processors.
    """
    speed = {name: measure.rates(its) for name, its in rounds.items()}
    for kind in ("files", "windows"):
        decode, forward = speed.get(f"decode_{kind}", {}), speed.get(f"forward_{kind}", {})
        speed[f"sum_{kind}"] = {it: 1 / (1 / decode[it] + 1 / forward[it]) for it in decode.keys() & forward.keys()}
    for name in _STARTS:
        speed[name] = {number: 1 / rate for number, rate in speed.get(name, {}).items()}
    pairs = [("predict", "sum_files"), ("stream", "sum_windows"), ("stream", "loop"), ("command", "imports")]
    pairs += [("predict", "decode_files"), ("stream", "decode_windows"), ("find_faces", "decode_for_faces")]
    pairs += [("loader_face", "loader_center"), ("stream_faces", "loop_faces"), ("stream_faces", "loop_every_face")]
    return measure.paired_ratios(speed, pairs)


def headlines(entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rate of each stage; of windows, which come once a second of video, in terms of the video's own speed."""
    rows = []
    for name, it in entries.items():
        if it["rounds"]:
            rate = it["clips_per_second"]["median"]
            value, unit = (1 / rate, "s") if name in _STARTS else (rate, "clips/s")
            unit = "x real time" if it["title"].startswith("windows") else unit
            rows.append({"title": it["title"], "value": value, "unit": unit})
    return rows


def targets(found: Mapping[str, Any], *, is_genuine: bool) -> list[measure.Target]:
    """Stated for T = 10, 128x128, 720p H.264 at 30 frames/s, two cores.

    Args:
        found: `ratios`, and what was measured of `video`, `live`, `live_faces`, `memory_files` and `memory_windows`.
    """
    origin = "" if is_genuine else "generated clips: says nothing about the gain by pruning"

    ratio = partial(_ratio, found)
    live, files, windows = (found.get(name, {}) for name in ("live", "memory_files", "memory_windows"))
    of_live, of_files, of_windows = (it.get("skipped", "") for it in (live, files, windows))
    if "windows" in live:
        of_live = f"of {live['windows']} windows, {live['processors_busy']:.2f} processors busy"
    if "answers" in files:
        of_files = f"{files['answers']:,} files"
    if "answers" in windows:
        of_windows = f"{windows['minutes']} min of video"
    delay = live.get("delay_ms", {}).get("p95")
    return [
        ratio("predict_over_sum_files", "predict over the sum of decoding and the model, each alone", 0.9, origin),
        ratio("stream_over_sum_windows", "stream over the same sum, each needed frame counted once", 0.8, origin),
        ratio("stream_over_loop", "stream over a loop with OpenCV", 1.7, origin),
        _at_most("live_skipped", "live: windows skipped", live.get("windows_skipped"), 0, "windows", of_live),
        _at_most("live_delay", "live: from the last frame to the answer, 95th percentile", delay, 200, "ms", of_live),
        ratio(
            "command_over_imports", "cold start of fastemo predict over import torch, timm: time", 1.3, is_upper=True
        ),
        _at_most("files_growth", "resident memory growth over files", files.get("growth_mib"), 20, "MiB", of_files),
        _at_most(
            "windows_growth", "resident memory growth over a video", windows.get("growth_mib"), 20, "MiB", of_windows
        ),
        _at_most(
            "windows_memory",
            "highest resident memory over a video, above imports and model",
            windows.get("above_mib"),
            300,
            "MiB",
            of_windows,
        ),
        *_face_targets(found),
    ]


def _face_targets(found: Mapping[str, Any]) -> list[measure.Target]:
    ratio, live = partial(_ratio, found), found.get("live_faces", {})
    note, skipped = live.get("skipped", ""), live.get("windows_skipped")
    delay = live.get("delay_ms", {}).get("p95")
    if "windows" in live:
        note = f"of {live['windows']} windows of {live['answers_a_window']:.1f} faces"
        note += f", {live['processors_busy']:.2f} processors busy"
    return [
        ratio("loader_face_over_loader_center", "loader without a store, crop face (boxes known) over center", 0.98),
        ratio("find_faces_over_decode_for_faces", "finding the boxes of a corpus over decoding alone", 0.75),
        ratio("stream_faces_over_loop_faces", "stream with faces over OpenCV's loop, faces of windows' frames", 1.7),
        ratio("stream_faces_over_loop_every_face", "stream with faces over OpenCV's loop, faces of every frame", 2.4),
        _at_most("live_faces_skipped", "live, two faces: windows skipped", skipped, 0, "windows", note),
        _at_most("live_faces_delay", "live, two faces: to the last answer, 95th percentile", delay, 250, "ms", note),
    ]


def _ratio(
    found: Mapping[str, Any], name: str, title: str, bound: float, note: str = "", *, is_upper: bool = False
) -> measure.Target:
    it = found["ratios"].get(name)
    text = "; ".join(filter(None, [f"{it['min']:.2f} to {it['max']:.2f}" if it else "", note]))
    return measure.Target(name, title, it and it["median"], bound, "x", is_upper=is_upper, note=text)


def _at_most(name: str, title: str, value: float | None, bound: float, unit: str, note: str) -> measure.Target:
    return measure.Target(name, title, value, bound, unit, is_upper=True, note=note)


def show(console: Console, found: dict[str, Any]) -> None:
    """Show the tables."""
    measured = [it for it in found["passes"].values() if it["rounds"]]
    console.table("medians of the rounds", [results.entry_row(it) for it in measured])
    for name in ("live", "live_faces", "memory_files", "memory_windows"):
        if name in found:
            console.table(name, [results.figures_of(found[name])])
    for name, it in {**found["passes"], **found}.items():
        if isinstance(it, Mapping) and "skipped" in it:
            console.say(f"{name} skipped: {it['skipped']}")
    title = "targets, stated for T = 10, 128x128, 720p H.264 at 30 frames/s, two cores"
    results.show_targets(console, title, found["targets"])


def chart(found: dict[str, Any]) -> Figure:
    """Clips or windows per second; starts have another unit."""
    measured = [it for name, it in found["passes"].items() if it["rounds"] and name not in _STARTS]
    figure = Figure(figsize=(10, 1.6 + 0.36 * len(measured)), layout="constrained")
    if measured:
        results.draw_rates(figure.subplots(), found, measured)
    return figure
