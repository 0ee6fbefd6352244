"""The peers as programs of their own: which there are, started, read, skipped with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Pass, Skipped, total

FOLDER = Path(__file__).resolve().parent / "peers"
_SKIPPED = 3  # see peers/peer.py
_SECONDS = 1800  # far beyond any pass: a peer that hangs is a peer that failed


@dataclass(frozen=True)
class Peer:
    """A program in `peers/`.

    Attributes:
        title: For people.
        decodes_video: Whether it decodes video in every pass, which the report's way does not.
    """

    title: str
    script: str
    arguments: tuple[str, ...] = ()
    decodes_video: bool = True
    on_gpu: bool = False


PEERS = {
    "decord": Peer("decord + DataLoader", "decord_loader.py", ("--package", "decord")),
    "decord2": Peer("decord2 + DataLoader", "decord_loader.py", ("--package", "decord2")),
    "torchcodec_exact": Peer("torchcodec (exact) + DataLoader", "torchcodec_loader.py", ("--seek_mode", "exact")),
    "torchcodec_approximate": Peer(
        "torchcodec (approximate) + DataLoader", "torchcodec_loader.py", ("--seek_mode", "approximate")
    ),
    "pyav": Peer("PyAV + DataLoader", "pyav_loader.py"),
    "opencv": Peer("OpenCV + DataLoader", "opencv_loader.py"),
    "jpeg": Peer("report's way: JPEGs, Pillow, 4 workers", "jpeg_loader.py", decodes_video=False),
    "torchcodec_cuda": Peer("torchcodec on CUDA", "torchcodec_cuda.py", on_gpu=True),
    "dali_reader": Peer("DALI's plain video reader", "dali_reader.py", on_gpu=True),
}


def choose(argument: str, *, has_gpu: bool) -> list[str]:
    """The peers that `--peers` names.

    Raises:
        ValueError: An unknown name.
    """
    if argument == "none":
        return []
    if argument == "all":
        return [name for name, peer in PEERS.items() if has_gpu or not peer.on_gpu]
    names = [name.strip() for name in argument.split(",")]
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--peers takes all, none, or some of {', '.join(PEERS)}, not '{name}'")
    return names


class PeerRuns:
    """Starts peers on one corpus.

    Attributes:
        told: By name, what a peer said of itself: versions, settings, shapes, and the extraction where it made one.
    """

    def __init__(self, corpus: Path, scratch: Path, *, num_frames: int, size: int, batch_size: int) -> None:
        self._common = ["--corpus", corpus, "--num_frames", num_frames, "--size", size, "--batch_size", batch_size]
        self._scratch = scratch
        self.told: dict[str, dict[str, Any]] = {}

    def run(self, name: str) -> Pass:
        """One pass of a peer in a process of its own; imports, start and warm-up are outside its clock.

        Raises:
            Skipped: It cannot run here, or failed.
        """
        peer = PEERS[name]
        frames = [] if peer.decodes_video else ["--frames", self._scratch / "jpegs"]
        command = [sys.executable, FOLDER / peer.script, *self._common, *peer.arguments, *frames]
        try:
            done = subprocess.run([str(it) for it in command], capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise Skipped(f"failed: not done after {_SECONDS} s") from None
        lines = done.stdout.strip().splitlines()
        if done.returncode == _SKIPPED and lines:
            raise Skipped(json.loads(lines[-1])["skipped"])
        if done.returncode != 0 or not lines:
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise Skipped(f"failed: {last}")
        line = json.loads(lines[-1])
        passes = [Pass(it["clips"], it["seconds"], it["cpu_seconds"]) for it in line.pop("passes")]
        # The extraction is told in the first round only.
        self.told[name] = {**self.told.get(name, {}), **line}
        return total(passes)
