"""What charts are made of: elements of SVG, every text and attribute escaped, and the axes they stand in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 440.0
CHARACTER = 6.6  # of a text's width, units


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where a plot lies and which values its edges are."""

    left: float
    top: float
    right: float
    bottom: float
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * (value - self.low_x) / (self.high_x - self.low_x)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low_y) / (self.high_y - self.low_y)


def legend(names: Sequence[tuple[str, int, bool]], y: float, width: float) -> str:
    found, x = "", 8.0
    for name, colour, dashed in names:
        room = int((width - x - 30) / CHARACTER)
        shown = name if len(name) <= room else f"{name[: max(room - 1, 1)]}…"
        found += line(x, y - 4, x + 18, y - 4, f"line c{colour}{' dashed' if dashed else ''}")
        found += text(x + 23, y, shown, anchor="start")
        x += 38 + CHARACTER * len(shown)
    return found


def x_axis(frame: Frame, marks: Sequence[tuple[float, str]], label: str = "") -> str:
    found = line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    for value, name in marks:
        x = frame.x(value)
        found += line(x, frame.top, x, frame.bottom, "grid")
        found += text(x, frame.bottom + 15, name, class_="t small")
    return found + (text((frame.left + frame.right) / 2, frame.bottom + 32, label) if label else "")


def y_axis(frame: Frame, marks: Sequence[tuple[float, str]]) -> str:
    found = ""
    for value, name in marks:
        y = frame.y(value)
        found += line(frame.left, y, frame.right, y, "grid")
        found += text(frame.left - 5, y + 4, name, anchor="end", class_="t small")
    return found


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def diamond(x: float, y: float) -> str:
    corners = ((x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y))
    return tag("polygon", points=path(corners), class_="ref")


def path(points: Iterable[tuple[float, float]]) -> str:
    """What `points` of a polyline holds."""
    return " ".join(f"{length(x)},{length(y)}" for x, y in points)


def text(x: float, y: float, words: str, *, anchor: str = "middle", class_: str = "t") -> str:
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, class_=class_)


def slanted(x: float, y: float, words: str) -> str:
    turned = f"rotate(-35 {length(x)} {length(y)})"
    return tag("text", escape(words), x=x, y=y, text_anchor="end", transform=turned, class_="t small")


def drawing(height: float, alt: str, parts: Sequence[str], *, width: float = WIDTH) -> Markup:
    return Markup(  # every part is made by `tag`, which escapes
        tag(
            "svg",
            "".join(parts),
            viewBox=f"0 0 {length(width)} {length(height)}",
            width=width,
            height=height,
            role="img",
            aria_label=alt,
        )
    )


def tag(name: str, inside: str = "", **attributes: str | float) -> str:
    """An element; attributes are escaped, `inside` is not."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else length(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{inside}</{name}>"


def length(value: float) -> str:
    """A length, to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")
