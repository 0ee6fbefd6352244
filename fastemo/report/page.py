"""Runs and studies -> one HTML page that needs nothing else: no network, no font, no script to read it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fastemo.report import charts
from fastemo.report.page_blocks import Block, Charts, Figure, Heading, Section, Text
from fastemo.report.page_cost import cost, curves
from fastemo.report.page_data import Part, Tested
from fastemo.report.page_models import models, retests
from fastemo.report.page_pictures import embedded
from fastemo.report.page_results import classes, comparisons, results, time
from fastemo.report.page_words import counted, finding

_TEMPLATES = Path(__file__).parent / "templates"
_SHEET_WIDTH, _CROP_WIDTH = 1200, 800  # pixels


@dataclass(frozen=True, kw_only=True)
class CorpusView:
    """A corpus as the runs saw it.

    Attributes:
        title: What it is.
        class_counts: Clips by split, then by emotion.
        actor_counts: Clips by split, then by actor.
        sheet, crop: JPEG files: example frames by emotion, and the crop drawn on a frame; None where there are none.
        notes: What a reader should know, such as why there are no pictures.
    """

    title: str
    class_counts: Mapping[str, Mapping[str, int]]
    actor_counts: Mapping[str, Mapping[int, int]]
    sheet: bytes | None
    crop: bytes | None
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PageData:
    """All that a page tells.

    Attributes:
        facts: What was run, a name and its value each; those named `Command` are shown as they are typed.
        descriptions: Of the studies.
        unfinished: Cells that failed or wait: `name`, `status`, `reason`.
        retests: Later evaluations, by what they are called.
        corpus_note: How the report's figures relate to this corpus.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    descriptions: Sequence[str]
    parts: Sequence[Part]
    unfinished: Sequence[Mapping[str, Any]]
    retests: Sequence[tuple[str, Tested]]
    corpora: Sequence[CorpusView]
    corpus_note: str


def render(page: PageData) -> str:
    """The page as HTML; everything that comes from a file is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    html = environment.get_template("page.html").render(
        page=page,
        sections=_sections(page),
        findings=finding(page.parts) if page.parts else [],
        unfinished=[_unfinished(cell) for cell in page.unfinished],
        style=Markup(style),
        script=Markup(script),
        script_digest=digest,
    )
    # Names of files may hold bytes that are no text.
    return html.encode("utf-8", "replace").decode("utf-8")


def _sections(page: PageData) -> list[Section]:
    parts = page.parts
    found = [
        results(parts, page.corpus_note) if parts else None,
        comparisons(parts),
        time(parts),
        classes(parts),
        curves(parts),
        cost(parts),
        retests(page.retests),
        models(parts, page.retests),
        *(_corpus(view, number) for number, view in enumerate(page.corpora, start=1)),
    ]
    return [section for section in found if section is not None]


def _unfinished(cell: Mapping[str, Any]) -> str:
    attempts = f" after {counted(cell['attempts'], 'attempt')}" if cell["attempts"] else ""
    reason = f": {cell['reason']}" if cell["reason"] else ""
    return f"{cell['name']}: {cell['status']}{attempts}{reason}"


def _corpus(view: CorpusView, number: int) -> Section:
    blocks: list[Block] = [Text(text=note, is_note=True) for note in view.notes]
    figures = []
    if any(view.class_counts.values()):
        told = "; ".join(
            f"{split}: " + ", ".join(f"{name} {count}" for name, count in counts.items())
            for split, counts in view.class_counts.items()
        )
        chart = charts.columns(view.class_counts, alt=f"Clips by emotion and split: {told}")
        figures.append(Figure(charts=[chart], caption="Clips by emotion and split."))
    if any(view.actor_counts.values()):
        by_actor = {
            split: {str(actor): count for actor, count in counts.items()} for split, counts in view.actor_counts.items()
        }
        told = "; ".join(
            f"{split}: {counted(len(counts), 'actor')}, {counted(sum(counts.values()), 'clip')}"
            for split, counts in view.actor_counts.items()
        )
        chart = charts.columns(_by_number(by_actor), alt=f"Clips by actor and split: {told}", x_label="actor")
        figures.append(Figure(charts=[chart], caption="Clips by actor and split: nobody is in two splits."))
    if figures:
        blocks.append(Charts(figures=figures))
    for content, width, title, alt in (
        (view.sheet, _SHEET_WIDTH, "Example frames by emotion", "a clip of each emotion, sampled frames side by side"),
        (view.crop, _CROP_WIDTH, "What the model sees of a frame", "a frame with the crop drawn on it"),
    ):
        picture = None if content is None else embedded(content, most_width=width, alt=f"{title}: {alt}")
        if picture is not None:
            blocks += [Heading(text=title), picture]
    return Section(id=f"corpus-{number}", title=f"The corpus: {view.title}", blocks=blocks)


def _by_number(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Every split with all actors in the order of their numbers, so that they stand in that order."""
    actors = sorted({actor for of in counts.values() for actor in of}, key=int)
    return {split: {actor: of.get(actor, 0) for actor in actors} for split, of in counts.items()}
