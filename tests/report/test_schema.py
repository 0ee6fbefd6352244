"""What is read for figures and a page is of its kind or refused by name, whatever stands in the file."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastemo.json_files import parse_json, read_json, read_json_lines
from fastemo.report.schema import Epoch, Example, Result, StudyRow

RESULT = {"accuracy": 0.5, "uar": 0.5, "macro_f1": 0.4, "num_clips": 2, "confusion": [[1, 1], [0, 0]]}
RESULT |= {"per_class": {"sad": 0.5, "calm": None}}


def parsed(kind, value):
    return parse_json(json.dumps(value).encode(), kind, "file")


@given(st.floats(0, 1), st.integers(0, 2**40))
def test_what_fits_comes_through_as_it_was(share, count):
    found = parsed(Result, RESULT | {"accuracy": share, "num_clips": count, "unknown": [{}], "probes": None})
    assert (found.accuracy, found.num_clips, found.probes) == (share, count, None)
    assert found.per_class == RESULT["per_class"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 1.5}, "accuracy: .* less than or equal to 1"),
        ({"accuracy": math.nan}, "accuracy: .* valid number"),
        ({"accuracy": math.inf}, "accuracy: "),
        ({"accuracy": True}, "accuracy: .* valid number"),
        ({"accuracy": "0.5"}, "accuracy: .* valid number"),
        ({"confusion": [[1, -1], [0, 0]]}, "confusion.0.1: .* greater than or equal to 0"),
        ({"confusion": [[1, 2.0], [0, 0]]}, "confusion.0.1: .* valid integer"),
        ({"confusion": [[1, 2], [0]]}, "confusion must be 2 x 2"),
        ({"per_class": {}, "confusion": []}, "per_class: .* at least 1 item"),
        ({"num_clips": 2**63}, "num_clips: "),
        ({"corpus": 3}, "corpus: .* valid string"),
        ({"corpus": "y" * 10_001}, "corpus: .* at most 10000"),
        ({"interval": [0.1]}, "interval.1: Field required"),
        ({"cost": {"parameters": 1}}, "cost.flops_per_clip: Field required"),
    ],
)
def test_the_place_is_named(change, message):
    with pytest.raises(ValueError, match=f"^file is damaged, restore or delete it: {message}"):
        parsed(Result, RESULT | change)


def test_half_a_surrogate_becomes_a_character():
    example = {"key": "a\ud800b", "kind": "wrong", "label": "", "prediction": "", "probability": 1, "frames": "x"}
    assert parsed(Example, example).key == "a?b"


def test_a_loss_that_is_not_finite_is_none():
    assert parsed(Epoch, {"epoch": 1, "train_loss": math.nan, "val_loss": math.inf}) == Epoch(epoch=1)


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text"])
def test_a_value_of_a_configuration(value):
    found = parsed(StudyRow, {"label": "", "settings": {"a": value}, "cells": []}).settings["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"epoch": ' + b"9" * 5000 + b"}", b'{"epoch": 1e999}']
)
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "test.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as caught:
        read_json(path, Epoch)
    assert str(path) in str(caught.value)


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "test.json"
    with path.open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        read_json(path, Epoch)


def test_a_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": -1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_json_lines(path, Epoch)
