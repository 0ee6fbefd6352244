"""The benchmarks are scripts beside the package, not part of it: tests import them from the repository's root."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def run_script():
    """Runs a command at the repository's root, where it sees no GPU."""

    def run(command, *arguments, **environment):
        words = [*command, *map(str, arguments)]
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
        return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)

    return run


@pytest.fixture
def one_line_of(capsys):
    """The one line on standard error with which a command ends with status 2."""

    def line_of(main, *arguments):
        with pytest.raises(SystemExit) as ended:
            main(*arguments)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return line_of
