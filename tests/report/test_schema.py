"""What is read for a page is of its shape or refused by name, whatever stands in the file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastemo.report.page_check import (
    SHARE,
    list_of,
    map_of,
    maybe,
    number,
    read_json,
    read_json_lines,
    record,
    scalar,
    text,
    whole,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SHAPE = record({"a": SHARE, "b": list_of(whole)}, {"c": map_of(maybe(text)), "d": list_of(number(-1, 1), 2)})


@given(st.floats(0, 1), st.lists(st.integers(0, 2**40)), JSON)
def test_what_fits_comes_through_as_it_was(share, counts, other):
    assert SHAPE({"a": share, "b": counts, "unknown": other}, "") == {"a": share, "b": counts, "c": None, "d": None}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1.5, "b": []}, "a must be a number from 0 to 1, not 1.5"),
        ({"a": float("nan"), "b": []}, "a must be a number from 0 to 1, not nan"),
        ({"a": True, "b": []}, "a must be a number from 0 to 1, not True"),
        ({"a": 0, "b": [1, -1]}, r"b\[1\] must be a whole number, not -1"),
        ({"a": 0, "b": [1, 2.0]}, r"b\[1\] must be a whole number, not 2.0"),
        ({"a": 0, "b": [2**63]}, r"b\[0\] must be a whole number"),
        ({"a": 0}, "b is missing"),
        ({"a": 0, "b": [], "c": {"x": 3}}, "c.x must be text, not 3"),
        ({"a": 0, "b": [], "c": {"x": "y" * 10_001}}, "c.x must be text"),
        ({"a": 0, "b": [], "d": [1]}, "d must be a list of 2, not a list"),
        ([], "it must be an object, not a list"),
    ],
)
def test_the_place_is_named(value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SHAPE(value, "")


def test_half_a_surrogate_becomes_a_character():
    assert text("a\ud800b", "") == "a?b"
    assert map_of(whole)({"\ud800": 1}, "") == {"?": 1}


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text"])
def test_a_value_of_a_configuration(value):
    found = scalar(value, "")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not as fastemo writes it"),
        (b"{", "is not as fastemo writes it"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"[" * 100_000, "nested too deep|is not as fastemo writes it"),
        (b'{"a": ' + b"9" * 5000 + b', "b": []}', "is not as fastemo writes it"),
        (b'{"a": 1e999, "b": []}', "a must be a number"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "test.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path, SHAPE)
    assert str(path) in str(caught.value)


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "test.json"
    with path.open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        read_json(path, SHAPE)


def test_a_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"a": 0, "b": []}) + "\n" + json.dumps({"a": 2, "b": []}) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_json_lines(path, SHAPE)
