"""A small finished study, trained in this process, and pages read back: for the tests of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from helpers import empty_figures

from fastemo.console import Console
from fastemo.experiment.run import run
from fastemo.experiment.study.grid import read_study, with_folder
from fastemo.experiment.study.runner import run_study

QUIET = Console(show=False)
# Elements that HTML closes by itself.
_EMPTY = {"meta", "img", "br", "link", "input", "hr"}
CONTENT: dict[str, Any] = {
    "name": "made",
    "description": "Small, of everything a page shows.",
    "base": {
        "model.pretrained": False,
        "video": {"size": 36, "num_frames": 2},
        "augment": {"crop_size": 32},
        "train": {"epochs": 1, "batch_size": 16, "early_stop_patience": None, "lr": 1e-3},
    },
    "parts": [
        {
            "name": "frames",
            "title": "Early fusion by frames & augmentation",
            "base": {"model.name": "early_cnn"},
            "grid": {"video.num_frames": [2, 3], "augment.enabled": [False, True]},
        },
        {
            "name": "models",
            "title": "Two models",
            "cells": [{"model.name": "early_cnn"}, {"model.name": "late_fusion"}],
        },
    ],
}


@empty_figures()
def make_study(folder: Path, corpus: Path, **content: Any) -> Path:
    """Train every cell; the study's folder is returned."""
    source, out = folder / "study.yaml", folder / "studies" / "made"
    source.write_text(json.dumps({**CONTENT, **content}))
    study = read_study(source, ["--corpus.root", str(corpus)])
    for cell in study.cells:
        run(with_folder(cell, out / "cells"))
    run_study(study, source, out, QUIET)
    return out


class Element:
    """An element of a page: name, attributes, children, and the text inside."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element | str] = []

    def __iter__(self) -> Iterator[Element]:
        """Itself and all elements inside."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child

    def all(self, tag: str) -> list[Element]:
        return [it for it in self if it.tag == tag]

    def section(self, name: str) -> Element:
        return next(it for it in self if it.tag == "section" and it.attributes.get("id") == name)

    @property
    def text(self) -> str:
        joined = "".join(child if isinstance(child, str) else child.text for child in self.children)
        return re.sub(r"\s+", " ", joined).strip()


class _Reader(HTMLParser):
    """Asserts on the way that every element is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in _EMPTY:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(html: str) -> Element:
    """A page's tree."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert len(reader.open) == 1
    return reader.open[0]


def cells_of(table: Element) -> list[list[str]]:
    """A table's body as text."""
    (body,) = table.all("tbody")
    return [[cell.text for cell in row if cell.tag in ("td", "th")] for row in body.all("tr")]
