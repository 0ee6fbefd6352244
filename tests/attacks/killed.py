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

from attacks.confined import exit_code, forked
from same_bits import trained

from fastemo.training import checkpoint, trainer


def attempt(arguments, steps=None, seconds=0.0, flushes=None):
    """Train on until it ends by itself, is killed some time after so many steps, or while it writes a checkpoint.

    Returns:
        The status that the process ended with; below zero: the signal that killed it.
    """
    receiver, sender = os.pipe()

    def work():
        os.close(receiver)
        report_steps(sender)
        if flushes is not None:
            kill_at(flushes)
        trained(arguments)

    child = forked(work)
    os.close(sender)
    if steps is not None:
        while steps and os.read(receiver, 1):
            steps -= 1
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = exit_code(child)
    os.close(receiver)  # only now: a step without a reader would end the process
    return status


def report_steps(pipe):
    """Have each step of the training begin with a byte to the pipe."""
    wish = trainer.Trainer._wish

    def reporting(self, loader):
        os.write(pipe, b".")
        return wish(self, loader)

    trainer.Trainer._wish = reporting


def kill_at(count):
    """Kill this process at this flush, counted from 1, of a checkpoint's file or folder."""
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
    Path(out).write_text(json.dumps({"killed": killed, "status": attempt(arguments)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
