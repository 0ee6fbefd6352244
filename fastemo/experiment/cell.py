"""Entry of a study's cell: `python -m fastemo.experiment.cell PARENT PROCESSORS -- OPTIONS OF fastemo train`.

Started by `study/runner.py` alone, in a process of its own, which does not outlive the study: where the study's process
is killed, the run is asked to end, writes its checkpoint, and is resumed with the study.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Linux: prctl(2)


def main(arguments: list[str]) -> None:
    """Args: as in the module's docstring; PROCESSORS are numbers joined by commas, empty: all."""
    parent, processors, _, *options = arguments
    if processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, processors.split(",")))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before it could be watched
        return
    # What the run notes as the command that repeats it.
    sys.argv[:] = ["fastemo", "train", *options]
    runpy.run_module("fastemo.cli", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
