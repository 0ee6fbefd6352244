"""Manifests from elsewhere: read as written, or refused by file and line; no clip lies outside the corpus."""

from collections import Counter
from pathlib import PurePosixPath
from random import Random

import pytest
from mutations import damaged

from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest, read_manifest, scan

VALUES = {"emotion": "happy", "num_frames": 9, "fps": 29.97, "width": 64, "height": 48}
ROWS = [Clip(key=f"Actor_0{i}/a {i},\n.mp4", size_bytes=i + 1, **VALUES) for i in range(1, 4)]
PATHS = ["../../etc/passwd", "/etc/passwd", "..", "C:\\x", "\\\\host\\x"]
KEYS_OUTSIDE_THE_CORPUS = [
    *("/etc/passwd", "//host/share/a.mp4", "../a.mp4", "a/../../b.mp4", "a/..", "..", ".", "./a.mp4", "a/./b.mp4"),
    *("a//b.mp4", "a/", "", "C:\\a.mp4", "c:/a.mp4", "\\\\host\\share\\a.mp4", "\\a.mp4", "a\0b.mp4"),
]
TEXTS = [*PATHS, "\0", '"', "\n", ",", "nan", "-1", "1e999", "9" * 5000]


def test_mutated_manifests(tmp_path, fault_log):
    path, outcomes = tmp_path / "manifest.csv", Counter()
    Manifest.of(tmp_path, ROWS).write_csv(path)
    whole = path.read_bytes()
    for seed in range(500):
        rng = Random(seed)
        cells = whole.split(b",")
        for _ in range(rng.randint(0, 2)):
            cells[rng.randrange(len(cells))] = rng.choice(TEXTS).encode()
        data = b",".join(cells)
        path.write_bytes(damaged(data, rng) if data == whole or rng.random() < 0.5 else data)
        rows = ()
        try:
            rows = read_manifest(path, tmp_path).rows
            outcomes["read as written"] += 1
        except ValueError as error:
            is_named = str(error).startswith(f"{path}, line ")
            outcomes["refused by file and line" if is_named else f"refused: {error}"] += 1
        for row in rows:
            parts = PurePosixPath(row.key).parts
            assert parts
            assert ".." not in parts
            assert not row.key.startswith("/")
            assert min(row.num_frames, row.width, row.height, row.fps) >= 0
        # A scan that remembered this file takes it for what it is worth, and never fails on it.
        assert scan(tmp_path, known=path).rows == ()
    assert outcomes.keys() == {"read as written", "refused by file and line"}
    assert min(outcomes.values()) >= 10
    fault_log("mutated manifests", outcomes)


@pytest.mark.parametrize(
    ("key", "corpus"), [("..#1-2", ""), ("a/..#1-2", ""), ("/..#1-2", ""), ("#1-2", ""), ("b/..#1-2", "b")]
)
def test_a_segment_outside_the_corpus(tmp_path, key, corpus, fault_log):
    path = tmp_path / "manifest.csv"
    Manifest(tmp_path, (Clip(key=key, segment="1-2", corpus=corpus),)).write_csv(path)
    with pytest.raises(ValueError, match=r"manifest\.csv, line 2: not a manifest"):
        read_manifest(path, tmp_path)
    fault_log("a manifest that names a file outside the corpus", {"refused by file and line": 1})


@pytest.mark.parametrize("key", KEYS_OUTSIDE_THE_CORPUS)
@pytest.mark.parametrize("status", ["clip", "rejected"])
def test_a_clip_outside_the_corpus(tmp_path, key, status, fault_log):
    path = tmp_path / "manifest.csv"
    Manifest(tmp_path, (Clip(key="a.mp4"),), rejected=(Clip(key="KEY", status=status),)).write_csv(path)
    path.write_text(path.read_text().replace("KEY", key), newline="")
    with pytest.raises(ValueError, match=r"manifest\.csv, line 3: not a manifest"):
        read_manifest(path, tmp_path)
    fault_log("a manifest that names a file outside the corpus", {"refused by file and line": 1})
