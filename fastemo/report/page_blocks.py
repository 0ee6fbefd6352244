"""A page as sections of blocks; the template knows how each kind is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table's cell.

    Attributes:
        sort: What its column is sorted by, where that is not the text; None where there is no value.
        note: Smaller, below the text.
        share: 0 .. 1, how deep the cell is coloured.
    """

    text: str
    sort: float | None = None
    note: str = ""
    share: float | None = None
    is_strong: bool = False

    @property
    def order(self) -> str:
        return "" if self.sort is None else f"{self.sort:.9g}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """Attributes:
    hint: Told on hovering.
    """

    name: str
    is_number: bool = True
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Its first column is the rows' name, or their number where `has_numbers`."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    is_sortable: bool = True
    is_compact: bool = False


@dataclass(frozen=True, kw_only=True)
class Text:
    kind: ClassVar[str] = "text"
    text: str
    is_note: bool = False


@dataclass(frozen=True, kw_only=True)
class Items:
    """A list; each item is text."""

    kind: ClassVar[str] = "items"
    items: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Heading:
    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One or more charts with a caption."""

    charts: Sequence[Markup]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Charts:
    """Figures beside each other where there is room."""

    kind: ClassVar[str] = "charts"
    figures: Sequence[Figure]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Attributes:
    uri: `data:`.
    width, height: Pixels.
    """

    kind: ClassVar[str] = "picture"
    uri: str
    width: int
    height: int
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class ClipCard:
    """A clip as the model saw it: strips of frames, and what was made of it."""

    title: str
    key: str
    pictures: Sequence[Picture]
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Clips:
    kind: ClassVar[str] = "clips"
    cards: Sequence[ClipCard]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks behind their title, which paper shows open."""

    kind: ClassVar[str] = "fold"
    title: str
    summary: str
    blocks: Sequence[Block]
    is_open: bool


@dataclass(frozen=True, kw_only=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]


Block = Table | Text | Items | Heading | Charts | Picture | Clips | Fold
