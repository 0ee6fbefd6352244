"""Manifests from elsewhere: read as they say, or refused by file and line; no clip lies outside the corpus."""

from pathlib import PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastemo.corpus.manifest import Clip, Manifest, read_manifest, scan

ROWS = [
    Clip(
        key=f"Actor_0{i}/a {i},\n.mp4", emotion="happy", num_frames=9, fps=29.97, width=64, height=48, size_bytes=i + 1
    )
    for i in range(1, 4)
]
PATHS = ["../../etc/passwd", "/etc/passwd", "..", "C:\\x", "\\\\host\\x"]
TEXTS = [*PATHS, "\0", '"', "\n", ",", "nan", "-1", "1e999", "9" * 5000]


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_manifests(tmp_path, data, fault_log):
    path = tmp_path / "manifest.csv"
    Manifest.of(tmp_path, ROWS).write_csv(path)
    held = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(held)))
        kind = data.draw(st.sampled_from(["flip", "text", "bytes", "cut", "double"]))
        if kind == "flip" and at < len(held):
            held[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "text":
            cells = held.split(b",")
            cells[data.draw(st.integers(0, len(cells) - 1))] = bytearray(data.draw(st.sampled_from(TEXTS)).encode())
            held = bytearray(b",".join(cells))
        elif kind == "bytes":
            held[at:at] = data.draw(st.binary(max_size=6))
        elif kind == "double":
            held[at:at] = held
        else:
            del held[at:]
    path.write_bytes(held)
    trouble, rows = "", ()
    try:
        rows = read_manifest(path, tmp_path).rows
    except ValueError as error:
        trouble = str(error)
    assert trouble.startswith(f"{path}, line ") if trouble else True
    for row in rows:
        parts = PurePosixPath(row.key).parts
        assert parts
        assert ".." not in parts
        assert not row.key.startswith("/")
        assert min(row.num_frames, row.width, row.height, row.fps) >= 0
    # A scan that remembered this file takes it for what it is worth, and never fails on it.
    assert scan(tmp_path, known=path).rows == ()
    fault_log("mutated manifests", {"refused by file and line" if trouble else "read as they say": 1})


@pytest.mark.parametrize("key", ["../a.mp4", "/a.mp4", "a/../../b.mp4", "C:\\a.mp4", "\\\\host\\a.mp4", "a\0.mp4", ""])
def test_a_clip_outside_the_corpus(tmp_path, key, fault_log):
    path = tmp_path / "manifest.csv"
    Manifest.of(tmp_path, [Clip(key="a.mp4", emotion="happy")]).write_csv(path)
    path.write_text(path.read_text().replace("a.mp4", key), newline="")
    with pytest.raises(ValueError, match=r"manifest\.csv, line 2: not a manifest"):
        read_manifest(path, tmp_path)
    fault_log("a manifest that names a file outside the corpus", {"refused by file and line": 1})
