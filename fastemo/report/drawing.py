"""Style of all figures, and conversion of a drawing to a PNG file and an SVG element of the page.

A figure is 4.4 inches wide with letters of 9 points, so that both can be read on a phone. It is drawn within `style()`,
in the colours below, which the SVG replaces by the page's CSS variables. `describe` sets the tooltip of a mark.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter
from matplotlib.transforms import Affine2D, Transform
from numpy.typing import NDArray

from fastemo.machine import replacing
from fastemo.palette import SERIES

# Matplotlib's settings while figures are made and written.
_STYLE = matplotlib.rc_params_from_file(
    Path(__file__).parent / "templates" / "figures.mplstyle", use_default_template=False
)
style = partial(matplotlib.rc_context, _STYLE)
# The CSS variables of both themes that an SVG element needs around it.
COLOURS = (Path(__file__).parent / "templates" / "colours.css").read_text(encoding="utf-8")
INK, SOFT, RULE, PAGE = (_STYLE[name] for name in ("text.color", "xtick.color", "grid.color", "figure.facecolor"))
WIDTH, CHARACTER = 4.4, 0.07  # inches, of a figure and of a character
_VARIABLES = {it: f"c{number}" for number, it in enumerate(SERIES, start=1)}
_VARIABLES |= {INK: "ink", SOFT: "soft", RULE: "rule", PAGE: "page"}
_DPI, _GAP = 200, 0.45  # inches, between panels
# Matplotlib before 3.11 writes a font's properties as one.
_FONT = re.compile(r"font-family: [^;]*;? ?|font: (bold |700 )?[^;]*?([\d.]+px)[^;]*")


def new_figure(
    height: float, *, left: float, bottom: float, right: float = 0.15, top: float = 0.1, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` stacked panels; sizes in inches."""
    figure = Figure(figsize=(WIDTH, height))
    panel = (height - bottom - top - _GAP * (rows - 1)) / rows
    places = [bottom + (panel + _GAP) * row for row in reversed(range(rows))]
    size = ((WIDTH - left - right) / WIDTH, panel / height)
    return figure, [figure.add_axes((left / WIDTH, place / height, *size)) for place in places]


def new_grid(
    columns: float, rows: float, height: float, *, left: float, bottom: float, right: float = 0.15, top: float = 0.1
) -> tuple[Figure, Transform]:
    """A figure without axes, which are slow, and the transform of its columns (rightwards) and rows (downwards)."""
    figure = Figure(figsize=(WIDTH, height))
    scaled = Affine2D().scale((WIDTH - left - right) / columns, (bottom + top - height) / rows)
    return figure, scaled.translate(left, height - top) + figure.dpi_scale_trans


def describe(artist: Artist, words: str, series: int | None = None) -> None:
    """Set a mark's tooltip, and the number of the series that a legend entry toggles."""
    artist.set_gid(f"words {'' if series is None else series} {shorten(words, 300)}")


def percent_axis(axes: Axes, which: str, high: float = 1.0) -> None:
    """An axis in percent from 0 to `high`, a share."""
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.set_major_locator(MultipleLocator(0.2 if high > 0.5 else 0.1))
    axes.set(**{f"{which}lim": (0, high)})


def shorten(name: str, length: int = 24, *, keep_end: bool = False) -> str:
    """A name of at most `length` printable characters, cut at its end or its beginning."""
    shown = "".join(it if it.isprintable() else "?" for it in name)
    if len(shown) <= length:
        return shown
    return "…" + shown[-length + 1 :] if keep_end else shown[: length - 1] + "…"


def strips(rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> Figure:
    """Stacked pictures, [h, w, 3] in RGB, each with a title."""
    heights = [(WIDTH - 0.1) * min(1.0, it.shape[0] / it.shape[1]) for _, it in rows]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.25 * len(rows)))
    total = figure.get_figheight()
    for place, ((title, picture), height) in enumerate(zip(rows, heights, strict=True)):
        bottom = total - sum(heights[: place + 1]) - 0.25 * (place + 1)
        axes = figure.add_axes((0.05 / WIDTH, bottom / total, 1 - 0.1 / WIDTH, height / total), anchor="W")
        axes.imshow(picture)
        axes.set_title(title, size=8)
        axes.set_axis_off()
    return figure


def write_figure(figure: Figure, path: Path, title: str = "") -> None:
    """Write a picture atomically in the format of its suffix, with a title above the drawing."""
    if title:
        lines = textwrap.wrap(title, int(figure.get_figwidth() / CHARACTER))
        figure.text(0.02, 1, "\n".join(lines), va="bottom", weight="bold")
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=_DPI, bbox_inches="tight")


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The drawing, [h, w, 3] in BGR."""
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., 2::-1])


def svg(figure: Figure, caption: str, number: int) -> Markup:
    """Within `style()`, the drawing as an element with real text; `number` makes its ids unique."""
    out = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = str(number)
    figure.savefig(out, format="svg", facecolor="none")
    root = ElementTree.fromstring(out.getvalue())
    told: dict[str, None] = {}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for child in list(element):
            if child.tag.endswith(("metadata", "style", "clipPath")) or child.attrib.get("style") == "fill: none":
                element.remove(child)
        _clean(element, told)
    # A pixel is three quarters of a point.
    _, _, width, height = (float(it) * 4 / 3 for it in root.attrib["viewBox"].split())
    root.attrib |= {"width": f"{width:.0f}", "height": f"{height:.0f}", "role": "img"}
    root.attrib["aria-label"] = "; ".join([caption, *told])
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # which escapes every text and attribute


def _clean(element: ElementTree.Element, told: dict[str, None]) -> None:
    """Keep only the attributes that a page needs, and turn a description into a title, noted in `told`."""
    found = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    element.attrib.clear()
    if element.tag == "g" and (name := found.pop("id", "")).startswith("words "):
        _, series, words = name.split(" ", 2)
        element.attrib |= {"class": "mark", "data-series": series}
        title = ElementTree.Element("title")
        title.text = words
        told[words] = None
        element.insert(0, title)
    found.pop("clip-path", None)
    if found.get("transform", "").startswith("rotate(-0 "):
        del found["transform"]
    for name in {"d", "x", "y", "transform"} & set(found):
        found[name] = re.sub(r"(\.\d)\d+", r"\1", found[name]).replace("\n", "")
    if "style" in found:
        bold = ";font-weight:600"
        css = _FONT.sub(lambda it: f"font-size: {it[2]}{bold * bool(it[1])}" if it[2] else "", found["style"])
        css = re.sub(r"#[0-9a-f]{6}", lambda it: f"var(--{_VARIABLES.get(it[0], 'ink')})", css)
        found["style"] = css.replace("; ", ";")
        if element.tag == "text" and "--page" in found["style"]:
            element.attrib["class"] = "in"
    element.attrib |= found
