"""`fastemo demo`: from a run to a page, and to nothing left of the videos."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.inference.command import load_with_notes
from fastemo.inference.prediction import Faces
from fastemo.inference.windows import Plan, window_and_hop


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `fastemo demo` is asked for.

    Attributes:
        run, min_confidence, device, faces, faces_weights: As `load` takes them.
        port: Of 127.0.0.1; `None`: the first free one from 7860.
        window, hop: In seconds, as `Recognizer.predict_videos` takes them.

    Raises:
        ValueError: These contradict each other.
        UserError: Gradio is not installed.
    """

    run: str
    port: int | None = None
    window: float | None = None
    hop: float | None = None
    min_confidence: float = 0.0
    faces: Faces | None = None
    faces_weights: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        Plan(*window_and_hop(self.window, self.hop), 1)
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port must be from 1 to 65535, not {self.port}")
        if importlib.util.find_spec("gradio") is None:
            raise UserError("fastemo demo needs gradio: pip install 'fastemo[demo]'")


def demo(request: Request, console: Console) -> None:
    """Serve the page until Ctrl-C; then everything that was uploaded or made is deleted.

    Raises:
        ValueError, UserError, OSError: The run is not usable, or the port is taken.
    """
    model = load_with_notes(
        request.run,
        console,
        device=request.device,
        min_confidence=request.min_confidence,
        faces=request.faces,
        face_weights=request.faces_weights,
    )
    # Readable by this user alone.
    with tempfile.TemporaryDirectory(prefix="fastemo-demo-") as folder:
        _isolate_gradio(folder)
        from fastemo.demo.page import make_page  # imports Gradio, which reads these variables
        from fastemo.demo.serving import listen, serve
        from fastemo.demo.videos import Videos

        with listen(request.port) as listener:
            videos = Videos(model, Path(folder), window=request.window, hop=request.hop)
            serve(make_page(videos, request.run), listener, videos, console)
    console.say("stopped: the videos and what was made of them are deleted")


def _isolate_gradio(folder: str) -> None:
    """No variable of the user's changes what is served or where files are, and nothing is asked of another host."""
    for name in [it for it in os.environ if it.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_TEMP_DIR": folder,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
