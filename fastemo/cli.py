"""`fastemo <command>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from fastemo import __version__
from fastemo.errors import one_line_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; `fastemo COMMAND --help` tells its options."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:
        from fastemo.train import main as train

        train(arguments[1:], prog="fastemo train")
        return
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    with one_line_errors():
        command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastemo", description="Emotion recognition in short face videos.")
    parser.add_argument("--version", action="version", version=f"fastemo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("train", help="train and test a model (all options: fastemo train --help)")

    synthesize = commands.add_parser("synthesize", help="make the built-in corpus of generated faces")
    synthesize.add_argument("folder", type=Path)
    synthesize.add_argument("--actors", type=int, default=24)
    synthesize.add_argument("--clips_per_actor", type=int, default=60)
    synthesize.add_argument("--width", type=int, default=320, help="pixels")
    synthesize.add_argument("--height", type=int, default=180, help="pixels")
    synthesize.add_argument("--num_frames", type=int, default=60)
    synthesize.add_argument("--seed", type=int, default=0)
    synthesize.add_argument("--twins", action="store_true", help="an audio-video and a video-only file of each take")
    for name in ("identity", "timing", "motion", "light", "noise"):
        synthesize.add_argument(f"--{name}", type=float, default=1.0, help="difficulty, 0 to 2")
    synthesize.set_defaults(command=_synthesize)

    index = commands.add_parser("index", help="scan a corpus and say what it holds")
    index.add_argument("folder", type=Path)
    index.add_argument("--labels", choices=("ravdess", "cremad", "folder"), default="ravdess")
    index.add_argument("--verify", choices=("quick", "full"), default="quick", help="decode one frame, or all")
    index.add_argument("--out", type=Path, help="write the manifest to this file (CSV)")
    index.set_defaults(command=_index)

    evaluate = commands.add_parser("evaluate", help="test the best checkpoint of a run")
    evaluate.add_argument("run", type=Path)
    evaluate.add_argument("--split", choices=("train", "val", "test"), help="of the run's own corpus (default: test)")
    evaluate.add_argument("--out", type=Path, help="folder for the results (default: RUN/evaluation/SPLIT)")
    evaluate.add_argument(
        "--corpus.root", dest="root", type=Path, help="another corpus, tested on the classes that it shares"
    )
    evaluate.add_argument("--corpus.labels", dest="labels", choices=("ravdess", "cremad", "folder"))
    evaluate.add_argument("--corpus.max_rejected", dest="max_rejected", type=int)
    evaluate.set_defaults(command=_evaluate)
    return parser


def _synthesize(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.corpus.synthetic import Difficulty, SyntheticConfig, synthesize

    chosen = vars(options)
    difficulty = Difficulty(**{field.name: chosen[field.name] for field in fields(Difficulty)})
    names = [field.name for field in fields(SyntheticConfig) if field.name != "difficulty"]
    config = SyntheticConfig(**{name: chosen[name] for name in names}, difficulty=difficulty)
    console = Console()
    with console.track("drawing", "files") as advance:
        synthesize(options.folder, config, on_progress=advance)
    console.say(f"{options.folder}: {config.actors} actors, {config.actors * config.clips_per_actor} takes")


def _index(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.corpus.config import CorpusConfig
    from fastemo.corpus.prepare import describe, scan_cached

    console = Console()
    config = CorpusConfig(root=options.folder, labels=options.labels, verify=options.verify)
    manifest = scan_cached(options.folder, config, console)
    for clip in manifest.rows:
        what = {"clip": f"{clip.emotion}, actor {clip.actor}" if clip.actor else clip.emotion}.get(
            clip.status, f"{clip.status}: {clip.reason}"
        )
        held = f"{clip.num_frames} frames {clip.width}x{clip.height} {clip.codec}  " if clip.num_frames else ""
        console.say(f"{clip.key}  {held}{what}")
    console.say(describe(manifest))
    if options.out:
        manifest.write_csv(options.out)
        console.say(f"written: {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.retest import evaluate_run

    evaluate_run(
        options.run,
        Console(),
        split=options.split,
        out=options.out,
        root=options.root,
        labels=options.labels,
        max_rejected=options.max_rejected,
    )


if __name__ == "__main__":
    main()
