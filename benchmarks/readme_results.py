"""The README's tables of results, made from the JSON files in `results/`.

    python benchmarks/readme_results.py             # rewrite what stands between the README's markers
    python benchmarks/readme_results.py --check     # status 1 if the README is not what this would write

Read are `throughput-*`, `epoch-time-*` and `scaling-*`, of each machine the newest, `accuracy-*`, of each run on each
machine the newest, `gpu/check-*`, of each card the newest, and every `study-*/study.json`. The table of faults, from
the newest `reliability-*` of each machine, stands between markers of its own. What was measured with --quick or only
rehearsed is left out: it says whether a benchmark works, nothing more; and so is a sample of the faults, without
--full.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.common.results import REPOSITORY, cores_text, figure_text, machine_slug
from benchmarks.reliability import outcome_text
from fastemo.errors import one_line_errors
from fastemo.machine import write_text

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
FAULTS_BEGIN, FAULTS_END = "<!-- reliability: begin -->", "<!-- reliability: end -->"
BENCHMARKS = {
    "throughput": "The data path, from the file to the batch",
    "epoch_time": "Whole epochs",
    "scaling": "Several processes",
}
# What each kind of file must have, besides when, where and with what it was made.
_NEEDED = {
    **{benchmark: ["targets"] for benchmark in BENCHMARKS},
    "accuracy": ["model", "epochs", "accuracy", "interval", "seed"],
    "reliability": ["faults"],
    "study": ["name", "cells", "parts", "minutes"],
    "check": ["stages"],
}
_VERSIONS = {"torch": "torch", "av": "PyAV", "fastemo": "fastemo"}
# The headlines of a throughput file, which names them in no list of its own.
_RUNGS = ("decode_full", "decode_pruned", "loader_cold", "loader_cold_gpu", "loader_device")

Found = dict[str, Any]


def read(folder: Path) -> dict[str, list[Found]]:
    """The files' contents by kind, oldest first.

    Raises:
        ValueError: A file is no JSON, or lacks what every kind has; the message names it.
    """
    found: dict[str, list[Found]] = {}
    for path in sorted(it for glob in ("*.json", "study-*/study.json", "gpu/check-*.json") for it in folder.glob(glob)):
        name = path.parent.name if path.name == "study.json" else path.name
        kind = next((it for it in _NEEDED if name.replace("_", "-").startswith(f"{it.replace('_', '-')}-")), None)
        if kind is None:
            raise ValueError(f"{path.name} is none of {', '.join(_NEEDED)}")
        try:
            one = json.loads(path.read_text(encoding="utf-8"))
            needed = ("date", "machine", "versions", "command", *_NEEDED[kind])
            if missing := [name for name in needed if name not in one]:
                raise ValueError(f"lacks {', '.join(missing)}")
        except ValueError as error:
            raise ValueError(f"{path.name} cannot be read: {error}") from error
        settings = one.get("settings", {})
        if not settings.get("quick") and settings.get("full", True) and not one.get("rehearsed"):
            found.setdefault(kind, []).append(one)
    return {kind: sorted(its, key=lambda it: it["date"]) for kind, its in found.items()}


def newest(found: Sequence[Found], keys: Sequence[str] = ()) -> list[Found]:
    """The last of each machine and of each value of `keys`; `found` is sorted by date."""
    last = {}
    for it in found:
        # Hosts that one machine played are no other machine, but another measurement.
        machine = f"{machine_slug(it['machine'])} {it.get('settings', {}).get('hosts', 1)}"
        last[(machine, *(str(it.get(key)) for key in keys))] = it
    return [last[key] for key in sorted(last)]


def text(found: dict[str, list[Found]]) -> str:
    """All tables, as Markdown."""
    parts = []
    for kind, heading in BENCHMARKS.items():
        if files := newest(found.get(kind, [])):
            columns = [_headlines(it) | _targets(it) for it in files]
            parts.append(f"### {heading} (`benchmarks/{kind}.py`)\n\n{_by_machine(files, columns)}")
    if files := newest(found.get("check", [])):
        columns = [_on_gpu(it["stages"], it.get("note")) for it in files]
        parts.append(f"### On a GPU (`benchmarks/gpu_check.py`)\n\n{_by_machine(files, columns)}")
    if files := newest(found.get("accuracy", []), ("model", "command", "seed")):
        parts.append(f"### Accuracy on the built-in corpus\n\n{accuracy_table(files)}")
    parts += [study_text(it) for it in found.get("study", [])]
    return "\n\n".join(parts) or "No results yet."


def _by_machine(files: Sequence[Found], columns: Sequence[dict[str, str]]) -> str:
    """One column a machine: when and how it was measured, then its own cells."""
    columns = [_facts(it) | own for it, own in zip(files, columns, strict=True)]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "-") for column in columns)] for name in names]
    return _markdown([["", *(_machine(it["machine"]) for it in files)], *rows])


def _on_gpu(stages: dict[str, Any], note: str | None) -> dict[str, str]:
    """The verdicts, warm steps by model, the ways to decode, memory."""
    failed = [name for name, it in stages.items() if not it["ok"]]
    verdict = f"**failed: {', '.join(failed)}**" if failed else f"all {len(stages)} ok"
    cells = {"stages": f"{verdict} ({note})" if note else verdict}
    models: dict[str, dict[str, list[str]]] = {}
    for key, step in stages.get("training", {}).get("steps", {}).items():
        model, batch, variant = key.split(", ")
        if "clips_per_second" in step:
            rate = f"{figure_text(step['clips_per_second'])} in {variant.replace('_', ' with ')}"
            models.setdefault(model, {}).setdefault(batch, []).append(rate)
    for model, batches in models.items():
        rates = "; ".join(f"{batch}: {', '.join(its)}" for batch, its in batches.items())
        cells[f"{model}: warm steps from the device tier, clips/s"] = rates
    for size, its in stages.get("nvdec", {}).items():
        if isinstance(its, dict) and any(name.startswith("dali, ") for name in its):
            for kind in ("loader cold, dali", "loader cold, pyav", "dali, pruned", "dali, full"):
                if best := max((rate for name, rate in its.items() if name.startswith(kind)), default=None):
                    cells[f"{size}: {kind}, at its best"] = f"{figure_text(best)} clips/s"
    if "growth_mib" in (memory := stages.get("memory", {})):
        growth = (f"{figure_text(mib)} MiB {name.removesuffix('_mib')}" for name, mib in memory["growth_mib"].items())
        cells[f"memory growth over {memory['decodes']:,} decodes"] = ", ".join(growth)
    return cells


def accuracy_table(files: Sequence[Found]) -> str:
    """One row a run."""
    rows = [["model", "epochs", "test accuracy (95 % interval)", "seed", "", "date", "machine", "versions", "command"]]
    for it in sorted(files, key=lambda it: -it["accuracy"]):
        accuracy = _share(it["accuracy"], it["interval"])
        facts = _facts(it)
        row = [f"`{it['model']}`", str(it["epochs"]), accuracy, str(it["seed"]), it.get("note", ""), facts["date"]]
        rows.append([*row, _machine(it["machine"]), facts["versions"], facts["command"]])
    if not any(row[4] for row in rows):
        rows = [[*row[:4], *row[5:]] for row in rows]
    return _markdown(rows)


def study_text(found: Found) -> str:
    """A study's rows part by part, and how the rows of each differ."""
    facts, machine = _facts(found), found["machine"]
    where = machine["gpu"] or f"{machine['processors']} cores of {machine['processor']}, no GPU"
    head = (
        f"### Study `{found['name']}`: {found['corpus']}, protocol {found['protocol']}\n\n"
        f"{facts['date']}, {where}, {facts['versions']}, {facts['command']}: {len(found['cells'])} cells, "
        f"{found['minutes']:.0f} minutes of training and testing."
    )
    return "\n\n".join([head, *(_part_text(part) for part in found["parts"])])


def _part_text(part: dict[str, Any]) -> str:
    has_order = any(row["order"] for row in part["rows"])
    rows = [["", "test accuracy (95 % interval)", "order told apart (95 % interval)", "in the report, on RAVDESS"]]
    for row in part["rows"]:
        order = row["order"]
        rows.append(
            [
                row["label"],
                "not finished" if row["accuracy"] is None else _share(row["accuracy"], row["interval"]),
                _share(order["accuracy"], order["interval"]) if order else "-",
                "-" if row["report"] is None else f"{row['report'] * 100:.1f} %",
            ]
        )
    told = [_markdown(rows if has_order else [[*row[:2], row[3]] for row in rows])]
    if part["comparisons"]:
        pairs = _pairs(part["comparisons"], part.get("order_comparisons") or [])
        told.append(_folded("Pairs on the same takes", pairs))
    return "\n\n".join([f"**{part['title']}**", *told])


def _pairs(comparisons: Sequence[dict[str, Any]], of_order: Sequence[dict[str, Any]]) -> str:
    """A row a pair: the difference of accuracies in points, on all clips and on those that order alone tells apart."""
    rows = [["pair", "all clips: points, p", "classes that differ in order: points, p"]]
    by_pair = {(it["a"], it["b"]): it for it in of_order}
    for it in comparisons:
        other = by_pair.get((it["a"], it["b"]))
        rows.append([f"{it['a']} less {it['b']}", _points(it), _points(other) if other else "-"])
    return _markdown(rows if of_order else [row[:2] for row in rows])


def _points(pair: dict[str, Any]) -> str:
    low, high = pair["interval"]
    return f"{pair['difference'] * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f}), {pair['p_bootstrap_holm']:.3f}"


def _share(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value * 100:.1f} % ({low * 100:.1f} to {high * 100:.1f})"


def faults_text(found: dict[str, list[Found]]) -> str:
    """Of each machine when, where and with what, and folded below it one row a kind of fault."""
    parts = []
    for it in newest(found.get("reliability", [])):
        facts = _facts(it)
        head = f"{facts['date']}, {_machine(it['machine'])}, {facts['versions']}, {facts['command']}:"
        rows = [[fault["fault"], f"{fault['tried']:,}", outcome_text(fault["outcomes"])] for fault in it["faults"]]
        tries = sum(fault["tried"] for fault in it["faults"])
        title = f"{len(rows):,} kinds of fault, tried {tries:,} times"
        parts.append(f"{head}\n\n{_folded(title, _markdown([['fault', 'tried', 'outcome'], *rows]))}")
    return "\n\n".join(parts) if parts else "No results yet."


def _machine(machine: dict[str, Any]) -> str:
    gpus = machine["gpus"]
    count = f"{len(gpus)} x " if len(gpus) > 1 else ""
    return f"{count}{gpus[0]}, {cores_text(machine)}" if gpus else f"{cores_text(machine)}, no GPU"


def _facts(found: Found) -> dict[str, str]:
    known = found["versions"]
    return {
        "date": found["date"][:10],
        "versions": ", ".join(f"{title} {known[name]}" for name, title in _VERSIONS.items() if name in known),
        "command": f"`{found['command']}`",
    }


def _headlines(found: Found) -> dict[str, str]:
    """Figures without a target: a file's own list, or a throughput file's rungs."""
    rows = found.get("headlines")
    if rows is None:
        rungs = found.get("rungs", {})
        rows = [
            {"title": rungs[name]["title"], "value": rungs[name]["clips_per_second"]["median"], "unit": "clips/s"}
            for name in _RUNGS
            if rungs.get(name, {}).get("rounds")
        ]
    return {row["title"]: f"{figure_text(row['value'])} {row['unit']}".strip() for row in rows}


def _targets(found: Found) -> dict[str, str]:
    cells = {}
    for it in found["targets"]:
        sign, bound = ("<=", it["at_most"]) if "at_most" in it else (">=", it["at_least"])
        limit = f"{sign} {figure_text(bound)} {it['unit']}".strip()
        if it["value"] is None:
            value = it["verdict"]
        else:
            verdict = f"**{it['verdict']}**" if it["verdict"] == "not reached" else it["verdict"]
            value = f"{figure_text(it['value'])} {it['unit']}".strip() + f", {verdict}"
        note = f" ({it['note']})" if it.get("note") else ""
        cells[it["title"]] = f"{value}; target {limit}{note}"
    return cells


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rewritten(readme: str, tables: str, begin: str = BEGIN, end: str = END) -> str:
    """The README with the tables between its markers.

    Raises:
        ValueError: It has not one pair of markers.
    """
    if readme.count(begin) != 1 or readme.count(end) != 1 or readme.index(begin) > readme.index(end):
        raise ValueError(f"the README needs one {begin} and after it one {end}, where the tables go")
    between = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return between.sub(lambda _: f"{begin}\n\n{tables}\n\n{end}", readme)


def with_results(readme: str, found: dict[str, list[Found]]) -> str:
    """The README with all tables; one without markers for the faults stays without their table.

    Raises:
        ValueError: It has not one pair of markers of a kind.
    """
    readme = rewritten(readme, text(found))
    if FAULTS_BEGIN not in readme and FAULTS_END not in readme:
        return readme
    return rewritten(readme, faults_text(found), FAULTS_BEGIN, FAULTS_END)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="readme_results.py"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if it would change the README")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of JSONs")
    with one_line_errors():
        options = parser.parse_args(arguments)
        old = options.readme.read_text(encoding="utf-8")
        new = with_results(old, read(options.results))
        if options.check:
            if new != old:
                print(f"{options.readme.name} is not what the results say; run python benchmarks/readme_results.py")
                sys.exit(1)
        elif new != old:
            write_text(options.readme, new)


if __name__ == "__main__":
    main()
