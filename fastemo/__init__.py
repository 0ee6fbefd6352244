"""fastemo: emotion recognition in short face videos, at the speed of the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastemo.version import __version__

if TYPE_CHECKING:
    from fastemo.inference.prediction import Prediction
    from fastemo.inference.recognizer import Recognizer
    from fastemo.inference.runs import load

__all__ = ["Prediction", "Recognizer", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: torch takes seconds."""
    if name == "Prediction":
        from fastemo.inference.prediction import Prediction

        return Prediction
    if name in ("Recognizer", "load"):
        from fastemo.inference import recognizer, runs

        return runs.load if name == "load" else recognizer.Recognizer
    raise AttributeError(f"module 'fastemo' has no attribute '{name}'")
