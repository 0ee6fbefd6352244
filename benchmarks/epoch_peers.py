"""The peers that train, as programs that live as long as one model is measured and train an epoch when told."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.epoch_loops import EpochPass
from benchmarks.measure import Skipped

_FOLDER = Path(__file__).resolve().parent / "peers"
_SKIPPED = 3  # see peers/peer.py
_ANSWERED = ("clips", "seconds", "cpu_seconds", "steps", "loss", "accuracy")
_SECONDS = 3600  # far beyond any epochs: a peer that hangs is a peer that failed


@dataclass(frozen=True)
class TrainingPeer:
    """A program in `peers/` that trains."""

    title: str
    script: str
    needs_frames: bool = False


TRAINING_PEERS = {
    "report": TrainingPeer("report's way: JPEGs, Pillow, 4 workers, fp32", "report_training.py", needs_frames=True),
    "plain": TrainingPeer("decord DataLoader + Accelerate", "plain_training.py"),
}


def choose(argument: str) -> list[str]:
    """The peers that `--peers` names.

    Raises:
        ValueError: An unknown name.
    """
    if argument in ("all", "none"):
        return list(TRAINING_PEERS) if argument == "all" else []
    names = [name.strip() for name in argument.split(",")]
    for name in names:
        if name not in TRAINING_PEERS:
            raise ValueError(f"--peers takes all, none, or some of {', '.join(TRAINING_PEERS)}, not '{name}'")
    return names


@contextmanager
def started(name: str, arguments: list[str], frames: Path) -> Iterator[PeerProcess]:
    """Start a peer and wait until it is ready; it ends with the context.

    Args:
        frames: Folder of the extracted frames, for a peer that needs them.

    Raises:
        Skipped: It cannot run here, or failed.
    """
    peer = TRAINING_PEERS[name]
    arguments = [*arguments, "--frames", str(frames)] if peer.needs_frames else arguments
    command = [sys.executable, str(_FOLDER / peer.script), *arguments]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        timer = threading.Timer(_SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield PeerProcess(process, errors)
        finally:
            timer.cancel()
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """A peer ends where its input does."""
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


class PeerProcess:
    """One peer, ready, and idle between epochs.

    Attributes:
        told: What the peer said of itself.
    """

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process, self._errors = process, errors
        self.told = self._answer()

    def epoch(self) -> EpochPass:
        """Train one epoch.

        Raises:
            Skipped: It failed.
        """
        assert self._process.stdin
        with suppress(BrokenPipeError):  # its last words say why
            self._process.stdin.write("epoch\n")
            self._process.stdin.flush()
        line = self._answer()
        return EpochPass(waited=None, **{name: line[name] for name in _ANSWERED})

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        text = self._process.stdout.readline()
        line: dict[str, Any] = json.loads(text) if text else {}
        if text and "skipped" not in line:
            return line
        status = self._process.wait()
        if status == _SKIPPED and line:
            raise Skipped(line["skipped"])
        self._errors.seek(0)
        raise Skipped(f"failed: {(self._errors.read().strip().splitlines() or [f'status {status}'])[-1]}")
