"""The benchmarks are scripts beside the package, not part of it: tests import them from the repository's root."""

import sys

import helpers
import pytest
from helpers import REPOSITORY

if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))


@pytest.fixture(scope="session")
def run_script():
    """Runs a command at the repository's root, where it sees no GPU."""

    def run(command, *arguments, **environment):
        return helpers.command(*command, *arguments, cwd=REPOSITORY, **{"CUDA_VISIBLE_DEVICES": "", **environment})

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
