"""Entry of `accelerate launch fastemo/train.py`, of `torchrun` and of `fastemo train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script's own folder comes first on sys.path, where this package's modules would hide others of their name
# and `import fastemo` would find nothing: the folder above it belongs there.
if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from fastemo.errors import one_line_errors


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """Train by the configuration that the arguments give."""
    with one_line_errors():
        # Late: the processes that draw the built-in corpus import this file again and have no use for torch.
        from fastemo.experiment.resume import resolve
        from fastemo.experiment.run import run
        from fastemo.machine import check_platform
        from fastemo.training.stopping import StopSignals

        check_platform()

    # Around what tells of errors: a launcher that sees one process fail sends the others a signal.
    with StopSignals().installed() as signals, one_line_errors():
        run(*resolve(sys.argv[1:] if arguments is None else arguments, prog=prog), signals)


if __name__ == "__main__":
    main()
