"""Entry of `accelerate launch fastemo/train.py`, of `torchrun` and of `fastemo train`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

# A script's own folder comes first on sys.path: this package's modules would hide others of the same name, and
# `import fastemo` would fail. Put the parent folder there.
if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from fastemo.errors import one_line_errors

_HELP = """\
usage: {prog} [--config FILE] [--KEY VALUE ...]

Train and test a model; later options override earlier ones.

Run:
  --config FILE                 YAML file of keys and values, such as configs/r3d18.yaml
  --name NAME                   folder of the run (default: model and time)
  --runs_dir DIR                folder of the run folders (default: {config.runs_dir})
  --seed N                      seed of weights, clip order and augmentation (default: {config.seed})
  --minutes N                   time for the whole run, instead of epochs
  --resume RUN                  run to resume (if finished, with more --train.epochs): folder, name, latest or auto

Corpus:
  --corpus.root DIR             folder of videos (default: the built-in corpus of generated faces)
  --corpus.labels KIND          ravdess, cremad, folder, or a label table (default: {config.corpus.labels})
  --corpus.protocol NAME        report, speech, speech+song, split_a, kfold5, kfold6, kfold, loso, cremad, folders
  --corpus.fold N               fold to test on, from 0 (default: {config.corpus.fold}); kfold has --corpus.folds K

Frames:
  --video.num_frames T          frames per clip (default: {config.video.num_frames})
  --video.crop KIND             center, full, squash, head, or face: around the face (default: {config.video.crop})
  --video.size PIXELS           side of the cached frames (default: {config.video.size})
  --augment.crop_size PIXELS    side of the model's input (default: {config.augment.crop_size})

Model:
  --model.name NAME             {models} (default: {config.model.name})
  --model.pretrained BOOL       start from ImageNet or Kinetics-400 weights (default: {config.model.pretrained})
  --model.weights PATH          start from a run (or latest), or from a file of pretrained weights (default: the hub)

Training:
  --train.batch_size N          clips per step on each device (default: {config.train.batch_size})
  --train.epochs N              maximum number of epochs (default: {config.train.epochs})
  --train.lr RATE               learning rate (default: {config.train.lr})
  --train.precision KIND        auto, fp32, fp16 or bf16 (default: {config.train.precision})

--help-all lists every key with its type and default.
"""


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """Train with the configuration that the arguments give."""
    started, arguments = time.monotonic(), sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        from fastemo.config import RunConfig
        from fastemo.machine import check_platform
        from fastemo.models.config import ModelName

        if {"-h", "--help"} & {*arguments}:
            models = ", ".join(get_args(ModelName))
            print(_HELP.format(prog=prog or Path(sys.argv[0]).name, config=RunConfig(), models=models), end="")
            return
        check_platform()
        from fastemo.experiment.resume import resolve

        config, run_dir = resolve(arguments, prog=prog)  # before torch takes seconds to load
        # Imported here: the processes that draw the built-in corpus import this file again and do not need torch.
        from fastemo.experiment.run import run
        from fastemo.training.stopping import StopSignals

    # The signals outermost: a launcher that sees one process fail sends the others a signal.
    with StopSignals().installed() as signals, one_line_errors():
        run(config, run_dir, signals, started)


if __name__ == "__main__":
    main()
