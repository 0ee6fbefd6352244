"""`fastemo <command>`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from fastemo.arguments import make_parser
from fastemo.errors import one_line_errors
from fastemo.machine import check_platform
from fastemo.video.config import VideoConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; `fastemo COMMAND --help` lists its options."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:
        from fastemo.train import main as train

        train(arguments[1:], prog="fastemo train")
        return
    parser = make_parser()
    options, others = parser.parse_known_args(arguments)
    if others and options.command != "study":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.settings = others
    with one_line_errors():
        check_platform()
        _COMMANDS[options.command](options)


def _synthesize(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.corpus.config import Difficulty, SyntheticConfig
    from fastemo.corpus.synthetic.synthesis import synthesize

    chosen = vars(options)
    difficulty = Difficulty(**{field.name: chosen[field.name] for field in fields(Difficulty)})
    names = [field.name for field in fields(SyntheticConfig) if field.name != "difficulty"]
    config = SyntheticConfig(**{name: chosen[name] for name in names}, difficulty=difficulty)
    console = Console()
    with console.track("drawing", "files") as advance:
        synthesize(options.folder, config, on_progress=advance)
    console.say(f"{options.folder}: {config.actors} actors, {config.actors * config.clips_per_actor} takes")


def _download_ravdess(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.corpus.download.ravdess import Wanted, download_ravdess

    modalities = {"audio-video": not options.video_only, "video-only": not options.audio_video}
    wanted = Wanted(
        actors=options.actors,
        channels=("speech",) * (not options.no_speech) + ("song",) * options.song,
        modalities=tuple(name for name, is_wanted in modalities.items() if is_wanted),
        keep=options.keep,
    )
    download_ravdess(options.root, wanted, Console(), yes=options.yes, dry_run=options.dry_run)


def _fetch(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.experiment.fetch import fetch

    fetch(options.configs, Console())


def _index(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.corpus.config import CorpusConfig
    from fastemo.corpus.prepare import advice, describe, scan_cached

    console = Console()
    config = CorpusConfig(root=options.folder, labels=options.labels, subjects=options.subjects, verify=options.verify)
    manifest = scan_cached(options.folder, config, console)
    for clip in manifest.rows:
        who = f"subject {clip.subject}" if clip.subject else f"actor {clip.actor}" if clip.actor else ""
        what = {"clip": ", ".join(filter(None, (clip.emotion, who)))}.get(clip.status, f"{clip.status}: {clip.reason}")
        held = f"{clip.num_frames} frames {clip.width}x{clip.height} {clip.codec}  " if clip.num_frames else ""
        console.say(f"{clip.key}  {held}{what}")
    console.say(describe(manifest))
    if not manifest.clips:
        console.say(f"no labelled clips: {advice(manifest, options.labels)}")
    if options.out:
        manifest.write_csv(options.out)
        console.say(f"written: {options.out}")


def _predict(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.inference.command import Request, predict

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever stops it finds complete files too
    chosen = {field.name: getattr(options, field.name) for field in fields(Request)}
    if num_failed := predict(Request(**chosen), console := Console()):
        console.say(f"failed: {num_failed}")
        sys.exit(1)


def _demo(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.demo.command import demo

    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal deletes the videos, too
        signal.signal(number, signal.default_int_handler)
    demo(
        options.run,
        Console(),
        port=options.port,
        window=options.window,
        hop=options.hop,
        min_confidence=options.min_confidence,
        faces=options.faces,
        face_weights=options.faces_weights,
        device=options.device,
    )


def _evaluate(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.experiment.retest import evaluate_run
    from fastemo.inference.runs import find_run

    evaluate_run(
        find_run(options.run),
        Console(),
        split=options.split,
        out=options.out,
        root=options.root,
        labels=options.labels,
        subjects=options.subjects,
        classes=options.classes,
        max_rejected=options.max_rejected,
        face_weights=options.faces_weights,
    )


def _study(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.experiment.study.estimate import dry_run
    from fastemo.experiment.study.grid import read_study
    from fastemo.experiment.study.runner import run_study
    from fastemo.training.stopping import StopSignals

    study = read_study(options.file, options.settings)
    out = options.out or Path("studies") / study.name
    with StopSignals().installed() as signals:
        if options.dry_run:
            dry_run(study, out, Console(), jobs=options.jobs)
        else:
            run_study(study, options.file, out, Console(), jobs=options.jobs, signals=signals)


def _page(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.inference.runs import LATEST, find_run
    from fastemo.report.page import write_page

    folders = [find_run(folder) if folder.name == LATEST else folder for folder in options.folders]
    write_page(folders, options.out, Console(), corpus_root=options.root)


def _export(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.inference.runs import find_run
    from fastemo.sharing.export import export_run

    export_run(find_run(options.run), options.to, Console(), out=options.out)


def _push(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.inference.runs import find_run
    from fastemo.sharing.push import push

    console = Console()
    address = push(find_run(options.run), options.repository, console, private=options.private)
    console.say(f'in Python: fastemo.load("{address}")')


def _corpus_figures(options: argparse.Namespace) -> None:
    from fastemo.console import Console
    from fastemo.corpus.config import CorpusConfig
    from fastemo.corpus.prepare import prepare_corpus
    from fastemo.corpus.protocol import split_clips
    from fastemo.report.corpus import save_corpus_figures
    from fastemo.video.faces.boxes import with_faces

    console = Console()
    config = CorpusConfig(
        root=options.folder, labels=options.labels, subjects=options.subjects, max_rejected=options.max_rejected
    )
    video = VideoConfig(crop=options.crop)
    manifest = with_faces(prepare_corpus(config, console), video, options.faces_weights, console)
    splits = split_clips(manifest, options.protocol, allow_shared_subjects=True)
    for note in splits.notes:
        console.say(f"note: {note}")
    for path in save_corpus_figures(manifest, splits, video.spec, options.out):
        console.say(f"written: {path}")


_COMMANDS = {
    "synthesize": _synthesize,
    "index": _index,
    "evaluate": _evaluate,
    "predict": _predict,
    "demo": _demo,
    "download_ravdess": _download_ravdess,
    "fetch": _fetch,
    "study": _study,
    "page": _page,
    "corpus_figures": _corpus_figures,
    "export": _export,
    "push": _push,
}


if __name__ == "__main__":
    main()
