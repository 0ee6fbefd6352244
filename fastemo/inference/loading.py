"""A finished run or study -> a `Recognizer`."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from fastemo.inference.prediction import Faces
from fastemo.inference.recognizer import Recognizer
from fastemo.inference.runs import find_run, read_runs
from fastemo.version import __version__


def load(
    run: Path | str,
    *,
    device: str = "auto",
    min_confidence: float = 0.0,
    faces: Faces | None = None,
    face_weights: Path | None = None,
) -> Recognizer:
    """A finished run's model, as `fastemo predict` uses it.

    Args:
        run: A run folder, its name in `runs/`, or `latest`, the newest finished run; or the folder of a study whose
            runs are folds or seeds of one configuration: the prediction is the mean of theirs.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1` ...
        min_confidence: A prediction whose highest probability is lower has the label `unsure`.
        faces: Of a run with `video.crop: face`, whether each window is predicted for its `largest` face, which is the
            default, or for `all`.
        face_weights: File of the face detector's weights; `None`: the run's own or, if it is not there, the downloaded
            one.

    Raises:
        ValueError: There is no such run, it is not finished, or its files do not fit; the device is not available, or
            `faces` is asked of a run that does not crop them.
        UserError: The detector's weights are not available.
    """
    runs = read_runs(find_run(run))
    if older := next((it for it in runs if it.version != __version__), None):
        made = older.version or "another version"
        warnings.warn(f"{older.folder} was made by fastemo {made}, this is {__version__}", stacklevel=2)
    found = Recognizer(runs, _device(device), min_confidence=min_confidence, faces=faces, face_weights=face_weights)
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    return found


def _device(name: str) -> torch.device:
    if name == "auto":
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device(kind.type if kind else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name} is not available: {str(error).splitlines()[0]}") from error
    return device
