"""Finished runs of any model, without training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastemo.config import read_config, write_config
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training import checkpoint


def run_of(tiny_run: Path, folder: Path, num_frames: int | None = None, size: int | None = None, **model: Any) -> Path:
    """A copy of a run whose model is another one, with random weights, perhaps for clips of another size."""
    shutil.copytree(tiny_run, folder)
    config = read_config(["--config", str(folder / "config.yaml")])
    video = replace(config.video, num_frames=num_frames or config.video.num_frames, size=size or config.video.size)
    augment = replace(config.augment, crop_size=size or config.augment.crop_size)
    model = ModelConfig(pretrained=False, **model)
    config = replace(config, name=folder.name, model=model, video=video, augment=augment)
    write_config(config, folder / "config.yaml")
    weights = build_model(config.model, 8).state_dict()
    checkpoint.save(folder / "checkpoints" / "best", model=weights, state={}, info={"epoch": 1, "clips": 0})
    return folder
