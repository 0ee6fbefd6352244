"""What is measured in processes of its own: a cold start, live input, memory."""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.inference.material import CONFIG, HOP, WINDOW
from benchmarks.common.measure import REPOSITORY, Skipped, Stage, cpu_seconds, timed
from fastemo.errors import UserError
from fastemo.inference.prediction import Faces
from fastemo.inference.runs import load
from fastemo.machine import resident_memory

LIVE_HOP = 0.5  # seconds
_STATUS = Path("/proc/self/status")


def start_stages(run: Path, clip: Path) -> list[Stage]:
    """From the start of Python to the answer about one clip, and to the end of the imports that it cannot avoid."""

    def stage(name: str, title: str, *words: str) -> Stage:
        def start() -> int:
            done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True)
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines()
                raise Skipped(f"failed: {(lines or [f'status {done.returncode}'])[-1]}")
            return 1

        return Stage(name, title, lambda: timed(start))

    return [
        stage("imports", "start: import torch, timm", "-c", "import torch, timm"),
        stage("command", "start: fastemo predict", "-m", "fastemo.cli", "predict", str(run), str(clip)),
    ]


def live(run: Path, video: Path, seconds: int, faces: Faces | None = None) -> dict[str, Any]:
    """Answer about a stream that ffmpeg sends at its own speed to this machine, with a window each half second.

    Returns:
        Windows answered and skipped, the times from a window's last frame to its last answer in milliseconds, and the
        processors that this process kept busy; with `faces`, the answers a window.

    Raises:
        UserError: There is no ffmpeg, or the stream failed.
    """
    from fastemo.inference.live import LiveWindows

    if shutil.which("ffmpeg") is None:
        raise UserError("ffmpeg, which sends the stream, is not installed")
    model = load(run, device="cpu", faces=faces)
    model.predict_frames(np.zeros((CONFIG.video.num_frames, 72, 128, 3), np.uint8))
    url = f"udp://127.0.0.1:{_free_port()}"
    wanted = int((seconds - WINDOW) / LIVE_HOP)
    delays: dict[float, float] = {}
    num_answers = 0
    with LiveWindows(url, model.spec, window=WINDOW, hop=LIVE_HOP) as windows, _sent(video, url):
        started, cpu = time.monotonic(), cpu_seconds()
        for start, answers in groupby(model.predict_windows(windows, windows.name), lambda found: found.start):
            for found in answers:
                delays[start] = 1000 * (time.monotonic() - windows.last_arrival)
                num_answers += 1
                if found.error:
                    raise UserError(found.error)
            if len(delays) + windows.skipped >= wanted:
                break
        busy = (cpu_seconds() - cpu) / (time.monotonic() - started)
    return {
        "seconds": seconds,
        "windows": len(delays),
        "windows_skipped": windows.skipped,
        "delay_ms": {
            "median": statistics.median(delays.values()),
            "p95": float(np.percentile([*delays.values()], 95)),
            "max": max(delays.values()),
        },
        "processors_busy": busy,
        **({"answers_a_window": num_answers / len(delays)} if faces else {}),
    }


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as it:
        it.bind(("127.0.0.1", 0))
        return int(it.getsockname()[1])


@contextmanager
def _sent(video: Path, url: str) -> Iterator[None]:
    """The video, sent again and again at its own speed, as it is."""
    words = ["ffmpeg", "-nostdin", "-v", "error", "-re", "-stream_loop", "-1", "-i", str(video), "-c", "copy"]
    with subprocess.Popen([*words, "-f", "mpegts", f"{url}?pkt_size=1316"]) as sender:
        try:
            yield
        finally:
            sender.terminate()


def memory(run: Path, source: Path | Sequence[Path]) -> dict[str, Any]:
    """Resident memory over `stream` of one long video, or `predict` of many files.

    Returns:
        Answers; MiB of imports and model; the highest MiB, and how far it is above those; the growth in MiB from the
        second tenth of the answers to the last one, by medians; clips or windows per second.

    Raises:
        UserError: The system does not report memory, or an answer is an error.
    """
    if not _STATUS.exists():
        raise UserError("only Linux reports the highest resident memory of a process")
    model = load(run, device="cpu")
    before, seen, started = resident_memory(), [], time.perf_counter()
    answers = model.stream(source, window=WINDOW, hop=HOP) if isinstance(source, Path) else model.predict(source)
    for found in answers:
        if found.error:
            raise UserError(f"{Path(found.path).name}: {found.error}")
        seen.append(resident_memory())
    seconds = time.perf_counter() - started
    tenth = max(1, len(seen) // 10)
    growth = statistics.median(seen[-tenth:]) - statistics.median(seen[tenth : 2 * tenth])
    highest = _highest_resident()
    mib = {"imports_and_model": before, "highest": highest, "above": highest - before, "growth": growth}
    return {
        "answers": len(seen),
        **{f"{name}_mib": round(value / 2**20, 2) for name, value in mib.items()},
        "answers_per_second": len(seen) / seconds,
    }


def _highest_resident() -> int:
    """Bytes. `getrusage` would give the parent's, if that is higher."""
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
