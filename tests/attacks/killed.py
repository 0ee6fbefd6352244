"""Trains one run that is killed again and again: `killed.py OUT KILLS ARGUMENTS...`, a script of its own.

Torch is imported once; each attempt is a fork of this process that has not computed anything yet.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from fastemo import resume, run
from fastemo.training import checkpoint


def attempt(arguments, seconds=None, flushes=None):
    """Train on until it ends by itself, is killed after some time, or kills itself inside a checkpoint's writing.

    Returns:
        The status that the process ended with; below zero: the signal that killed it.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if flushes is not None:
                kill_at(flushes)
            run.run(*resume.resolve(arguments))
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    deadline = time.monotonic() + (seconds if seconds is not None else 300)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(count):
    """Kill this process at the so manieth flush of a checkpoint's file or folder."""
    flush, left = checkpoint.flush, [count]

    def dying(path):
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path)

    checkpoint.flush = dying


def main(out, kills, arguments):
    chance, killed = random.Random(0), []
    arguments = [*arguments, "--resume", "auto"]
    while len(killed) < kills:
        if len(killed) % 2:
            where, status = "inside a checkpoint's writing", attempt(arguments, flushes=chance.randint(1, 60))
        else:
            where, status = "at any moment", attempt(arguments, seconds=chance.uniform(0.2, 2.5))
        if status != -signal.SIGKILL:
            raise SystemExit(f"ended with status {status} after {len(killed)} kills")
        killed.append(where)
    status = attempt(arguments)
    Path(out).write_text(json.dumps({"killed": killed, "status": status}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
