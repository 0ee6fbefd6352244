"""What the machine gives: processors, a folder to keep things in, and writes that are whole or not at all."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

VERSIONED_PACKAGES = (
    "fastemo",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "av",
    "numpy",
    "opencv-python-headless",
)


def available_processors() -> int:
    """Processors for this process: those it may run on, shared with the other ranks of this host."""
    # Python 3.13 has os.process_cpu_count; macOS has no sched_getaffinity.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cache_folder() -> Path:
    """Where things that can be made again are kept: `FASTEMO_CACHE`, or the user's cache folder."""
    if chosen := os.environ.get("FASTEMO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastemo"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, renamed at the end: a reader sees the whole old file or the new one."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def versions() -> dict[str, str]:
    """Of Python and of what the result depends on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
