"""A video read in sections: the same frames as a full decode, in bounded memory."""

import math

import numpy as np
import pytest
from helpers import smooth_frame, write_video

from fastemo.corpus.files.probe import probe_video
from fastemo.video.bitstream.frame_headers import NotUnderstood
from fastemo.video.bitstream.pruning import BitstreamError
from fastemo.video.bitstream.sections import sections
from fastemo.video.decode import decode_clip, decode_pruned

NUM_FRAMES, RATE = 100, 25
KINDS = {
    "h264.mp4": {"options": {"g": "12", "bf": "2"}},
    "h264.mkv": {"options": {"g": "12", "bf": "2"}, "silence": True},
    "h264.ts": {"options": {"g": "12"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:open-gop=0:log-level=error"}},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8", "deadline": "realtime"}},
    "mjpeg.mov": {"codec": "mjpeg"},
}
# Decoding begins at the first packet alone.
ONE_GROUP = {
    "one.mp4": {"options": {"g": "999", "sc_threshold": "0"}},
    "hevc-open.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:open-gop=1:log-level=error"}},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sections")
    return {
        name: write_video(folder / name, NUM_FRAMES, 96, 64, rate=RATE, draw=smooth_frame, **options)
        for name, options in (KINDS | ONE_GROUP).items()
    }


@pytest.mark.parametrize("name", [*KINDS, *ONE_GROUP])
@pytest.mark.parametrize("seconds", [0.5, math.inf])
def test_sections_hold_every_frame_once_and_decode_by_themselves(files, name, seconds):
    path = files[name]
    whole = decode_clip(path, range(NUM_FRAMES), None)
    random = np.random.default_rng(0)
    times, num_sections = [], 0
    with sections(path, seconds=seconds) as found:
        for section in found:
            assert section.first == len(times)
            times += section.times
            num_sections += 1
            wanted = sorted(random.choice(len(section.times), min(3, len(section.times)), replace=False))
            wanted = [section.first + int(place) for place in wanted]
            clip = section.pruned(wanted)
            assert not clip.is_whole
            assert np.array_equal(decode_pruned(path, wanted, clip, None), whole[wanted]), wanted
    is_one = seconds == math.inf or name in ONE_GROUP
    assert (num_sections == 1) == is_one
    assert times == pytest.approx(probe_video(path, with_times=True).times, abs=1e-9)
    start = times[0]
    assert [round((time - start) * RATE, 1) for time in times] == [*range(NUM_FRAMES)]


@pytest.mark.parametrize("name", ONE_GROUP)
def test_a_stream_without_keyframes_to_begin_at_does_not_fill_the_memory(files, name):
    with sections(files[name], seconds=0.5, most_bytes=3000) as found, pytest.raises(NotUnderstood, match="bytes"):
        list(found)


def test_what_cannot_be_pruned_is_refused_before_a_section_is_given(tmp_path):
    avi = write_video(tmp_path / "x.avi", codec="mpeg4")  # pruning does not know its FourCC's bugs
    with sections(avi) as found, pytest.raises(NotUnderstood):
        next(found)


def test_what_is_no_video_is_an_error_by_name(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    with pytest.raises(BitstreamError, match=r"notes\.mp4"), sections(text):
        pass
