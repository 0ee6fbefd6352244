"""A table of predictions read back: what was written, and nothing that was not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastemo.corpus.clip import Clip
from fastemo.evaluation.evaluate import Predictions, write_predictions
from fastemo.evaluation.tables import read_predictions

NAMES = ("sad", 'not, "quite" sad', "überrascht")
CLIPS = [
    Clip(key="Actor_23/01-01-04-01-01-01-23.mp4", actor=23, modality=1, channel=1, intensity=1, statement=1),
    Clip(key="Actor_23/02-01-04-01-01-01-23.mp4", actor=23, modality=2, channel=1, intensity=1, statement=1),
    Clip(key="mine/clip \udce4,1.mp4"),
    Clip(key='x"\n.mp4', actor=1001),
    Clip(key="A/tape.mp4#0.5-2", subject='J. "Ö" Doe,\n2', corpus="A", segment="0.5-2"),
    Clip(key="B/02-01-04-01-01-01-23.mp4#1.5-", actor=23, modality=2, corpus="B", segment="1.5-"),
]
HEADER = "key,label,prediction,probability_sad,probability_calm,actor,modality,channel,intensity,statement,repetition"
ROW = "a.mp4,sad,sad,0.750000,0.250000,1,,,,,"


def predictions(seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    keys = tuple(sorted(clip.key for clip in CLIPS))
    return Predictions(keys, rng.integers(0, 3, len(keys)), rng.normal(0, 5, (len(keys), 3)).astype(np.float32))


@given(st.integers(0, 1000))
@settings(max_examples=30)
def test_what_was_written_is_read(tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / "predictions.csv"
    written = predictions(seed)
    write_predictions(path, written, CLIPS, NAMES)
    table = read_predictions(path)
    assert table.source == str(path)
    assert table.keys == written.keys
    assert table.class_names == NAMES
    np.testing.assert_array_equal(table.labels, written.labels)
    np.testing.assert_array_equal(table.predicted, written.predicted)
    np.testing.assert_array_equal(table.correct, written.correct)
    np.testing.assert_allclose(table.probabilities, written.probabilities, atol=5.1e-7)
    by_key = {clip.key: clip for clip in CLIPS}
    assert table.takes == tuple(by_key[key].take for key in table.keys)
    assert table.people == tuple(by_key[key].person for key in table.keys)
    assert {"23", "1001", "", 'A/J. "Ö" Doe,\n2', "B/23"} == {*table.people}
    assert table.actors.tolist() == [by_key[key].actor for key in table.keys]
    assert table.modalities.tolist() == [by_key[key].modality for key in table.keys]


def test_in_a_table_of_version_0_1_0_a_person_is_an_actor(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(f"{HEADER}\n{ROW}\n{ROW.replace('a.mp4', 'b.mp4').replace('0,1,', '0,,')}\n")
    assert read_predictions(path).people == ("1", "")
    path.write_text(f"{HEADER},subject,corpus\n{ROW},A/S1,A\n")
    assert read_predictions(path).people == ("A/S1",)


def test_rows_are_sorted_whatever_their_order(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(f"{HEADER}\n{ROW.replace('a.mp4', 'b.mp4')}\n{ROW}\n")
    assert read_predictions(path).keys == ("a.mp4", "b.mp4")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "header"),
        ("\x00\x01\x02", 1, "header|NUL"),
        (HEADER, 1, "has no clips"),
        (HEADER.replace("label", "truth") + "\n" + ROW, 1, "header"),
        (HEADER.replace("probability_calm", "calm") + "\n" + ROW, 1, "header"),
        (HEADER.replace("probability_calm", "probability_") + "\n" + ROW, 1, "header"),
        (HEADER.replace("probability_calm", "probability_sad") + "\n" + ROW, 1, "header"),
        (HEADER.replace(",probability_sad,probability_calm", "") + "\n" + ROW, 1, "header"),
        (f"{HEADER}\n{ROW}\n{ROW}", 3, "duplicate key 'a.mp4'"),
        (f"{HEADER}\n{ROW},1", 2, "12 cells"),
        (f"{HEADER},subject,corpus\n{ROW}", 2, "11 cells"),
        (f"{HEADER},subject\n{ROW},S1", 1, "header"),
        (f"{HEADER},corpus,subject\n{ROW},A,S1", 1, "header"),
        (f"{HEADER}\n\n{ROW}", 2, "0 cells"),
        (f"{HEADER}\n{ROW.replace('a.mp4', '')}", 2, "key is empty"),
        (f"{HEADER}\n{ROW.replace('sad', 'happy')}", 2, "'happy' is not one of the classes"),
        (f"{HEADER}\n{ROW.replace('0.750000', 'nan')}", 2, "not a number from 0 to 1"),
        (f"{HEADER}\n{ROW.replace('0.750000', 'inf')}", 2, "not a number from 0 to 1"),
        (f"{HEADER}\n{ROW.replace('0.750000', '-0.75')}", 2, "not a number from 0 to 1"),
        (f"{HEADER}\n{ROW.replace('0.750000', '7.5e-1')}", 2, "not a number from 0 to 1"),
        (f"{HEADER}\n{ROW.replace('0.750000', '0.' + '1' * 5000)}", 2, "not a number from 0 to 1"),
        (f"{HEADER}\n{ROW.replace('0.750000', '1.750000')}", 2, "do not sum to 1"),
        (f"{HEADER}\n{ROW.replace('0.750000', '0.650000')}", 2, "do not sum to 1"),
        (f"{HEADER}\n{ROW.replace('sad,sad', 'sad,calm')}", 2, "not the most probable"),
        (f"{HEADER}\n{ROW.replace(',1,', ',-1,')}", 2, "is not a number"),
        (f"{HEADER}\n{ROW.replace(',1,', ',1_0,')}", 2, "is not a number"),
        (f"{HEADER}\n{ROW.replace(',1,', ',²,')}", 2, "is not a number"),
        (f"{HEADER}\n{ROW.replace(',1,,', ',1,2,')}", 2, "RAVDESS"),
        (f'{HEADER}\n"{ROW}', 2, "unexpected end"),
        (f'{HEADER}\n"a"b{ROW}', 2, "expected after"),
        (f"{HEADER}\n{'a' * 200_000}{ROW}", 2, "field larger"),
    ],
)
def test_a_malformed_table_is_named_with_its_line(tmp_path, text, line, message):
    path = tmp_path / "predictions.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"(?s)predictions.csv, line {line}: not a table of predictions.*({message})"):
        read_predictions(path)


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=150)
def test_damage_is_read_or_refused(tmp_path_factory, noise, start, end):
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    write_predictions(path, predictions(), CLIPS, NAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + noise + whole[end:])
    message, table = "", None
    try:
        table = read_predictions(path)
    except ValueError as error:
        message = str(error)
    if table is None:
        assert "damaged.csv, line " in message
    else:
        assert len(table.keys) == len(table.labels) == len(table.probabilities) > 0
        assert np.isfinite(table.probabilities).all()


def test_an_absent_table_is_an_error_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_predictions(tmp_path / "none.csv")
