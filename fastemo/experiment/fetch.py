"""`fastemo fetch`: what trainings would download, downloaded to the caches before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import huggingface_hub
import torch

from fastemo.config import RunConfig
from fastemo.console import Console
from fastemo.errors import UserError, one_line
from fastemo.experiment.resume import resolve
from fastemo.experiment.study.grid import read_study
from fastemo.machine import cache_folder
from fastemo.models.build import pretrained_backbone, with_architecture
from fastemo.models.weights import weights_file
from fastemo.video.faces.detector import FaceDetector, fetch_weights
from fastemo.yaml_files import load_yaml


def fetch(paths: Sequence[Path], console: Console) -> None:
    """Download the weights that the configurations need, and list them; one that fails does not stop the others.

    Args:
        paths: Files of a run's configuration or of a study.

    Raises:
        ValueError: A file is not a valid configuration or study; nothing was downloaded.
        UserError: Some weights are not available.
    """
    configs = [config for path in paths for config in _configs(path)]
    items = {title: get for config in configs for title, get in _needed(config)}
    num_failed = 0
    for title, get in items.items():
        try:
            console.say(f"{title}: {get()}")
        except (OSError, UserError, ValueError) as error:
            num_failed += 1
            console.say(f"{title}: failed: {one_line(error)}")
    if not items:
        console.say("nothing to fetch: no pretrained weights and no face detector are needed")
    hubs = f"HF_HOME={huggingface_hub.constants.HF_HOME} TORCH_HOME={Path(torch.hub.get_dir()).parent}"
    console.say(f"caches: {hubs} FASTEMO_CACHE={cache_folder()}")
    if num_failed:
        raise UserError(f"{num_failed} of {len(items)} are not available; the lines above say why")


def _configs(path: Path) -> list[RunConfig]:
    content = load_yaml(path)
    if isinstance(content, dict) and "parts" in content:
        return [cell.config for cell in read_study(path).cells]
    return [resolve(["--config", str(path)])[0]]


def _needed(config: RunConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    """What a run needs by title, and what gets it and returns how it went."""
    with_architecture(config.model)
    if config.model.weights is not None:
        yield f"{config.model.weights} (model.weights)", partial(_there, weights_file, config.model.weights)
    elif (source := pretrained_backbone(config.model)) is not None:
        yield str(source), partial(_fetched, source.fetch)
    if config.video.crop == "face" and config.faces.weights is not None:
        yield f"{config.faces.weights} (faces.weights)", partial(_there, FaceDetector, config.faces.weights)
    elif config.video.crop == "face":
        yield "YuNet, the face detector (OpenCV)", partial(_fetched, fetch_weights)


def _there(check: Callable[[Path], object], path: Path) -> str:
    check(path)
    return "there"


def _fetched(get: Callable[[], bool]) -> str:
    return "already in the cache" if get() else "fetched"
