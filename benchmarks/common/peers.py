"""The peers as programs of their own: which there are, and how they are started, read, and skipped with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.common.measure import REPOSITORY, EpochPass, Pass, Skipped

FOLDER = REPOSITORY / "benchmarks" / "peers"
_SKIPPED = 3  # see peers/peer.py
_SECONDS = 3600  # far beyond any pass or epochs: a peer that hangs has failed


@dataclass(frozen=True)
class Peer:
    """A program in `peers/`.

    Attributes:
        title: For people.
        kind: The script's first argument.
        decodes_video: Whether it decodes video in every pass; otherwise it needs a folder of extracted frames.
    """

    title: str
    script: str
    kind: str
    decodes_video: bool = True
    on_gpu: bool = False

    def command(self, options: dict[str, Any], frames: Path) -> list[str]:
        """The command line; `frames` is the folder of the extracted frames."""
        options = options if self.decodes_video else {**options, "frames": frames}
        words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return [sys.executable, str(FOLDER / self.script), self.kind, *words]


PEERS = {
    "decord": Peer("decord + DataLoader", "video_loaders.py", "decord"),
    "decord2": Peer("decord2 + DataLoader", "video_loaders.py", "decord2"),
    "torchcodec_exact": Peer("torchcodec (exact) + DataLoader", "video_loaders.py", "torchcodec_exact"),
    "torchcodec_approximate": Peer(
        "torchcodec (approximate) + DataLoader", "video_loaders.py", "torchcodec_approximate"
    ),
    "pyav": Peer("PyAV + DataLoader", "video_loaders.py", "pyav"),
    "opencv": Peer("OpenCV + DataLoader", "video_loaders.py", "opencv"),
    "jpeg": Peer("report's way: JPEGs, Pillow, 4 workers", "video_loaders.py", "jpeg", decodes_video=False),
    "torchcodec_cuda": Peer("torchcodec on CUDA", "gpu_loaders.py", "torchcodec_cuda", on_gpu=True),
    "dali_reader": Peer("DALI's plain video reader", "gpu_loaders.py", "dali_reader", on_gpu=True),
}
TRAINING_PEERS = {
    "report": Peer("report's way: JPEGs, Pillow, 4 workers, fp32", "training.py", "report", decodes_video=False),
    "plain": Peer("decord DataLoader + Accelerate", "training.py", "plain"),
}


@dataclass
class PeerRuns:
    """Starts peers on one corpus.

    Attributes:
        options: What all peers take, `--corpus` among it.
        frames: Folder of the extracted frames, for a peer that needs them.
        told: By name, a peer's versions, settings, shapes, and the extraction where it made one.
    """

    options: dict[str, Any]
    frames: Path
    told: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, name: str) -> Pass:
        """One pass of a peer in a process of its own; imports, start and warm-up are outside its clock.

        Raises:
            Skipped: It cannot run here, or failed.
        """
        command = PEERS[name].command(self.options, self.frames)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise Skipped(f"failed: not done after {_SECONDS} s") from None
        line = _answer(done.stdout.strip().rpartition("\n")[2], done.returncode, done.stderr)
        took = line.pop("pass")
        # The extraction is reported in the first round only.
        self.told[name] = {**self.told.get(name, {}), **line}
        return Pass(took["clips"], took["seconds"], took["cpu_seconds"])


def _answer(text: str, status: int, errors: str) -> dict[str, Any]:
    """A peer's JSON line.

    Raises:
        Skipped: It says that it cannot run here, or failed.
    """
    if status == _SKIPPED and text:
        raise Skipped(json.loads(text)["skipped"])
    if status or not text:
        raise Skipped(f"failed: {(errors.strip().splitlines() or [f'status {status}'])[-1]}")
    found: dict[str, Any] = json.loads(text)
    return found


@contextmanager
def started(name: str, options: dict[str, Any], frames: Path) -> Iterator[TrainingProcess]:
    """Start a peer that trains and wait until it is ready; it ends with the context.

    Args:
        frames: Folder of the extracted frames, for a peer that needs them.

    Raises:
        Skipped: It cannot run here, or failed.
    """
    command, pipe = TRAINING_PEERS[name].command(options, frames), subprocess.PIPE
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        timer = threading.Timer(_SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        stack.callback(timer.cancel)
        stack.enter_context(process)
        assert process.stdin
        # A peer ends where its input does; one that has ended leaves what could not be written.
        stack.enter_context(suppress(BrokenPipeError))
        stack.callback(process.stdin.close)
        yield TrainingProcess(process, errors)


class TrainingProcess:
    """A peer that trains, ready, and idle between epochs.

    Attributes:
        told: Its versions, settings, and the extraction where it made one.
    """

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors
        self.told = self._read()

    def epoch(self) -> EpochPass:
        """Train one epoch.

        Raises:
            Skipped: It failed.
        """
        assert self._process.stdin
        with suppress(BrokenPipeError):  # its last words say why
            self._process.stdin.write("epoch\n")
            self._process.stdin.flush()
        return EpochPass(waited=None, **self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        text = self._process.stdout.readline()
        if text and "skipped" not in json.loads(text):
            return _answer(text, 0, "")
        status = self._process.wait()
        self._errors.seek(0)  # only now: the peer writes where this file stands
        return _answer(text, status, self._errors.read())
