"""Models on the Hugging Face Hub, by their address: `hf://USER/NAME`, with a pinned revision `hf://USER/NAME@REVISION`."""

from __future__ import annotations

import re
from pathlib import Path

from fastemo.errors import MOST_OF_OTHERS, UserError, one_line
from fastemo.inference.exports import FILES, PREPROCESS_FILE
from fastemo.version import __version__

PREFIX = "hf://"
LOG_IN = "log in with hf auth login, or set HF_TOKEN"
# Never a pickle, nor a program.
_WANTED = ("config.yaml", PREPROCESS_FILE, FILES["safetensors"])
_REASONS = {
    "LocalEntryNotFoundError": "it is not in the cache, and the hub cannot be asked: no network, or HF_HUB_OFFLINE=1",
    "RepositoryNotFoundError": f"the hub has no such model, or it is private: {LOG_IN}",
    "RevisionNotFoundError": "the model has no such revision",
}
_ADDRESS = re.compile(rf"{PREFIX}(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def downloaded(address: str) -> Path:
    """The local folder of a model on the hub, downloaded into the hub's cache where it is not there yet.

    An interrupted download is resumed by the next call. With `HF_HUB_OFFLINE=1`, only the cache is used.

    Raises:
        ValueError: The address is malformed.
        UserError: The model cannot be downloaded, or is none of fastemo's.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{address}: a model on the hub is {PREFIX}USER/NAME or {PREFIX}USER/NAME@REVISION")
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            found["repository"],
            revision=found["revision"],
            allow_patterns=[*_WANTED],
            library_name="fastemo",
            library_version=__version__,
        )
    except Exception as error:  # of the hub's client, of its HTTP library, of the disk
        raise unavailable(address, error) from error
    if missing := [name for name in _WANTED if not (Path(folder) / name).is_file()]:
        raise UserError(f"{address} is not complete, or no model of fastemo: it has no {', '.join(missing)}")
    return Path(folder)


def unavailable(address: str, error: Exception) -> UserError:
    """The error of the hub's client in one line."""
    kind = type(error).__name__
    why = _REASONS.get(kind) or f"the hub's client failed ({kind}): {one_line(error)[:MOST_OF_OTHERS]}"
    return UserError(f"{address}: {why}")
