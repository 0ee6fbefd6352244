"""A complete check of the GPU path in one command: `python benchmarks/gpu_check.py --minutes 6`.

Stages, the most important first, each with a share of the time: environment; every test for a GPU; training; NVDEC's
speed; memory. Each is saved when it is done, and a failed one does not stop the rest. `--rehearse` runs the
same code on a machine without a GPU, in tiny sizes. Exit status 0: all ok; 1: a stage failed; 2: no GPU.
"""

from __future__ import annotations

import json
import operator
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.common import results
from benchmarks.common.gpu import bench as first_stages
from benchmarks.common.gpu import decoding, training
from benchmarks.common.gpu.bench import Bench, attempted
from benchmarks.common.options import make_parser, parse_checked
from fastemo.console import Console
from fastemo.errors import one_line_errors

# By name: the function and its share of the time.
STAGES: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {
    "here": (first_stages.here, 0.02),
    "tests": (first_stages.tests, 0.42),
    "training": (training.training, 0.33),
    "nvdec": (decoding.nvdec, 0.16),
    "memory": (decoding.memory, 0.07),
}
_GAIN = 1.05  # the speed-up that justifies the warm-up of compilation


def run_stages(bench: Bench, names: list[str], minutes: float, path: Path, console: Console) -> dict[str, Any]:
    """Run the chosen stages; the file is rewritten after each."""
    about = results.provenance()
    found: dict[str, Any] = {
        "date": about.pop("date"),
        "rehearsed": bench.rehearse,
        "command": f"python benchmarks/gpu_check.py --minutes {minutes:g}",
        **about,
        "stages": {},
    }
    shares, end = sum(STAGES[name][1] for name in names), time.monotonic() + minutes * 60
    for name in names:
        stage, share = STAGES[name]
        # The rest shares the time that earlier stages left.
        left = max(0.0, end - time.monotonic())
        bench.deadline, bench.missed = time.monotonic() + left * share / max(shares, 1e-9), []
        shares -= share
        began, result = time.monotonic(), attempted(stage, bench)
        found["stages"][name] = {**result, "seconds": round(time.monotonic() - began, 1), "not_reached": bench.missed}
        console.say(f"{name}: {'ok' if result['ok'] else 'failed: ' + str(result.get('error', result))[:600]}")
        found["recommended"] = recommended(found["stages"])
        results.write(path, found, Console(show=False))
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def recommended(stages: dict[str, Any]) -> dict[str, Any]:
    """What `auto` should pick on this device, with the measurements behind it."""
    steps = stages.get("training", {}).get("steps", {})
    picks: dict[str, Any] = {"train.compile": {}, "train.speed": {}}
    for name in sorted({key.rsplit(", ", 1)[0] for key in steps}):
        rates = {
            variant: steps[key]["clips_per_second"]
            for variant in training.VARIANTS
            if "clips_per_second" in steps.get(key := f"{name}, {variant}", {})
        }
        if "bf16" in rates:
            best = max((it for it in rates if it != "fp32"), key=rates.__getitem__)
            wins = best != "bf16" and rates[best] > _GAIN * rates["bf16"]
            picks["train.compile"][name] = {"pick": best.removeprefix("bf16_") if wins else "off", "clips/s": rates}
            if "fp32" in rates:
                picks["train.speed"][name] = "bf16" if rates["bf16"] > rates["fp32"] else "fp32"
    cold = {
        f"{size}, {name}": rate
        for size, rates in stages.get("nvdec", {}).items()
        if isinstance(rates, dict)
        for name, rate in rates.items()
        if name.startswith("loader cold")
    }
    by = {it: [rate for name, rate in cold.items() if f" {it}," in name] for it in ("dali", "pyav")}
    wins = len(by["dali"]) == len(by["pyav"]) and all(map(operator.gt, by["dali"], by["pyav"]))
    if by["pyav"]:
        picks["video.backend"] = {"pick": "dali" if wins else "pyav", "clips/s": cold}
    return picks


def rows(found: dict[str, Any]) -> list[dict[str, str | int]]:
    """One row per stage."""
    lines: list[dict[str, str | int]] = []
    for name, stage in found["stages"].items():
        note = str(stage.get("error", ""))
        if name == "training" and not note:
            rates = {key: it["clips_per_second"] for key, it in stage["steps"].items() if "clips_per_second" in it}
            best = max(rates, key=rates.__getitem__, default="")
            note = f"{best}: {rates[best]:,.0f} clips/s" if best else "nothing was measured"
        if name == "memory" and "growth_mib" in stage:
            note = f"{stage['decodes']} decodes, growth in MiB: {stage['growth_mib']}"
        line = {"stage": name, "verdict": "ok" if stage["ok"] else "failed", "s": stage["seconds"]}
        lines.append({**line, "not reached": len(stage["not_reached"]), "note": note[:100]})
    return lines


def main() -> None:
    parser = make_parser("gpu_check.py", __doc__)
    parser.add_argument("--minutes", type=float, default=6, help="time limit of all stages together")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated stages to run")
    parser.add_argument("--decodes", type=int, default=3000, help="decodes over which memory is measured")
    parser.add_argument("--rehearse", action="store_true", help="run the same code on a CPU, in tiny sizes")
    with one_line_errors():
        options, console = parse_checked(parser, None), Console()
        names = options.stages.split(",")
        if unknown := [name for name in names if name not in STAGES]:
            raise ValueError(f"--stages {','.join(unknown)}: must be some of {','.join(STAGES)}")
        if options.rehearse:
            # One thread, as in the tests: threads that wait for each other beside other programs are ten times slower.
            processors = str(os.cpu_count())
            os.environ |= {"CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": processors, "OMP_NUM_THREADS": "1"}
            os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
            torch.set_num_threads(1)
        elif not torch.cuda.is_available():
            needed = "gpu_check.py needs a CUDA device, but torch finds none"
            raise ValueError(f"{needed}; --rehearse runs its stages on a CPU")
        program = f"gpu/check{'-rehearsal' * options.rehearse}"
        path = options.out or results.default_path(results.machine(), quick=False, program=program)
        with tempfile.TemporaryDirectory(prefix="fastemo-gpu-check-") as folder:
            bench = Bench(Path(folder), options.rehearse, options.decodes)
            found = run_stages(bench, names, options.minutes, path, console)
        console.table("gpu_check", rows(found))
        console.say(f"recommended: {json.dumps(found['recommended'])[:600]}")
        console.say(f"written: {path}")
    if not all(stage["ok"] for stage in found["stages"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
