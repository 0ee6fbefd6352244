"""Names of a study's runs and rows, and values as text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastemo.config import RunConfig

_LONGEST_NAME = 80


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def argument(value: Any) -> str:
    """A value as on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return json.dumps(plain(value)) if isinstance(value, list) else str(value)


def cell_name(config: RunConfig, shown: Mapping[str, Any], digest: str) -> str:
    """A readable and unique name: `early_cnn-t10-112px-enabled_false-seed0-1a2b3c4d`."""
    start = [config.model.name, f"t{config.video.num_frames}", f"{config.augment.crop_size}px"]
    rest = [
        re.sub(r"[^A-Za-z0-9.]+", "_", f"{key.rpartition('.')[2]}_{argument(value)}")
        for key, value in shown.items()
        if key not in ("model.name", "video.num_frames", "augment.crop_size", "video.size", "seed")
    ]
    return f"{'-'.join([*start, *rest])[:_LONGEST_NAME]}-seed{config.seed}-{digest}"


def label_of(settings: Mapping[str, Any]) -> str:
    """Text such as `early_cnn, 6 frames, not augmented`."""
    words = []
    for key, value in settings.items():
        if key == "video.size" and "augment.crop_size" in settings:
            continue  # it follows from the crop size
        known = {
            "model.name": str(value),
            "video.num_frames": f"{value} frames",
            "train.epochs": f"{value} epochs",
            "augment.enabled": "augmented" if value else "not augmented",
            "augment.crop_size": f"{value} px",
            "augment.per_frame": "augmented by frame" if value else "augmented by clip",
            "augment.rotation_corners": f"{value} corners",
        }
        words.append(known.get(key) or f"{key.rpartition('.')[2].replace('_', ' ')} {argument(value)}")
    return ", ".join(words)
