"""`fastemo export`: a run's model as ONNX, as a torch program or as weights, with what using it takes."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from fastemo.config import RunConfig, write_config
from fastemo.console import Console
from fastemo.corpus.manifest import read_manifest
from fastemo.corpus.prepare import named_root
from fastemo.errors import MOST_OF_OTHERS, UserError, one_line
from fastemo.experiment.examples import sampled
from fastemo.inference.exports import FILES, PREPROCESS_FILE, Format
from fastemo.inference.exports.graphs import INPUT, OUTPUTS
from fastemo.inference.exports.preprocess import Preprocess
from fastemo.inference.runs import TrainedRun, read_runs
from fastemo.machine import sha256_of, write_text
from fastemo.models.fusion import ClipModel
from fastemo.report.corpus import home_of
from fastemo.sharing.card import CARD_FILE, model_card
from fastemo.video.augment import center_crop

_MOST_DIFFERENCE = 1e-3  # of logits
_CHECKED_CLIPS, _RANDOM_CLIPS = 4, 3
_CPU = torch.device("cpu")


def export_run(folder: Path, kind: Format, console: Console, *, out: Path | None = None) -> Path:
    """Export a finished run's model and check that the export computes what the model does.

    Args:
        folder: Of one run.
        out: Folder of the export; `None`: `export/FORMAT` in the run's. An export in it is replaced.

    Returns:
        The folder, which `fastemo.load` takes: the model's file, `config.yaml` without paths of this machine,
        `preprocess.json` and the model card `README.md`.

    Raises:
        ValueError: It is not one finished run, or `out` holds something else.
        UserError: A package is missing, the format does not take the model, or the export computes something else.
    """
    run = one_run(folder)
    out = out or folder / "export" / kind
    if out.exists() and not (out / PREPROCESS_FILE).is_file():
        raise ValueError(f"{out} exists and is not an export: choose another folder with --out")
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" and not find_spec(name)]:
        raise UserError(f"fastemo export --to onnx needs {', '.join(missing)}: pip install 'fastemo[export]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    with written(run, kind, console, beside=out) as made:
        if out.exists():
            shutil.rmtree(out)
        made.replace(out)
    console.say(f"written: {out}")
    return out


def one_run(folder: Path) -> TrainedRun:
    """Raises:
    ValueError: The folder is not that of one finished run.
    """
    run, *others = read_runs(folder)
    if others:
        raise ValueError(f"{folder} holds {len(others) + 1} runs: give one of them, such as {run.folder}")
    if run.exported is not None:
        raise ValueError(f"{folder} is an export: give the run itself")
    return run


@contextmanager
def written(
    run: TrainedRun,
    kind: Format,
    console: Console,
    *,
    beside: Path | None = None,
    address: str = "path/to/this/folder",
    figures: Sequence[str] = (),
) -> Iterator[Path]:
    """The folder of an export, checked, in a temporary folder, which is removed at the end.

    Args:
        beside: Where the export is to be moved.
        address: What `load` will take, for the card.
        figures: Names of the run's pictures that the card shows.
    """
    parent = None if beside is None else beside.parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=".export-") as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        model = run.model(_CPU)
        assert isinstance(model, ClipModel)
        file = made / FILES[kind]
        try:
            _write_model(model, _random_frames(run.config)[:2], kind, file)
        except OSError:
            raise
        except Exception as error:  # torch's exporters raise any
            reason = one_line(error)[:MOST_OF_OTHERS]
            raise UserError(f"{run.folder} cannot be exported as {kind}: {reason}") from error
        _write_others(run, kind, sha256_of(file), made)
        for name in figures:
            shutil.copyfile(run.folder / name, made / name)
        write_text(made / CARD_FILE, model_card(run, address, figures))
        console.say(_checked(model, run, made))
        yield made


class _Outputs(nn.Module):
    """A model whose outputs are logits and embedding."""

    def __init__(self, model: ClipModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.logits_and_embedding(frames)


def _write_model(model: ClipModel, example_BTCHW: Tensor, kind: Format, file: Path) -> None:
    if kind == "safetensors":
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        file.write_bytes(safetensors.torch.save(weights))  # readable for others, unlike what `save_file` writes
        return
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        program = torch.export.export(_Outputs(model), (example_BTCHW,), dynamic_shapes=shapes)
        if kind == "torch":
            torch.export.save(program, file)
            return
        exported = torch.onnx.export(
            program, input_names=[INPUT], output_names=[*OUTPUTS], dynamic_shapes=shapes, dynamo=True, verbose=False
        )
        assert exported is not None
        exported.save(file, external_data=False)


def _write_others(run: TrainedRun, kind: Format, sha256: str, out: Path) -> None:
    config = run.config
    write_config(portable(config), out / "config.yaml")
    found = Preprocess(
        format=kind,
        sha256=sha256,
        fastemo=run.version,
        class_names=[*run.class_names],
        temperature=run.temperature,
        num_frames=config.video.num_frames,
        crop=config.video.crop,
        size=config.video.size,
        face_margin=config.video.face_margin,
        crop_size=config.augment.crop_size,
    )
    write_text(out / PREPROCESS_FILE, found.model_dump_json(indent=1) + "\n")


def portable(config: RunConfig) -> RunConfig:
    """Without the paths of this machine, of which a corpus keeps its folder's name."""
    corpus = config.corpus
    if corpus.root is not None:
        names = [name or part.root.absolute().name for name, part in corpus.parts.items()]  # type: ignore[union-attr]
        labels = [Path(str(part.labels)).name for part in corpus.parts.values()]
        classes = None if corpus.classes is None else Path(corpus.classes.name)
        corpus = replace(corpus, root=[Path(name) for name in names], labels=labels, classes=classes)
    return replace(
        config,
        runs_dir=RunConfig.runs_dir,
        resume=None,
        corpus=corpus,
        faces=replace(config.faces, weights=None),
        store=replace(config.store, root=None),
        model=replace(config.model, weights=None),
    )


def _checked(model: ClipModel, run: TrainedRun, made: Path) -> str:
    """How far the export's logits are from the model's.

    Raises:
        UserError: Farther than rounding explains.
    """
    [read_back] = read_runs(made)
    exported = read_back.model(_CPU)
    inputs = {"random clips": _random_frames(run.config), "clips of the corpus": _real_frames(run)}
    told = []
    for name, frames in inputs.items():
        if frames is None:
            told.append("no real ones, for the run's corpus is not here")
            continue
        with torch.inference_mode():
            ours, theirs = (it.logits_and_embedding(frames)[0] for it in (model, exported))
        difference = (ours - theirs).abs().max().item()
        if not difference <= _MOST_DIFFERENCE:
            raise UserError(
                f"the export's logits differ from the model's by {difference:.2g} on {name}, more than "
                f"{_MOST_DIFFERENCE:g}: nothing was written; choose another format, or other versions of its packages"
            )
        told.append(f"{difference:.1e} on {len(frames)} {name}")
    return f"largest difference of logits: {', '.join(told)}"


def _random_frames(config: RunConfig) -> Tensor:
    """Float32 [3, T, 3, H, W]."""
    shape = (_RANDOM_CLIPS, config.video.num_frames, 3, config.video.size, config.video.size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return center_crop(pixels, config.augment)


def _real_frames(run: TrainedRun) -> Tensor | None:
    """Clips of the run's corpus, float32 [up to 4, T, 3, H, W]; None if it is not here."""
    corpus = run.config.corpus
    listed = read_manifest(run.folder / "manifest.csv", named_root(corpus))
    root = home_of(listed, corpus)
    here = [] if root is None else [clip for clip in listed.clips if clip.file(root).exists()]
    if root is None or not here:
        return None
    chosen = here[:: max(1, len(here) // _CHECKED_CLIPS)][:_CHECKED_CLIPS]
    clips = [center_crop(sampled(run.config, root, clip)[0], run.config.augment) for clip in chosen]
    return torch.cat(clips)
