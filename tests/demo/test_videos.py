"""Videos on the page: predicted, deleted, refused."""

from __future__ import annotations

import csv
import shutil
import threading
from pathlib import Path

import av
import pytest
from helpers import REPOSITORY, count_decoded, write_sound, write_video

import fastemo
from fastemo.demo import videos as module
from fastemo.demo.videos import Result, Videos, duration_seconds


@pytest.fixture(scope="module")
def model(tiny_run):
    return fastemo.load(tiny_run, device="cpu")


@pytest.fixture
def videos(model, tmp_path):
    (tmp_path / "all").mkdir()
    return Videos(model, tmp_path / "all")


def as_recorded(source: Path, path: Path) -> Path:
    """As browsers record: its header has neither duration nor index."""
    with av.open(str(source)) as video, av.open(str(path), "w", options={"live": "1"}) as copy:
        stream = copy.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    return path


def predict(videos, path, session="one", on_progress=lambda share, what: None) -> Result:
    return videos.predict(path, session, on_progress)


def test_a_video_is_predicted_and_deleted(videos, model, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 25)
    expected = model.predict(clip)
    steps = []
    result = predict(videos, clip, on_progress=lambda *step: steps.append(step))
    assert result.message == f"clip.mp4: {expected.label} {100 * expected.confidence:.0f} %"
    assert not clip.exists()
    assert result.html.count("<svg") == 1
    assert count_decoded(result.annotated) == 25
    [row] = csv.DictReader(result.table.read_text().splitlines())
    assert (row["path"], row["label"], result.table.name) == ("clip.mp4", expected.label, "clip.csv")
    assert {what for _, what in steps} == {"Predicting", "Drawing"}
    assert steps[-1][0] == pytest.approx(0.96)


def test_results_are_kept_until_the_next_video_of_their_page(videos, tmp_path):
    first = predict(videos, write_video(tmp_path / "1.mp4"))
    other = predict(videos, write_video(tmp_path / "2.mp4"), "two")
    predict(videos, write_video(tmp_path / "3.mp4"))
    assert (first.annotated.exists(), other.annotated.exists()) == (False, True)
    videos.forget("one")
    videos.forget("two")
    assert list(videos.folder.iterdir()) == []


def test_what_is_no_video_has_one_line(videos, tmp_path, monkeypatch):
    (tmp_path / "text.mp4").write_text("no video")
    shutil.copy(REPOSITORY / "docs" / "assets" / "picture.jpg", tmp_path / "picture.jpg")
    shutil.copy(REPOSITORY / "docs" / "assets" / "picture.jpg", tmp_path / "picture.mp4")
    write_sound(tmp_path / "sound.m4a")
    whole = write_video(tmp_path / "whole.mp4", 50).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(tmp_path / "long.mp4", 50)
    monkeypatch.setattr(module, "MAX_SECONDS", 1.9)
    said = {}
    for name in ("text.mp4", "picture.jpg", "picture.mp4", "sound.m4a", "cut.mp4", "long.mp4", "gone.mp4"):
        result = predict(videos, tmp_path / name)
        assert result == Result(result.message)
        assert result.message.startswith(name)
        assert str(tmp_path) not in result.message
        said[name] = result.message
        assert not (tmp_path / name).exists()
    assert said["picture.jpg"] == "picture.jpg is a picture: only videos are taken here"
    assert said["long.mp4"] == "long.mp4 is longer than 0 minutes"
    assert list(videos.folder.iterdir()) == []


def test_a_long_video_without_a_duration_is_refused_where_it_gets_too_long(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SECONDS", 3.0)
    videos = Videos(model, tmp_path, window=1.0, hop=1.0)
    clip = as_recorded(write_video(tmp_path / "clip.mp4", 150), tmp_path / "clip.mkv")
    assert duration_seconds(clip) == 0.0
    ends = []
    result = predict(videos, clip, on_progress=lambda share, what: ends.append(share))
    assert "is longer than" in result.message
    assert len(ends) < 6


def test_no_face_is_no_failure(face_run, no_face, tmp_path):
    clip = Path(shutil.copy(no_face, tmp_path))
    assert predict(Videos(fastemo.load(face_run), tmp_path), clip) == Result("empty.mp4: no face was found")


@pytest.mark.parametrize("stop", [lambda videos: videos.forget("one"), Videos.stop])
def test_a_prediction_ends_when_its_page_is_closed_or_the_server_stops(videos, stop, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", 200)
    drawing, stopping, results = threading.Event(), threading.Event(), []

    def on_progress(share, what):
        if what == "Drawing":
            drawing.set()
            assert stopping.wait(60)

    thread = threading.Thread(target=lambda: results.append(predict(videos, clip, on_progress=on_progress)))
    thread.start()
    assert drawing.wait(60)
    threading.Timer(0.2, stopping.set).start()  # `stop` waits for the prediction
    stop(videos)
    thread.join()
    assert results == [Result("stopped")]
    assert stop is not Videos.stop or predict(videos, clip) == Result("stopped")
    assert not clip.exists()
    assert list(videos.folder.iterdir()) == []
