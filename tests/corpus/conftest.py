"""Fixtures of the tests of the corpus."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import write_video


@pytest.fixture(scope="session")
def master(tmp_path_factory):
    """One small video to copy wherever a test wants a good file."""
    return write_video(tmp_path_factory.mktemp("master") / "a.mp4", 12)


@pytest.fixture
def put(tmp_path, master):
    """Put a good video at a key below `tmp_path`."""

    def copy(*keys: str) -> Path:
        for key in keys:
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(master, tmp_path / key)
        return tmp_path

    return copy
