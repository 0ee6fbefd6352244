"""Label tables as people have them, and every fault by its line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import write_image, write_sound, write_video

from fastemo.config import read_config
from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.corpus.config import CorpusConfig
from fastemo.corpus.files.isolation import Examiner
from fastemo.corpus.manifest import Manifest, read_manifest, scan
from fastemo.corpus.prepare import describe, prepare_corpus, scan_cached
from fastemo.corpus.protocol import split_clips
from fastemo.corpus.table import read_table

ROWS = [
    ("path", "label", "subject", "split", "start", "end", "light"),
    ("one.mp4", "Freude", "Jörg", "train", "0.04", "0.2", "hell, warm"),
    ("one.mp4", "Ärger", "Ute", "train", "0.2", "", ""),
    ("two.mp4", "Freude", "Ute", "val", "", "", "dunkel"),
]
EXPECTED = [
    ("one.mp4#0.04-0.2", "freude", "Jörg", "train", '{"light": "hell, warm"}'),
    ("one.mp4#0.2-", "ärger", "Ute", "train", ""),
    ("two.mp4", "freude", "Ute", "val", '{"light": "dunkel"}'),
]


def text_of(separator: str, *, comma: bool = False) -> str:
    def cell(text: str) -> str:
        text = text.replace(".", ",") if comma and text[:1].isdigit() else text
        return f'"{text}"' if separator in text else text

    return "\r\n".join(separator.join(map(cell, row)) for row in ROWS) + "\r\n"


@pytest.fixture
def corpus(tmp_path):
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / "videos" / name, 10)
    return tmp_path / "videos"


def table(corpus, text: str | bytes, name: str = "table.csv"):
    path = corpus.parent / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def fault(corpus, *lines: str) -> str:
    with pytest.raises(ValueError, match="line") as caught:
        read_table(table(corpus, "\n".join(["path,label,subject,split,start,end", *lines])), corpus)
    return str(caught.value).removeprefix(f"{corpus.parent / 'table.csv'}, ")


class TestReading:
    @pytest.mark.parametrize(
        "data",
        [
            text_of(",").encode(),
            text_of(",").encode("utf-8-sig"),
            text_of(";", comma=True).encode("cp1252"),  # German Excel, "CSV"
            text_of("\t", comma=True).encode("utf-16"),  # Excel, "Unicode text"
            ("sep=;\r\n" + text_of(";")).encode(),
            text_of("\t").replace("\r\n", "\n").encode(),
            (text_of(";") + ";;;;;;\r\n\r\n").encode(),
            text_of(",").replace("\r\n", ",,\r\n").encode(),
            text_of(",").replace("path,label", " Path , LABEL").encode(),
        ],
        ids=["csv", "bom", "german-excel", "unicode-text", "sep", "tsv", "blank-lines", "empty-columns", "header"],
    )
    def test_a_table_as_spreadsheets_write_it(self, corpus, data):
        found = scan(corpus, labels=str(table(corpus, data)))
        assert [(c.key, c.emotion, c.subject, c.split, c.columns) for c in found.clips] == EXPECTED
        assert [(c.path, c.first_frame, c.num_frames) for c in found.clips] == [
            ("one.mp4", 1, 4),
            ("one.mp4", 5, 5),
            ("two.mp4", 0, 10),
        ]
        assert [c.person for c in found.clips] == ["Jörg", "Ute", "Ute"]

    @pytest.mark.parametrize("path", ["sub\\one.mp4", "./sub/one.mp4", "{root}/sub/one.mp4"])
    def test_a_path_as_people_write_it(self, tmp_path, path):
        write_video(tmp_path / "sub" / "one.mp4", 3)
        labels = table(tmp_path, f"path,label\n{path.format(root=tmp_path)},x\n", "labels.tsv")
        assert [clip.key for clip in scan(tmp_path, labels=str(labels)).clips] == ["sub/one.mp4"]

    def test_accents_are_compared_in_either_form(self, tmp_path):
        write_video(tmp_path / "a" / "u\u0308ber.mp4", 3)
        (clip,) = scan(tmp_path / "a", labels=str(table(tmp_path / "a", "path,label\n\u00fcber.mp4,x\n"))).clips
        assert clip.file(tmp_path / "a").is_file()

    def test_what_names_give_stays_and_the_table_goes_first(self, tmp_path):
        for name in ("01-01-05-01-01-01-07.mp4", "02-01-05-01-01-01-07.mp4"):
            write_video(tmp_path / "test" / name, 3)
        text = (
            "path,label,subject,split\n"
            "test/01-01-05-01-01-01-07.mp4,calm,,\n"
            "test/02-01-05-01-01-01-07.mp4,calm,Ann,val\n"
        )
        one, two = scan(tmp_path, labels=str(table(tmp_path / "test", text))).clips
        assert (one.emotion, one.actor, one.person, one.split) == ("calm", 7, "7", "test")
        assert (two.emotion, two.actor, two.person, two.split) == ("calm", 7, "Ann", "val")
        assert one.take == two.take
        assert (one.channel, one.intensity) == (0, 0)

    def test_only_named_files_are_examined_and_all_others_counted(self, corpus):
        write_video(corpus / "extra.mp4", 3)
        write_sound(corpus / "03-01-01-01-01-01-01.wav")
        (corpus / "readme.md").write_text("x")
        labels = table(corpus, "path,label\none.mp4,a\nreadme.md,b\n03-01-01-01-01-01-01.wav,c\ntwo.mp4,\n")
        found = scan(corpus, labels=str(labels), known=None)
        assert [clip.key for clip in found.clips] == ["one.mp4"]
        assert [(clip.key, clip.reason) for clip in found.unlabelled] == [
            ("two.mp4", "no label in line 5 of the label table")
        ]
        (rejected,) = found.rejected
        assert rejected.reason.startswith("unreadable: ")
        assert rejected.reason.endswith(" (line 3 of the label table)")
        assert [clip.key for clip in found.audio_only] == ["03-01-01-01-01-01-01.wav"]
        assert found.passed_over == {".md": 1, "not in table.csv": 1}
        assert "1 not in table.csv" in describe(found)


class TestFaults:
    def test_each_by_its_line(self, corpus):
        assert fault(
            corpus, "one.mp4,a,,dev,,", "one.mp4,a,,,x,1", "one.mp4,a,,,2,1.5", ",a,,,,", "../x.mp4,a,,,,"
        ) == (
            "line 2: the split is 'dev', must be one of train, val, test, or empty; "
            "line 3: start is 'x', must be a number of seconds such as 12.5; "
            "line 4: the segment ends at 1.5 s, not after its start at 2 s; "
            "line 5: no path; "
            f"line 6: the path '../x.mp4' is not that of a file below the corpus root {corpus}"
        )
        assert fault(corpus, *["C:\\one.mp4,a,,,,"] * 7).endswith("; and 2 more")

    @pytest.mark.parametrize("number", ["-1", "1e3", "nan", "inf", "1:30", "0x10", "1.2.3", "１"])
    def test_what_is_no_number_of_seconds(self, corpus, number):
        assert fault(corpus, f"one.mp4,a,,,{number},").startswith(f"line 2: start is '{number}'")

    def test_a_clip_twice(self, corpus):
        twice = fault(corpus, "one.mp4,a,,,1.50,2", "one.mp4,a,,,0,1", "./one.mp4,b,,,01.5,2.0", "two.mp4,a,,,,")
        assert twice == "line 4: one.mp4#1.5-2 is in line 2 already"
        assert fault(corpus, "one.mp4,a,,,,", "one.mp4,a,,,,") == "line 3: one.mp4 is in line 2 already"

    def test_segments_that_overlap_in_two_splits(self, corpus):
        lines = ["one.mp4,a,,train,0,2", "one.mp4,b,,train,1,5", "one.mp4,a,,val,5,9", "one.mp4,a,,test,4.5,5"]
        assert fault(corpus, *lines) == "line 5: one.mp4#4.5-5 (test) overlaps one.mp4#1-5 (train) in line 3"
        assert fault(corpus, "one.mp4,a,,test,3,4", "one.mp4,a,,train,,") == (
            "line 3: one.mp4 (train) overlaps one.mp4#3-4 (test) in line 2"
        )
        rows = read_table(table(corpus, "path,label,split,start,end\none.mp4,a,train,0,2\none.mp4,a,val,2,3\n"), corpus)
        assert [row.key for row in rows] == ["one.mp4#0-2", "one.mp4#2-3"]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "its first line must name the columns path and label"),
            (b"file,label\na,b\n", "its first line must name the columns path and label"),
            (b"path|label\na|b\n", "its first line must name the columns path and label"),
            (b"path,label,path\na,b,c\n", "its first line names the column path twice"),
            (b"path,label\na,b\nc,d,e\n", "line 3 has 3 cells for 2 columns"),
            (b'path,label\n"a,b\n', "unexpected end of data"),
        ],
    )
    def test_what_is_no_table(self, corpus, data, message):
        with pytest.raises(ValueError, match=f"table.csv is not a label table: {message}"):
            read_table(table(corpus, data), corpus)

    def test_a_file_that_cannot_be_read(self, corpus):
        with pytest.raises(ValueError, match=r"cannot read the label table .*none.csv: No such file"):
            scan(corpus, labels=str(corpus / "none.csv"))
        with pytest.raises(ValueError, match=r"cannot read the label table .*table.csv: .*codec can't decode"):
            scan(corpus, labels=str(table(corpus, b"path,label\n\x81\x8d,b\n")))

    def test_missing_files_and_segments_outside_are_rejected_with_their_line(self, corpus, tmp_path):
        write_image(corpus / "picture.png", np.zeros((16, 16, 3), np.uint8))
        rows = ["none.mp4,a,,", "one.mp4,a,7,8", "one.mp4,a,0,9", "one.mp4,a,0.1,1.2", "picture.png,a,0,1"]
        labels = table(corpus, "\n".join(["path,label,start,end", *rows]))
        expected = {
            "none.mp4": "no such file (line 2 of the label table)",
            "one.mp4#0-9": "its segment ends later: the video is 0.4 s long (line 4 of the label table)",
            "one.mp4#7-8": "its segment holds no frame: the video is 0.4 s long (line 3 of the label table)",
            "picture.png#0-1": "pictures have no times, so that they have no segments (line 6 of the label table)",
        }
        for _ in range(2):  # the second time from the manifest
            found = scan(corpus, labels=str(labels), known=tmp_path / "known.csv")
            assert {clip.key: clip.reason for clip in found.rejected} == expected
            assert [clip.key for clip in found.clips] == ["one.mp4#0.1-1.2"]  # a rounded end is the file's
            found.write_csv(tmp_path / "known.csv")
        config = CorpusConfig(root=corpus, labels=str(labels))
        with pytest.raises(ValueError, match=r"4 files in .* were rejected, 0 are allowed"):
            prepare_corpus(config, Console(show=False))

    def test_the_built_in_corpus_has_no_table(self):
        with pytest.raises(ValueError, match=r"corpus.labels is a table, so that corpus.root must name the folder"):
            CorpusConfig(labels="x.csv")


class TestSubjects:
    @pytest.mark.parametrize(
        ("expression", "people"),
        [(r"S(\d+)_", ["005", "", "010"]), (r"S\d+", ["S005", "", "S010"]), (r"(?:x|S(\d+))_", ["005", "", "010"])],
    )
    def test_a_regular_expression_finds_the_person(self, put, expression, people):
        root = put("happy/S005_001.mp4", "happy/other.mp4", "sad/S010_002.mp4")
        found = scan(root, labels="folder", subjects=expression)
        assert [clip.person for clip in found.clips] == people

    def test_it_goes_before_ravdesss_actor_and_after_the_tables_subject(self, put):
        root = put("lab1/02-01-05-01-01-01-07.mp4", "lab2/02-01-05-01-01-02-07.mp4")
        assert [clip.person for clip in scan(root, subjects="lab(.)").clips] == ["1", "2"]
        text = "path,label,subject\nlab1/02-01-05-01-01-01-07.mp4,a,Ann\nlab2/02-01-05-01-01-02-07.mp4,a,\n"
        labels = table(root / "lab1", text)
        assert [clip.person for clip in scan(root, labels=str(labels), subjects="lab(.)").clips] == ["Ann", "2"]

    def test_what_is_no_expression(self):
        with pytest.raises(ValueError, match=r"corpus.subjects is not a regular expression: missing"):
            read_config(["--corpus.subjects", "S(\\d+"])


def test_the_manifest_keeps_all_and_versions_before_are_read(corpus, tmp_path):
    found = scan(corpus, labels=str(table(corpus, text_of(","))))
    found.write_csv(tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv", corpus) == found
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    new = {"subject", "corpus", "columns", "segment", "first_frame", "first_pts"}
    assert new < set(lines[0].split(","))
    names = lines[0].split(",")
    kept = [name for name in names if name not in new]
    with (tmp_path / "old.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(csv.DictReader(lines))
    (old, *_) = read_manifest(tmp_path / "old.csv", corpus).clips
    assert (old.key, old.subject, old.segment, old.first_frame) == ("one.mp4#0.04-0.2", "", "", 0)


def test_a_long_files_segments_cost_one_look_and_unchanged_ones_none(corpus, tmp_path, monkeypatch):
    rows = [f"one.mp4,a,{start / 100},{(start + 10) / 100}" for start in range(0, 30, 4)]
    labels = table(corpus, "\n".join(["path,label,start,end", *rows]))
    looks, probe = [], Examiner.probe
    monkeypatch.setattr(Examiner, "probe", lambda *a, **options: (looks.append(options), probe(*a, **options))[1])
    config = CorpusConfig(root=corpus, labels=str(labels))
    monkeypatch.setenv("FASTEMO_CACHE", str(tmp_path / "cache"))
    first = scan_cached(corpus, config, Console(show=False))
    assert len(looks) == 1
    assert len(looks[0]["segments"]) == len(first.clips) == 8
    assert scan_cached(corpus, config, Console(show=False)) == first
    assert len(looks) == 1
    labels.write_text(labels.read_text().replace(",a,0.04,", ",b,0.05,"))
    second = scan_cached(corpus, config, Console(show=False))
    assert len(looks) == 2  # a new segment of the same file
    assert [clip.emotion for clip in second.clips].count("b") == 1
    assert second.clips[1].key == "one.mp4#0.05-0.14"


def test_segments_of_one_recording_of_unknown_people_stay_in_one_split():
    clips = [
        Clip(key=f"{n}.mp4#{k}-{k + 1}", segment=f"{k}-{k + 1}", emotion=("a", "b")[k % 2], num_frames=25)
        for n in range(20)
        for k in range(4)
    ]
    splits = split_clips(Manifest.of(Path("corpus"), clips))
    files = [{clip.path for clip in splits[name]} for name in ("train", "val", "test")]
    assert [len(names) for names in files] == [14, 3, 3]
    assert len(set.union(*files)) == 20
    assert splits.subjects == "unknown"
