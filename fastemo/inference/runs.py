"""Which run a name means."""

from __future__ import annotations

from pathlib import Path

from fastemo.config import RunConfig

LATEST = "latest"


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
