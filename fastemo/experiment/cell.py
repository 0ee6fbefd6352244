"""Entry point of a study's run: `python -m fastemo.experiment.cell PARENT PROCESSORS -- OPTIONS OF fastemo train`.

Started only by `study/runner.py`, in a separate process that does not outlive the study: if the study's process is
killed, the run gets a signal, writes its checkpoint and exits; it is resumed with the study.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Linux: prctl(2)


def main(arguments: list[str]) -> None:
    """Args: as in the module's docstring; PROCESSORS are comma-separated numbers, empty: all."""
    parent, processors, _, *options = arguments
    if processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, processors.split(",")))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before prctl
        return
    # The run logs this as the command that reproduces it.
    sys.argv[:] = ["fastemo", "train", *options]
    runpy.run_module("fastemo.cli", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
