"""The options of each command but `train`, whose options are the keys of the configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastemo.machine import commit
from fastemo.version import __version__
from fastemo.video.config import CROPS

_LABELS = "ravdess or cremad (file names), folder, or a label table (.csv, .tsv)"
_MODEL = "folder of a run, of a study's folds or of an export, name in runs/, latest, or hf://USER/NAME"
_SUBJECTS = "regular expression that finds the person in a path"


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        found = commit()
        print(f"fastemo {__version__}{f' ({found})' if found else ''}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Whose `command` is one of those in `cli.py`."""
    parser = argparse.ArgumentParser(prog="fastemo", description="Emotion recognition in short face videos.")
    parser.add_argument("--version", action=_Version, nargs=0, help="version and, in a clone, its commit")
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
    synthesize.add_argument("--twins", action="store_true", help="audio-video and video-only copies of each take")
    for name in ("identity", "timing", "motion", "light", "noise"):
        synthesize.add_argument(f"--{name}", type=float, default=1.0, help="difficulty, 0 to 2")
    synthesize.add_argument("--place", type=float, default=0.0, help="the same: heads anywhere in the picture")
    synthesize.set_defaults(command="synthesize")

    _add_download(commands)
    _add_fetch(commands)

    index = commands.add_parser("index", help="scan a corpus and list its clips")
    index.add_argument("folder", type=Path)
    _add_labels(index)
    index.add_argument("--verify", choices=("quick", "full"), default="quick", help="decode one frame or all")
    index.add_argument("--out", type=Path, help="write the manifest to this file (CSV)")
    index.set_defaults(command="index")

    _add_predict(commands)
    _add_demo(commands)

    evaluate = commands.add_parser("evaluate", help="test the best checkpoint of a run")
    evaluate.add_argument("run", type=Path, help="folder, its name in runs/, or latest")
    evaluate.add_argument(
        "--split", choices=("train", "val", "test"), help="split of the run's own corpus (default: test)"
    )
    evaluate.add_argument("--out", type=Path, help="folder for the results (default: RUN/evaluation/SPLIT)")
    evaluate.add_argument(
        "--corpus.root",
        dest="root",
        type=Path,
        nargs="+",
        help="another corpus, tested on the classes that both have",
    )
    evaluate.add_argument("--corpus.labels", dest="labels", nargs="+", help=_LABELS)
    evaluate.add_argument("--corpus.subjects", dest="subjects", metavar="REGEX", help=_SUBJECTS)
    evaluate.add_argument("--corpus.classes", dest="classes", type=Path, help="YAML file that renames classes")
    evaluate.add_argument("--corpus.max_rejected", dest="max_rejected", type=int)
    _add_detector(evaluate)
    evaluate.set_defaults(command="evaluate")
    _add_comparing(commands)
    _add_sharing(commands)
    return parser


def _add_labels(command: argparse.ArgumentParser) -> None:
    command.add_argument("--labels", "--corpus.labels", dest="labels", default="ravdess", help=_LABELS)
    command.add_argument("--subjects", "--corpus.subjects", dest="subjects", metavar="REGEX", help=_SUBJECTS)


def _add_detector(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--faces.weights", dest="faces_weights", type=Path, metavar="FILE", help="face detector's (default: downloaded)"
    )


def _add_use(command: argparse.ArgumentParser) -> None:
    """How a trained model is used."""
    command.add_argument(
        "--window", type=float, metavar="S", help="seconds (default: a file up to 10 s is one clip, beyond it 3)"
    )
    command.add_argument("--hop", type=float, metavar="S", help="seconds between windows (default: 0.5)")
    command.add_argument("--min_confidence", type=float, default=0.0, metavar="P", help="below it: unsure (default: 0)")
    command.add_argument(
        "--faces", choices=("largest", "all"), help="with video.crop: face: predict the largest face (default) or all"
    )
    _add_detector(command)
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: auto)")


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    predict = commands.add_parser(
        "predict",
        help="run a trained model on videos, a stream or a camera",
        description="Predict each video, or each window of a long one. Ctrl-C ends with what there is.",
    )
    predict.add_argument("run", metavar="RUN", help=_MODEL)
    predict.add_argument("sources", nargs="*", metavar="PATH", help="file, folder, 'pattern*' or URL (rtsp:// ...)")
    predict.add_argument("--camera", type=int, metavar="N", help="number of a camera, instead of PATH")
    predict.add_argument("--out", type=Path, metavar="FILE", help=".csv, .json, .jsonl, .srt, .vtt or .parquet")
    predict.add_argument("--features", type=Path, metavar="FILE", help="embeddings, .npz")
    predict.add_argument("--annotate", type=Path, metavar="FILE", help="the video with its labels, .mp4")
    _add_use(predict)
    predict.set_defaults(command="predict")


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="run a trained model on a page in the browser",
        description="A page on this machine alone that predicts videos dropped on it or recorded there. Ctrl-C ends it "
        "and deletes them.",
    )
    demo.add_argument("run", metavar="RUN", help=_MODEL)
    demo.add_argument("--port", type=int, metavar="N", help="of 127.0.0.1 (default: the first free one from 7860)")
    _add_use(demo)
    demo.set_defaults(command="demo")


def _add_download(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    download = commands.add_parser("download", help="download a public corpus")
    corpora = download.add_subparsers(required=True, metavar="CORPUS")
    ravdess = corpora.add_parser(
        "ravdess",
        help="RAVDESS from Zenodo",
        description="Download, verify and unpack RAVDESS (CC BY-NC-SA 4.0). The same command resumes after a stop.",
    )
    ravdess.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    ravdess.add_argument("--actors", default="1-24", metavar="LIST", help="such as 1-4 or 1,3,7-9 (default: all)")
    ravdess.add_argument("--song", action="store_true", help="song too")
    ravdess.add_argument("--no-speech", action="store_true", help="no speech")
    modality = ravdess.add_mutually_exclusive_group()
    modality.add_argument("--audio-video", action="store_true", help="unpack the audio-video copy of each take only")
    modality.add_argument("--video-only", action="store_true", help="unpack the video-only copy only (default: both)")
    ravdess.add_argument("--keep", action="store_true", help="keep the archives (default: remove each once unpacked)")
    ravdess.add_argument("--dry-run", action="store_true", help="list the archives, their sizes and the disk space")
    ravdess.add_argument("--yes", action="store_true", help="accept the licence and start without asking")
    ravdess.set_defaults(command="download_ravdess")


def _add_fetch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="download the weights that trainings need",
        description="Download pretrained weights and the face detector to the caches, for trainings without a network.",
    )
    fetch.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="YAML file of a run or of a study")
    fetch.set_defaults(command="fetch")


def _add_comparing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands about several runs or a whole corpus."""
    study = commands.add_parser(
        "study",
        help="run a grid of configurations and compare the results",
        usage="fastemo study FILE [--dry-run] [--jobs N] [--out DIR] [--KEY VALUE ...]",
        description="Run every configuration of a study file; finished runs are skipped, failed ones retried. Options "
        "of fastemo train, such as --corpus.root DIR, apply to every run.",
        allow_abbrev=False,  # `--out` is not short for a key of the configuration
    )
    study.add_argument("file", type=Path, metavar="FILE", help="such as configs/study/quick.yaml")
    study.add_argument("--dry-run", action="store_true", help="list the runs and an upper bound of their duration")
    study.add_argument("--jobs", type=int, metavar="N", help="parallel runs (default: as many as fit on the machine)")
    study.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: studies/NAME)")
    study.set_defaults(command="study")

    page = commands.add_parser("page", help="write one HTML page about runs and studies")
    page.add_argument("folders", type=Path, nargs="+", metavar="RUN_OR_STUDY", help="folder, or latest: the newest run")
    page.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    page.add_argument("--corpus.root", dest="root", type=Path, help="where the corpus is now, for its pictures")
    page.set_defaults(command="page")

    figures = commands.add_parser("figures", help="draw figures of a corpus")
    kinds = figures.add_subparsers(required=True, metavar="WHAT")
    of_corpus = kinds.add_parser("corpus", help="example frames, class distribution, clips by actor, crop")
    of_corpus.add_argument("folder", type=Path)
    _add_labels(of_corpus)
    of_corpus.add_argument(
        "--protocol", help="protocol whose splits are counted, of folds the first, such as report (default: by labels)"
    )
    of_corpus.add_argument("--crop", choices=CROPS, default="center")
    _add_detector(of_corpus)
    of_corpus.add_argument("--max_rejected", type=int, default=0, help="number of files that may be rejected")
    of_corpus.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: figures")
    of_corpus.set_defaults(command="corpus_figures")


def _add_sharing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands that take a model elsewhere."""
    export = commands.add_parser("export", help="write a trained model for use by other programs")
    export.add_argument("run", metavar="RUN", type=Path, help="folder of a run, its name in runs/, or latest")
    export.add_argument(
        "--to", choices=("onnx", "torch", "safetensors"), required=True, help="ONNX, torch.export (.pt2) or weights"
    )
    export.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export/FORMAT")
    export.set_defaults(command="export")

    push = commands.add_parser(
        "push",
        help="upload a trained model to the Hugging Face Hub",
        description="Upload weights, configuration, metrics, figures and a model card as one commit. The token is that "
        "of hf auth login or HF_TOKEN.",
    )
    push.add_argument("run", metavar="RUN", type=Path, help="folder of a run, its name in runs/, or latest")
    push.add_argument("repository", metavar="USER/NAME", help="created if there is none")
    push.add_argument("--private", action="store_true", help="create it as a private one")
    push.set_defaults(command="push")
