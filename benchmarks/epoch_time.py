"""How long epochs take, cold and warm, beside their ceiling and beside what people use today.

`python benchmarks/epoch_time.py` measures each model in a process of its own, in rounds: the pruned decode alone, a
cold epoch (nothing is stored; the files may be in the system's page cache), a warm one, a bare loop on one resident
batch with the same model, augmentation and settings, and the peers in `peers/` that train. Then where a warm step's
time goes, peak memory, arithmetic per second, and what `fit` learns in a few epochs of the built-in corpus. Tables, a
JSON file with every round's figures, and a chart. Epochs are timed on real RAVDESS clips where they are at hand
(`FASTEMO_CLIPS`, or `../shared/clips`), repeated to an epoch's length, otherwise on clips of their shape that are made
and kept in the cache folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import corpus, epoch_peers, epoch_results, results
from benchmarks.epoch_clips import MOST_CLIPS, labelled, learning_corpus
from benchmarks.epoch_loops import EpochPass
from benchmarks.epoch_model import Job
from benchmarks.epoch_targets import (
    data_wait,
    is_decode_bound,
    joint_rates,
    median_rate,
    peak_flops,
    r3d18_over_late_fusion,
    ratios,
    targets,
    utilisation,
)
from benchmarks.measure import Pass, summary
from benchmarks.targets import Rounds
from fastemo.console import Console
from fastemo.corpus.manifest import Manifest
from fastemo.errors import one_line_errors
from fastemo.models.config import ModelName
from fastemo.video.config import AugmentConfig, VideoConfig

MODELS: tuple[str, ...] = get_args(ModelName)
# Two cores train r3d18 at one clip a second: its epochs are shorter. A GPU takes RAVDESS's speech, the training split.
_CLIPS, _CLIPS_SLOW, _CLIPS_GPU, _CLIPS_QUICK = 40, 16, 1200, 8
_LEARNING_CLIPS, _LEARNING_CLIPS_SLOW = 120, 16
_SLOW_ON_CPU = "r3d18"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="epoch_time.py"
    )
    parser.add_argument("--models", help=f"all, or some of {', '.join(MODELS)}")
    parser.add_argument("--corpus", default="auto", help="a folder of clips; generated; auto: real ones where at hand")
    parser.add_argument("--clips", type=int, help="clips an epoch, rounded up to whole batches")
    parser.add_argument("--num_frames", type=int, help="T, frames a clip: 10, with --quick 4")
    parser.add_argument("--size", type=int, help="side of a stored frame in pixels: 128, with --quick 32")
    parser.add_argument("--crop_size", type=int, help="side of what the model sees: 112, with --quick 28")
    parser.add_argument("--batch_size", type=int, help="clips a batch: 8, with --quick 4")
    parser.add_argument("--rounds", type=int, help="rounds of everything: 3, with --quick 2")
    parser.add_argument("--learning_epochs", type=int, help="epochs of the accuracy: 3, with --quick 2")
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {', '.join(epoch_peers.TRAINING_PEERS)}")
    parser.add_argument("--out", type=Path, help="JSON file; the chart goes beside it")
    parser.add_argument("--quick", action="store_true", help="small generated clips, one model: does it work at all?")
    options = parser.parse_args(arguments)
    usual = {"num_frames": (10, 4), "size": (128, 32), "crop_size": (112, 28), "batch_size": (8, 4), "rounds": (3, 2)}
    for name, (value, quick) in {**usual, "learning_epochs": (3, 2)}.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else value)
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.clips is not None and options.clips < 1:
        raise ValueError(f"--clips must be at least 1, not {options.clips}")
    if options.crop_size > options.size:
        raise ValueError(f"--crop_size {options.crop_size} is larger than --size {options.size}")
    if options.out and options.out.suffix != ".json":
        raise ValueError(f"--out names the JSON file, which ends in .json, not '{options.out.name}'")
    options.models = choose_models(options.models or ("late_fusion" if options.quick else "all"))
    options.peer_names = epoch_peers.choose(options.peers)
    return options


def choose_models(argument: str) -> list[str]:
    """The models that `--models` names.

    Raises:
        ValueError: An unknown name.
    """
    if argument == "all":
        return list(MODELS)
    names = [name.strip() for name in argument.split(",")]
    for name in names:
        if name not in MODELS:
            raise ValueError(f"--models takes all, or some of {', '.join(MODELS)}, not '{name}'")
    return names


def clips_an_epoch(model: str, options: argparse.Namespace, *, has_gpu: bool) -> int:
    """Whole batches, so that every step has one shape.

    Raises:
        ValueError: More than there are names for, or a batch that is.
    """
    wanted = _CLIPS_GPU if has_gpu else _CLIPS_SLOW if model == _SLOW_ON_CPU else _CLIPS
    wanted = options.clips or (_CLIPS_QUICK if options.quick else wanted)
    if max(wanted, options.batch_size) > MOST_CLIPS:
        raise ValueError(f"--clips and --batch_size must be at most {MOST_CLIPS}, the speech takes of RAVDESS")
    batches = min(-(-wanted // options.batch_size), MOST_CLIPS // options.batch_size)
    return batches * options.batch_size


def run_model(job: Job, folder: Path, console: Console) -> dict[str, Any]:
    """One model in a process of its own: its memory is its own, and what it leaves behind ends with it."""
    console.say(f"{job.model}: started")
    path = folder / f"{job.model}.json"
    path.write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-m", "benchmarks.epoch_model", str(path)]
    done = subprocess.run(command, cwd=corpus.REPOSITORY, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(path.with_suffix(".found.json").read_text())
    return found


def rounds_of(raw: dict[str, dict[str, dict[str, Any]]]) -> Rounds:
    """A model's passes as its process wrote them."""
    return {
        name: {int(number): (EpochPass if "loss" in it else Pass)(**it) for number, it in rounds.items()}
        for name, rounds in raw.items()
    }


def summed_up(found: dict[str, Any], clips: int, gpu: str | None) -> dict[str, Any]:
    """A model's entry in the JSON file: raw passes and what follows from them."""
    passes = rounds_of(found["passes"])
    entries = {}
    for name, title in epoch_results.TITLES.items():
        if passes.get(name):
            seconds = summary([it.seconds for it in passes[name].values()])
            entries[name] = {
                **results.entry(passes[name], title),
                "epoch_seconds": seconds,
                **found["told"].get(name, {}),
            }
    joint = joint_rates(passes)
    warm = median_rate(passes, "warm")
    assert warm is not None
    return {
        "clips": clips,
        "passes": entries,
        "joint_limit_clips_per_second": summary(list(joint.values())) if joint else None,
        "is_decode_bound": is_decode_bound(passes),
        "ratios": ratios(passes),
        "data_wait": data_wait(passes),
        "utilisation": utilisation(warm, found["flops_a_clip"], peak_flops(gpu, found["precision"])),
        **{name: value for name, value in found.items() if name not in ("passes", "told")},
    }


def measure_models(options: argparse.Namespace, clips_of: dict[str, int], console: Console) -> dict[str, Any]:
    """Every model in turn, on one corpus for those with epochs of one length.

    Returns:
        `models`, what each one's process found, and what the corpora are.
    """
    models: dict[str, Any] = {}
    described: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="fastemo-benchmark-") as name:
        scratch = Path(name)
        learning, about_learning = learning_corpus(console, quick=options.quick)
        learning_paths = _saved(learning, scratch / "learning.csv")
        for model, num_clips in clips_of.items():
            folder = scratch / f"{num_clips}-clips"
            if num_clips not in described:
                chosen = corpus.choose(options.corpus, num_clips, folder / "plain", console, quick=options.quick)
                described[num_clips] = chosen.description
                _saved(labelled(chosen, folder / "labelled"), folder / "corpus.csv")
            is_slow = model == _SLOW_ON_CPU and not torch.cuda.is_available()
            job = Job(
                model=model,
                corpus=(str(folder / "labelled"), str(folder / "corpus.csv")),
                learning=learning_paths,
                scratch=str(folder),
                rounds=options.rounds,
                batch_size=options.batch_size,
                num_frames=options.num_frames,
                size=options.size,
                crop_size=options.crop_size,
                learning_clips=_LEARNING_CLIPS_SLOW if is_slow else _LEARNING_CLIPS,
                learning_epochs=options.learning_epochs,
                peers=tuple(options.peer_names),
            )
            models[model] = run_model(job, scratch, console)
    about = next(iter(described.values()))
    about = {name: value for name, value in about.items() if name != "clips_a_pass"}  # each model's entry has its own
    return {"models": models, "corpus": about, "learning_corpus": about_learning}


def run(options: argparse.Namespace, arguments: list[str], console: Console) -> dict[str, Any]:
    """Everything; returns what goes into the JSON file."""
    has_gpu, started = torch.cuda.is_available(), time.monotonic()
    gpu = torch.cuda.get_device_name() if has_gpu else None
    # What is wrong with the options is told before anything is made.
    VideoConfig(num_frames=options.num_frames, size=options.size)
    AugmentConfig(crop_size=options.crop_size)
    clips_of = {model: clips_an_epoch(model, options, has_gpu=has_gpu) for model in options.models}
    measured = measure_models(options, clips_of, console)
    passes = {model: rounds_of(it["passes"]) for model, it in measured["models"].items() if "passes" in it}
    reached = targets(passes, gpu=gpu, batch_size=options.batch_size)
    settings = ("num_frames", "size", "crop_size", "batch_size", "rounds", "learning_epochs", "quick")
    whole = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": results.command("benchmarks/epoch_time.py", arguments),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": results.machine(),
        "versions": results.collect_versions(),
        "settings": {name: getattr(options, name) for name in settings},
        "corpus": measured["corpus"],
        "learning_corpus": measured["learning_corpus"],
        "models": {
            model: found if "failed" in found else summed_up(found, clips_of[model], gpu)
            for model, found in measured["models"].items()
        },
        "ratios": {"r3d18_epoch_over_late_fusion_epoch": r3d18_over_late_fusion(passes)},
        "targets": [target.as_dict() for target in reached],
    }
    epoch_results.show(console, whole, reached)
    return whole


def _saved(manifest: Manifest, path: Path) -> tuple[str, str]:
    manifest.write_csv(path)
    return str(manifest.root), str(path)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        options, console = parse(arguments), Console()
        found = run(options, arguments, console)
        path = options.out or results.default_path(found["machine"], quick=options.quick, program="epoch-time")
        results.write(path, found, epoch_results.chart)
        console.say(f"written: {path} and {path.with_suffix('.png').name}")
    if any("failed" in entry for entry in found["models"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
