"""A run folder -> the parts of a recognizer: which folder a name means, its model, classes and temperature."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastemo.config import RunConfig, config_leaves, read_config
from fastemo.evaluation.calibration import temperature_of

if TYPE_CHECKING:
    from torch import nn

LATEST = "latest"
# Keys in which the runs of one study may differ and still be one recognizer.
_MAY_DIFFER = re.compile(r"name|runs_dir|resume|seed|corpus\.fold|store\..+|video\.(prefetch_batches|decode_threads)")


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
    """A finished run.

    Attributes:
        class_names: Of the model's outputs.
        temperature: Logits are divided by it.
        version: Of the fastemo that tested it; empty where it is not known.
    """

    folder: Path
    config: RunConfig
    class_names: tuple[str, ...]
    temperature: float
    version: str

    def model(self) -> nn.Module:
        """The best checkpoint, on the CPU, in evaluation mode.

        Raises:
            ValueError: It is missing, damaged, or of other classes.
        """
        from fastemo.models.build import build_model
        from fastemo.training.checkpoint import load_model

        weights, _ = load_model(self.folder / "checkpoints" / "best")
        # The checkpoint holds every weight: nothing is downloaded.
        model = build_model(replace(self.config.model, pretrained=False, weights=None), len(self.class_names))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{self.folder}: the checkpoint does not fit its config.yaml: {error}") from error
        return model.eval()


def read_runs(folder: Path) -> list[TrainedRun]:
    """A run folder's run, or the finished runs of a study folder, which must be folds or seeds of one configuration.

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
    """Raises:
    ValueError: It is not a run folder, or its configuration is damaged.
    """
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
    return read_config(["--config", str(config_file)])


def _read_run(folder: Path) -> TrainedRun:
    config = config_of(folder)
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
