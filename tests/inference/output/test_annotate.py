"""The annotated video: every frame at its time, the sound in step, and the answers where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import frame_number, numbered_frame, psnr, smooth_frame, turn, write_image, write_video

from fastemo.errors import UserError
from fastemo.inference.output.annotate import annotate
from fastemo.inference.prediction import Prediction
from fastemo.video.decode import decode_clip

CLASSES = ["happy", "sad"]
SIZE = (320, 180)
RATE = 48_000


def window(start: float, end: float, best: int = 0, names: Sequence[str] = CLASSES) -> Prediction:
    probabilities = {name: float(number == best) for number, name in enumerate(names)}
    return Prediction(path="clip.mp4", start=start, end=end, label=names[best], probabilities=probabilities)


def grey(number: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def annotated(video: Path, predictions: Sequence[Prediction] = (window(0, 1),), names: Sequence[str] = CLASSES) -> Path:
    out = video.with_name(f"{video.stem}.out.mp4")
    annotate(video, predictions, names, out)
    return out


def start_of(container: av.container.InputContainer) -> Fraction:
    return Fraction(container.start_time or 0, av.time_base)


def frames_of(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times as a player counts them, in seconds, and pixels as stored."""
    with av.open(str(path)) as container:
        decoded = [(float(it.pts * it.time_base - start_of(container)), it) for it in container.decode(video=0)]
        return [time for time, _ in decoded], [it.to_ndarray(format="rgb24") for _, it in decoded]


def sound_of(path: Path) -> tuple[list[float], list[bytes]]:
    """Times as a player counts them, in seconds, and bytes of the packets of sound."""
    with av.open(str(path)) as container:
        packets = [it for it in container.demux(container.streams.audio[0]) if it.size]
        return [float(it.pts * it.time_base - start_of(container)) for it in packets], [bytes(it) for it in packets]


def write_timed(
    path: Path,
    times: Sequence[float],
    *,
    sound: str = "",
    sound_start: float = 0.0,
    click: float = 0.5,
    codec: str = "libx264",
    draw=numbered_frame,
) -> Path:
    """Numbered frames at given times, with B-frames; with a `sound`, 2 s that are silent before a tone at `click`."""
    with av.open(str(path), "w") as container:
        options = {"bf": "2", "x264-params": "b-adapt=0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = SIZE
        stream.codec_context.time_base = Fraction(1, 1000)
        track = container.add_stream(sound, rate=RATE, layout="mono") if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw(number, *SIZE), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            wave = np.sin(np.arange(2 * RATE) * 2 * np.pi * 1000 / RATE) * 20_000
            wave[: round(click * RATE)] = 0
            for begin in range(0, len(wave), 960):
                frame = av.AudioFrame.from_ndarray(wave[None, begin : begin + 960].astype(np.int16), "s16", "mono")
                frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
                frame.pts = begin + round(sound_start * RATE)
                container.mux(track.encode(frame))
            container.mux(track.encode())
    return path


def onset(path: Path) -> float:
    """When the sound begins to be loud, in seconds as a player counts them."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(
                np.abs(frame.to_ndarray().astype(np.float64)).max(0)
                > 0.1 * np.float64(1 if "flt" in frame.format.name else 32768)
            )
            if len(loud):
                return float(frame.pts * frame.time_base - start_of(container)) + loud[0] / frame.sample_rate
    raise AssertionError("silent")


IRREGULAR = [0.0, 0.04, 0.09, 0.3, 0.31, 0.33, 0.9, 1.0, 1.001, 1.5]


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("even.mp4", [number / 25 for number in range(30)]),
        ("variable.mp4", IRREGULAR),
        ("variable.mkv", IRREGULAR),
        ("late.mkv", [7 + time for time in IRREGULAR]),
        ("stream.ts", [3600 + time for time in IRREGULAR]),
    ],
)
def test_every_frame_is_there_at_its_time(tmp_path, name, times):
    video = write_timed(tmp_path / name, times)
    expected, _ = frames_of(video)
    shown, pixels = frames_of(annotated(video))
    assert expected == pytest.approx([time - times[0] for time in times], abs=1e-3)
    assert shown == pytest.approx(expected, abs=2e-5)
    assert [frame_number(it) for it in pixels] == list(range(len(times)))


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_other_codecs_keep_their_frames(tmp_path, codec):
    video = write_video(tmp_path / "clip.avi", 20, *SIZE, codec=codec)
    shown, pixels = frames_of(annotated(video))
    assert shown == pytest.approx([number / 25 for number in range(20)])
    assert [frame_number(it) for it in pixels] == list(range(20))


def test_the_result_is_h264_that_every_player_shows(tmp_path):
    with av.open(str(annotated(write_video(tmp_path / "clip.mp4", 5, 102, 76)))) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.width, stream.codec_context.height) == (102, 76)
        assert "mp4" in container.format.name


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_a_turned_video_is_upright(tmp_path, orientation):
    video = turn(write_video(tmp_path / "flat.mp4", 3, 200, 120, draw=smooth_frame), tmp_path / "clip.mp4", orientation)
    expected = decode_clip(video, [0, 1, 2], None).transpose(0, 2, 3, 1)
    _, pixels = frames_of(annotated(video, []))
    assert np.shape(pixels) == expected.shape
    assert psnr(np.stack(pixels), expected) > 35


def test_pixels_that_are_not_square_and_odd_sides(tmp_path):
    video = tmp_path / "clip.mkv"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 101, 75
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for number in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number, 101, 75), format="rgb24")))
        container.mux(stream.encode())
    _, pixels = frames_of(annotated(video, []))
    assert np.shape(pixels) == (3, 74, 202, 3)
    assert [frame_number(it) for it in pixels] == [0, 1, 2]


@pytest.mark.parametrize(("name", "sound"), [("clip.mp4", "aac"), ("clip.mkv", "libmp3lame"), ("clip.ts", "aac")])
@pytest.mark.parametrize("delay", [0.0, 0.7, 5.0])
def test_sound_that_mp4_takes_is_copied(tmp_path, name, sound, delay):
    video = write_timed(tmp_path / name, IRREGULAR, sound=sound, sound_start=delay)
    (expected, packets), (times, copied) = sound_of(video), sound_of(annotated(video))
    if name.endswith(".ts"):  # whose packets have a header of 7 bytes
        packets = [it[7:] for it in packets]
    assert copied == packets
    assert times == pytest.approx(expected, abs=1e-4)
    assert frames_of(annotated(video))[0] == pytest.approx(frames_of(video)[0], abs=1e-4)


@pytest.mark.parametrize("sound", ["pcm_s16le", "mp2"])
@pytest.mark.parametrize("delay", [0.0, 0.7])
def test_other_sound_becomes_aac_in_step(tmp_path, sound, delay):
    video = write_timed(tmp_path / "clip.mkv", [number / 25 for number in range(60)], sound=sound, sound_start=delay)
    out = annotated(video)
    with av.open(str(out)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    assert onset(video) == pytest.approx(0.5 + delay, abs=0.005)
    assert onset(out) == pytest.approx(0.5 + delay, abs=0.005)


def panel(frame: np.ndarray) -> np.ndarray:
    return frame[: SIZE[1] // 2, : SIZE[0] // 2].astype(np.int64)


def changes(frames: Sequence[np.ndarray]) -> list[int]:
    """The frames before which the panel changed."""
    return [k for k in range(1, len(frames)) if np.abs(panel(frames[k]) - panel(frames[k - 1])).max() > 60]


def test_the_answer_changes_halfway_between_centres(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 50, *SIZE, draw=grey)
    _, frames = frames_of(annotated(video, [window(0, 1, 0), window(0.5, 1.5, 1), window(1, 2, 0)]))
    assert changes(frames) == [19, 32]  # 0.75 s and 1.25 s, at 25 frames a second: 18.75 and 31.25
    first, second, third = (panel(frames[k]) for k in (5, 25, 45))
    assert psnr(first, third) > psnr(first, second) + 10


def test_a_gap_shows_no_answer_and_a_failed_window_says_so(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 50, *SIZE, draw=grey)
    failed = Prediction(path="clip.mp4", start=1.2, end=1.6, error="damaged")
    _, frames = frames_of(annotated(video, [window(0.4, 0.8), failed]))
    assert changes(frames) == [10, 20, 30, 40]
    for k in (0, 9, 20, 29, 40, 49):
        assert np.abs(panel(frames[k]) - 90).max() < 20, k


def test_the_strip_has_each_class_colour_and_a_cursor_at_the_time(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 50, *SIZE, draw=grey)
    _, frames = frames_of(annotated(video, [window(0, 1, 0), window(1, 2, 1)]))
    strips = [frame[-10:-4].astype(np.int64).mean(0) for frame in frames]
    for strip in (strips[0], strips[-1]):
        red, _, blue = strip[20:140].mean(0)
        assert blue > red + 60  # "happy", #0072b2
        red, _, blue = strip[180:300].mean(0)
        assert red > blue + 60  # "sad", #c05000
    for number in (5, 20, 30, 45):
        assert strips[number].sum(-1).argmax() == pytest.approx(number / 50 * SIZE[0], abs=2)


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(pixels.astype(int) - colour).max(-1) < 60


def test_faces_are_drawn_where_they_are_in_the_colour_of_their_class(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 50, *SIZE, draw=grey)
    one = replace(window(0, 1), face=1, box=(40, 70, 60, 60))
    other = replace(window(0, 1, 1), face=2, box=(201, 71, 61, 61))  # odd, as boxes may be
    none = Prediction(path="clip.mp4", start=1, end=2, error="no face")
    _, frames = frames_of(annotated(video, [one, other, none]))
    for found, colour in ((one, (0, 114, 178)), (other, (192, 80, 0))):
        left, top, width, height = found.box
        edges = near(frames[5][top + 8 : top + height - 8, left - 3 : left + width + 3], colour)
        assert edges[:, :8].any(1).all()  # the left line, and the right one
        assert edges[:, -8:].any(1).all()
        assert not near(frames[5][top + 15 : top + height - 15, left + 15 : left + width - 15], colour).any()
        assert (frames[5][top - 18 : top - 2, left : left + 60] > 180).any()  # its caption
    assert np.abs(frames[40][70:130].astype(int) - 90).max() < 20
    strip = frames[5][-26:, 20:140].astype(int).mean(1)  # a row for each: "happy", #0072b2, above "sad", #c05000
    assert (strip[4:10, 2] > strip[4:10, 0] + 40).all()
    assert (strip[-8:-2, 0] > strip[-8:-2, 2] + 40).all()


@pytest.mark.parametrize("box", [(0, 0, 320, 180), (-1, 0, 2, 2), (318, 178, 1, 1), (0, 170, 320, 10)])
def test_boxes_at_the_edge_are_drawn(tmp_path, box):
    video = write_video(tmp_path / "clip.mp4", 3, *SIZE)
    found = [replace(window(0, 1, n % 2), face=n, box=(max(0, box[0]), *box[1:])) for n in range(1, 7)]
    assert len(frames_of(annotated(video, found))[0]) == 3


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "libx264"), ("clip.mkv", "mjpeg"), ("clip.mkv", "ffv1")])
def test_the_picture_elsewhere_is_the_video(tmp_path, name, codec):
    options = {"crf": "10"} if codec == "libx264" else {"qmin": "2", "qmax": "2"} if codec == "mjpeg" else {}
    pixels = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec)  # RGB, and the full range of levels
    video = write_video(
        tmp_path / name, 10, *SIZE, codec=codec, pixel_format=pixels, draw=smooth_frame, options=options
    )
    (_, before), (_, after) = frames_of(video), frames_of(annotated(video))
    assert psnr(np.stack(before)[:, 70:140], np.stack(after)[:, 70:140]) > 33


@pytest.mark.parametrize("size", [(4, 2), (16, 16), (64, 48), (90, 320)])
def test_any_class_name_at_any_size(tmp_path, size):
    names = ["", "日本語 😀", "bad\udcff", "two\nlines", "ﷺ", "x" * 500, *(f"class {number}" for number in range(40))]
    video = write_video(tmp_path / "clip.mp4", 10, *size)
    out = annotated(video, [window(number / 25, (number + 1) / 25, number, names) for number in range(10)], names)
    assert len(frames_of(out)[0]) == 10


def test_what_cannot_be_annotated_is_refused(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 3)
    picture = write_image(tmp_path / "frame0001.png", numbered_frame(0, 64, 48))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    listed = tmp_path / "list.mp4"
    listed.write_text(f"ffconcat version 1.0\nfile {video}\n")
    silent = tmp_path / "sound.mp4"
    write_timed(silent, [], sound="aac")
    before, names = video.read_bytes(), {it.name for it in tmp_path.iterdir()}
    for source, out, kind, message in (
        (video, "out.avi", ValueError, r"out\.avi: an annotated video ends in \.mp4"),
        (video, "clip.mp4", ValueError, r"clip\.mp4: .* would replace the video itself"),
        (picture, "out.mp4", ValueError, r"frame0001\.png: only a video"),
        (tmp_path, "out.mp4", ValueError, "only a video"),
        (broken, "out.mp4", UserError, r"broken\.mp4: cannot be annotated"),
        (listed, "out.mp4", UserError, r"list\.mp4: cannot be annotated"),
        (silent, "out.mp4", UserError, r"sound\.mp4: no "),
        (tmp_path / "none.mp4", "out.mp4", UserError, r"none\.mp4: cannot be annotated"),
        (video, "missing/out.mp4", ValueError, r"out\.mp4: there is no folder .*missing"),
    ):
        with pytest.raises(kind, match=message):
            annotate(source, [window(0, 1)], CLASSES, tmp_path / out)
    assert {it.name for it in tmp_path.iterdir()} == names
    assert video.read_bytes() == before


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path):
    video, out = write_video(tmp_path / "clip.mp4", 50), tmp_path / "out.mp4"
    out.write_bytes(b"old")
    seen = []

    def stop(seconds: float, total: float) -> None:
        seen.append((seconds, total))
        if seconds >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate(video, [window(0, 2)], CLASSES, out, stop)
    assert seen == [(pytest.approx(seconds), pytest.approx(2)) for seconds, _ in seen]
    assert seen[-1][0] == pytest.approx(1)
    assert out.read_bytes() == b"old"
    assert {it.name for it in tmp_path.iterdir()} == {"clip.mp4", "out.mp4"}


def test_a_damaged_packet_costs_its_frames_only(tmp_path):
    video = write_video(tmp_path / "clip.mkv", 40, *SIZE, codec="mjpeg")
    with av.open(str(video)) as container:
        sizes = [(it.pos, it.size) for it in container.demux(video=0) if it.size]
    data = bytearray(video.read_bytes())
    place, size = sizes[20]
    data[place : place + size] = bytes(size)
    video.write_bytes(data)
    _, pixels = frames_of(annotated(video))
    numbers = [frame_number(it) for it in pixels]
    assert [it for it in range(40) if it not in numbers] in ([20], [19, 20], [20, 21])


@pytest.mark.parametrize(
    "name",
    [
        "awkward/header_157_decodes_110.mp4",
        "awkward/negative_pts_header_98_decodes_95.mp4",
        "awkward/hevc_variable_frame_rate.mov",
        "crema-d/1001_DFA_ANG_XX.flv",
        "ravdess/Actor_01/01-01-01-01-01-01-01.mp4",
    ],
)
def test_real_clips_keep_their_frames_and_sound(tmp_path, clips_folder, name):
    video, out = clips_folder / name, tmp_path / "out.mp4"
    annotate(video, [window(0, 2), window(1, 3, 1)], CLASSES, out)
    assert frames_of(out)[0] == pytest.approx(frames_of(video)[0], abs=1e-4)
    assert sound_of(out)[1] == sound_of(video)[1]
