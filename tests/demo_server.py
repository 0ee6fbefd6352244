"""`fastemo demo` in a process of its own, until a signal ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(
    *words: object, stop: signal.Signals = signal.SIGINT, cwd: Path | None = None, **environment: str
) -> Iterator[str]:
    """The page's URL. Left, the command ends by a signal, at once and without a word on standard error."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    # Whoever runs the tests in the background may have them ignore Ctrl-C, which the command would inherit.
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([str(word) for word in words], cwd=cwd, env=env, **pipes) as running:
        try:
            url = next((found[0] for line in running.stdout if (found := re.search(r"http://[\d.:]+", line))), None)
            assert url is not None, running.stderr.read()
            yield url
            running.send_signal(stop)
            said, errors = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, errors) == (0, ""), errors
    assert said.splitlines()[-1] == "stopped: the videos and what was made of them are deleted"
