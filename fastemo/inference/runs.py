"""A run folder -> a recognizer: which folder a name means, its model, classes and temperature."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastemo.config import RunConfig, config_leaves, read_config
from fastemo.evaluation.calibration import temperature_of
from fastemo.inference.exports import FILES, PREPROCESS_FILE, hub
from fastemo.inference.prediction import Faces
from fastemo.version import __version__

if TYPE_CHECKING:
    import torch

    from fastemo.inference.exports.graphs import Graph
    from fastemo.inference.exports.preprocess import Preprocess
    from fastemo.inference.recognizer import Recognizer
    from fastemo.models.fusion import ClipModel

LATEST = "latest"
# Keys in which the runs of one study may differ and still be one recognizer.
_MAY_DIFFER = re.compile(r"name|runs_dir|resume|seed|corpus\.fold|store\..+|video\.(prefetch_batches|decode_threads)")


def load(
    run: Path | str,
    *,
    device: str = "auto",
    min_confidence: float = 0.0,
    faces: Faces | None = None,
    face_weights: Path | None = None,
) -> Recognizer:
    """A finished run's model, as `fastemo predict` uses it.

    Args:
        run: A run folder, its name in `runs/`, or `latest`, the newest finished run; the folder of a study whose
            runs are folds or seeds of one configuration: the prediction is the mean of theirs; the folder of an
            export; or `hf://USER/NAME` or `hf://USER/NAME@REVISION`, a model on the Hugging Face Hub.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1` ...
        min_confidence: A prediction whose highest probability is lower has the label `unsure`.
        faces: Of a run with `video.crop: face`, whether each window is predicted for its `largest` face, which is the
            default, or for `all`.
        face_weights: File of the face detector's weights; `None`: the run's own or, if it is not there, the downloaded
            one.

    Raises:
        ValueError: There is no such run, it is not finished, or its files do not fit; the device is not available, or
            `faces` is asked of a run that does not crop them.
        UserError: The detector's weights, the model on the hub or ONNX Runtime are not available.
    """
    from fastemo.inference.recognizer import Recognizer  # imports torch

    is_on_hub = str(run).startswith(hub.PREFIX)
    runs = read_runs(hub.downloaded(str(run)) if is_on_hub else find_run(run))
    if older := next((it for it in runs if it.version != __version__), None):
        made = older.version or "another version"
        warnings.warn(f"{older.folder} was made by fastemo {made}, this is {__version__}", stacklevel=2)
    found = Recognizer(runs, _device(device), min_confidence=min_confidence, faces=faces, face_weights=face_weights)
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    return found


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device(kind.type if kind else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name} is not available: {str(error).splitlines()[0]}") from error
    return device


def find_run(name: Path | str, runs_dir: Path = RunConfig.runs_dir) -> Path:
    """The folder of a run: a path, a name in `runs_dir`, or `latest` (`DIR/latest`), the newest finished run in it.

    Raises:
        ValueError: There is none.
    """
    path = Path(name)
    for folder in (path, runs_dir / path):
        if folder.is_dir():
            return folder
    if path.name != LATEST:
        raise ValueError(f"{name}: neither {path} nor {runs_dir / path} is a run folder")
    home = runs_dir if path == Path(LATEST) else path.parent
    finished = [file for file in home.glob("*/test.json") if file.is_file()]
    if not finished:
        raise ValueError(f"{name}: no run in {home} is finished")
    return max(finished, key=lambda file: (file.stat().st_mtime_ns, file.parent.name)).parent


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, or its export.

    Attributes:
        class_names: Of the model's outputs.
        temperature: Logits are divided by it.
        version: Of the fastemo that tested it; empty where it is not known.
        exported: Of an export, what it is.
    """

    folder: Path
    config: RunConfig
    class_names: tuple[str, ...]
    temperature: float
    version: str
    exported: Preprocess | None = None

    def model(self, device: torch.device) -> ClipModel | Graph:
        """The best checkpoint, or the exported model, in evaluation mode.

        Raises:
            ValueError: It is missing, damaged, or of other classes.
            UserError: ONNX Runtime is missing, or cannot use the device.
        """
        from fastemo.inference.exports.graphs import open_graph
        from fastemo.models.build import build_model
        from fastemo.models.weights import read_state_dict
        from fastemo.training.checkpoint import load_model

        if self.exported is None:
            weights, _ = load_model(self.folder / "checkpoints" / "best")
        else:
            file = self.folder / FILES[self.exported.format]
            if self.exported.format != "safetensors":
                return open_graph(file, self.exported.format, device)
            weights = read_state_dict(file)
        # The checkpoint holds every weight: nothing is downloaded.
        model = build_model(replace(self.config.model, pretrained=False, weights=None), len(self.class_names))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{self.folder}: the checkpoint does not fit its config.yaml: {error}") from error
        return model.eval().to(device)


def read_runs(folder: Path) -> list[TrainedRun]:
    """The run of a run folder or an export, or a study folder's finished runs: folds or seeds of one configuration.

    Raises:
        ValueError: It is neither, is not finished, or the study's runs differ; the message says in which keys.
    """
    if not (folder / "study.json").is_file():
        return [_read_run(folder)]
    cells = _read_json(folder / "study.json").get("cells")
    places = [folder / str(cell.get("folder")) for cell in cells or () if isinstance(cell, dict)]
    found = [_read_run(place) for place in places if (place / "test.json").is_file()]
    if not found:
        raise ValueError(f"{folder}: no run of the study is finished")
    first, *others = found
    for other in others:
        before, now = dict(config_leaves(first.config)), dict(config_leaves(other.config))
        differing = [key for key in before if before[key] != now[key] and not _MAY_DIFFER.fullmatch(key)]
        if differing or first.class_names != other.class_names:
            raise ValueError(
                f"{folder}: the study's runs are of several models ({', '.join(differing) or 'other classes'} differ): "
                f"give one of them, such as {first.folder}"
            )
    return found


def config_of(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        ValueError: It is not a run folder, but perhaps an export, or its configuration is damaged.
    """
    if (folder / PREPROCESS_FILE).is_file():
        raise ValueError(f"{folder} is an export, which can only predict: give the run itself")
    return _config_in(folder)


def _config_in(folder: Path) -> RunConfig:
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
    return read_config(["--config", str(config_file)])


def _read_run(folder: Path) -> TrainedRun:
    config = _config_in(folder)
    if (folder / PREPROCESS_FILE).is_file():
        from fastemo.inference.exports.preprocess import read_preprocess  # imports pydantic

        found = read_preprocess(folder)
        if found.format != "safetensors":  # exported graphs compute in float32
            config = replace(config, train=replace(config.train, precision="fp32"))
        return TrainedRun(folder, config, tuple(found.class_names), found.temperature, found.fastemo, found)
    if not (folder / "test.json").is_file():
        raise ValueError(
            f"{folder} is not finished: it has no test.json; finish it with fastemo train --resume {folder}"
        )
    result = _read_json(folder / "test.json")
    per_class = result.get("per_class")
    if not isinstance(per_class, Mapping) or not per_class:
        raise ValueError(f"{folder / 'test.json'}: per_class must name the classes")
    versions = result.get("versions")
    version = versions.get("fastemo", "") if isinstance(versions, Mapping) else ""
    return TrainedRun(folder, config, tuple(per_class), temperature_of(folder), str(version))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")
    return value
