"""A model and the state of its training, saved as a folder, whole or not at all; read without unpickling."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
    with _replacing(folder) as partial:
        partial.mkdir(parents=True)
        # Parameters that share memory or a permuted layout are stored as they read.
        save_file({name: value.detach().cpu().contiguous() for name, value in model.items()}, partial / MODEL_FILE)
        torch.save(state, partial / STATE_FILE)
        (partial / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def copy(source: Path, folder: Path) -> None:
    """Put the checkpoint `source` at `folder` as well; its bytes are shared where the disk has hard links."""
    with _replacing(folder) as partial:
        shutil.copytree(source, partial, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to fill, put in its place at the end."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def snapshot(value: Any) -> Any:
    """A copy in the host's memory of tensors and what holds them, which training no longer changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    return [snapshot(item) for item in value] if isinstance(value, list | tuple) else value


class Writer:
    """Writes while training goes on, one thing after the other."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Begin to write, once what was begun before is written.

        Raises:
            OSError: What was begun before could not be written.
        """
        self.wait()
        self._pending = self._pool.submit(write)

    def wait(self) -> None:
        """Until all is written.

        Raises:
            OSError: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish what was begun; whether it could be written is no longer told."""
        self._pool.shutdown(wait=True)


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
