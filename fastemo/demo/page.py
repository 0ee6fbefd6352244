"""The page, in Gradio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from markupsafe import Markup

from fastemo.demo.videos import MAX_BYTES, MAX_SECONDS, Videos
from fastemo.report.drawing import COLOURS

_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
# Without sound, which no model hears; by default, Gradio asks for 1920 x 1440.
_CAMERA = {"video": {"width": {"ideal": 1280}, "height": {"ideal": 720}}, "audio": False}
_FONT = ["system-ui", "sans-serif"]  # the system's: none is loaded
_INTRODUCTION = Markup("""<h1>Displayed emotions in videos</h1>
<p>Drop a video of a face here, or record one with your camera. The model {model} predicts which expression is
displayed: {classes}. It was trained on videos of people who display them, mostly actors, and does not know what a
person feels.</p>
<p class="small">Videos stay on this machine. Each is deleted once it is predicted, and its results when the next video
comes, this page is closed or fastemo ends. At most {megabytes} MB and {minutes} minutes.</p>""")
_MESSAGE = Markup('<p class="message" role="status">{}</p>')


def make_page(videos: Videos, run: str) -> FastAPI:
    """The page of a model as an ASGI application.

    Args:
        run: The model's name.
    """
    with gr.Blocks(title="fastemo", analytics_enabled=False) as blocks:
        _fill(blocks, videos, run)
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="",
        footer_links=[],
        max_file_size=MAX_BYTES,
        enable_monitoring=False,
        theme=gr.themes.Default(font=_FONT, font_mono=["ui-monospace", "monospace"]),
        head=f"<style>{COLOURS}{_CSS}</style>",  # Gradio rewrites rules in `css`, and loses those of the dark theme
    )


def _fill(blocks: gr.Blocks, videos: Videos, run: str) -> None:
    facts = {"megabytes": MAX_BYTES // 2**20, "minutes": f"{MAX_SECONDS / 60:.0f}"}
    gr.HTML(_INTRODUCTION.format(model=run, classes=", ".join(videos.model.class_names), **facts), elem_classes="prose")
    with gr.Row():
        with gr.Column():
            with gr.Tab("File"):
                file = gr.File(label="Video", height=220)
            with gr.Tab("Camera"):
                # Without sound, Gradio would run ffmpeg to remove it; `_CAMERA` records none.
                options = gr.WebcamOptions(mirror=False, constraints=_CAMERA)
                camera = gr.Video(
                    label="Recording", sources=["webcam"], webcam_options=options, include_audio=True, buttons=[]
                )
            message = gr.HTML(_MESSAGE.format("No video yet."))
            annotated = gr.Video(label="Predictions", show_label=False, interactive=False, visible=False, buttons=[])
        with gr.Column():
            details = gr.HTML(visible=False, elem_classes="results", padding=False)
            table = gr.DownloadButton("Download the table (CSV)", visible=False)

    def predict(path: str | None, request: gr.Request, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
        if path is None:
            return [gr.skip()] * 5
        session = request.session_hash or ""
        result = videos.predict(Path(path), session, lambda share, what: progress(share, desc=what))
        shown = (result.annotated, result.html, result.table)
        return [None, _MESSAGE.format(result.message), *(gr.update(value=it or None, visible=bool(it)) for it in shown)]

    def forget(request: gr.Request) -> None:
        videos.forget(request.session_hash or "")

    for source, event in ((file, file.upload), (camera, camera.stop_recording)):
        event(
            predict,
            source,
            [source, message, annotated, details, table],
            show_progress_on=message,
            concurrency_limit=1,
            concurrency_id="model",
            api_visibility="private",
        )
    blocks.unload(forget)
