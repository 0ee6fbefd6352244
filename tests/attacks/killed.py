"""Trains one run that is killed again and again: `python -m attacks.killed OUT KILLS ARGUMENTS...`.

Torch is imported once; each attempt is a fork of this process that has not computed anything yet.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from same_bits import trained

from fastemo.training import checkpoint, trainer


def attempt(arguments, steps=None, seconds=0.0, flushes=None):
    """Train on until it ends by itself, is killed some time after so many steps, or while it writes a checkpoint.

    Returns:
        The status that the process ended with; below zero: the signal that killed it.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(600)
            os.close(told)
            tell_steps(tell)
            if flushes is not None:
                kill_at(flushes)
            trained(arguments)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(tell)
    if steps is not None:
        while steps and os.read(told, 1):
            steps -= 1
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(told)
    return os.waitstatus_to_exitcode(status)


def tell_steps(pipe):
    """Have each step of the training begin with a byte to the pipe."""
    wish = trainer.Trainer._wish

    def telling(self, loader):
        os.write(pipe, b".")
        return wish(self, loader)

    trainer.Trainer._wish = telling


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
            where, status = "at any moment", attempt(arguments, chance.randint(0, 14), chance.uniform(0, 0.2))
        if status != -signal.SIGKILL:
            raise SystemExit(f"ended with status {status} after {len(killed)} kills")
        killed.append(where)
    status = attempt(arguments)
    Path(out).write_text(json.dumps({"killed": killed, "status": status}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
