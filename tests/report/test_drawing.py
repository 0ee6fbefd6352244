"""Charts: well-formed, every mark where its value is, every text escaped, never outside the picture."""

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastemo.report import charts

SVG_TEXT = '<script>alert(1)</script> & "quoted"'
SHARES = st.floats(0, 1)
FINITE = st.floats(-1e12, 1e12).map(lambda it: it if abs(it) > 1e-30 else 0.0)


def read(markup):
    """A chart as a tree, and its words for those who cannot see it."""
    tree = ElementTree.fromstring(str(markup))
    assert tree.tag == "svg"
    assert tree.attrib["role"] == "img"
    _, _, width, height = map(float, tree.attrib["viewBox"].split())
    assert width <= charts.WIDTH
    for element in tree.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert -0.5 <= float(element.attrib.get(name, 0)) <= width + 0.5, (element.tag, element.attrib)
        for name in ("y", "y1", "y2", "cy"):
            assert -0.5 <= float(element.attrib.get(name, 0)) <= height + 0.5, (element.tag, element.attrib)
    return tree, tree.attrib["aria-label"]


def texts(tree):
    return [it.text for it in tree.iter("text")]


@given(FINITE, FINITE, st.integers(2, 8))
def test_ticks_are_round_even_and_inside(one, other, count):
    low, high = sorted((one, other))
    found = charts.ticks(low, high, count)
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-6):
        return  # no room for round numbers
    slack = 1e-6 * (high - low)
    assert all(low - slack <= it <= high + slack for it in found)
    steps = [b - a for a, b in itertools.pairwise(found)]
    if steps:
        assert max(steps) - min(steps) <= 1e-6 * max(steps)
        digits = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(digits - it) for it in (1, 2, 2.5, 5, 10)) < 1e-3
    assert len(found) <= count + 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (999.4, "999"), (999.9, "1 k"), (11_181_642, "11.2 M"), (1.8e9, "1.8 G"), (2e12, "2 T"), (0.25, "0.25")],
)
def test_numbers_in_short(value, shown):
    assert charts.short(value) == shown


class TestIntervals:
    @given(st.lists(st.tuples(SHARES, SHARES, SHARES), min_size=1, max_size=5), st.one_of(st.none(), SHARES))
    def test_marks_stand_at_their_values(self, shares, chance):
        rows = []
        for number, three in enumerate(shares):
            low, value, high = sorted(three)
            rows.append(charts.Interval(label=f"row {number}", value=value, low=low, high=high, reference=three[0]))
        tree, alt = read(charts.intervals(rows, alt="words", chance=chance, reference="the report"))
        assert alt == "words"
        dots = [float(it.attrib["cx"]) for it in tree.iter("circle")]
        bars = [it for it in tree.iter("line") if it.attrib["class"] == "bar c1"]
        assert len(dots) == len(bars) == len(rows)
        # All on one scale: the same share is at the same place, a larger one further right.
        placed = list(zip(dots, [row.value for row in rows], strict=True))
        placed += [(float(bar.attrib["x1"]), row.low) for bar, row in zip(bars, rows, strict=True)]
        placed += [(float(bar.attrib["x2"]), row.high) for bar, row in zip(bars, rows, strict=True)]
        places = [place for place, _ in sorted(placed, key=lambda it: it[1])]
        assert all(b - a >= -0.11 for a, b in itertools.pairwise(places))

    def test_without_interval_or_reference(self):
        tree, _ = read(charts.intervals([charts.Interval(label="alone", value=0.5)], alt=""))
        assert not list(tree.iter("polygon"))
        assert [it.text for it in tree.iter("title")] == ["alone: 50.0 %"]

    def test_the_reference_is_told(self):
        row = charts.Interval(label="r3d18", value=0.5, low=0.4, high=0.6, reference=0.604)
        tree, _ = read(charts.intervals([row], alt="", reference="the report, on RAVDESS"))
        (title,) = tree.iter("title")
        assert title.text == "r3d18: 50.0 % (40.0 % to 60.0 %), the report, on RAVDESS 60.4 %"
        assert "the report, on RAVDESS" in texts(tree)


class TestPanel:
    def test_a_gap_parts_the_line_and_a_lone_point_is_a_dot(self):
        points = [(1, 0.5), (2, 0.4), (3, None), (4, 0.3), (5, math.nan), (6, 0.2), (7, 0.1)]
        line = charts.Line(name="train", points=points, colour=2)
        tree, _ = read(charts.panel([line], alt="", title="Loss", x_label="epoch"))
        drawn = list(tree.iter("polyline"))
        assert [len(it.attrib["points"].split()) for it in drawn] == [2, 1, 2]
        assert len(list(tree.iter("circle"))) == 1

    def test_nothing_finite_is_said(self):
        line = charts.Line(name="train", points=[(1, None), (2, math.inf)], colour=1)
        tree, _ = read(charts.panel([line], alt="", title="Loss", x_label="epoch"))
        assert texts(tree) == ["Loss: no finite values"]

    @given(st.lists(st.tuples(st.integers(1, 100), FINITE), min_size=1, max_size=20))
    def test_any_curve_stays_inside(self, points):
        line = charts.Line(name="validation", points=sorted(points), colour=1, dots=True)
        tree, _ = read(charts.panel([line], alt="", title="Loss", x_label="epoch"))
        for it in tree.iter("polyline"):
            for pair in it.attrib["points"].split():
                x, y = map(float, pair.split(","))
                assert 0 <= x <= charts.WIDTH
                assert 0 <= y <= 190

    def test_what_leaves_the_range_is_drawn_at_its_edge(self):
        line = charts.Line(name="a", points=[(1, -5), (2, 0.5), (3, 9)], colour=1)
        tree, _ = read(charts.panel([line], alt="", title="Accuracy", x_label="epoch", y_range=(0, 1)))
        (drawn,) = tree.iter("polyline")
        low, middle, high = (float(pair.split(",")[1]) for pair in drawn.attrib["points"].split())
        assert low > middle > high
        assert abs((low + high) / 2 - middle) < 0.2


class TestScatter:
    @given(st.lists(st.tuples(st.floats(1e-3, 1e13), SHARES), min_size=2, max_size=8))
    def test_further_right_is_more(self, values):
        points = [charts.Point(number=i, label="l", x=x, y=y) for i, (x, y) in enumerate(values)]
        tree, _ = read(charts.scatter(points, alt="", x_label="parameters", y_range=(0, 1)))
        placed = sorted(
            zip([x for x, _ in values], [float(it.attrib["cx"]) for it in tree.iter("circle")], strict=True)
        )
        assert all(b[1] - a[1] >= -0.11 for a, b in itertools.pairwise(placed))

    def test_zero_has_no_logarithm(self):
        points = [charts.Point(number=i, label="l", x=x, y=0.5) for i, x in enumerate((0, 1, 2))]
        tree, _ = read(charts.scatter(points, alt="", x_label="seconds", y_range=(0, 1)))
        first, second, third = (float(it.attrib["cx"]) for it in tree.iter("circle"))
        assert second - first == pytest.approx(third - second, abs=0.11)


class TestBarsAndColumns:
    @given(st.dictionaries(st.text("abc", min_size=1), st.one_of(st.none(), SHARES), min_size=1, max_size=9))
    def test_bars_are_as_long_as_they_say(self, values):
        tree, _ = read(charts.bars(values, alt=""))
        long = [float(it.attrib["width"]) for it in tree.iter("rect")]
        shares = [value for value in values.values() if value is not None]
        assert len(long) == len(shares)
        if shares and max(shares) > 0.01:
            scale = max(long) / max(shares)
            assert all(abs(a - scale * b) <= 0.2 for a, b in zip(long, shares, strict=True))
        assert sum(text.startswith("no clip") for text in texts(tree) if text) == len(values) - len(shares)

    @given(
        st.dictionaries(
            st.sampled_from(["train", "val", "test"]),
            st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 3000), max_size=30),
            min_size=1,
        )
    )
    def test_columns_are_as_high_as_they_count(self, groups):
        tree, _ = read(charts.columns(groups, alt=""))
        names = list(dict.fromkeys(name for counts in groups.values() for name in counts))
        stacks = list(tree.iter("g"))
        assert len(stacks) == len(names)
        for name, stack in zip(names, stacks, strict=True):
            told = ", ".join(f"{series} {counts.get(name, 0)}" for series, counts in groups.items())
            assert stack.find("title").text == f"{name}: {told}"
            assert len(stack.findall("rect")) == len(groups)

    def test_no_columns(self):
        read(charts.columns({}, alt="nothing"))


def test_reliability_is_on_the_diagonal_where_it_is_honest():
    tree, _ = read(charts.reliability([(0.1, 0.1, 3), (0.9, 0.9, 30), (1.0, 0.2, 5)], alt=""))
    first, second, third = list(tree.iter("circle"))
    size = 306 - 46
    for it, share in ((first, 0.1), (second, 0.9)):
        assert float(it.attrib["cx"]) == pytest.approx(46 + size * share, abs=0.1)
        assert 1 - (float(it.attrib["cy"]) - 12) / 248 == pytest.approx(share, abs=0.01)
    # The larger, the more clips.
    assert float(first.attrib["r"]) < float(third.attrib["r"]) < float(second.attrib["r"])


def test_every_text_is_escaped():
    hostile = SVG_TEXT
    drawn = [
        charts.intervals([charts.Interval(label=hostile, value=0.5, reference=0.2)], alt=hostile, reference=hostile),
        charts.panel(
            [charts.Line(name=hostile, points=[(1, 1)], colour=1)], alt=hostile, title=hostile, x_label=hostile
        ),
        charts.scatter(
            [charts.Point(number=1, label=hostile, x=1, y=0.5)], alt=hostile, x_label=hostile, y_range=(0, 1)
        ),
        charts.bars({hostile: 0.5, "b": None}, alt=hostile, notes={"b": hostile}),
        charts.columns({hostile: {hostile: 3}}, alt=hostile, x_label=hostile),
        charts.reliability([(0.5, 0.5, 3)], alt=hostile),
    ]
    for markup in drawn:
        assert "<script" not in str(markup)
        tree, alt = read(markup)
        assert alt == hostile
        assert not [it for it in tree.iter() if it.tag == "script"]
