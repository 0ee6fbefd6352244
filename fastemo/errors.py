"""What a user did wrong is told in one line, without a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Base of the errors of this package that are no ValueError: a user can cause and mend them."""


class DecodeError(UserError):
    """A frame that could not be had; the message names the file and the frame."""

    def __init__(self, path: Path, frame: int, reason: str) -> None:
        super().__init__(f"{path}: frame {frame} does not decode: {reason}")
        self.path, self.frame = path, frame


class Stopped(BaseException):
    """A signal asked to end; everything is saved that was to be. No `Exception`, which much code recovers from.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int, how_to_go_on: str = "") -> None:
        self.number, self.how_to_go_on = number, how_to_go_on
        super().__init__(f"stopped by {signal.Signals(number).name}{'; ' * bool(how_to_go_on)}{how_to_go_on}")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on standard error on an error that a user can cause, or a signal.

    The status is 2, or 128 and the signal's number, as shells have it. `FASTEMO_TRACEBACK=1` shows the traceback of an
    error as well.
    """
    try:
        yield
    except (ValueError, OSError, UserError) as error:
        if os.environ.get("FASTEMO_TRACEBACK"):
            raise
        print(f"fastemo: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(f"fastemo: {stop}", file=sys.stderr)
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        print("fastemo: interrupted", file=sys.stderr)
        sys.exit(130)
