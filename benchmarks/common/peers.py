"""The peers as separate programs: the list of them, and how they are started, read, and skipped with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.measure import REPOSITORY, EpochPass, Pass, Skipped, Stage

FOLDER = REPOSITORY / "benchmarks" / "peers"
_SECONDS = 3600  # far longer than any pass or epochs: a peer that hangs has failed


@dataclass(frozen=True)
class Peer:
    """A program in `peers/`, whose first argument is the peer's name.

    Attributes:
        title: For readers.
        decodes_video: Whether it decodes video in every pass; otherwise it needs a folder of extracted frames.
    """

    title: str
    script: str = "loaders.py"
    decodes_video: bool = True
    on_gpu: bool = False


PEERS = {
    "decord": Peer("decord + DataLoader"),
    "decord2": Peer("decord2 + DataLoader"),
    "torchcodec_exact": Peer("torchcodec (exact) + DataLoader"),
    "torchcodec_approximate": Peer("torchcodec (approximate) + DataLoader"),
    "pyav": Peer("PyAV + DataLoader"),
    "opencv": Peer("OpenCV + DataLoader"),
    "jpeg": Peer("JPEG-frame baseline: Pillow, 4 workers", decodes_video=False),
    "torchcodec_cuda": Peer("torchcodec on CUDA", on_gpu=True),
    "dali_reader": Peer("DALI's plain video reader", on_gpu=True),
}
TRAINING_PEERS = {
    "report": Peer("JPEG-frame baseline: Pillow, 4 workers, fp32", "training.py", decodes_video=False),
    "plain": Peer("decord DataLoader + Accelerate", "training.py"),
}
# Networks that these peers have.
TRAINED_BY_PEERS = ("early_cnn", "early_resnet18", "late_fusion", "r3d18", "cnn_lstm")


class PeerProcess:
    """A started peer, idle between passes.

    Attributes:
        told: Its versions, settings, shapes, and the time of the frame extraction if it needs one.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.told = self._read()

    def run(self) -> Pass:
        """One pass, or one epoch of a peer that trains.

        Raises:
            Skipped: It failed.
        """
        with suppress(BrokenPipeError):  # its last output says why
            print("go", file=self._process.stdin, flush=True)
        found = self._read()
        return EpochPass(waited=None, **found) if "loss" in found else Pass(**found)

    def _read(self) -> dict[str, Any]:
        last = ""
        for line in self._process.stdout or ():
            if line.startswith("{"):  # a library may print other lines
                found: dict[str, Any] = json.loads(line)
                if "skipped" in found:
                    raise Skipped(found["skipped"])
                return found
            last = line.strip() or last
        raise Skipped(f"failed: {last or f'status {self._process.wait()}'}")


@contextmanager
def started(name: str, options: dict[str, Any], frames: Path) -> Iterator[PeerProcess]:
    """Start a peer and wait until it is ready; it ends with the context.

    Args:
        options: Options of all peers, among them `--corpus`.
        frames: Folder of the extracted frames, for a peer that needs them.

    Raises:
        Skipped: It cannot run here, or failed.
    """
    script, pipe = FOLDER / (PEERS | TRAINING_PEERS)[name].script, subprocess.PIPE
    words = [f"--{option}={value}" for option, value in {**options, "frames": frames}.items()]
    command = [sys.executable, str(script), name, *words]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, errors="replace") as process:
        timer = threading.Timer(_SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield PeerProcess(process)
        finally:
            process.communicate()  # closes its input, which ends a peer
            timer.cancel()


def peer_stage(name: str, options: dict[str, Any], frames: Path, told: dict[str, dict[str, Any]]) -> Stage:
    """A peer with a separate process for each pass; imports, start and warm-up are not timed.

    Args:
        told: Receives, by name, what the peer reports about itself.
    """

    def run() -> Pass:
        with started(name, options, frames) as peer:
            told[name] = peer.told
            return peer.run()

    return Stage(name, PEERS[name].title, run)
