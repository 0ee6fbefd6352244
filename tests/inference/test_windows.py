"""Windows of a video: which frames they hold, and that each is decoded once."""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from helpers import frame_number, write_video
from hypothesis import given
from hypothesis import strategies as st

from fastemo.corpus.files.probe import probe_video
from fastemo.errors import DecodeError
from fastemo.inference.parts import file_parts
from fastemo.inference.windows import Part, Plan, window_clips
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

T = 4
SPEC = FrameSpec(num_frames=T, crop="squash", size=32)
# Times in whole ms, so that windows' edges fall on frames.
TIMES = st.lists(st.integers(0, 12_000), min_size=1, max_size=60, unique=True).map(sorted)
SECONDS = st.integers(1, 30).map(lambda tenths: tenths / 10)


def windows_of(times, window, hop, **options):
    plan = Plan(window, hop, T, **options)
    return plan.add(times) + plan.finish()


def part_of(first, times, decoded=None, damaged=()):
    def decode(wanted):
        done = Future()
        if decoded is not None:
            decoded.extend(wanted)
        if bad := [number for number in wanted if number in damaged]:
            done.set_exception(DecodeError("x.mp4", bad[0], "damaged"))
        else:
            done.set_result({number: np.full((3, 1, 1), number) for number in wanted})
        return done

    return Part(first, times, decode)


@given(times=TIMES, window=SECONDS, hop=SECONDS)
def test_a_window_holds_the_frames_of_its_time_and_all_windows_hold_every_frame(times, window, hop):
    seconds, hop = [time / 1000 for time in times], min(hop, window)
    seen = set()
    found = windows_of(seconds, window, hop)
    for number, clip in enumerate(found):
        start, end = round(1000 * number * hop), round(1000 * (number * hop + window))
        assert round(1000 * clip.start) == start
        own = [frame for frame, time in enumerate(times) if start <= time < end]
        if own:
            assert clip.numbers == tuple(frame_indices(len(own), T, own[0]))
            assert clip.times == tuple(seconds[frame] for frame in clip.numbers)
            assert clip.error is None
        else:
            assert (clip.numbers, clip.error) == ((), f"no frame between {clip.start:.3f} and {clip.end:.3f} s")
        seen.update(own)
    assert seen == set(range(len(times)))
    assert len(times) - 1 not in {frame for clip in found[:-1] for frame in clip.numbers}


@given(times=TIMES, window=SECONDS, cuts=st.lists(st.integers(0, 60)), whole=st.sampled_from([0.0, 2.0, math.inf]))
def test_frames_that_come_one_after_another_make_the_same_windows(times, window, cuts, whole):
    seconds = [time / 1000 for time in times]
    plan, found = Plan(window, window / 2, T, whole_up_to=whole), []
    edges = sorted({0, len(times), *(cut for cut in cuts if cut < len(times))})
    for first, stop in pairwise(edges):
        new = plan.add(seconds[first:stop])
        assert all(clip.end <= seconds[stop - 1] + 1e-6 for clip in new)
        found += new
        if new and new[-1].numbers:
            assert plan._first >= new[-1].numbers[0] or plan._first + 2 >= stop  # the past is forgotten
    found += plan.finish()
    assert [vars(clip) for clip in found] == [
        vars(clip) for clip in windows_of(seconds, window, window / 2, whole_up_to=whole)
    ]


def test_a_short_video_is_one_clip_and_a_longer_one_has_windows():
    times = [number / 10 for number in range(100)]
    [whole] = windows_of(times, 3.0, 0.5, whole_up_to=10.0)
    assert (whole.start, round(whole.end, 6)) == (0.0, 10.0)
    assert whole.numbers == tuple(frame_indices(100, T))
    assert len(windows_of([*times, 10.0], 3.0, 0.5, whole_up_to=10.0)) == 16
    assert Plan(3.0, 0.5, T).finish() == []


def test_windows_begin_before_0_where_a_frame_does():
    assert windows_of([-0.7, -0.2, 0.4], 1.0, 0.5)[0].start == -1.0


@pytest.mark.parametrize(
    ("window", "hop"), [(0, 0.5), (1, 0), (1, -1), (1, 2), (math.inf, 1), (math.nan, 1), (1, math.nan)]
)
def test_windows_without_an_end_or_with_holes_between_them_are_refused(window, hop):
    with pytest.raises(ValueError, match="the hop at most the window"):
        Plan(window, hop, T)


def test_each_frame_that_a_window_needs_is_decoded_once_and_no_other():
    decoded, given_out = [], 0
    times = [number / 10 for number in range(1000)]

    def parts():
        nonlocal given_out
        for first in range(0, 1000, 20):
            yield part_of(first, times[first : first + 20], decoded)
            given_out = first + 20

    expected = windows_of(times, 3.0, 1.0)
    for clip, plan in zip(window_clips(parts(), Plan(3.0, 1.0, T), ahead=2), expected, strict=True):
        assert (clip.numbers, clip.times, clip.start, clip.end) == (plan.numbers, plan.times, plan.start, plan.end)
        assert {number: int(pixels[0, 0, 0]) for number, pixels in clip.frames.items()} == {
            it: it for it in plan.numbers
        }
        assert given_out <= clip.numbers[-1] + 30 + 3 * 20  # read no further than windows and `ahead` require
    assert decoded == sorted({number for clip in expected for number in clip.numbers})


def test_a_damaged_part_costs_the_windows_that_need_it_and_an_error_ends_the_video_by_name():
    times = [number / 10 for number in range(100)]

    def parts():
        for first in range(0, 100, 10):
            yield part_of(first, times[first : first + 10], damaged={44})
        raise DecodeError("x.mp4", 100, "the rest is gone")

    *found, last = window_clips(parts(), Plan(1.0, 1.0, 10), ahead=1)
    assert [clip.error for clip in found] == [None] * 4 + ["damaged"] + [None] * 5
    assert [bool(clip.frames) for clip in found] == [True] * 4 + [False] + [True] * 5
    assert (last.start, last.end, last.error) == (9.9, 9.9, "the rest is gone")


def test_a_video_that_cannot_be_read_at_all_is_its_error():
    def parts():
        raise DecodeError("x.mp4", 0, "nothing")
        yield

    with pytest.raises(DecodeError, match="nothing"):
        list(window_clips(parts(), Plan(1.0, 1.0, T), ahead=1))


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.ts", "open.mp4"])
def test_windows_of_a_file_are_those_of_its_full_decode(tmp_path, name):
    codec = {"a.avi": "mpeg4", "open.mp4": "libx265"}.get(name, "libx264")
    options = {"x265-params": "keyint=12:open-gop=1:log-level=error"} if codec == "libx265" else {"g": "12", "bf": "2"}
    path = write_video(tmp_path / name, 200, 128, 96, codec=codec, options=options)
    whole = decode_clip(path, range(200), SPEC)
    with ThreadPoolExecutor(2) as pool, file_parts(path, SPEC, pool) as parts:
        found = [*window_clips(parts, Plan(1.0, 0.4, T), ahead=2)]
    times = probe_video(path, with_times=True).times
    assert len(found) == len(windows_of(times, 1.0, 0.4))
    for clip in found:
        assert clip.error is None
        own = [number for number, time in enumerate(times) if clip.start - 1e-6 <= time < clip.start + 1 - 1e-6]
        assert clip.numbers == tuple(frame_indices(len(own), T, own[0]).tolist())
        for number in clip.numbers:
            assert np.array_equal(clip.frames[number], whole[number])
            assert frame_number(clip.frames[number].transpose(1, 2, 0)) == number
