"""Drawings: pictures written whole; SVG with its text as text, the page's colours, and nothing that loads or runs."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from fastemo.report import drawing

HOSTILE = '<script>alert(1)</script> & "quoted" $\\frac{ ]]> <!-- url(x) \0\n'


def read(markup):
    tree = ElementTree.fromstring(str(markup))
    assert (tree.tag, tree.attrib["role"]) == ("svg", "img")
    assert {it.tag for it in tree.iter()} <= {"svg", "g", "path", "text", "title", "defs", "use"}
    assert not [name for it in tree.iter() for name in it.attrib if name.startswith("on")]
    return tree


@pytest.fixture
def figure():
    with drawing.style():
        made, (axes,) = drawing.new_figure(2, left=0.5, bottom=0.5)
        (line,) = axes.plot([0, 1], [0, 1], "o-", color=drawing.SERIES[1])
        drawing.describe(line, f"line {HOSTILE}", 7)
        axes.set_title(HOSTILE.replace("\0", ""))
        yield made


def test_text_is_text_and_colours_are_the_pages(figure):
    markup = drawing.svg(figure, "caption <b>", 3)
    tree = read(markup)
    assert "".join(it.text or "" for it in tree.iter("text")).startswith("0.")
    assert any("<script>alert(1)" in (it.text or "") for it in tree.iter("text"))
    assert "<script" not in markup
    assert "#" not in re.sub(r'href="#\w+"', "", markup)
    assert {"var(--c2)", "var(--ink)", "var(--soft)", "var(--rule)"} <= set(re.findall(r"var\(--\w+\)", markup))
    assert "url(" not in re.sub(r"(?s)<(text|title)\b.*?</\1>|aria-label=\"[^\"]*\"", "", markup)
    (mark,) = [it for it in tree.iter("g") if it.attrib.get("class") == "mark"]
    assert mark.attrib["data-series"] == "7"
    assert mark[0].text == drawing.shorten(f"line {HOSTILE}", 300)
    assert tree.attrib["aria-label"].endswith(f"; {mark[0].text}")


def test_ids_differ_between_drawings_and_not_between_writings(figure):
    one, same, other = (drawing.svg(figure, "", number) for number in (1, 1, 2))
    ids = [set(re.findall(r' id="(\w+)"', it)) for it in (one, other)]
    assert one == same
    assert all(ids)
    assert not ids[0] & ids[1]


def test_its_letters_can_be_read_on_a_phone(figure):
    """Drawn as wide as a phone's page, 360 pixels, none is smaller than 9."""
    tree = read(drawing.svg(figure, "", 1))
    width = float(tree.attrib["viewBox"].split()[2])
    sizes = [
        float(found) for it in tree.iter("text") for found in re.findall(r"font-size: ?([\d.]+)px", it.attrib["style"])
    ]
    assert len(sizes) == len(list(tree.iter("text")))
    assert min(sizes) * 360 / width >= 9


def test_names_are_shortened():
    assert drawing.shorten("a\0b\ud800") == "a?b?"
    assert drawing.shorten("a" * 30) == "a" * 23 + "…"
    assert drawing.shorten("b" * 30 + "end", keep_end=True) == "…" + "b" * 20 + "end"


def test_strips_keep_their_channels_and_shapes():
    red = np.zeros((20, 60, 3), np.uint8)
    red[..., 0] = 255
    with drawing.style():
        found = drawing.pixels(drawing.strips([("one", red), ("two", red)]))
    is_red = (found == (0, 0, 255)).all(-1)
    assert is_red.any(1).sum() / is_red.any(0).sum() == pytest.approx(2 * 20 / 60, rel=0.05)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, figure):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def torn(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        drawing.write_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
