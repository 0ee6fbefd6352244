"""A run's accuracy on the built-in corpus as a file of results: `python benchmarks/accuracy.py runs/NAME`.

Writes `results/accuracy-<model>-<seed>-<machine>-<date>.json`, which `readme_results.py` reads. Run it on the machine
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

from benchmarks.common.results import REPOSITORY, machine_slug, provenance, write
from fastemo.console import Console
from fastemo.corpus.synthetic.action_units import PAIRS
from fastemo.errors import one_line_errors
from fastemo.evaluation.compare import order_counts

_OWN_OPTIONS = r" --(?:name|runs_dir)[ =]\S+"


def of_run(run_dir: Path) -> dict[str, Any]:
    """The figures of a finished run.

    Raises:
        ValueError: It is no finished run on the built-in corpus.
    """
    try:
        result = json.loads((run_dir / "test.json").read_text(encoding="utf-8"))
        epochs = len((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        (line,) = re.findall(r"^.*? command: (.*)$", (run_dir / "log.txt").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError) as error:
        raise ValueError(f"{run_dir.name} is no finished run: {error}") from error
    if not result["corpus"].startswith("built-in"):
        raise ValueError(f"{run_dir.name} was not trained on the built-in corpus")
    about = provenance()
    return {
        "date": about.pop("date"),
        "model": result["model"],
        "command": command(line),
        "epochs": epochs,
        "accuracy": result["accuracy"],
        "interval": result["intervals"]["accuracy"],
        "seed": result["seed"],
        "note": paired(list(result["per_class"]), result["confusion"]),
        **about,
    }


def command(line: str) -> str:
    """What was typed, without folders of the machine and the run's own name."""
    options = re.sub(r"\S*/((?:configs|fastemo)/\S+)", r"\1", re.sub(_OWN_OPTIONS, "", line))
    program, _, rest = options.partition(" ")
    start = "fastemo" if program.endswith("/bin/fastemo") else "accelerate launch fastemo/train.py"
    return f"{start} {rest}".strip()


def paired(names: list[str], confusion: list[list[int]]) -> str:
    """How many clips of the paired classes were right, and how many taken for their pair.

    The classes of a pair show the same in opposite order: a model blind to order guesses within it.
    """
    right, swapped, _ = order_counts(confusion, names, PAIRS)
    return f"paired classes: {right} right, {swapped} swapped"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    with one_line_errors():
        options = parser.parse_args()
        for run_dir in options.runs:
            found = of_run(run_dir)
            name = f"accuracy-{found['model']}-{found['seed']}-{machine_slug(found['machine'])}-{found['date'][:10]}"
            write(options.out / f"{name}.json", found, Console())


if __name__ == "__main__":
    main()
