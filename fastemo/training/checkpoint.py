"""A model and the state of its training, saved as a folder, whole or not at all; read without unpickling."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.pt"
INFO_FILE = "info.json"


def save(folder: Path, *, model: dict[str, torch.Tensor], state: dict[str, Any], info: dict[str, Any]) -> None:
    """Write a checkpoint beside `folder`, then put it in its place.

    Args:
        folder: The checkpoint; one that is there is replaced.
        model: The model's state dict.
        state: Tensors and plain values of the optimiser and scheduler.
        info: What a reader wants to know: epoch, metrics, model, versions. JSON.
    """
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        # Parameters that share memory or a permuted layout are stored as they read.
        save_file({name: value.detach().cpu().contiguous() for name, value in model.items()}, partial / MODEL_FILE)
        torch.save(state, partial / STATE_FILE)
        (partial / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_model(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint's weights, on the CPU, and its info.

    Raises:
        ValueError: There is no checkpoint, or it is damaged; the message names the file.
    """
    if not (folder / MODEL_FILE).is_file():
        raise ValueError(f"{folder} holds no checkpoint: {MODEL_FILE} is missing")
    try:
        weights = load_file(folder / MODEL_FILE)
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: {error}") from error
    return weights, info
