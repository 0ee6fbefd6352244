"""Live input: the newest whole window, the right frames in it, and nothing opened but the network.

Streams come from this machine: from ffmpeg at the speed of a camera, and from sockets as fast as they are read.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import frame_number, free_port, numbered_frame, sent, served, write_video

from fastemo.corpus.files.probe import SAME
from fastemo.errors import UserError
from fastemo.inference import live
from fastemo.inference.buffers import BEHIND, SILENCE, Inbox, StreamClock, WindowRing
from fastemo.inference.live import LiveWindows, is_url, shown_name
from fastemo.inference.windows import WindowClip
from fastemo.video import decode
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

SPEC = FrameSpec(num_frames=4, crop="squash", size=40)
RATE = 30
NOTHING = np.zeros((3, 1, 1), np.uint8)
TIMES = {
    "25 a second": np.arange(250) / 25,
    "30000/1001 a second": np.arange(300) * 1001 / 30000,
    "a variable rate": np.cumsum(np.random.default_rng(0).uniform(0, 0.1, 200)),
    "shorter than a window": np.arange(5) / 25,
    "one frame": np.zeros(1),
}


def numbered(path: Path, seconds: float, **options) -> Path:
    """A video whose frame k shows k modulo 256."""
    options = {"rate": RATE, "options": {"g": str(RATE)}} | options
    return write_video(
        path, round(seconds * RATE), 96, 64, draw=lambda k, w, h: numbered_frame(k % 256, w, h), **options
    )


def shown(clip: WindowClip) -> list[int]:
    return [frame_number(clip.frames[number].transpose(1, 2, 0)) for number in clip.numbers]


def whole_windows(times: np.ndarray, window: float, hop: float) -> list[list[int]]:
    """The frames of each window until the last frame is in one."""
    found: list[list[int]] = []
    start, end = 0.0, 0.0
    while times[-1] >= end - SAME:
        start, end = len(found) * hop, len(found) * hop + window
        found.append([n for n, seconds in enumerate(times) if start - SAME <= seconds < end - SAME])
    return found


def taken(ring: WindowRing) -> list[WindowClip]:
    return [found[0] for found in iter(ring.take, None)]


@pytest.mark.parametrize(("window", "hop"), [(3, 0.5), (1, 1), (0.7, 0.3)])
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_windows_hold_their_frames_and_miss_none(times, window, hop):
    ring, clips = WindowRing(4, window, hop), []
    for number, seconds in enumerate(times):
        ring.add(seconds, NOTHING + number % 256, arrived=number)
        clips += taken(ring)
        assert len(clips) == sum(k * hop + window - SAME <= seconds for k in range(1000)), (
            "complete, and handed out at once"
        )
    ring.end()
    clips += taken(ring)
    expected = whole_windows(times, window, hop)
    assert sorted(set().union(*expected)) == list(range(len(times)))
    assert [clip.start for clip in clips] == [k * hop for k in range(len(expected))]
    assert ring.skipped == 0
    for clip, frames in zip(clips, expected, strict=True):
        assert clip.times[-1] <= clip.end <= clip.start + window + SAME
        assert clip.numbers == tuple(frame_indices(len(frames), 4, frames[0]))
        assert clip.times == tuple(times[list(clip.numbers)])
        assert all(clip.frames[number].max() == number % 256 for number in clip.numbers)


def test_arrival_is_that_of_the_last_frame_in_the_window():
    ring = WindowRing(4, 1.0, 0.5)
    for number in range(11):
        ring.add(number / 10, NOTHING, arrived=100 + number)
    assert ring.take()[1] == 109


def test_a_slow_consumer_gets_the_newest_window():
    ring = WindowRing(4, 1.0, 0.5)
    for number in range(100):
        ring.add(number / 10, NOTHING, arrived=0)
    clip, _ = ring.take()
    assert (clip.start, ring.skipped) == (8.5, 17)
    assert ring.take() is None
    assert len(ring._frames) <= 11, "memory does not grow with what nobody takes"


def test_windows_with_missing_frames_are_skipped():
    ring, clips = WindowRing(4, 1.0, 0.5), []
    for number in range(60):
        if not 23 <= number < 27:
            ring.add(number / 10, NOTHING, arrived=0, after_gap=number == 27)
            clips += taken(ring)
    ring.end()
    clips += taken(ring)
    missing = [0.1 * number for number in range(23, 27)]
    windows = [0.5 * k for k in range(11)]
    assert [clip.start for clip in clips] == [
        s for s in windows if not any(s <= time < s + 1 for time in missing) and s != 2.5
    ]
    assert len(clips) + ring.skipped == len(windows)


def test_a_gap_at_the_end_skips_the_last_window():
    ring = WindowRing(4, 1.0, 0.5)
    ring.add(0.0, NOTHING, arrived=0)
    ring.end(after_gap=True)
    assert (ring.take(), ring.skipped) == (None, 1)


def test_the_clock_ascends_when_the_source_restarts():
    clock = StreamClock()
    own = [5.0, 5.5, 5.4, 6.0, 0.0, 0.5, 0.5 + 2 * SILENCE]
    placed = [clock.place(time, arrived=100 + 0.5 * k) for k, time in enumerate(own)]
    assert placed == [(0.0, False), (0.5, False), None, (1.0, False), (1.5, True), (2.0, False), (2.5, True)]


def packet(number: int, gop: int = 10) -> SimpleNamespace:
    return SimpleNamespace(number=number, is_keyframe=number % gop == 0, size=1)


def waiting(inbox: Inbox) -> list[tuple[int, bool]]:
    inbox.close()
    return [(item.number, after_loss) for item, _, after_loss in inbox]


def test_packets_wait_in_order_and_begin_with_a_keyframe():
    inbox = Inbox()
    for number in range(7, 15):
        inbox.put(packet(number), number / 25)
    assert waiting(inbox) == [(10, True), *((number, False) for number in range(11, 15))]


@pytest.mark.parametrize("gop", [1, 10, 1000])
def test_too_many_packets_are_dropped_up_to_a_keyframe(gop):
    inbox = Inbox()
    for number in range(200):
        inbox.put(packet(number, gop), number / 25)
        times = [seconds for _, seconds, _ in inbox._items]
        assert not times or times[-1] - times[0] <= BEHIND
    left = waiting(inbox)
    assert not left or left[0][0] % gop == 0
    assert [after_loss for _, after_loss in left] == [True, *[False] * (len(left) - 1)][: len(left)]
    assert bool(left) == (gop < 1000)


def test_after_a_packet_that_does_not_decode_the_next_keyframe_follows():
    inbox = Inbox()
    for number in range(15):
        inbox.put(packet(number), number / 25)
    inbox.lose()
    assert waiting(inbox) == [(10, True), *((number, False) for number in range(11, 15))]


# Real streams.


@pytest.fixture
def udp_url() -> str:
    return f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"


@contextmanager
def poured(data: bytes, *, holds: bool = False) -> Iterator[str]:
    """Bytes over TCP, as fast as they are read, then the end, at once or (`holds`) on leaving: the URL."""
    is_left = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            connection.sendall(data)
            is_left.wait(60 if holds else 0)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            is_left.set()
            thread.join()


def check_stream(path: Path, url: str, num_windows: int, window: float, hop: float) -> None:
    with sent(path, url), LiveWindows(url, SPEC, window=window, hop=hop) as stream:
        clips = [next(stream) for _ in range(num_windows)]
        assert stream.skipped == 0
    assert not stream._reader.is_alive()
    assert [clip.start for clip in clips] == [k * hop for k in range(num_windows)]
    first = shown(clips[0])[0]  # packets may be lost before the socket is open
    times = np.arange(round((clips[-1].end + 1) * RATE)) / RATE
    for clip, frames in zip(clips, whole_windows(times, window, hop), strict=False):
        assert clip.numbers == tuple(frame_indices(len(frames), SPEC.num_frames, frames[0]))
        np.testing.assert_allclose(clip.times, times[list(clip.numbers)], atol=1e-4)  # MPEG-TS counts 1/90000 s
        assert shown(clip) == [(first + number) % 256 for number in clip.numbers]
        pixels = decode_clip(path, [first + number for number in clip.numbers], SPEC)
        np.testing.assert_array_equal([clip.frames[number] for number in clip.numbers], pixels)


def test_udp(tmp_path, udp_url):
    check_stream(numbered(tmp_path / "a.mp4", 6), udp_url, 5, 1.0, 0.5)


@pytest.mark.slow
def test_udp_for_20_seconds(tmp_path, udp_url):
    check_stream(numbered(tmp_path / "a.mp4", 25), udp_url, 35, 3.0, 0.5)


def test_http_is_read_at_its_own_speed_to_its_last_frame(tmp_path):
    path = numbered(tmp_path / "a.ts", 2.5)
    with served(tmp_path) as url, LiveWindows(f"{url}/a.ts", SPEC, window=1.0, hop=0.5) as stream:
        clips = list(stream)
    assert stream.skipped == 0
    assert [clip.start for clip in clips] == [0, 0.5, 1, 1.5]
    for clip in clips:
        pixels = decode_clip(path, clip.numbers, SPEC)
        np.testing.assert_array_equal([clip.frames[number] for number in clip.numbers], pixels)
    assert shown(clips[-1])[-1] == 74, "the last frame"


def test_no_frame_is_held_back(monkeypatch, tmp_path):
    """Of MPEG-TS, a frame ends where the next but one begins: 33 frames are enough for one at a second, and no less."""
    monkeypatch.setattr(live, "SILENCE", 5.0)
    path = numbered(tmp_path / "a.ts", 33 / RATE, options={"tune": "zerolatency"})
    with poured(path.read_bytes(), holds=True) as url, LiveWindows(url, SPEC, window=1.0, hop=0.5) as stream:
        assert shown(next(stream)) == [0, 9, 19, 29]


def test_tcp_is_read_at_its_own_speed(tmp_path):
    path = numbered(tmp_path / "a.ts", 2.9)
    with poured(path.read_bytes()) as url, LiveWindows(url, SPEC, window=1.0, hop=1.0) as stream:
        assert list(map(shown, stream)) == [[0, 9, 19, 29], [30, 39, 49, 59], [60, 68, 77, 86]]
    assert stream.skipped == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"bf": "0"}, {"bf": "3", "g": "16", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}],
    ids=["closed", "open"],
)
def test_a_decoder_that_falls_behind_skips_whole_windows(monkeypatch, tmp_path, options):
    """A window begins at each frame: after a gap also at those that refer to frames before it, which open GOPs have."""
    convert, converted, hop = decode.ToRGB.__call__, count(), 1 / RATE

    def slow(self, frame, display):
        time.sleep(0.1 if 60 <= next(converted) < 90 else 0)  # a third of the stream's speed, for a second of it
        return convert(self, frame, display)

    monkeypatch.setattr(decode.ToRGB, "__call__", slow)
    numbered(tmp_path / "a.ts", 8, options={"g": "15"} | options)
    with served(tmp_path) as url, LiveWindows(f"{url}/a.ts", SPEC, window=1.0, hop=hop) as stream:
        clips = list(stream)
    windows = whole_windows(np.arange(8 * RATE) / RATE, 1.0, hop)
    assert len(clips) + stream.skipped == len(windows)
    assert stream.skipped > RATE
    assert clips[-1].start == hop * (len(windows) - 1), "it recovers"
    for clip in clips:
        frames = windows[round(clip.start / hop)]
        assert shown(clip) == frame_indices(len(frames), SPEC.num_frames, frames[0]).tolist(), "no frame is missing"


def test_playlists_reach_the_network_alone(tmp_path):
    (tmp_path / "served").mkdir()
    numbered(tmp_path / "served" / "a.ts", 1)
    numbered(tmp_path / "private.ts", 1)
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    (tmp_path / "served" / "good.m3u8").write_text(f"{head}a.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "served" / "bad.m3u8").write_text(f"{head}file://{tmp_path}/private.ts\n#EXT-X-ENDLIST\n")
    with served(tmp_path / "served") as url:
        with LiveWindows(f"{url}/good.m3u8", SPEC, window=1.0, hop=0.5) as stream:
            assert shown(next(stream))[0] == 0
        with LiveWindows(f"{url}/bad.m3u8", SPEC, window=1.0, hop=0.5) as stream, pytest.raises(UserError):
            next(stream)


def test_a_picture_that_changes_its_size_is_an_error(tmp_path):
    one, other = numbered(tmp_path / "a.ts", 0.2), write_video(tmp_path / "b.ts", 6, 80, 60, rate=RATE)
    (tmp_path / "c.ts").write_bytes(one.read_bytes() + other.read_bytes())
    with (
        served(tmp_path) as url,
        LiveWindows(f"{url}/c.ts", SPEC, window=1.0, hop=0.5) as stream,
        pytest.raises(UserError, match="changed from 96x64 to 80x60"),
    ):
        list(stream)


def test_a_silent_stream_is_an_error(monkeypatch, udp_url):
    monkeypatch.setattr(live, "SILENCE", 0.3)
    with (
        LiveWindows(udp_url, SPEC, window=1.0, hop=0.5) as stream,
        pytest.raises(UserError, match=r"no data for 0\.3 s"),
    ):
        next(stream)


@pytest.mark.parametrize(("is_cut", "reason"), [(False, "too slow"), (True, "no frame decodes")])
def test_a_stream_without_a_whole_window_is_an_error(monkeypatch, tmp_path, is_cut, reason):
    monkeypatch.setattr(live, "_PATIENCE", 0.0)
    monkeypatch.setattr(live, "_PACED", ())
    convert = decode.ToRGB.__call__
    monkeypatch.setattr(decode.ToRGB, "__call__", lambda *arguments: time.sleep(0.01) or convert(*arguments))
    options = {"g": "1000", "sc_threshold": "0"} if is_cut else {"g": "15"}
    data = numbered(tmp_path / "a.ts", 30, options=options).read_bytes()
    with (
        poured(data[len(data) // 2 :] if is_cut else data, holds=True) as url,
        LiveWindows(url, SPEC, window=3.0, hop=0.5) as stream,
        pytest.raises(UserError, match=reason),
    ):
        next(stream)


def test_a_stream_that_falls_silent_is_an_error(monkeypatch, tmp_path, udp_url):
    monkeypatch.setattr(live, "SILENCE", 1.0)
    with LiveWindows(udp_url, SPEC, window=1.0, hop=0.5) as stream, sent(numbered(tmp_path / "a.mp4", 3), udp_url):
        assert next(stream).start == 0
        lasts: list[int] = []
        with pytest.raises(UserError, match="no data for 1 s"):
            lasts.extend(shown(clip)[-1] for clip in stream)
        assert max(lasts) <= 74, "the window after it, to frame 89, is not complete"


def test_leaving_ends_the_threads_while_they_wait(monkeypatch, udp_url):
    monkeypatch.setattr(live, "SILENCE", 2.0)
    with LiveWindows(udp_url, SPEC, window=1.0, hop=0.5) as stream:
        pass
    stream._reader.join(60)
    assert not stream._reader.is_alive()


def test_a_source_that_is_absent_is_an_error_without_its_password(monkeypatch):
    url = f"http://user:secret@127.0.0.1:{free_port(socket.SOCK_STREAM)}/video?key=secret"
    with LiveWindows(url, SPEC, window=1.0, hop=0.5) as stream, pytest.raises(UserError, match="refused") as raised:
        next(stream)
    errors = [raised.value, raised.value.__cause__, raised.value.__context__]
    assert "secret" not in repr(errors)
    assert "/video: " in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "concat://a|b", "subfile://x", "pipe://0", "lavfi://testsrc", "crypto+file://x", "a.mp4"],
)
def test_other_schemes_are_refused(url):
    with pytest.raises(ValueError, match=r"rtsp, rtsps, rtp, udp, tcp, srt, rtmp, http, https, not "):
        LiveWindows(url, SPEC, window=1.0, hop=0.5)


@pytest.mark.parametrize(("window", "hop"), [(1, 0), (1, 2), (0, 0), (1, -1), (float("nan"), 1), (float("inf"), 1)])
def test_windows_between_which_frames_would_be_missed_are_refused(window, hop):
    with pytest.raises(ValueError, match="the hop at most the window"):
        LiveWindows("udp://127.0.0.1:1", SPEC, window=window, hop=hop)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("udp://127.0.0.1:5000", "udp://127.0.0.1:5000"),
        ("rtsp://host/live/1", "rtsp://host/live/1"),
        ("rtsp://user:secret@host:554/live", "rtsp://host:554/live"),
        ("rtsp://user:sec@ret@host/live", "rtsp://host/live"),
        ("rtsp://user:sec/ret@host/live", "rtsp://host/live"),
        ("rtsp://user:sec?ret@host/live", "rtsp://"),
        ("http://host/live?user=me&password=secret", "http://host/live"),
        (0, "camera 0"),
    ],
)
def test_names_show_no_password(source, name):
    assert shown_name(source) == name


def test_what_a_url_is():
    assert all(map(is_url, ["rtsp://a", "file:///b", "UDP://1"]))
    assert not any(map(is_url, ["a.mp4", "a://b".replace("a", "/x"), "C:\\a.mp4", "concat:a", "://", ""]))


# Cameras.


class FedCamera:
    """Pictures with times, and the clock that shows them."""

    def __init__(self, monkeypatch) -> None:
        self.pictures: Queue = Queue()
        self.is_closed, self.now = False, 0.0
        monkeypatch.setattr(live, "open_camera", lambda number: self)
        monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: self.now))

    def read(self) -> np.ndarray | None:
        picture, self.now = self.pictures.get()
        return picture

    def close(self) -> None:
        self.is_closed = True


def test_a_camera(monkeypatch):
    camera = FedCamera(monkeypatch)
    for number in range(250):
        camera.pictures.put((numbered_frame(number, 96, 64)[..., ::-1], 50 + number / RATE))
    camera.pictures.put((None, 60))
    with LiveWindows(0, SPEC, window=1.0, hop=0.5) as stream:
        clips = list(stream)
    assert camera.is_closed
    assert not stream._reader.is_alive()
    assert shown(clips[-1])[-1] == 249, "the newest picture, however many were skipped"
    first = shown(clips[0])[0] - clips[0].times[0] * RATE
    for clip in clips:
        assert clip.start - SAME <= clip.times[0] <= clip.times[-1] <= clip.end
        np.testing.assert_allclose([first + time * RATE for time in clip.times], shown(clip), atol=1e-6)
    starts = [clip.start for clip in clips]
    assert starts == sorted(set(starts))
    assert len(clips) + stream.skipped == len(whole_windows(np.arange(250 - first) / RATE, 1.0, 0.5))


def test_a_picture_in_colour(monkeypatch):
    camera = FedCamera(monkeypatch)
    camera.pictures.put((np.broadcast_to(np.uint8([10, 20, 200]), (64, 96, 3)).copy(), 0.0))  # blue, green, red
    camera.pictures.put((None, 0.1))
    with LiveWindows(0, SPEC, window=1.0, hop=0.5) as stream:
        (clip,) = stream
    assert clip.frames[0].shape == (3, 40, 40)
    assert (clip.frames[0] == np.uint8([200, 20, 10])[:, None, None]).all()


def test_a_camera_that_is_absent():
    with (
        LiveWindows(97, SPEC, window=1.0, hop=0.5) as stream,
        pytest.raises(UserError, match="camera 97 cannot be opened"),
    ):
        next(stream)


def test_any_other_error_reaches_the_consumer(monkeypatch):
    def fail(number: int) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(live, "open_camera", fail)
    with LiveWindows(0, SPEC, window=1.0, hop=0.5) as stream, pytest.raises(RuntimeError, match="a bug"):
        next(stream)
