"""Checkpoints: folders of a model and its training state, written atomically and read without unpickling."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fastemo.machine import flush, sha256_of
from fastemo.training.state import flatten, unflatten

MODEL_FILE = "model.safetensors"
TENSORS_FILE = "state.safetensors"  # tensors of the optimiser, generators and sums
STATE_FILE = "state.json"  # everything else, and where each tensor belongs
INFO_FILE = "info.json"
CHECKSUMS_FILE = "checksums.json"  # written last: a folder without it is not a checkpoint
_FILES = (MODEL_FILE, TENSORS_FILE, STATE_FILE, INFO_FILE)

_MOST_JSON_BYTES = 256 * 2**20
_OLDER = re.compile(r"epoch-\d+-clips-\d+")
_DAMAGED = "damaged-"


class CheckpointError(ValueError):
    """A checkpoint that is missing or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A saved model and its training state, on the CPU.

    Attributes:
        info: For readers: `epoch`, `clips` trained on in it, `is_epoch_end`, metrics, versions.
    """

    folder: Path
    model: dict[str, torch.Tensor]
    state: dict[str, Any]
    info: dict[str, Any]


@dataclass
class Recovery:
    """The state of a run's checkpoints folder.

    Attributes:
        checkpoint: The latest intact one; `None`: there is none.
        notes: Messages for the user: what is damaged, and what is used instead.
    """

    checkpoint: Checkpoint | None = None
    notes: list[str] = field(default_factory=list)


def save(
    folder: Path,
    *,
    model: dict[str, torch.Tensor],
    state: dict[str, Any],
    info: dict[str, Any],
    keep: int = 0,
) -> None:
    """Write a checkpoint beside `folder`, flush it to the disk, then move it into place.

    Args:
        folder: The checkpoint; an existing one is replaced, or kept under another name.
        model: The model's state dict.
        state: Tensors, plain values, and dicts and lists of them.
        info: Information for readers, as JSON values.
        keep: Number of older checkpoints to keep beside it.

    Raises:
        OSError: It cannot be written; the existing checkpoint is unchanged.
    """
    plain, tensors = flatten(state)
    with _replacing(folder, keep) as partial:
        partial.mkdir(parents=True)
        _save_tensors(model, partial / MODEL_FILE)
        _save_tensors(tensors, partial / TENSORS_FILE)
        (partial / STATE_FILE).write_text(json.dumps(plain) + "\n", encoding="utf-8")
        (partial / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        for name in _FILES:
            flush(partial / name)
        sums = {name: sha256_of(partial / name) for name in _FILES}
        (partial / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        flush(partial / CHECKSUMS_FILE)
        flush(partial)


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        # Parameters that share memory, or have a permuted layout, are stored as contiguous copies.
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        # The system's error number is only in its text.
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def copy(source: Path, folder: Path) -> None:
    """Copy the checkpoint `source` to `folder`, by hard links where the file system has them.

    Raises:
        OSError: It cannot be written.
    """
    with _replacing(folder, keep=0) as partial:
        shutil.copytree(source, partial, copy_function=_link)
        flush(partial)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        flush(Path(target))


@contextmanager
def _replacing(folder: Path, keep: int) -> Iterator[Path]:
    """A folder beside `folder` to fill, moved into place at the end.

    Whenever the process is killed, the old or the new one exists under some name, and `recover` finds it.
    """
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        replaced = folder.with_name(f".{folder.name}.replaced")
        if folder.exists():
            replaced = _older_name(folder) if keep else replaced
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        partial.rename(folder)
        flush(folder.parent)
        shutil.rmtree(folder.with_name(f".{folder.name}.replaced"), ignore_errors=True)
        if keep:
            for old in sorted(it for it in folder.parent.iterdir() if _OLDER.fullmatch(it.name))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _older_name(folder: Path) -> Path:
    try:
        epoch, clips, _ = _position(_read_info(folder))
    except CheckpointError:
        epoch = clips = 0
    return folder.with_name(f"epoch-{epoch:05d}-clips-{clips:07d}")


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint and check its checksums.

    Raises:
        CheckpointError: There is none, or it is damaged; the message names the file.
    """
    verify(folder)
    try:
        model, tensors = load_file(folder / MODEL_FILE), load_file(folder / TENSORS_FILE)
        state = unflatten(_read_json(folder, STATE_FILE), tensors)
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {folder} is damaged: {STATE_FILE} does not hold a state")
    return Checkpoint(folder, model, state, _read_info(folder))


def load_model(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint's weights, on the CPU, and its info.

    Raises:
        CheckpointError: There is none, or it is damaged; the message names the file.
    """
    verify(folder)
    info = _read_info(folder)
    try:
        return load_file(folder / MODEL_FILE), info
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error


def verify(folder: Path) -> None:
    """Compare every file with its checksum.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged; the message names the file.
    """
    for name in (*_FILES, CHECKSUMS_FILE):
        if not (folder / name).is_file():  # a pipe would block
            raise CheckpointError(f"{folder} is not a checkpoint: {name} is missing")
    sums = _read_json(folder, CHECKSUMS_FILE)
    for name in _FILES:
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error
        if not isinstance(sums, dict) or sums.get(name) != found:
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} does not match its checksum")


def recover(checkpoints: Path) -> Recovery:
    """Find the latest intact checkpoint, whatever its name, and clean up the folder.

    A damaged one is renamed to `damaged-...`; what a killed process left incomplete is removed.
    """
    found = Recovery()
    if not checkpoints.is_dir():
        return found
    folders = [it for it in checkpoints.iterdir() if it.is_dir() and not it.name.startswith(_DAMAGED)]
    # Of equals `last` comes first, then complete ones.
    for folder in sorted(folders, key=lambda it: (_rank(it), it.name == "last", it.name), reverse=True):
        try:
            found.checkpoint = load(folder)
            break
        except CheckpointError as error:
            if folder.name.startswith("."):  # an unfinished write
                continue
            found.notes.append(str(error))
            if folder.name != "best":
                folder.rename(folder.with_name(f"{_DAMAGED}{folder.name}-{uuid.uuid4().hex[:8]}"))
    chosen = found.checkpoint
    if chosen is not None and chosen.folder.name.startswith("."):
        last = checkpoints / "last"
        if last.exists():  # older than the chosen one
            older = _older_name(last)
            shutil.rmtree(older, ignore_errors=True)  # of the same position: one of them is the epoch's end
            last.rename(older)
        found.checkpoint = Checkpoint(chosen.folder.rename(last), chosen.model, chosen.state, chosen.info)
    if found.checkpoint is not None and found.notes:
        found.notes.append(f"resuming from {found.checkpoint.folder}")
    for folder in checkpoints.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _rank(folder: Path) -> tuple[int, int, bool]:
    """A checkpoint's own position; one without a readable position comes first, so that it is reported."""
    try:
        return _position(_read_info(folder))
    except CheckpointError:
        return (2**63, 0, False)


def _position(info: dict[str, Any]) -> tuple[int, int, bool]:
    epoch, clips = info.get("epoch", 0), info.get("clips", 0)
    if not isinstance(epoch, int) or not isinstance(clips, int):
        raise CheckpointError("its epoch is not a number")
    return epoch, clips, bool(info.get("is_epoch_end", False))


def _read_info(folder: Path) -> dict[str, Any]:
    info = _read_json(folder, INFO_FILE)
    if not isinstance(info, dict):
        raise CheckpointError(f"checkpoint {folder} is damaged: {INFO_FILE} does not hold keys")
    return info


def _read_json(folder: Path, name: str) -> Any:
    path = folder / name
    try:
        if not path.is_file() or path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"{name} is missing or too large")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error


def snapshot(value: Any) -> Any:
    """A copy of nested tensors in the host's memory, which training no longer changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    return [snapshot(item) for item in value] if isinstance(value, list | tuple) else value


class Writer:
    """Writes in a background thread during training, one job at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Start a write after the previous one has finished.

        Raises:
            OSError: The previous write failed.
        """
        self.wait()
        self._pending = self._pool.submit(write)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: The write failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish the current write; its errors are no longer reported."""
        self._pool.shutdown(wait=True)
