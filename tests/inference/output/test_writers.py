"""Tables, JSON, subtitles and embeddings, each read back by another library."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet
import pytest

from fastemo.errors import UserError
from fastemo.inference.output.writers import FeatureWriter, writer_of
from fastemo.inference.prediction import NO_FACE, UNSURE, Prediction

CLASSES = ["happy", 'sad, "very"', "<b>&amp;"]
SUFFIXES = [".csv", ".json", ".jsonl", ".srt", ".vtt", ".parquet"]
TABLES = [".csv", ".json", ".jsonl", ".parquet"]
SUBTITLES = [".srt", ".vtt"]
FACE = ["face", "left", "top", "width", "height"]
NAMES = ["a,b.mp4", 'say "x".mp4', "two  spaces\tand\nlines\r.mp4", "=1+1.mp4", "日本 \x85.mp4", "-->.mp4", "{<b>&.mp4"]


def answer(path="clip.mp4", start=0.0, end=1.0, best=0, share=0.75, **fields) -> Prediction:
    probabilities = {name: share if number == best else (1 - share) / 2 for number, name in enumerate(CLASSES)}
    times = (start, (start + end) / 2)
    fields = {"label": CLASSES[best], "probabilities": probabilities, "times": times, **fields}
    return Prediction(path=path, start=start, end=end, **fields)


def written(path: Path, predictions, *, has_faces: bool = False) -> Path:
    with writer_of(path, CLASSES, has_faces=has_faces) as writer:
        for prediction in predictions:
            writer.write(prediction)
    return path


def table(path: Path) -> list[dict]:
    """The rows of a table in any format, with numbers as numbers and nothing as None."""
    text = "" if path.suffix == ".parquet" else path.read_bytes().decode("utf-8")
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        numbers = {"start", "end", *FACE, *(f"probability_{name}" for name in CLASSES)}
        return [{key: (float(it) if key in numbers else it) if it else None for key, it in row.items()} for row in rows]
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.split("\n")[:-1]]
    for row in rows:
        shares = row.pop("probabilities")
        assert len(row.pop("times")) == (2 if shares else 0)
        row |= {f"probability_{name}": shares.get(name) for name in CLASSES}
    return rows


def cues(path: Path) -> list[tuple[float, float, str]]:
    """Start, end and text of subtitles as FFmpeg reads them."""
    if path.stat().st_size == 0:
        return []
    with av.open(str(path)) as container:
        packets = [it for it in container.demux() if it.size]
        tick = container.streams[0].time_base
    return [(float(it.pts * tick), float((it.pts + it.duration) * tick), bytes(it).decode("utf-8")) for it in packets]


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_reads_back_as_what_was_written(tmp_path, suffix):
    made = [answer(name, number / 3, number + 1, number % 3, 0.1 + number / 9) for number, name in enumerate(NAMES)]
    made += [Prediction(path="broken.mp4", error='it is "damaged", truly\nand wholly'), answer(label=UNSURE)]
    expected = [
        {
            "path": it.path,
            "start": round(it.start, 3),
            "end": round(it.end, 3),
            "label": it.label,
            **{f"probability_{name}": round(it.probabilities[name], 6) if it.label else None for name in CLASSES},
            "error": it.error,
        }
        for it in made
    ]
    rows = table(written(tmp_path / f"out{suffix}", made))
    assert rows == expected
    if suffix in (".csv", ".parquet"):
        assert [*rows[0]] == [*expected[0]]


@pytest.mark.parametrize("suffix", TABLES)
def test_faces_have_their_number_and_box_in_every_table(tmp_path, suffix):
    made = [answer(face=1, box=(10, 20, 30, 40)), answer(face=12, box=(0, 0, 5, 6)), Prediction(error=NO_FACE, end=1.0)]
    rows = table(written(tmp_path / f"out{suffix}", made, has_faces=True))
    assert [[row[name] for name in FACE] for row in rows] == [[1, 10, 20, 30, 40], [12, 0, 0, 5, 6], [None] * 5]
    assert [row["error"] for row in rows] == [None, None, "no face"]
    if suffix in (".csv", ".parquet"):
        assert [*rows[0]][3:8] == FACE
    assert not {*FACE} & {*table(written(tmp_path / f"plain{suffix}", made))[0]}


@pytest.mark.parametrize("suffix", SUBTITLES)
def test_subtitles_have_a_line_for_each_face_of_a_window(tmp_path, suffix):
    made = [answer(face=1), answer(best=1, face=2), answer(start=1.0, end=2.0, face=2), Prediction(start=2.0, end=3.0)]
    made[3] = replace(made[3], path="clip.mp4", error=NO_FACE)
    first, second, third = cues(written(tmp_path / f"out{suffix}", made, has_faces=True))
    assert first == (0.0, 1.0, '1: happy 75 %\n2: sad, "very" 75 %')
    assert second == (1.0, 2.0, "happy 75 %")
    assert third == (2.0, 3.0, "no face")


def test_numbers_of_a_csv_have_as_many_decimals_as_a_run_gives(tmp_path):
    lines = written(tmp_path / "out.csv", [answer("a.mp4", 0.1, 2)]).read_text().splitlines()
    assert lines[1] == "a.mp4,0.100,2.000,happy,0.750000,0.125000,0.125000,"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_are_not_text_are_escaped(tmp_path, suffix):
    bad = "bad\udcff.mp4"
    path = tmp_path / f"out{suffix}"
    with writer_of(path, [bad]) as writer:
        writer.write(Prediction(path=bad, start=0, end=1, label=bad, probabilities={bad: 1.0}))
    if suffix != ".parquet":
        assert r"bad\udcff.mp4" in path.read_bytes().decode("utf-8").replace(r"\\", "\\")
    else:
        row = pyarrow.parquet.read_table(path).to_pylist()[0]
        assert row["path"] == r"bad\udcff.mp4"
        assert row[r"probability_bad\udcff.mp4"] == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_written_is_a_valid_file(tmp_path, suffix):
    path = written(tmp_path / f"out{suffix}", [])
    assert (cues if suffix in SUBTITLES else table)(path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_what_there_is(tmp_path, suffix, stop):
    path = tmp_path / f"out{suffix.upper()}"

    def interrupted():
        yield from (answer(start=number, end=number + 1.5) for number in range(3))
        raise stop

    with pytest.raises(stop):
        written(path, interrupted())
    path = path.rename(tmp_path / f"out{suffix}")
    rows = cues(path) if suffix in SUBTITLES else table(path)
    assert len(rows) == 3
    assert (rows[-1][1] if suffix in SUBTITLES else rows[-1]["end"]) == 3.5


@pytest.mark.parametrize("suffix", [it for it in SUFFIXES if it != ".parquet"])
def test_rows_can_be_read_as_they_come(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    behind = suffix in SUBTITLES
    with writer_of(path, CLASSES) as writer:
        for number in range(5):
            writer.write(answer(f"{number}.mp4" * (not behind), number, number + 1))
            assert path.read_text().count("75 %" if behind else ".mp4") == (number if behind else number + 1)


def test_parquet_is_written_by_groups_of_rows(tmp_path):
    path = written(tmp_path / "out.parquet", (answer(start=number) for number in range(2500)))
    file = pyarrow.parquet.ParquetFile(path)
    assert [file.metadata.row_group(it).num_rows for it in range(file.num_row_groups)] == [1000, 1000, 500]
    assert file.read().column("start").to_pylist() == [*range(2500)]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"\.parquet needs pyarrow: pip install 'fastemo\[parquet\]'$"):
        writer_of(tmp_path / "out.parquet", CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"out\.xls: .*\.csv, \.json, \.jsonl, \.srt, \.vtt, \.parquet$"):
        writer_of(tmp_path / "out.xls", CLASSES)
    with pytest.raises(ValueError, match=r"out\.npy: .*\.npz$"):
        FeatureWriter(tmp_path / "out.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_folder_is_an_error_before_any_work(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match="missing"):
        writer_of(tmp_path / "missing" / f"out{suffix}", CLASSES)
    with pytest.raises(FileNotFoundError, match="missing"):
        FeatureWriter(tmp_path / "missing" / "out.npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_old_file_is_replaced(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old" * 1000)
    written(path, [answer()])
    assert b"oldold" not in path.read_bytes()
    assert len(cues(path) if suffix in SUBTITLES else table(path)) == 1


@pytest.mark.parametrize("suffix", SUBTITLES)
def test_each_window_is_shown_around_its_centre(tmp_path, suffix):
    made = [answer(start=number, end=number + 3, best=number % 2) for number in range(4)]
    made[2] = Prediction(path="clip.mp4", start=2, end=5, error="frame 7 -->\n\ndoes not\r\rdecode")
    assert cues(written(tmp_path / f"out{suffix}", made)) == [
        (0, 2, "happy 75 %"),
        (2, 3, 'sad, "very" 75 %'),
        (3, 4, f"failed: frame 7 {'→' if suffix == '.srt' else '--&gt;'} does not decode"),
        (4, 6, 'sad, "very" 75 %'),
    ]


@pytest.mark.parametrize("suffix", SUBTITLES)
def test_cues_neither_overlap_nor_leave_holes(tmp_path, suffix):
    rng = np.random.default_rng(0)
    starts = 3590 + np.cumsum(rng.uniform(0.01, 2, 60))
    shown = cues(written(tmp_path / f"out{suffix}", [answer(start=it, end=it + 2) for it in starts]))
    assert len(shown) == 60
    assert [start for start, _, _ in shown[1:]] == [end for _, end, _ in shown[:-1]]
    assert (shown[0][0], shown[-1][1]) == (round(starts[0], 3), round(starts[-1] + 2, 3))


@pytest.mark.parametrize("suffix", SUBTITLES)
def test_a_gap_between_windows_shows_neither(tmp_path, suffix):
    shown = cues(written(tmp_path / f"out{suffix}", [answer(), answer(start=9, end=10)]))
    assert [it[:2] for it in shown] == [(0, 1), (9, 10)]


@pytest.mark.parametrize("suffix", SUBTITLES)
def test_an_unsure_answer_and_an_answer_without_a_duration(tmp_path, suffix):
    unsure = cues(written(tmp_path / f"unsure{suffix}", [answer(label=UNSURE, share=0.43)]))
    assert unsure == [(0, 1, "unsure (happy 43 %)")]
    assert cues(written(tmp_path / f"failed{suffix}", [Prediction(path="x.mp4", error="damaged")])) == []


def test_text_of_webvtt_is_escaped(tmp_path):
    ((_, _, text),) = cues(written(tmp_path / "out.vtt", [answer(best=2)]))
    assert text == "&lt;b&gt;&amp;amp; 75 %"


@pytest.mark.parametrize("suffix", SUBTITLES)
def test_subtitles_of_a_second_video_are_refused(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    with pytest.raises(ValueError, match=rf"out{suffix}: subtitles hold one video, and two\.mp4 .*\.csv"):
        written(path, [answer("one.mp4"), answer("two.mp4")])
    assert len(cues(path)) == 1


def test_embeddings_of_all_answers_are_kept(tmp_path):
    path = tmp_path / "out.npz"
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    names = ["a.mp4", "日本.mp4", "bad\udcff.mp4"]
    with FeatureWriter(path) as writer:
        for number, (row, name) in enumerate(zip(rows, names, strict=True)):
            writer.write(answer(name, number, number + 0.5, number, embedding=row))
            writer.write(Prediction(path=name, error="damaged"))
        assert not path.exists()
    with np.load(path, allow_pickle=False) as found:
        assert {name: found[name].dtype.kind for name in found} == {
            "embedding": "f",
            "path": "U",
            "start": "f",
            "end": "f",
            "label": "U",
            "face": "i",
        }
        np.testing.assert_array_equal(found["embedding"], rows, strict=True)
        assert found["path"].tolist() == ["a.mp4", "日本.mp4", r"bad\udcff.mp4"]
        assert found["label"].tolist() == CLASSES
        assert found["start"].tolist() == [0, 1, 2]
        assert found["end"].tolist() == [0.5, 1.5, 2.5]


def test_embeddings_of_nothing_and_of_an_interrupted_run(tmp_path):
    def interrupted():
        with FeatureWriter(tmp_path / "some.npz") as writer:
            writer.write(answer(embedding=np.ones(4, np.float32)))
            raise KeyboardInterrupt

    with FeatureWriter(tmp_path / "none.npz"):
        pass
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with np.load(tmp_path / "none.npz", allow_pickle=False) as none, np.load(tmp_path / "some.npz") as some:
        assert len(none["embedding"]) == len(none["path"]) == 0
        assert some["embedding"].shape == (1, 4)
    assert {it.name for it in tmp_path.iterdir()} == {"none.npz", "some.npz"}
