"""Write a run's accuracy on the built-in corpus to a results file: `python benchmarks/accuracy.py runs/NAME`.

Writes `results/accuracy-<model>-<seed>-<machine>-<date>.json`, which `tables.py` reads. Run it on the machine
that trained.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.common.results import REPOSITORY, default_path, provenance, write
from fastemo.console import Console
from fastemo.corpus.synthetic.action_units import PAIRS
from fastemo.errors import one_line_errors
from fastemo.evaluation.compare import order_counts


def of_run(run_dir: Path) -> dict[str, Any]:
    """The figures of a finished run.

    Raises:
        ValueError: It is not a finished run on the built-in corpus.
    """
    try:
        result = json.loads((run_dir / "test.json").read_text(encoding="utf-8"))
        epochs = len((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        (line,) = re.findall(r"^.*? command: (.*)$", (run_dir / "log.txt").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError) as error:
        raise ValueError(f"{run_dir.name} is not a finished run: {error}") from error
    if not result["corpus"].startswith("built-in"):
        raise ValueError(f"{run_dir.name} was not trained on the built-in corpus")
    # The classes of a pair show the same frames in opposite order: an order-blind model guesses between them.
    right, swapped, _ = order_counts(result["confusion"], list(result["per_class"]), PAIRS)
    return {
        **provenance(),
        **{name: result[name] for name in ("model", "accuracy", "seed")},
        "command": command(line),
        "epochs": epochs,
        "interval": result["intervals"]["accuracy"],
        "note": f"temporal-order pairs: {right} right, {swapped} swapped",
    }


def command(line: str) -> str:
    """The command as typed, without folders of the machine and without the run's name."""
    without_name = re.sub(r" --(?:name|runs_dir)[ =]\S+", "", line)
    program, _, rest = re.sub(r"\S*/((?:configs|fastemo)/\S+)", r"\1", without_name).partition(" ")
    start = "fastemo" if program.endswith("/bin/fastemo") else "accelerate launch fastemo/train.py"
    return f"{start} {rest}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    with one_line_errors():
        options = parser.parse_args()
        for run_dir in options.runs:
            found = of_run(run_dir)
            program = f"accuracy-{found['model']}-{found['seed']}"
            write(options.out / default_path(found["machine"], quick=False, program=program).name, found, Console())


if __name__ == "__main__":
    main()
