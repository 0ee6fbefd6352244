"""Faces in windows: followed by overlap, numbered, each cropped as in training."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from doubles import SquareDetector, squares
from helpers import served, write_image, write_video

from fastemo.inference.files import array_clip, read_clip
from fastemo.inference.live import LiveWindows
from fastemo.inference.parts import file_parts
from fastemo.inference.prediction import NO_FACE
from fastemo.inference.tracks import FaceTracks
from fastemo.inference.windows import Plan, WindowClip, window_clips
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip

T = 6
SPEC = FrameSpec(num_frames=T, size=24, crop="face")
RATE = 25
SIZE = 24


def film(path, *heads, seconds, codec="libx264"):
    """Squares over time, each a function of the second: its left and top, or `None` where it is out of the picture."""

    def draw(number, width, height):
        places = [head(number / RATE) for head in heads]
        return squares(*[(round(it[0]), round(it[1]), SIZE - 4 * n) for n, it in enumerate(places) if it])

    options = {"g": "25", "crf": "10"} if codec == "libx264" else {"qmin": "1", "qmax": "2"}
    return write_video(path, round(seconds * RATE), 128, 96, rate=RATE, codec=codec, draw=draw, options=options)


def windows_of(path, faces="all", window=2.0, hop=0.5, detector=None, pool=None):
    """The clips of each window."""
    tracks = FaceTracks(detector or SquareDetector(), SPEC, faces, pool)
    with file_parts(path, SPEC) as parts:
        return [tracks.clips(clip) for clip in window_clips(parts, Plan(window, hop, T), ahead=2)]


def paths_of(windows):
    """The left sides of each face, by window: face number -> {start: left}."""
    found = defaultdict(dict)
    for clips in windows:
        for clip in clips:
            if clip.error is None:
                found[clip.face][clip.start] = clip.box[0]
    return dict(found)


def still(left, top):
    return lambda second: (left, top)


def during(head, *spans):
    return lambda second: head(second) if any(start <= second < end for start, end in spans) else None


def test_two_faces_side_by_side_keep_their_numbers_and_have_their_own_crops(tmp_path):
    path = film(tmp_path / "a.mp4", still(10, 30), lambda second: (80 + 6 * np.sin(second), 40), seconds=6)
    windows = windows_of(path)
    assert [[clip.face for clip in clips] for clips in windows] == [[1, 2]] * 9
    for clips in windows:
        for clip, place in zip(clips, (10, 80), strict=True):
            assert abs(clip.box[0] - place) < 10
            expected = decode_clip(path, clip.numbers, SPEC.at(clip.box))
            assert np.array_equal(np.stack([clip.frames[number] for number in clip.numbers]), expected)


def test_faces_that_cross_keep_their_numbers(tmp_path):
    """They pass each other at different heights, as at different distances, and overlap on the way."""
    path = film(
        tmp_path / "a.mp4",
        lambda second: (4 + 14 * second, 18),
        lambda second: (96 - 14 * second, 44),
        seconds=6.5,
    )
    paths = paths_of(windows_of(path, window=1.0, hop=0.25))
    assert sorted(paths) == [1, 2]
    first, second = paths[1], paths[2]
    assert [*first.values()] == sorted(first.values())
    assert [*second.values()] == sorted(second.values(), reverse=True)
    assert first[0.0] < 20
    assert max(first.values()) > 80
    assert min(second.values()) < 20


@pytest.mark.parametrize(("away", "number"), [((3.0, 3.6), 1), ((3.0, 6.0), 3)])
def test_a_face_that_leaves_and_comes_back(tmp_path, away, number):
    """Shortly hidden it is the same; away for longer it is a new one, for no identity is known."""
    path = film(tmp_path / "a.mp4", during(still(10, 30), (0, away[0]), (away[1], 10)), still(80, 40), seconds=10)
    paths = paths_of(windows_of(path, window=1.0, hop=0.5))
    assert sorted(paths) == sorted({1, 2, number})
    assert len(paths[2]) == 19
    assert max(paths[number]) == 9.0
    assert number == 1 or (max(paths[1]) < 3 and min(paths[3]) > 5)


def test_the_largest_face_alone(tmp_path):
    path = film(tmp_path / "a.mp4", during(still(80, 40), (3, 9)), still(10, 30), seconds=9)
    windows = windows_of(path, "largest", window=1.0, hop=1.0)
    assert [[clip.face for clip in clips] for clips in windows] == [[1]] * 3 + [[2]] * 6
    assert windows[0][0].box == (10, 30, 20, 20)
    assert windows[8][0].box == (80, 40, 24, 24)


def test_a_window_without_a_face_says_so_and_a_failed_one_why(tmp_path):
    path = film(tmp_path / "a.mp4", during(still(10, 30), (0, 2), (4, 6)), seconds=6)
    windows = windows_of(path, window=1.0, hop=1.0)
    assert [[clip.error for clip in clips] for clips in windows] == [[None]] * 2 + [[NO_FACE]] * 2 + [[None]] * 2
    assert (windows[2][0].face, windows[2][0].box, windows[2][0].frames) == (0, None, {})
    failed = WindowClip(1.0, 2.0, error="damaged")
    assert FaceTracks(SquareDetector(), SPEC, "all").clips(failed) == [failed]


def test_frames_of_several_windows_are_searched_once(tmp_path):
    path = film(tmp_path / "a.mp4", still(10, 30), seconds=6)
    detector = SquareDetector()
    with ThreadPoolExecutor(3) as pool:
        windows = windows_of(path, hop=0.4, detector=detector, pool=pool)
    numbers = {number for clips in windows for clip in clips for number in clip.numbers}
    assert detector.seen == len(numbers) < T * len(windows)
    alone = windows_of(path, hop=0.4)
    assert [[(it.face, it.box) for it in clips] for clips in windows] == [
        [(it.face, it.box) for it in clips] for clips in alone
    ]


def test_streams_that_cannot_be_pruned_pictures_and_arrays_are_searched_alike(tmp_path):
    path = film(tmp_path / "a.avi", still(10, 30), seconds=2, codec="mpeg4")
    [[clip]] = windows_of(path, window=2.0, hop=2.0)
    assert clip.box == (10, 30, 24, 24)
    (tmp_path / "frames").mkdir()
    for number in range(1, 4):
        write_image(tmp_path / "frames" / f"frame{number:04d}.png", squares((40, 20, 30)))
    [pictures] = FaceTracks(SquareDetector(), SPEC, "all").clips(read_clip(tmp_path / "frames", SPEC))
    assert pictures.box == (40, 20, 30, 30)
    [frames] = FaceTracks(SquareDetector(), SPEC, "all").clips(array_clip(np.stack([squares((40, 20, 30))] * 4), SPEC))
    assert frames.box == (40, 20, 30, 30)
    assert frames.frames[0].shape == (3, 24, 24)


def test_live_windows_hold_frames_in_which_faces_are_found(tmp_path):
    film(tmp_path / "a.ts", still(10, 30), still(80, 40), seconds=3)
    tracks = FaceTracks(SquareDetector(), SPEC, "all")
    with served(tmp_path) as url, LiveWindows(f"{url}/a.ts", SPEC, window=1.0, hop=1.0) as windows:
        found = [tracks.clips(window) for window in windows]
    assert [[(clip.face, clip.box[0]) for clip in clips] for clips in found] == [[(1, 10), (2, 80)]] * 3
    assert all(clip.frames[clip.numbers[0]].shape == (3, 24, 24) for clips in found for clip in clips)
