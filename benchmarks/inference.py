"""A trained model on new videos: what it reaches of the sum of its parts, latency, start and memory.

`python benchmarks/inference.py` measures on the CPU, in fp32, `late_fusion` with MobileNetV3-small and random weights:

- files: `predict` over many clips against decoding and the model, each alone with all processors;
- windows: `stream` over a long video, a window of 3 s each second, against the same sum, where each frame that any
  window needs counts once, and against a loop as most projects write it, which OpenCV feeds with every frame;
- live: the time from a window's last frame to the answer, for a stream that ffmpeg sends over udp on this machine;
- start: `fastemo predict` of one clip from the start of Python on, against the imports of torch and timm;
- memory: over many files, and over the long video;
- faces: of a run with `video.crop: face`, the loader, the search for the boxes, `stream` against OpenCV's loop with a
  face detector, and live input that shows two people. It needs the detector's weights (`--faces.weights`).

What is compared takes turns for several rounds. The clips are real ones of RAVDESS if there are any (`FASTEMO_CLIPS`,
or `../shared/clips`), joined to a long video without encoding them again; otherwise generated ones of their shape,
whose figures say nothing about the gain by pruning. It writes tables, a JSON file with every round's figures, and a
chart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.common import corpus, measure, results
from benchmarks.common.inference import report
from benchmarks.common.inference.faces import FACE_VIDEO, face_stages, face_weights, two_people
from benchmarks.common.inference.material import CONFIG, WINDOW, LongVideo, join, make_run
from benchmarks.common.inference.processes import live, memory, start_stages
from benchmarks.common.inference.stages import file_stages, window_stages
from benchmarks.common.options import Numbers, add_numbers, choose, make_parser, parse_checked
from fastemo.console import Console
from fastemo.corpus.manifest import Manifest
from fastemo.errors import UserError
from fastemo.video.config import FacesConfig

PARTS = ("files", "windows", "live", "start", "memory", "faces")
_NUMBERS: Numbers = {
    "rounds": (3, 1, "measurement rounds"),
    "clips": (200, 8, "clips of a pass"),
    "minutes": (60, 1, "length of the long video"),
    "live_seconds": (20, 4, "length of the live stream"),
    "starts": (7, 1, "cold starts"),
    "memory_files": (1000, 20, "files over which memory is measured"),
    "memory_minutes": (60, 1, "length of the video over which memory is measured"),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("inference.py", __doc__)
    parser.add_argument("--corpus", default="auto", help="a folder; generated; or auto: real clips if available")
    parser.add_argument("--parts", default="all", help=f"all, or some of {', '.join(PARTS)}")
    add_numbers(parser, _NUMBERS)
    parser.add_argument(
        "--faces.weights", dest="faces_weights", type=Path, metavar="FILE", help="face detector's (default: downloaded)"
    )
    parser.add_argument("--quick", action="store_true", help="small generated clips, one round: a smoke test")
    options = parse_checked(parser, arguments, numbers=_NUMBERS)
    if options.live_seconds <= WINDOW:
        raise ValueError(f"--live_seconds must be more than a window of {WINDOW:g} s, not {options.live_seconds}")
    for name in ("clips", "memory_files"):
        if getattr(options, name) > corpus.MOST_CLIPS:
            raise ValueError(f"--{name} must be at most {corpus.MOST_CLIPS}, the speech takes of RAVDESS")
    options.part_names = choose("--parts", options.parts, PARTS)
    return options


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure the parts; return the contents of the JSON file."""
    parts, titles = options.part_names, {}
    found: dict[str, Any] = {}
    record = measure.Record(console.say, options.rounds)
    with tempfile.TemporaryDirectory(prefix="fastemo-benchmark-") as folder:
        scratch = Path(folder)
        num_clips = max(options.clips, options.memory_files if "memory" in parts else 0)
        clips = corpus.choose(options.corpus, num_clips, scratch / "corpus", console, quick=options.quick)
        console.say(", ".join(f"{name} {value}" for name, value in clips.description.items()))
        manifest, trained = clips.manifest, make_run(scratch / "run", clips.manifest.class_names)
        files = [clip.file(manifest.root) for clip in manifest.clips]
        description = {**clips.description, "clips_a_pass": options.clips}

        @cache
        def video_of(minutes: int) -> LongVideo:
            console.say(f"joining clips to a video of {minutes} min")
            return join(manifest, minutes, scratch / f"{minutes}-minutes.mp4")

        def measured(stages: list[measure.Stage], num_rounds: int) -> None:
            titles.update({stage.name: stage.title for stage in stages})
            its = measure.in_rounds(stages, num_rounds, console.say)
            record.rounds.update(its.rounds)
            record.skipped.update(its.skipped)

        if "files" in parts:
            measured(file_stages(trained, replace(manifest, clips=manifest.clips[: options.clips])), options.rounds)
        if "windows" in parts:
            video = video_of(options.minutes)
            found["video"] = {"seconds": round(video.seconds, 1), "frames": video.num_frames}
            found["video"] |= {"needed_frames": video.num_needed, "windows": video.num_windows}
            measured(window_stages(trained, video), options.rounds)
        if "start" in parts:
            measured(start_stages(trained, files[0]), options.starts)
        if "live" in parts:
            found["live"] = _apart(console, live, trained, video_of(1).path, options.live_seconds)
        if "memory" in parts:
            found["memory_files"] = _apart(console, memory, trained, files[: options.memory_files])
            minutes = options.memory_minutes
            long = _apart(console, memory, trained, video_of(minutes).path)
            found["memory_windows"] = {"minutes": minutes, **long}
        if "faces" in parts:
            try:
                weights = face_weights(options.faces_weights, scratch)
            except UserError as error:
                found["live_faces"] = {"skipped": str(error)}
            else:
                config = replace(CONFIG, video=FACE_VIDEO, faces=FacesConfig(weights=weights))
                face_run = make_run(scratch / "faces", manifest.class_names, config)
                some = Manifest.of(manifest.root, manifest.clips[: options.clips])
                with ExitStack() as stack:
                    video = video_of(options.minutes)
                    measured(face_stages(face_run, some, video, weights, stack), options.rounds)
                pair = two_people(manifest, scratch / "two.mp4")
                found["live_faces"] = _apart(console, live, face_run, pair, options.live_seconds, "all")
    entries = {name: results.entry(record.rounds[name], title) for name, title in titles.items()}
    for name, reason in record.skipped.items():
        entries[name]["skipped"] = reason
    found["ratios"] = report.ratios(record.rounds)
    network = {"name": CONFIG.model.name, "backbone": CONFIG.model.backbone, "num_frames": CONFIG.video.num_frames}
    network |= {"size": CONFIG.video.size, "crop_size": CONFIG.augment.crop_size, "weights": "random"}
    return {
        "settings": {**{name: getattr(options, name) for name in (*_NUMBERS, "quick")}, "device": "cpu, fp32"},
        "network": network,
        "corpus": description,
        "passes": entries,
        **found,
        "headlines": report.headlines(entries),
        "targets": report.targets(found, is_genuine=description["kind"] != "generated"),
    }


def _apart(console: Console, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of a process of its own, or why there is none."""
    try:
        found = measure.in_own_process(work, *arguments)
    except UserError as error:
        found = {"skipped": str(error)}
    console.say(f"{work.__name__}: {', '.join(f'{name} {value}' for name, value in found.items())}")
    return found


def main(arguments: list[str] | None = None) -> None:
    results.run_command("inference", arguments, parse, run, report.show, report.chart)


if __name__ == "__main__":
    main()
