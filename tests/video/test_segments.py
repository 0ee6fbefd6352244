"""A segment's frames are those of the long file, bit for bit, in every part that reads clips."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from helpers import TINY_RUN, smooth_frame, write_video

from fastemo.config import read_config
from fastemo.corpus.files.probe import probe_clip
from fastemo.corpus.manifest import scan
from fastemo.experiment.run import run
from fastemo.video.bitstream import pruning
from fastemo.video.bitstream.pruning import prune
from fastemo.video.config import FrameSpec, StoreConfig, VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.loader import ClipLoader

NUM_FRAMES = 120
KINDS = {
    "h264.mp4": {"options": {"g": "12", "bf": "2"}},
    "h264-open.mp4": {"options": {"g": "12", "bf": "2", "x264-params": "open-gop=1"}},
    "h264-one-group.mkv": {"options": {"g": "999"}},
    "h264.mkv": {"options": {"g": "12", "bf": "2"}, "silence": True},
    "h264.ts": {"options": {"g": "12"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:log-level=error"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8", "deadline": "realtime"}},
    "mjpeg.mov": {"codec": "mjpeg"},
}
# In these the segments are read by seeking.
SEEKING = {"h264.mp4", "h264.mkv", "vp9.webm", "mjpeg.mov", "hevc.mp4", "h264-one-group.mkv"}
SECONDS = [(0.0, 0.3), (0.48, 0.52), (0.5, 2.0), (1.9, 2.5), (2.41, 2.43), (4.0, 4.8), (3.3, float("inf"))]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    return {
        name: write_video(folder / name, NUM_FRAMES, 96, 64, rate=25, draw=smooth_frame, **options)
        for name, options in KINDS.items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_segment_holds_the_frames_of_its_time_and_seeking_finds_them(files, name, monkeypatch):
    path = files[name]
    whole = decode_clip(path, range(NUM_FRAMES), None)
    ranges = probe_clip(path, segments=SECONDS).ranges
    # 25 frames a second: the first frame is the first at or after the time.
    edges = [[min(NUM_FRAMES, int(np.ceil(min(time, 9) * 25 - 1e-4))) for time in pair] for pair in SECONDS]
    assert [[first, stop] for first, stop, _ in ranges] == edges
    sought, seek = [], pruning.seek_packets
    monkeypatch.setattr(pruning, "seek_packets", lambda *a: (sought.append(seek(*a)), sought[-1])[1])
    for first, stop, pts in ranges:
        wanted = np.unique(np.linspace(first, stop - 1, 5).astype(int))
        found = decode_clip(path, wanted, None, anchor=(first, pts))
        assert (found == whole[wanted]).all(), (first, stop)
    assert len(sought) == len(ranges)
    if name in SEEKING:
        packets = [len(found[1]) for found in sought if found is not None]
        assert len(packets) == len(ranges)
        assert max(packets) <= NUM_FRAMES
        if "one-group" not in name:
            assert packets[0] < NUM_FRAMES / 2


def test_a_wrong_anchor_costs_time_but_never_a_frame(files):
    path = files["h264.mp4"]
    (first, _, pts), *_ = probe_clip(path, segments=[(2.0, 3.0)]).ranges
    expected = prune(path, [first, first + 3])
    for wrong in (pts + 1, -5, 2**40):
        found = prune(path, [first, first + 3], anchor=(first, wrong))
        assert (found.data, found.positions.tolist()) == (expected.data, expected.positions.tolist())


def test_real_recordings(clips_folder):
    for path in [*clips_folder.rglob("*.mp4"), *clips_folder.rglob("*.flv")]:
        (first, stop, pts), *_ = probe_clip(path, segments=[(1.0, 2.0)]).ranges
        wanted = [first, (first + stop) // 2, stop - 1]
        assert (decode_clip(path, wanted, None, anchor=(first, pts)) == decode_clip(path, wanted, None)).all()


def test_times_are_those_a_player_shows(tmp_path):
    path = write_video(tmp_path / "film.mp4", 48, rate=Fraction(24000, 1001))
    ((first, stop, _),) = probe_clip(path, segments=[(1.0, 1.5)]).ranges
    # Frame k is shown at k * 1001 / 24000 s: 24 at 1.001, 35 at 1.46, 36 at 1.5015.
    assert (first, stop) == (24, 36)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("tier", ["none", "disk"])
def test_the_loader_gives_a_segment_like_any_other_clip(tmp_path, backend, tier):
    write_video(tmp_path / "long" / "a.mp4", 100, 64, 48, options={"g": "10"})
    labels = tmp_path / "table.csv"
    labels.write_text("path,label,start,end\na.mp4,one,0.4,0.8\na.mp4,two,2,2.8\na.mp4,one,,\n")
    manifest = scan(tmp_path / "long", labels=str(labels))
    config = VideoConfig(num_frames=3, size=48, backend=backend)
    store = StoreConfig(tier=tier, root=tmp_path / "store")
    expected = {"a.mp4": [0, 49, 99], "a.mp4#0.4-0.8": [10, 14, 19], "a.mp4#2-2.8": [50, 59, 69]}
    for _ in range(2):
        told = manifest.clips, manifest.root, manifest.class_names, config
        with ClipLoader(*told, batch_size=3, store=store) as loader:
            (batch,) = list(loader.epoch())
            assert batch.keys == list(expected)
            for key, frames in zip(batch.keys, batch.frames.numpy(), strict=True):
                spec = FrameSpec(num_frames=3, size=48)
                direct = decode_clip(tmp_path / "long" / "a.mp4", expected[key], spec, backend=backend)
                assert np.array_equal(frames, direct), key


def test_a_run_on_segments_of_two_long_recordings(tmp_path):
    for name in ("one", "two"):
        write_video(tmp_path / "long" / f"{name}.mp4", 100, options={"g": "10"})
    rows = []
    for name, splits in (("one", "train train train train"), ("two", "val val test test")):
        for part, split in enumerate(splits.split()):
            label, start = ("glad", "sad")[part % 2], 8 * part
            rows.append(f"{name}.mp4;{label};{name}{part};{start // 10},{start % 10};{start // 10 + 1};{split}")
    labels = tmp_path / "table.csv"
    labels.write_text("\r\n".join(["path;label;subject;start;end;split", *rows]), encoding="cp1252")
    options = ["--corpus.root", str(tmp_path / "long"), "--corpus.labels", str(labels), "--name", "segments"]
    folder = run(read_config([*TINY_RUN, *options, "--runs_dir", str(tmp_path / "runs")]))
    result = json.loads((folder / "test.json").read_text())
    assert result["num_clips"] == 2
    assert list(result["groups"]["subject"]) == ["two2", "two3"]
    keys = [line.split(",")[0] for line in (folder / "predictions.csv").read_text().splitlines()[1:]]
    assert keys == ["two.mp4#1.6-2", "two.mp4#2.4-3"]
