"""Fault injection: the outcomes of broken files, stores, configurations, disks and processes, counted.

    python benchmarks/reliability.py --full                 # all tests, as often as in the table of faults: minutes
    python benchmarks/reliability.py                        # all tests, the long ones as often as in CI
    python benchmarks/reliability.py --quick                # only tests that take seconds
    python benchmarks/reliability.py --from faults.jsonl    # the output of `pytest --faults faults.jsonl`

Each test injects a kind of fault many times, checks each outcome and counts it. If a test fails, the exit status is 1
and no results are written. The tests are part of the repository, not of the package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.common import results
from benchmarks.common.options import make_parser, parse_checked
from fastemo.console import Console

_ATTACKS = (
    *("tests/attacks", "tests/experiment/test_resume.py", "tests/test_processes.py", "tests/report/test_collect.py"),
    *("tests/training/test_checkpoint.py", "tests/training/test_faults.py"),
)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("reliability.py", __doc__)
    parser.add_argument("--from", type=Path, dest="lines", metavar="FILE", help="run no tests; summarise these lines")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="only the tests that take seconds: a smoke test")
    extent.add_argument("--full", action="store_true", help="thousands of tries where CI runs a sample")
    return parse_checked(parser, arguments)


def attack(folder: Path, *, quick: bool, full: bool) -> tuple[Path, dict[str, int]]:
    """Run the tests; return the file of their outcomes, and the numbers of tests run and skipped.

    Raises:
        SystemExit: A test failed; status 1.
        ValueError: The tests are missing, or could not be run.
    """
    if not (results.REPOSITORY / "tests" / "attacks").is_dir():
        raise ValueError(f"{results.REPOSITORY} holds no tests/attacks; run this in a clone of the repository")
    lines, report = folder / "faults.jsonl", folder / "report.xml"
    lines.touch()
    command = [
        *(sys.executable, "-m", "pytest", *_ATTACKS, "-m", "not slow" if quick else "slow or not slow"),
        # One process, for the order of the table, and because some tests measure memory.
        *("--faults", str(lines), "--junitxml", str(report), "-p", "no:cacheprovider", "-n", "0"),
    ]
    env = {**os.environ, "FASTEMO_FULL": str(int(full))}
    status = subprocess.run(command, cwd=results.REPOSITORY, env=env).returncode
    if status == 1:
        sys.exit("reliability.py: a test failed, so there are no results")
    if status:
        raise ValueError(f"the tests could not be run: pytest ended with status {status}")
    suite = ElementTree.parse(report).getroot()[0]
    skipped = int(suite.attrib["skipped"])
    return lines, {"run": int(suite.attrib["tests"]) - skipped, "skipped": skipped}


def summed(path: Path) -> list[dict[str, Any]]:
    """Each fault once, in the order of the lines: the numbers of tries and of outcomes.

    Raises:
        ValueError: A line is not what `--faults` writes; the message names the file and the line.
    """
    faults: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found = json.loads(line)
            fault, ended, test = found["fault"], found["outcomes"], found["test"]
            if not isinstance(fault, str) or not all(isinstance(it, int) and it >= 0 for it in ended.values()):
                raise TypeError("names must be text, counts integers")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path.name}, line {number}: not a fault of a test ({error!r})") from error
        one = faults.setdefault(fault, {"fault": fault, "outcomes": Counter(), "tests": set()})
        one["outcomes"].update(ended)
        one["tests"].add(test)
    return [{**it, "tried": it["outcomes"].total(), "tests": sorted(it["tests"])} for it in faults.values()]


def outcome_text(outcomes: dict[str, int]) -> str:
    """Such as `380 rejected by name; 120 decoded exactly`, the most frequent first."""
    return "; ".join(f"{count:,} {phrase}" for phrase, count in sorted(outcomes.items(), key=lambda it: -it[1]))


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the tests, or read their outcomes; return the contents of the JSON file."""
    lines, tests = options.lines, None
    with tempfile.TemporaryDirectory(prefix="fastemo-reliability-") as folder:
        if lines is None:
            lines, tests = attack(Path(folder), quick=options.quick, full=options.full)
        faults = summed(lines)
    if not faults:
        raise ValueError("no test reported a fault")
    settings, tried = {"quick": options.quick, "full": options.full}, sum(it["tried"] for it in faults)
    return {"settings": settings, "tests": tests, "tried": tried, "faults": faults}


def show(console: Console, found: dict[str, Any]) -> None:
    """Show the table."""
    faults = found["faults"]
    rows = [{"fault": it["fault"], "tried": it["tried"], "outcome": outcome_text(it["outcomes"])} for it in faults]
    console.table(f"{found['tried']:,} faults of {len(rows)} kinds", rows)


def kind(found: dict[str, Any]) -> str:
    """Results of a sample get a separate file."""
    return "" if found["settings"]["full"] or found["settings"]["quick"] else "-sample"


def main(arguments: list[str] | None = None) -> None:
    results.run_command("reliability", arguments, parse, run, show, kind=kind)


if __name__ == "__main__":
    main()
