"""Windows of a stream or a camera, as its frames come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from threading import Condition, Event, Thread
from types import TracebackType
from typing import Any, Protocol, cast

import av
import av.error
import numpy as np
from av.codec.context import Flags, ThreadType

from fastemo.corpus.files.display import Display
from fastemo.corpus.files.probe import CONTAINERS_ONLY, pixel_aspect, video_stream
from fastemo.errors import UserError
from fastemo.inference.buffers import BEHIND, SILENCE, Inbox, StreamClock, WindowRing
from fastemo.inference.windows import WindowClip
from fastemo.video.config import FrameSpec
from fastemo.video.decode import taker

_UDP = {"fifo_size": "50000", "overrun_nonfatal": "1"}  # packets of 188 bytes: 9 MiB
# Scheme -> its options for FFmpeg. Only these: others (file, concat, subfile, pipe) read local files.
_SCHEMES: dict[str, dict[str, str]] = {
    "rtsp": {},
    "rtsps": {},
    "rtp": _UDP,
    "udp": _UDP,
    "tcp": {},
    "srt": {},
    "rtmp": {},
    "http": {},
    "https": {},
}
# These may come as fast as they are read, the segments of HLS for example: they are read at their own speed, or a
# little faster, as the sender's clock may be.
_PACED, _PACE = ("tcp", "http", "https"), 1.001
# FFmpeg invents the times of these formats from a frame rate that it assumes: their frames have the times of arrival.
_WITHOUT_TIMES = frozenset({"mjpeg", "mpjpeg", "h264", "hevc"})
_OPTIONS = {
    "format_whitelist": f"{CONTAINERS_ONLY['format_whitelist']},rtsp,rtp,sdp,hls,live_flv,mjpeg,mpjpeg,h264,hevc",
    # Also what a stream names is opened by these alone: a playlist cannot reach local files.
    "protocol_whitelist": "rtp,srtp,udp,tcp,tls,srt,rtmp,http,https,httpproxy,crypto",
    # A stream's first second is enough to know its codec, and its frame rate is of no use here.
    "analyzeduration": "500000",  # microseconds
    "fpsprobesize": "0",
}
_PATIENCE = 30.0  # seconds without a window beyond its own, the same
_STOP = 0.5  # seconds that leaving waits for the threads


def is_url(text: str) -> bool:
    """Whether a text begins with a scheme, such as `rtsp://`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def shown_name(source: str | int) -> str:
    """A URL without user, password and query, or `camera N`: for messages and tables."""
    if isinstance(source, int):
        return f"camera {source}"
    scheme, slashes, rest = source.partition("://")
    place, *query = re.split(r"[?#]", re.sub(r"^[^/?#]*@", "", rest), maxsplit=1)
    # An @ further on may end a password that holds one of / ? #, which are not allowed there.
    return f"{scheme}{slashes}{'' if '@' in ''.join(query) else place.rpartition('@')[2]}"


class Camera(Protocol):
    """A source of pictures, which `open_camera` returns."""

    def read(self) -> np.ndarray | None:
        """The next picture, uint8 [H, W, 3] in BGR, once the camera has it; `None` if there are no more."""

    def close(self) -> None: ...


class _OpenCVCamera:
    def __init__(self, number: int) -> None:
        import cv2

        self._capture = cv2.VideoCapture(number)

    def is_open(self) -> bool:
        return bool(self._capture.isOpened())

    def read(self) -> np.ndarray | None:
        is_read, picture = self._capture.read()
        return picture if is_read else None

    def close(self) -> None:
        self._capture.release()


def open_camera(number: int) -> Camera:
    """The camera of that number, by OpenCV.

    Raises:
        UserError: It cannot be opened.
    """
    camera = _OpenCVCamera(number)
    if not camera.is_open():
        camera.close()
        raise UserError(
            f"camera {number} cannot be opened: check that it is connected, that no other program uses it, "
            f"and that you may read /dev/video{number} on Linux (cameras count from 0)"
        )
    return camera


class LiveWindows:
    """The windows of a stream or a camera, each the newest complete one when it is asked for.

    Used as a context manager and an iterator: `next()` waits until a window is complete that was not handed out
    yet. Window k covers k hop to k hop + window seconds after the first frame. Windows that are complete but were not
    asked for in time are skipped whole, and so are those with frames that this machine was too slow to decode.
    When a stream ends, the window that holds its last frame is the last.

    One thread reads, so that no packet is lost while another decodes each frame once. Memory is bounded.

    Args:
        source: A URL of one of the allowed schemes, or the number of a camera.
        spec: T, crop and size of the frames.
        window: Length in seconds.
        hop: Seconds from a window's start to the next one's, at most `window`.

    Attributes:
        name: The source without user, password and query.
        last_arrival: When the last frame of the window handed out last had arrived, as `time.monotonic()`.

    Raises:
        ValueError: The scheme is not allowed, or `window` and `hop` are not 0 < hop <= window.
        UserError: From `next()`: the source cannot be opened or read, is silent for 10 s, gives no whole window for
            long, or changes the size of its picture.
    """

    def __init__(self, source: str | int, spec: FrameSpec, *, window: float, hop: float) -> None:
        self.name, self.last_arrival = shown_name(source), 0.0
        if isinstance(source, str) and _scheme(source) not in _SCHEMES:
            raise ValueError(f"{self.name}: live input is read from {', '.join(_SCHEMES)}, not {_scheme(source)}")
        self._silent = f"{self.name}: no data for {SILENCE:g} s: check the source, and that this machine can reach it"
        self._source, self._patience = source, window + _PATIENCE
        self._ring, self._clock, self._inbox = WindowRing(spec.num_frames, window, hop), StreamClock(), Inbox()
        self._take = taker(spec)
        self._size: tuple[int, int] | None = None
        self._after_gap = False
        # Guards the ring and what follows.
        self._changed = Condition()
        self._is_over = False
        self._error: Exception | None = None
        self._stopping = Event()
        # Daemons: FFmpeg returns from a read only with a packet or after `SILENCE`.
        self._reader = Thread(target=self._read, name="fastemo live reader", daemon=True)

    @property
    def skipped(self) -> int:
        """Windows that were complete, or would have been, and are not handed out."""
        return self._ring.skipped

    def __enter__(self) -> LiveWindows:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._reader.join(_STOP)

    def __iter__(self) -> Iterator[WindowClip]:
        return self

    def __next__(self) -> WindowClip:
        with self._changed:
            frames, patient_until = self._ring.num_added, time.monotonic() + self._patience
            while (taken := self._ring.take()) is None:
                if self._error is not None:
                    raise self._error
                if self._is_over:
                    raise StopIteration
                if time.monotonic() > patient_until:
                    is_slow = self._ring.num_added > frames
                    reason = (
                        "too slow to decode all frames: send fewer or smaller ones" if is_slow else "no frame decodes"
                    )
                    raise UserError(f"{self.name}: no window for {self._patience:g} s: {reason}")
                self._changed.wait(1.0)
        clip, self.last_arrival = taken
        return clip

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """A thread's work: its error is raised from `next()`."""
        error: Exception | None = None
        try:
            work(*arguments)
        except av.error.ExitError:  # PyAV's timeout
            error = UserError(self._silent)
        except (av.error.FFmpegError, ValueError) as raised:  # whose own text holds the URL, password and all
            error = UserError(f"{self.name}: {getattr(raised, 'strerror', None) or raised}")
        except Exception as raised:
            error = raised
        if error is not None:
            self._stopping.set()
            with self._changed:
                self._error = self._error or error
                self._changed.notify()

    def _read(self) -> None:
        read = self._read_camera if isinstance(self._source, int) else self._read_url
        self._guarded(read, self._source)
        with self._changed:
            self._is_over = True
            self._changed.notify()

    @contextmanager
    def _decoding(self, work: Callable[..., None], *arguments: Any) -> Iterator[None]:
        """Decode on a second thread what the block puts into the inbox; leaving the block waits for the rest."""
        decoder = Thread(target=self._guarded, args=(work, *arguments), name="fastemo live decoder", daemon=True)
        decoder.start()
        try:
            yield
        except BaseException:
            self._stopping.set()
            raise
        finally:
            self._inbox.close()
            decoder.join()

    def _read_camera(self, number: int) -> None:
        with closing(open_camera(number)) as camera, self._decoding(self._decode_pictures):
            while not self._stopping.is_set() and (picture := camera.read()) is not None:
                self._inbox.put_newest(picture, time.monotonic())

    def _read_url(self, url: str) -> None:
        scheme = _scheme(url)
        with av.open(url, options=_OPTIONS | _SCHEMES[scheme], timeout=SILENCE) as container:
            stream = video_stream(container)
            if stream is None or stream.codec_context is None:
                raise UserError(f"{self.name}: it has no video that can be decoded")
            has_times = container.format.name not in _WITHOUT_TIMES
            start, seconds, asked = None, 0.0, time.monotonic()
            with self._decoding(self._decode_packets, stream, has_times):
                for packet in container.demux(stream):
                    if self._stopping.is_set():
                        return
                    packet.opaque = arrived = time.monotonic()
                    if arrived - asked >= SILENCE:  # to some formats PyAV's timeout is the stream's end, not an error
                        raise UserError(self._silent)
                    if not has_times:
                        seconds = arrived
                    elif packet.dts is not None:
                        seconds = float(packet.dts * packet.time_base)
                    self._inbox.put(packet, seconds)
                    if scheme in _PACED:
                        start = arrived - seconds / _PACE if start is None else start
                        self._stopping.wait(max(0.0, start + seconds / _PACE - arrived - BEHIND / 2))
                    asked = time.monotonic()

    def _decode_packets(self, stream: av.VideoStream, has_times: bool) -> None:
        decoder, time_base = stream.codec_context, stream.time_base or Fraction(1)
        decoder.thread_type = ThreadType.SLICE  # threads with a frame each would hold back as many frames
        decoder.flags |= Flags.copy_opaque
        for packet, _, after_loss in self._inbox:
            if self._stopping.is_set():
                return
            if after_loss:
                decoder.flush_buffers()  # frames that wait in it would come before others that are missing
                self._after_gap = True
            arrived = packet.opaque
            try:
                frames = decoder.decode(packet)
            except av.error.InvalidDataError:
                self._inbox.lose()
                continue
            for frame in frames:
                seconds = float(frame.pts * time_base) if has_times and frame.pts is not None else arrived
                display = Display.of(frame, pixel_aspect(stream))
                self._add(frame, display, seconds, cast(float, frame.opaque or arrived))
        self._end()

    def _decode_pictures(self) -> None:
        for picture, arrived, _ in self._inbox:
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            self._add(frame, Display(frame.width, frame.height), arrived, arrived)
        self._end()

    def _add(self, frame: av.VideoFrame, display: Display, seconds: float, arrived: float) -> None:
        """Convert a decoded frame and add it to the ring; `seconds` by the source's own clock."""
        self._size = self._size or display.size
        if self._size != display.size:
            sizes = " to ".join(f"{width}x{height}" for width, height in (self._size, display.size))
            raise UserError(f"{self.name}: its picture changed from {sizes}: start again for the new size")
        if (placed := self._clock.place(seconds, arrived)) is None:
            return
        pixels = self._take(frame, display)
        with self._changed:
            self._ring.add(placed[0], pixels, arrived, after_gap=self._after_gap or placed[1])
            self._after_gap = False
            self._changed.notify()

    def _end(self) -> None:
        with self._changed:
            if not self._stopping.is_set():
                self._ring.end(after_gap=self._after_gap)


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()
