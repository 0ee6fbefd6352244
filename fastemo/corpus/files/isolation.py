"""Files are examined in separate processes: a crash, a hang or exhausted memory costs that one file only.

A process answers one request after the other, a line of JSON each way, and exits when its standard input closes: when
the parent process ends, in any way.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from fastemo.corpus.config import Verify
from fastemo.corpus.files.probe import BadFile, Probe, probe_clip
from fastemo.errors import UserError
from fastemo.machine import readable_bytes

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Starting normally takes 0.1 s.
START_SECONDS = 120.0
_END_SECONDS = 5.0
_MAX_REPLY_BYTES = 1 << 24
_EXAMINE = "fastemo.corpus.files.isolation:examine"
# Isolated (-I), or a file in the working folder with a module's name would run. The parent's own sys.path finds the
# packages.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fastemo.corpus.files.isolation import serve; serve(sys.argv[2], int(sys.argv[3]))"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the examination of one file.

    Attributes:
        seconds: Time limit of every file.
        seconds_per_mib: Time limit per MiB, for files where that is more. RAVDESS's clips take 0.12 s.
        memory_bytes: Memory that a process may take beyond what it starts with, on Linux.
    """

    seconds: float = 60.0
    seconds_per_mib: float = 2.0
    memory_bytes: int = 2 << 30

    def seconds_for(self, size_bytes: int) -> float:
        return max(self.seconds, round(self.seconds_per_mib * size_bytes / 2**20))


class Unsettled(BadFile):
    """The examination of a file was cut short; another try, with more time or memory, may succeed."""


class WorkerError(UserError):
    """The process that examines files cannot be started."""


class Workers:
    """A pool of processes that call one function for the threads of this one; each waiting thread uses one process.

    Args:
        task: "module:function"; its argument and result are JSON-serializable.
        limits: Limits on one call.
    """

    def __init__(self, task: str, limits: Limits) -> None:
        self._task, self._limits = task, limits
        self._idle: list[_Worker] = []
        self._running: set[_Worker] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def ask(self, request: Mapping[str, Any], *, size_bytes: int = 0) -> dict[str, Any]:
        """Call the function in a process, and wait.

        Args:
            request: The function's argument.
            size_bytes: Size of the file in question, which may extend the time limit.

        Raises:
            Unsettled: The process ended, or ran out of time or memory.
            WorkerError: No process can be started.
        """
        while True:
            worker = self._take()
            is_new = not worker.has_worked
            try:
                reply = worker.ask(request, self._limits.seconds_for(size_bytes))
            except Unsettled:
                self._end(worker)
                # An earlier file may have damaged the process: try once more in a new one.
                if is_new or worker.is_late or self._is_closed:
                    raise
            except BaseException:
                self._end(worker)
                raise
            else:
                with self._lock:
                    self._idle.append(worker)
                return reply

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle and not self._is_closed:
                return self._idle.pop()
        worker = None if self._is_closed else _Worker(self._task, self._limits)
        with self._lock:
            if worker and not self._is_closed:
                self._running.add(worker)
                return worker
        if worker:
            worker.end()
        raise WorkerError("the processes that examine files were shut down")

    def _end(self, worker: _Worker) -> None:
        with self._lock:
            self._running.discard(worker)
        worker.end()

    def close(self) -> None:
        """End all processes, busy ones too: their callers get an `Unsettled`."""
        with self._lock:
            self._is_closed = True
            running = [*self._running]
        for worker in running:
            worker.end()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One process, used by one thread at a time."""

    def __init__(self, task: str, limits: Limits) -> None:
        path = [*map(str, sys.path), str(Path(__file__).resolve().parents[3])]
        self.has_worked = self.is_late = False
        self._limits = limits
        try:
            # Ctrl-C must not reach it: the parent ends it.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, json.dumps(path), task, str(limits.memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerError(f"cannot start the process that examines files: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        if not self._read(START_SECONDS):
            raise WorkerError(
                f"the process that examines files did not start ({self._how_it_ended()}); see its output above"
            )

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        self.has_worked = True
        line = b""
        with suppress(OSError, ValueError):  # it ended while idle, or was closed
            self._requests.write(json.dumps(request).encode("ascii") + b"\n")
            self._requests.flush()
            line = self._read(seconds)
        if self.is_late:
            raise Unsettled(f"decoding took longer than {seconds:g} s")
        if not line.endswith(b"\n"):
            raise Unsettled(f"decoding it crashed the decoder's process ({self._how_it_ended()})")
        reply = json.loads(line)
        if reply is None:
            raise Unsettled(f"decoding needs more than {readable_bytes(self._limits.memory_bytes)}")
        return reply

    def _read(self, seconds: float) -> bytes:
        timer = threading.Timer(seconds, self._stop)
        timer.daemon = True
        timer.start()
        try:
            return self._replies.readline(_MAX_REPLY_BYTES)
        finally:
            timer.cancel()

    def _stop(self) -> None:
        self.is_late = True
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._replies):
            with suppress(OSError):
                pipe.close()

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):  # on its own; otherwise the kill below would be reported
            self._process.wait(_END_SECONDS)
        self.end()
        code = self._process.returncode
        return f"signal {-code}" if code < 0 else f"exit status {code}"


class Examiner:
    """Probes files in separate processes, for any number of threads."""

    def __init__(self, limits: Limits) -> None:
        self._workers = Workers(_EXAMINE, limits)

    def probe(
        self, path: Path, *, verify: Verify, size_bytes: int, segments: Sequence[tuple[float, float]] = ()
    ) -> Probe:
        """`probe_clip` in one of the processes.

        Raises:
            BadFile: The file cannot be used.
            Unsettled: The process ended, or ran out of time or memory.
            OSError: The file cannot be read.
            WorkerError: No process can be started.
        """
        # Bytes as characters: file names need not be text.
        name = os.fsencode(path.absolute()).decode("latin-1")
        reply = self._workers.ask({"path": name, "verify": verify, "segments": segments}, size_bytes=size_bytes)
        if "unreadable" in reply:
            raise OSError(*reply["unreadable"])
        if "bad" in reply:
            raise BadFile(reply["bad"])
        return Probe(**reply["probe"])

    def close(self) -> None:
        self._workers.close()

    def __enter__(self) -> Examiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """The task of an `Examiner`'s processes."""
    path = Path(os.fsdecode(request["path"].encode("latin-1")))
    try:
        return {"probe": asdict(probe_clip(path, verify=request["verify"], segments=request["segments"]))}
    except BadFile as error:
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from None
        return {"bad": str(error)}
    except OSError as error:
        return {"unreadable": [error.errno, error.strerror]}
    except MemoryError:
        raise
    except Exception as error:  # a bug of ours, which must cost this file only
        return {"bad": f"examining it failed: {type(error).__name__}: {error}"}


def serve(task: str, memory_bytes: int) -> None:
    """Run as such a process: answer each line of stdin with a line on stdout, `null` if out of memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, _, name = task.partition(":")
    function = getattr(importlib.import_module(module), name)
    _limit(memory_bytes)
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    replies.write("ready\n")
    replies.flush()
    # Output of libraries, or of the C library on an abort, is not a reply and is not shown to the user.
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    while True:
        try:
            reply = function(json.loads(requests.get()))
        except MemoryError:
            reply = None
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _receive(requests: SimpleQueue[bytes]) -> None:
    """Pass lines on; at their end the parent is gone, so exit at once."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def _limit(memory_bytes: int) -> None:
    if sys.platform != "linux" or resource is None:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    # If the machine itself runs out of memory, this process must be killed and not its parent.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
