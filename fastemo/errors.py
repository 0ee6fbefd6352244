"""Errors that a user can fix are reported in one line, without a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_OF_OTHERS = 300  # characters of another library's message


class UserError(Exception):
    """Base of this package's errors other than ValueError that a user can cause and fix."""


class DecodeError(UserError):
    """A frame cannot be decoded; the message names the file and the frame."""

    def __init__(self, path: Path, frame: int, reason: str) -> None:
        super().__init__(f"{path}: frame {frame} does not decode: {reason}")
        self.path, self.frame, self.reason = path, frame, reason


class Stopped(BaseException):
    """A signal stopped the run, after its state was saved. Not an `Exception`, which much code catches.

    Attributes:
        number: The signal's number.
    """

    def __init__(self, number: int, how_to_resume: str = "") -> None:
        self.number, self.how_to_resume = number, how_to_resume
        super().__init__(f"stopped by {signal.Signals(number).name}{'; ' * bool(how_to_resume)}{how_to_resume}")


def one_line(error: BaseException) -> str:
    """An error's message in one line, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def one_line_errors() -> Iterator[None]:
    """On an error that a user can cause, or a signal, exit with one line on standard error.

    The exit status is 2, or 128 + the signal's number. `FASTEMO_TRACEBACK=1` shows the traceback of an error.
    """
    try:
        yield
    except (ValueError, OSError, UserError) as error:
        if os.environ.get("FASTEMO_TRACEBACK"):
            raise
        print(f"fastemo: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(f"fastemo: {stop}", file=sys.stderr)
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        print("fastemo: interrupted", file=sys.stderr)
        sys.exit(130)
