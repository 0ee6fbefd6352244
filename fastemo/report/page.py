"""One self-contained HTML page of runs and studies: readable without network, fonts or scripts."""

from __future__ import annotations

import base64
import hashlib
import inspect
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from fastemo.console import Console
from fastemo.machine import write_text
from fastemo.report import words
from fastemo.report.corpus import corpora_of
from fastemo.report.drawing import COLOURS, pixels, style, svg
from fastemo.report.figures import drawn
from fastemo.report.folders import read_folders
from fastemo.report.schema import Example
from fastemo.report.view import Run

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_BYTES, _STRIP_WIDTH = 2**23, 448  # of a picture; pixels
# For all models together, so that a page of many stays small; for a single one, all examples of the run.
_MOST_STRIPS, _MOST_CLIPS, _LEAST_CLIPS, _FEW_MODELS = 160, 12, 3, 4

Picture = tuple[str, int, int]


def write_page(folders: Sequence[Path], out: Path, console: Console, *, corpus_root: Path | None = None) -> None:
    """Write one self-contained HTML page of runs, evaluations and studies.

    Args:
        folders: Finished run folders, evaluation folders and study folders, in any number.
        out: The page; replaced atomically.
        corpus_root: Where the corpus is now; by default where the runs found it. The built-in one is not generated.

    Raises:
        ValueError: A folder is none of these, is not finished, or holds a damaged file.
        OSError: The page cannot be written.
    """
    if not folders:
        raise ValueError("fastemo page needs at least one run or study folder")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the page's file with --out, such as {out / 'report.html'}")
    found = read_folders(folders)
    most = max(_LEAST_CLIPS, min(_MOST_CLIPS, _MOST_STRIPS // (2 * len(found.models) or 1)))
    width = _STRIP_WIDTH if len(found.models) > _FEW_MODELS else 2 * _STRIP_WIDTH
    with style():
        corpora = list(corpora_of(found.tested, corpus_root))
        for note in (note for corpus in corpora for note in corpus.notes):
            console.say(f"note: {note}")
        html = _render(found=found, corpora=corpora, clips=partial(_clips, most=most, width=width))
    write_text(out, html)
    told = f"{words.counted(len(found.tested), 'run')}, {words.counted(len(found.rows), 'row')}"
    console.say(f"written: {out}, {told}, {len(html.encode()) / 2**20:.1f} MiB")


def template(path: Path) -> jinja2.Template:
    """A template that has the functions of `words` as filters; of HTML, everything that is filled in is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=path.suffix == ".html",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: it for name, it in vars(words).items() if inspect.isfunction(it)}
    return environment.get_template(path.name)


def _render(**shown: Any) -> str:
    """The page as HTML; everything that comes from a file is escaped."""
    script, css = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    numbers = count()
    html = template(_TEMPLATES / "page.html").render(
        **shown,
        css=Markup(COLOURS + css),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        figures=lambda kind, of: [(name, svg(it, told, next(numbers)), told) for name, it, told in drawn(kind, of)],
        embedded=lambda picture: _embedded(pixels(picture), 1024),
    )
    # File names may hold bytes that are not text.
    return html.encode("utf-8", "replace").decode("utf-8")


def _clips(run: Run, most: int, width: int) -> list[tuple[Example, Picture | None, Picture | None]]:
    """The most confident errors and hits that have pictures: frames, and the same with heat."""
    folder, examples = run.folder or Path(), run.examples or ()
    wrong = [it for it in examples if it.kind == "wrong"][: most - most // 3]
    right = [it for it in examples if it.kind == "right"][: most // 3]
    found = [(it, *(_strip(folder, name, width) for name in (it.frames, it.gradcam))) for it in (*wrong, *right)]
    return [it for it in found if it[1] or it[2]]  # type: ignore[misc]


def _strip(folder: Path, name: str | None, width: int) -> Picture | None:
    """A picture of a run folder; None if it is missing, not a picture, or outside the folder."""
    try:
        path = folder / (name or "")
        if not path.resolve().is_relative_to(folder.resolve()) or not 0 < path.stat().st_size <= _MOST_BYTES:
            return None
        picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        return None if picture is None else _embedded(picture, width)
    except (OSError, ValueError, cv2.error):
        return None


def _embedded(picture: np.ndarray, most_width: int) -> Picture:
    """A picture, uint8 [h, w, 3] in BGR, as a data URI without metadata, with its width and height."""
    height, width = picture.shape[:2]
    if width > most_width:
        height, width = max(1, round(height * most_width / width)), most_width
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    # WebP would be half as large, but ten times as slow.
    written, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    assert written
    return f"data:image/jpeg;base64,{base64.b64encode(bytes(data)).decode('ascii')}", width, height
