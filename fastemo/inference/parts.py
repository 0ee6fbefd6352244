"""A video file as parts of consecutive frames, each of which decodes its wanted frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import av
import av.error

from fastemo.corpus.files.display import Display
from fastemo.corpus.files.probe import CONTAINERS_ONLY, pixel_aspect, video_stream
from fastemo.errors import DecodeError
from fastemo.inference.windows import Frames, Part
from fastemo.machine import available_processors, lower_thread_priority
from fastemo.video.bitstream.frame_headers import NotUnderstood
from fastemo.video.bitstream.pruning import BitstreamError
from fastemo.video.bitstream.sections import Section, sections
from fastemo.video.config import FrameSpec
from fastemo.video.decode import frames_by_number, taker

P = ParamSpec("P")
T = TypeVar("T")

_MOST_THREADS = 8  # of a codec


class DecodePool(ThreadPoolExecutor):
    """Threads of a lower priority than the model's."""

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads, thread_name_prefix="decode", initializer=lower_thread_priority)
        self._num_threads = num_threads
        self._unfinished: list[Future[Any]] = []

    def submit(self, work: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> Future[T]:
        future = super().submit(work, *arguments, **options)
        self._unfinished.append(future)
        return future

    def num_busy(self) -> int:
        """Threads that decode now."""
        self._unfinished = [it for it in self._unfinished if not it.done()]
        return min(self._num_threads, len(self._unfinished))


@contextmanager
def decode_pool(num_threads: int) -> Iterator[DecodePool]:
    """A pool; what its threads have not begun is cancelled at the end."""
    pool = DecodePool(num_threads)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def file_parts(path: Path, spec: FrameSpec, pool: Executor | None = None) -> Iterator[Iterator[Part]]:
    """Read a video file once, in bounded memory; its parts are valid inside only.

    Of a stream that can be pruned, only the packets that wanted frames need are decoded, on the pool's threads or
    else on the calling one; of any other, all.

    Raises:
        BitstreamError, DecodeError: While it is read: the file cannot be read, or no longer decodes.
    """
    with ExitStack() as stack:
        yield _parts(path, spec, pool, stack)


def _parts(path: Path, spec: FrameSpec, pool: Executor | None, stack: ExitStack) -> Iterator[Part]:
    num_frames, last = 0, -math.inf
    try:
        for section in stack.enter_context(sections(path)):
            yield Part(section.first, section.times, partial(_decode_section, path, section, spec, pool))
            num_frames += len(section.times)
            last = max(last, *section.times[-1:])
    except NotUnderstood:
        yield from _decoded(path, spec, num_frames, last)


def _decode_section(
    path: Path, section: Section, spec: FrameSpec, pool: Executor | None, wanted: list[int]
) -> Future[Frames]:
    done: Future[Frames] = Future()
    try:
        clip = section.pruned(wanted)
        if pool is not None:
            return pool.submit(frames_by_number, path, wanted, spec, clip)
        done.set_result(frames_by_number(path, wanted, spec, clip))
    except NotUnderstood as error:
        done.set_exception(DecodeError(path, wanted[0], f"cannot be pruned: {error}"))
    except DecodeError as error:
        done.set_exception(error)
    return done


def _decoded(path: Path, spec: FrameSpec, first: int, given: float) -> Iterator[Part]:
    """Every frame after those that were given, decoded in turn: a part each."""
    number, before = first, given
    try:
        with av.open(str(path.absolute()), options=CONTAINERS_ONLY) as container:
            stream = video_stream(container)
            if stream is None or stream.codec_context is None:
                raise BitstreamError(path, "the file has no video stream")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = codec_threads()
            start = (container.start_time or 0) / av.time_base
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            take = taker(spec)
            for place, frame in enumerate(container.decode(stream)):
                if frame.time is None and not rate:
                    raise DecodeError(path, number, "its frames have no times")
                time = place / rate if frame.time is None else frame.time - start
                if time <= given:
                    continue
                pixels = take(frame, Display.of(frame, pixel_aspect(stream)))
                time = max(time, before)
                yield Part(number, [time], partial(_known, {number: pixels}))
                number, before = number + 1, time
    except av.error.FFmpegError as error:
        raise DecodeError(path, number, error.strerror or str(error)) from error


def _known(frames: Frames, wanted: list[int]) -> Future[Frames]:
    done: Future[Frames] = Future()
    done.set_result(frames)
    return done


def codec_threads() -> int:
    """Threads of a decoder or encoder that has this process's processors to itself."""
    return min(available_processors(), _MOST_THREADS)
