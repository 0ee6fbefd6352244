"""Processes of their own for attacks: what would end or hang the tests ends or hangs there."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from helpers import wait_until

_CAPABILITY_VERSION_3 = 0x20080522


def forked(work: Callable[[], object], *, seconds: int = 600) -> int:
    """Start a process that does some work and ends: with 0, with 1 where it raised, by a signal after `seconds`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which idle here
        process = os.fork()
    if process:
        return process
    status = 1
    try:
        faulthandler.disable()  # pytest's would print the stack of a child that dies on purpose
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def exit_code(process: int) -> int:
    """Of a process that has ended or will; -9 where it was ended by signal 9."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def exit_codes(processes: list[int]) -> list[int]:
    return [exit_code(process) for process in processes]


def killed(process: int, condition: Callable[[], object], after_seconds: float) -> None:
    """End a process by the signal that nothing can catch, some time after it has come so far."""
    wait_until(condition)
    time.sleep(after_seconds)
    os.kill(process, signal.SIGKILL)
    assert exit_code(process) == -signal.SIGKILL


def limit_memory(extra_bytes: int) -> None:
    """Allow this process, of Linux, so much more memory than it has: more than that is an error."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + extra_bytes, taken + extra_bytes))


def be_nobody_special() -> None:
    """Give up root's privileges, in a forked process on Linux: file permissions then apply."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if os.geteuid() == 0 and ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError("root cannot give up its powers")
