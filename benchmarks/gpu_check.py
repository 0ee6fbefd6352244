"""What a GPU machine is asked once: `python benchmarks/gpu_check.py`.

Is NVDEC's library there; are DALI's frames PyAV's; how many clips a second at each step; does the GPU's memory stay
flat; is bf16 `conv3d` right and quick. A step that fails is recorded and the rest go on. Ends with status 0 where all
is well, 1 where a step failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from benchmarks import corpus, results
from benchmarks.gpu_kernels import conv3d_in_bf16
from benchmarks.ladder import cold_rung, decode_rungs
from benchmarks.measure import Pass, Rung, Skipped, summary, timed
from benchmarks.store_rungs import StoreRungs
from fastemo.console import Console
from fastemo.corpus.manifest import Clip
from fastemo.errors import one_line_errors
from fastemo.machine import available_processors, write_text
from fastemo.video import dali
from fastemo.video.bitstream import PrunedClip, prune
from fastemo.video.config import VideoConfig
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices
from fastemo.video.source import Source

_LIBRARY = "libnvcuvid.so"
_DRIVER_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
)
_LEAST_PSNR = 38.0  # dB, between any two backends after resizing
_BATCH_SIZES = (1, 8, 16, 32, 64)
_MOST_GROWTH_MIB = 64


class Check:
    """The steps, and what they share: clips, their configuration, and a folder to write to."""

    def __init__(self, clips: corpus.Corpus, config: VideoConfig, scratch: Path, rounds: int, decodes: int) -> None:
        self.manifest, self.config, self.scratch = clips.manifest, config, scratch
        self.rounds, self.decodes = rounds, decodes
        self.device = torch.device("cuda", torch.cuda.current_device())

    def library(self) -> dict[str, Any]:
        """Where the driver's decoding library is, as the linker, the folders and ctypes have it."""
        known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout.splitlines()
        lying = [str(path) for folder in _DRIVER_FOLDERS for path in sorted(Path(folder).glob(f"{_LIBRARY}*"))]
        try:
            ctypes.CDLL(f"{_LIBRARY}.1")
            loads = ""
        except OSError as error:
            loads = str(error)
        return {
            "ok": not loads,
            "ldconfig": [line.strip() for line in known if _LIBRARY in line],
            "driver_folders": lying,
            "ctypes": loads or "loads",
            "capabilities": dali.capabilities(self.device.index),
        }

    def correctness(self) -> dict[str, Any]:
        """DALI's frames against PyAV's, clip by clip."""
        different = {(self.manifest.root / clip.key).resolve(): clip for clip in self.manifest.clips}
        clips = list(different.values())
        decoder = self._decoder(len(clips))
        frames, errors = decoder.decode([self._source(clip, is_pruned=True) for clip in clips])
        decoder.close()
        decibels = []
        for ours, clip in zip(frames.cpu().numpy(), clips, strict=True):
            wanted = frame_indices(clip.num_frames, self.config.num_frames)
            theirs = decode_clip(self.manifest.root / clip.key, wanted, self.config.spec)
            error = np.mean((ours.astype(np.float64) - theirs) ** 2)
            decibels.append(float(10 * np.log10(255**2 / max(error, 1e-9))))
        return {
            "ok": not errors and min(decibels) >= _LEAST_PSNR,
            "psnr_db": summary(decibels),
            "errors": [str(error) for error in errors.values()],
        }

    def decoding(self) -> dict[str, Any]:
        """DALI alone, whole and pruned clips in memory, by clips in one call."""
        found: dict[str, Any] = {"ok": True}
        for kind in ("full", "pruned"):
            with ThreadPoolExecutor(available_processors()) as pool:
                sources = list(pool.map(partial(self._source, is_pruned=kind == "pruned"), self.manifest.clips))
            for batch_size in _BATCH_SIZES:
                decoder = self._decoder(batch_size)
                took = [self._decode_all(decoder, sources, batch_size) for _ in range(self.rounds + 1)][1:]
                decoder.close()
                rates = [it.clips / it.seconds for it in took]
                found[f"{kind}_batch_{batch_size}"] = {"clips_per_second": summary(rates)}
        return found

    def ladder(self) -> dict[str, Any]:
        """The rungs of throughput.py on this machine: what the processors do, the loader cold, and from each tier."""
        found: dict[str, Any] = {"ok": True}
        with ExitStack() as stack:
            rungs = stack.enter_context(decode_rungs(self.manifest, self.config))
            rungs += [cold_rung(self.manifest, self.config, 8, where, stack) for where in ("cpu", "cuda")]
            stored = corpus.stored_corpus(1440, self.config.num_frames, self.config.size, self.scratch / "stored")
            tiers = StoreRungs(
                stored, self.scratch / "store", self.config, batch_size=8, seconds=1.5, device=str(self.device)
            )
            rungs += stack.enter_context(tiers.rungs())
            for rung in rungs:
                found[rung.name] = self._climb(rung)
        return found

    def memory(self) -> dict[str, Any]:
        """What the driver says is taken on the GPU, before and after many decodes."""
        sources = [self._source(clip, is_pruned=True) for clip in self.manifest.clips]
        decoder = self._decoder(16)
        self._decode_all(decoder, sources, 16)
        before, done = self._taken_mib(), 0
        seen = [before]
        while done < self.decodes:
            done += self._decode_all(decoder, sources, 16).clips
            seen.append(self._taken_mib())
        decoder.close()
        return {
            "ok": seen[-1] - before <= _MOST_GROWTH_MIB,
            "decodes": done,
            "taken_mib_before": before,
            "taken_mib_after": seen[-1],
            "taken_mib_highest": max(seen),
        }

    def bf16(self) -> dict[str, Any]:
        """The convolutions of R3D-18."""
        return conv3d_in_bf16(self.device)

    def _climb(self, rung: Rung) -> dict[str, Any]:
        try:
            rung.warm()
            took = [rung.run() for _ in range(self.rounds)]
        except Skipped as reason:
            return {"skipped": str(reason)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {
            "title": rung.title,
            "clips_per_second": summary([it.clips / it.seconds for it in took]),
            "cpu_seconds_per_clip": summary([it.cpu_seconds / it.clips for it in took]),
        }

    def _source(self, clip: Clip, is_pruned: bool) -> Source:
        path = self.manifest.root / clip.key
        wanted = frame_indices(clip.num_frames, self.config.num_frames)
        pruned = prune(path, wanted) if is_pruned else PrunedClip(path.read_bytes(), wanted)
        return Source(path, tuple(wanted.tolist()), pruned, clip.width, clip.height)

    def _decoder(self, batch_size: int) -> dali.DaliDecoder:
        clip = self.manifest.clips[0]
        size = self.config.spec.out_size(clip.width, clip.height)
        return dali.DaliDecoder(self.config.spec, self.device, frame_size=size, max_batch=batch_size)

    def _decode_all(self, decoder: dali.DaliDecoder, sources: list[Source], batch_size: int) -> Pass:
        def work() -> int:
            for start in range(0, len(sources), batch_size):
                _, errors = decoder.decode(sources[start : start + batch_size])
                for error in errors.values():
                    raise error
            torch.cuda.synchronize(self.device)
            return len(sources)

        return timed(work)

    def _taken_mib(self) -> float:
        torch.cuda.synchronize(self.device)
        free, total = torch.cuda.mem_get_info(self.device)
        return round((total - free) / 2**20, 1)


def guarded(name: str, step: Callable[[], dict[str, Any]], console: Console) -> dict[str, Any]:
    """Run a step; what goes wrong becomes its result."""
    started = time.monotonic()
    try:
        found = step()
    except Exception as error:
        trace = traceback.format_exc().splitlines()[-12:]
        found = {"ok": False, "error": f"{type(error).__name__}: {error}", "trace": trace}
    found["seconds"] = round(time.monotonic() - started, 1)
    console.say(f"{name}: {'well' if found['ok'] else 'FAILED ' + str(found.get('error', ''))}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="gpu_check.py"
    )
    parser.add_argument("--corpus", default="auto", help="a folder of clips; generated; auto: real ones where at hand")
    parser.add_argument("--clips", type=int, default=256, help="clips a pass")
    parser.add_argument("--rounds", type=int, default=3, help="passes of each rung")
    parser.add_argument("--decodes", type=int, default=3000, help="decodes over which the GPU's memory is watched")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    console = Console()
    with one_line_errors():
        if not torch.cuda.is_available():
            raise ValueError("gpu_check.py needs a CUDA device, and torch finds none")
        with tempfile.TemporaryDirectory(prefix="fastemo-gpu-check-") as folder:
            scratch = Path(folder)
            clips = corpus.choose(options.corpus, options.clips, scratch / "corpus", console)
            check = Check(clips, VideoConfig(), scratch, options.rounds, options.decodes)
            names = ("library", "correctness", "bf16", "decoding", "ladder", "memory")
            steps = {name: guarded(name, getattr(check, name), console) for name in names}
        machine = results.machine()
        found = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": machine,
            "versions": results.collect_versions(),
            "corpus": clips.description,
            "steps": steps,
        }
        name = f"check-{results.machine_slug(machine)}-{time.strftime('%Y-%m-%d')}.json"
        path = options.out or Path(__file__).resolve().parent / "results" / "gpu" / name
        write_text(path, results.without_paths(json.dumps(found, indent=1, default=str)) + "\n")
        console.say(f"written: {path}")
    if not all(step["ok"] for step in steps.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
