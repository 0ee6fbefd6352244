"""What a user did wrong is told in one line, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Base of the errors of this package that are no ValueError: a user can cause and mend them."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on standard error, and status 2, on an error that a user can cause.

    `FASTEMO_TRACEBACK=1` shows the traceback as well.
    """
    try:
        yield
    except (ValueError, OSError, UserError) as error:
        if os.environ.get("FASTEMO_TRACEBACK"):
            raise
        print(f"fastemo: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("fastemo: interrupted", file=sys.stderr)
        sys.exit(130)
