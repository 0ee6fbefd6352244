"""Duration of epochs, cold and warm, compared with their ceiling and with common alternatives.

`python benchmarks/epoch_time.py` measures each model in a separate process, in rounds: the pruned decode alone, a cold
epoch (nothing is stored; the files may be in the system's page cache), a warm one, a bare loop on one resident batch
with the same model, augmentation and settings, and the training peers in `peers/`. Then the breakdown of a warm step,
peak memory, FLOP/s, and the accuracy of `fit` after a few epochs on the built-in corpus. It writes tables, a JSON file
with every round's figures, and a chart. Epochs are timed on real RAVDESS clips if there are any (`FASTEMO_CLIPS`, or
`../shared/clips`), repeated to an epoch's length, otherwise on generated clips of their shape, which are cached.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.common import corpus, results
from benchmarks.common.epochs import report
from benchmarks.common.epochs.model import Job, measure
from benchmarks.common.epochs.networks import NETWORKS
from benchmarks.common.measure import Rounds, in_own_process
from benchmarks.common.options import Numbers, add_numbers, choose, make_parser, parse_checked
from benchmarks.common.peers import TRAINING_PEERS
from fastemo.console import Console
from fastemo.corpus.config import CorpusConfig, SyntheticConfig
from fastemo.corpus.prepare import prepare_corpus
from fastemo.errors import UserError
from fastemo.training.config import Precision
from fastemo.video.config import AugmentConfig, VideoConfig

# Two cores train 3D networks at a few clips/s: their epochs are shorter. A GPU gets RAVDESS's speech training split.
_CLIPS, _CLIPS_SLOW, _CLIPS_GPU, _CLIPS_QUICK = 40, 16, 1200, 8
_LEARNING_CLIPS, _LEARNING_CLIPS_SLOW = 120, 16
# Few clips, as an accuracy costs epochs; the second is for a smoke test.
_BUILT_IN = SyntheticConfig(clips_per_actor=8)
_BUILT_IN_QUICK = SyntheticConfig(clips_per_actor=1, width=128, height=72, num_frames=12)
_NUMBERS: Numbers = {
    "num_frames": (10, 4, "T, frames per clip"),
    "size": (128, 32, "side of a stored frame in pixels"),
    "crop_size": (112, 28, "side of the model's input in pixels"),
    "batch_size": (8, 4, "clips per batch"),
    "rounds": (3, 2, "measurement rounds"),
    "learning_epochs": (3, 2, "epochs for the accuracy"),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("epoch_time.py", __doc__)
    parser.add_argument("--models", help=f"all, or some of {', '.join(NETWORKS)}")
    parser.add_argument("--corpus", default="auto", help="a folder; generated; or auto: real clips if available")
    parser.add_argument("--clips", type=int, help="clips per epoch, rounded up to whole batches")
    add_numbers(parser, _NUMBERS)
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {', '.join(TRAINING_PEERS)}")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto", help="as --train.precision")
    parser.add_argument("--quick", action="store_true", help="small generated clips, one model: a smoke test")
    options = parse_checked(parser, arguments, numbers=_NUMBERS, positive=["clips"])
    if options.crop_size > options.size:
        raise ValueError(f"--crop_size {options.crop_size} is larger than --size {options.size}")
    if max(options.clips or 0, options.batch_size) > corpus.MOST_CLIPS:
        raise ValueError(f"--clips and --batch_size must be at most {corpus.MOST_CLIPS}, the speech takes of RAVDESS")
    options.models = choose("--models", options.models or ("late_fusion" if options.quick else "all"), NETWORKS)
    options.peer_names = choose("--peers", options.peers, TRAINING_PEERS, can_be_none=True)
    options.video = VideoConfig(num_frames=options.num_frames, size=options.size)
    options.crop = AugmentConfig(crop_size=options.crop_size)
    return options


def clips_an_epoch(model: str, options: argparse.Namespace, *, has_gpu: bool) -> int:
    """Whole batches, so that every step has one shape; not more clips than RAVDESS has."""
    wanted = _CLIPS_GPU if has_gpu else _CLIPS_SLOW if NETWORKS[model].is_slow else _CLIPS
    wanted = options.clips or (_CLIPS_QUICK if options.quick else wanted)
    batches = min(-(-wanted // options.batch_size), corpus.MOST_CLIPS // options.batch_size)
    return batches * options.batch_size


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure every model in turn, in separate processes, with one corpus for epochs of the same length.

    Returns:
        The contents of the JSON file.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    built_in = CorpusConfig(synthetic=_BUILT_IN_QUICK if options.quick else _BUILT_IN)
    learning = prepare_corpus(built_in, console)
    models: dict[str, Any] = {}
    passes: dict[str, Rounds] = {}
    corpora: dict[int, corpus.Corpus] = {}
    with tempfile.TemporaryDirectory(prefix="fastemo-benchmark-") as scratch:
        for model in options.models:
            num_clips = clips_an_epoch(model, options, has_gpu=gpu is not None)
            folder = Path(scratch) / f"{num_clips}-clips"
            if num_clips not in corpora:
                clips = corpus.choose(options.corpus, num_clips, folder / "corpus", console, quick=options.quick)
                corpora[num_clips] = clips
            learning_clips = _LEARNING_CLIPS_SLOW if NETWORKS[model].is_slow and gpu is None else _LEARNING_CLIPS
            job = Job(model, options, corpora[num_clips].manifest, learning, folder, learning_clips)
            console.say(f"{model}: started")
            try:
                found = in_own_process(measure, job)
            except UserError as error:
                models[model] = {"failed": str(error)}
                continue
            passes[model] = found["passes"]
            models[model] = report.model_entry(found, num_clips, gpu)
    about = dict(next(iter(corpora.values())).description)
    del about["clips_a_pass"]  # it is in each model's entry
    return {
        "settings": {name: getattr(options, name) for name in (*_NUMBERS, "precision", "quick")},
        "corpus": about,
        "learning_corpus": {"kind": "built-in", **asdict(built_in.synthetic)},
        "models": models,
        "ratios": report.epoch_ratios(passes),
        "targets": report.targets(passes, gpu=gpu, batch_size=options.batch_size),
    }


def main(arguments: list[str] | None = None) -> None:
    found = results.run_command("epoch_time", arguments, parse, run, report.show, report.chart)
    if any("failed" in entry for entry in found["models"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
