"""The tables of results in the README and the documentation, made from the JSON files in `results/`.

    python benchmarks/tables.py             # rewrite what stands between the documents' markers
    python benchmarks/tables.py --check     # status 1 if a document is not what this would write

README.md compares with other programs, docs/benchmarks.md holds all results, docs/models.md what each network costs
and each recipe key is worth, docs/reliability.md the table of faults.

It reads the newest `throughput-*`, `epoch-time-*`, `inference-*`, `scaling-*` and `reliability-*` of each machine, the
newest `accuracy-*` of each run and machine, the newest `gpu/check-*` of each card, and every `study-*/study.json`.
Results of --quick, of a rehearsal, or of a sample of the faults (without --full) are left out: they only show that a
benchmark works.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.common.epochs.networks import NETWORKS
from benchmarks.common.markdown import NO_RESULTS, Found, facts, markdown, share
from benchmarks.common.results import REPOSITORY, cores_text, figure_text, machine_slug
from benchmarks.common.studies import keys_text, study_text
from benchmarks.reliability import outcome_text
from fastemo.errors import one_line_errors
from fastemo.machine import write_text
from fastemo.report.published import report_accuracy

# By kind of file, the heading of the table and what a file must have besides when, where and with what it was made.
_KINDS = {
    "throughput": ("The data path, from the file to the batch (`benchmarks/throughput.py`)", ["targets"]),
    "epoch_time": ("Whole epochs (`benchmarks/epoch_time.py`)", ["targets"]),
    "scaling": ("Several processes (`benchmarks/scaling.py`)", ["targets"]),
    "check": ("On a GPU (`benchmarks/gpu_check.py`)", ["stages"]),
    "accuracy": ("Accuracy on the built-in corpus", ["model", "epochs", "accuracy", "interval", "seed"]),
    "inference": ("A trained model on new videos (`benchmarks/inference.py`)", ["targets"]),
    "study": ("Study", ["name", "cells", "parts", "minutes"]),
    "reliability": ("Faults", ["faults"]),
}
# The headlines of a throughput file, which has no list of its own.
_STAGES = ("decode_full", "decode_pruned", "loader_cold", "loader_cold_gpu", "loader_device")


def read(folder: Path) -> dict[str, list[Found]]:
    """The files' contents by kind, oldest first.

    Raises:
        ValueError: A file is not JSON, or lacks an entry of its kind; the message names the file.
    """
    found: dict[str, list[Found]] = {}
    for path in sorted(it for glob in ("*.json", "study-*/study.json", "gpu/check-*.json") for it in folder.glob(glob)):
        name = (path.parent.name if path.name == "study.json" else path.name).replace("epoch-time", "epoch_time")
        kind = name.split("-")[0]
        if kind not in _KINDS:
            raise ValueError(f"{path.name} is none of {', '.join(_KINDS)}")
        try:
            one = json.loads(path.read_text(encoding="utf-8"))
            needed = ("date", "machine", "versions", "command", *_KINDS[kind][1])
            if missing := [name for name in needed if name not in one]:
                raise ValueError(f"it lacks {', '.join(missing)}")
        except ValueError as error:
            raise ValueError(f"{path.name} cannot be read: {error}") from error
        settings = one.get("settings", {})
        if not settings.get("quick") and settings.get("full", True) and not one.get("rehearsed"):
            found.setdefault(kind, []).append(one)
    return {kind: sorted(its, key=lambda it: it["date"]) for kind, its in found.items()}


def newest(files: list[Found]) -> list[Found]:
    """The last of each machine, and of each training with an accuracy; `files` are sorted by date."""

    def key(it: Found) -> tuple[str, ...]:
        # Two hosts played by one machine are not another machine, but another measurement.
        training = [it["model"], it["command"], it["seed"]] if "model" in it else []
        return tuple(map(str, (machine_slug(it["machine"]), it.get("settings", {}).get("hosts", 1), *training)))

    last = {key(it): it for it in files}
    return [last[key] for key in sorted(last)]


def text(found: dict[str, list[Found]]) -> str:
    """All tables but the faults, as Markdown."""
    parts = []
    for kind in ("throughput", "epoch_time", "inference", "scaling", "check", "accuracy"):
        if files := newest(found.get(kind, [])):
            table = _accuracies(files) if kind == "accuracy" else _by_machine(files)
            parts.append(f"### {_KINDS[kind][0]}\n\n{table}")
    parts += [study_text(it) for it in found.get("study", [])]
    return "\n\n".join(parts) or NO_RESULTS


def peers_text(found: dict[str, list[Found]]) -> str:
    """What other programs reach at the same jobs, from the newest files of a machine without a GPU, as Markdown."""
    cells = [["job", "fastemo, clips/s", "other program", "its clips/s", "fastemo is faster by"]]
    about = []
    for kind, compared in (("throughput", _loading), ("epoch_time", _training)):
        for it in [it for it in found.get(kind, []) if not it["machine"]["gpus"] and [*compared(it)]][-1:]:
            for job, own, peer, ratio in compared(it):
                rates = [figure_text(stage["clips_per_second"]["median"]) for stage in (own, peer)]
                cells.append([job, rates[0], peer["title"], rates[1], f"{figure_text(ratio['median'])} x"])
            date, versions, command = facts(it).values()
            about.append(f"{_machine(it['machine'])}; {command} ({date}, {versions}).")
    return f"{markdown(cells)}\n\n{' '.join(about)}" if about else NO_RESULTS


def models_text(found: dict[str, list[Found]]) -> str:
    """Every network: what it is, and what a clip of it costs by the newest file of each machine without a GPU."""
    files = newest([it for it in found.get("epoch_time", []) if not it["machine"]["gpus"]])
    files = [it for it in files if any("parameters" in entry for entry in it["models"].values())]
    rates = ["trained, clips/s", "predicted, clips/s"] * len(files)
    head = ["`--model.name`", "`--model.backbone`", "what it is", "pretrained on", "parameters", "GFLOPs", *rates]
    rows = [[*head, "Roy (2025)"]]
    for key, network in NETWORKS.items():
        name, _, backbone = key.partition(":")
        entries = [it["models"].get(key, {}) for it in files]
        known = next((it for it in entries if "parameters" in it), None)
        row = [f"`{name}`", f"`{backbone}`" if backbone else "", network.what, network.trained_on]
        row.append(f"{known['parameters'] / 1e6:.1f} M" if known else "-")
        row.append(f"{known['forward_flops_a_clip'] / 1e9:.2g}" if known else "-")
        passes = [it.get("passes", {}).get(part) for it in entries for part in ("warm", "forward")]
        row += [figure_text(it["clips_per_second"]["median"]) if it else "-" for it in passes]
        rows.append([*row, _reported(key)])
    where = [f"{_machine(it['machine'])}, {it['settings']['precision']}: {facts(it)['command']}" for it in files]
    return "\n\n".join([markdown(rows), *where])


def names_text(found: dict[str, list[Found]]) -> str:
    """Every model by name, and its accuracy in Roy (2025)."""
    rows = [["`--model.name`", "what it is", "Roy (2025), on RAVDESS"]]
    rows += [[f"`{it}`", network.what, _reported(it)] for it, network in NETWORKS.items() if ":" not in it]
    return markdown(rows)


def _reported(model: str) -> str:
    found = report_accuracy(model, 10, augmented=True)
    return "" if found is None else f"{found * 100:.4g} %"


def _loading(found: Found) -> Iterator[tuple[str, Found, Found, Found]]:
    """Of each peer of a throughput file: the job, fastemo's stage, the peer's, and the first over the second."""
    for name, peer in found["peers"].items():
        prepared = "extraction" in peer  # it reads frames that were decoded before
        stage = "loader_memory" if prepared else "loader_cold"
        job = "load clips that were decoded before" if prepared else "decode 10 frames of each video"
        yield job, found["rungs"][stage], peer, found["ratios"][f"{stage}_over_{name}"]


def _training(found: Found) -> Iterator[tuple[str, Found, Found, Found]]:
    """The same of an epoch-time file."""
    passes, ratios = (found["models"]["late_fusion"][name] for name in ("passes", "ratios"))
    for name in filter(passes.get, ("plain", "report")):
        yield "train `late_fusion`, after the first epoch", passes["warm"], passes[name], ratios[f"warm_over_{name}"]


def _by_machine(files: list[Found]) -> str:
    """One column a machine: when and how it was measured, then its own cells."""
    columns = [facts(it) | (_on_gpu(it) if "stages" in it else _headlines(it) | _targets(it)) for it in files]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "-") for column in columns)] for name in names]
    return markdown([["", *(_machine(it["machine"]) for it in files)], *rows])


def _on_gpu(found: Found) -> dict[str, str]:
    """The verdicts, warm steps by model, the ways to decode, memory."""
    stages = found["stages"]
    failed = [name for name, it in stages.items() if not it["ok"]]
    verdict = f"**failed: {', '.join(failed)}**" if failed else f"all {len(stages)} ok"
    cells = {"stages": f"{verdict} ({found['note']})" if found.get("note") else verdict}
    rates: dict[str, dict[str, list[str]]] = {}
    for key, step in stages.get("training", {}).get("steps", {}).items():
        model, batch, variant = key.split(", ")
        if "clips_per_second" in step:
            rate = f"{figure_text(step['clips_per_second'])} in {variant.replace('_', ' with ')}"
            rates.setdefault(model, {}).setdefault(batch, []).append(rate)
    for model, batches in rates.items():
        title = f"{model}: warm steps from the device tier, clips/s"
        cells[title] = "; ".join(f"{batch}: {', '.join(its)}" for batch, its in batches.items())
    for size, its in stages.get("nvdec", {}).items():
        if isinstance(its, dict) and any(name.startswith("dali, ") for name in its):
            for kind in ("loader cold, dali", "loader cold, pyav", "dali, pruned", "dali, full"):
                if best := max((rate for name, rate in its.items() if name.startswith(kind)), default=None):
                    cells[f"{size}: {kind}, at its best"] = figure_text(best, "clips/s")
    if "growth_mib" in (memory := stages.get("memory", {})):
        growth = (f"{figure_text(mib)} MiB {name.removesuffix('_mib')}" for name, mib in memory["growth_mib"].items())
        cells[f"memory growth over {memory['decodes']:,} decodes"] = ", ".join(growth)
    return cells


def _accuracies(files: list[Found]) -> str:
    """One row a run."""
    rows = [["model", "epochs", "test accuracy (95 % interval)", "seed", "", "date", "machine", "versions", "command"]]
    for it in sorted(files, key=lambda it: -it["accuracy"]):
        date, versions, command = facts(it).values()
        row = [f"`{it['model']}`", str(it["epochs"]), share(it), str(it["seed"]), it.get("note", "")]
        rows.append([*row, date, _machine(it["machine"]), versions, command])
    return markdown(rows)


def faults_text(found: dict[str, list[Found]]) -> str:
    """Of each machine: when, where and with what, then one row per kind of fault."""
    parts = []
    for it in newest(found.get("reliability", [])):
        when, faults = facts(it), it["faults"]
        count = f"{len(faults):,} kinds of fault, tried {sum(fault['tried'] for fault in faults):,} times"
        parts.append(f"{count}: {when['date']}, {_machine(it['machine'])}, {when['versions']}, {when['command']}.")
        rows = [[fault["fault"], f"{fault['tried']:,}", outcome_text(fault["outcomes"])] for fault in faults]
        parts.append(markdown([["fault", "tried", "outcome"], *rows]))
    return "\n\n".join(parts) or NO_RESULTS


def _machine(machine: dict[str, Any]) -> str:
    gpus = machine["gpus"]
    count = f"{len(gpus)} x " if len(gpus) > 1 else ""
    return f"{count}{gpus[0]}, {cores_text(machine)}" if gpus else f"{cores_text(machine)}, no GPU"


def _headlines(found: Found) -> dict[str, str]:
    """Figures without a target."""
    cells = {row["title"]: figure_text(row["value"], row["unit"]) for row in found.get("headlines", [])}
    for name in _STAGES:
        stage = found.get("rungs", {}).get(name, {})
        if stage.get("rounds"):
            cells[stage["title"]] = figure_text(stage["clips_per_second"]["median"], "clips/s")
    return cells


def _targets(found: Found) -> dict[str, str]:
    cells = {}
    for it in found["targets"]:
        sign, bound = ("<=", it["at_most"]) if "at_most" in it else (">=", it["at_least"])
        verdict = f"**{it['verdict']}**" if it["verdict"] == "not reached" else it["verdict"]
        value = "" if it["value"] is None else f"{figure_text(it['value'], it['unit'])}, "
        note = f" ({it['note']})" if it["note"] else ""
        cells[it["title"]] = f"{value}{verdict}; target {sign} {figure_text(bound, it['unit'])}{note}"
    return cells


def with_table(document: str, name: str, table: str) -> str:
    """The document with a table between the markers of its name.

    Raises:
        ValueError: It does not have one pair of these markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise ValueError(f"it needs one {begin} and after it one {end}, where the tables go")
    return f"{document.split(begin)[0]}{begin}\n\n{table}\n\n{end}{document.split(end)[1]}"


PLACES: tuple[tuple[str, str, Callable[[dict[str, list[Found]]], str]], ...] = (
    ("README.md", "models", names_text),
    ("README.md", "peers", peers_text),
    ("docs/benchmarks.md", "results", text),
    ("docs/models.md", "models", models_text),
    ("docs/models.md", "keys", keys_text),
    ("docs/reliability.md", "reliability", faults_text),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if it would change a document")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="folder of the documents (default: the clone)")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of JSONs")
    with one_line_errors():
        options = parser.parse_args(arguments)
        found = read(options.results)
        for place, name, table in PLACES:
            old = (options.root / place).read_text(encoding="utf-8")
            try:
                new = with_table(old, name, table(found))
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            if new != old and options.check:
                sys.exit(f"{place} is not what the results say; run python benchmarks/tables.py")
            if new != old:
                write_text(options.root / place, new)


if __name__ == "__main__":
    main()
