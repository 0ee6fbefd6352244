"""`fastemo demo`: from a run to a page, and to nothing left of the videos."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.inference.command import load_with_notes
from fastemo.inference.windows import Plan, window_and_hop


def demo(
    run: str,
    console: Console,
    *,
    port: int | None = None,
    window: float | None = None,
    hop: float | None = None,
    **options: Any,
) -> None:
    """Serve a run's page until Ctrl-C; then everything that was uploaded or made is deleted.

    Args:
        port: Of 127.0.0.1; `None`: the first free one from 7860.
        window, hop: In seconds, as `Recognizer.predict_videos` takes them.
        **options: As `load` takes them.

    Raises:
        ValueError, UserError, OSError: Gradio is not installed, the run is not usable, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("fastemo demo needs gradio: pip install 'fastemo[demo]'")
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port must be from 1 to 65535, not {port}")
    Plan(*window_and_hop(window, hop), 1)
    model = load_with_notes(run, console, **options)
    # Readable by this user alone.
    with tempfile.TemporaryDirectory(prefix="fastemo-demo-") as folder:
        _isolate_gradio(folder)
        from fastemo.demo.page import make_page  # imports Gradio, which reads these variables
        from fastemo.demo.serving import listen, serve
        from fastemo.demo.videos import Videos

        with listen(port) as listener:
            videos = Videos(model, Path(folder), window=window, hop=hop)
            serve(make_page(videos, run), listener, videos, console)
    console.say("stopped: the videos and what was made of them are deleted")


def _isolate_gradio(folder: str) -> None:
    """No variable of the user's changes what is served or where files are, and nothing is asked of another host."""
    for name in [it for it in os.environ if it.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
