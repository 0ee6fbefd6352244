"""What a page is made of: runs, evaluations and studies, read from their folders and held to their shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastemo.evaluation.tables import PredictionTable, read_predictions
from fastemo.report.page_check import read_json, read_json_lines
from fastemo.report.page_shapes import EPOCH, EXAMPLES, STUDY, TEST

Settings = Mapping[str, Any]
SPLITS_OF_EVALUATION = ("test", "val", "train", "all")

_LOGGED_COMMAND = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) command: (.{1,4000})")


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One model as it was tested: a run, a cell of a study, or a later evaluation.

    Attributes:
        name: The folder's, or the cell's.
        folder: Where its files lie; None where they are not there, and `study.json` alone tells of it.
        result: `test.json` held to its shape, None for what is missing; `interval` is the accuracy's.
        settings: The configuration by key joined by dots, as far as it is known.
        history: Rows of `metrics.jsonl`.
        examples: Of `examples.json`, None where there is no such file.
        table: `predictions.csv`, None where there is no such file.
        command, date: Of the log.
    """

    name: str
    folder: Path | None
    result: dict[str, Any]
    settings: Settings
    history: tuple[dict[str, Any], ...] = ()
    examples: tuple[dict[str, Any], ...] | None = None
    table: PredictionTable | None = field(default=None, repr=False)
    command: str | None = None
    date: str | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.result["per_class"])

    @property
    def model(self) -> str:
        return str(self.settings.get("model.name") or self.result.get("model") or self.name)

    @property
    def num_frames(self) -> int | None:
        found = self.settings.get("video.num_frames")
        return found if isinstance(found, int) else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the results: one run, or the mean of a configuration's seeds and folds.

    Attributes:
        tested: Its runs, empty where it is not finished.
        values: Of `study.json`'s row: accuracy, accuracies, interval, report, order, probes, cost.
    """

    label: str
    settings: Settings
    tested: tuple[Tested, ...]
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows that are held beside each other.

    Attributes:
        comparisons, order_comparisons: Rows of `compare`.
        note: Why there are none.
    """

    title: str
    rows: tuple[Row, ...]
    comparisons: tuple[dict[str, Any], ...] = ()
    order_comparisons: tuple[dict[str, Any], ...] = ()
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """Attributes:
    head: The keys of `study.json` but cells and parts.
    cells: The finished ones, by name.
    unfinished: Name, status and reason of the others.
    """

    head: dict[str, Any]
    parts: tuple[Part, ...]
    cells: dict[str, Tested]
    unfinished: tuple[dict[str, Any], ...]


def read_run(folder: Path, settings: Settings) -> Tested:
    """Read a finished run folder.

    Raises:
        ValueError: It is not finished, or a file of it is damaged.
    """
    path = folder / "test.json"
    if not path.is_file():
        raise ValueError(
            f"fastemo page needs a finished run, an evaluation or a study folder: {folder} holds no test.json; bring "
            f"an interrupted run to its end by fastemo train --resume {folder}"
        )
    return _read_tested(folder, path, settings)


def evaluation_file(folder: Path) -> Path | None:
    """The results of an evaluation folder, None where it is another folder."""
    if not folder.is_dir() or (folder / "config.yaml").exists():
        return None
    found = [folder / f"{split}.json" for split in SPLITS_OF_EVALUATION]
    return next((path for path in found if path.is_file()), None)


def read_evaluation(folder: Path, settings: Settings) -> Tested:
    """Read what `fastemo evaluate` left in a folder.

    Raises:
        ValueError: It holds no such thing, or a file of it is damaged.
    """
    path = evaluation_file(folder)
    if path is None:
        raise ValueError(f"{folder} is no evaluation: it holds none of test.json, val.json, train.json and all.json")
    return _read_tested(folder, path, settings)


def _read_tested(folder: Path, path: Path, settings: Settings) -> Tested:
    result = read_json(path, TEST)
    _check_square(result, str(path))
    intervals = result["intervals"]
    result["interval"] = intervals["accuracy"] if intervals else None
    history, examples, predictions = (folder / name for name in ("metrics.jsonl", "examples.json", "predictions.csv"))
    date, command = _logged(folder / "log.txt")
    rows = tuple(read_json_lines(history, EPOCH)) if history.is_file() else ()
    result["epochs"] = len(rows) or None
    return Tested(
        name=folder.resolve().name,
        folder=folder,
        result=result,
        settings=settings,
        history=rows,
        examples=tuple(read_json(examples, EXAMPLES)["examples"]) if examples.is_file() else None,
        table=read_predictions(predictions) if predictions.is_file() else None,
        command=command,
        date=date,
    )


def read_study(folder: Path, settings_of: Callable[[Path], Settings]) -> Study:
    """Read a study folder; a finished cell whose run folder is not there is told by `study.json` alone.

    Args:
        settings_of: The configuration of a run folder, empty where it holds none.

    Raises:
        ValueError: It is no study folder, or a file of it is damaged.
    """
    path = folder / "study.json"
    content = read_json(path, STUDY)
    cells: dict[str, Tested] = {}
    unfinished = []
    for cell in content.pop("cells"):
        run = folder / cell["folder"]
        if not run.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path}: the folder {cell['folder']!a} of a cell leads out of the study; mend the path")
        settings = cell["settings"] or {}
        if cell["status"] == "finished" and (run / "test.json").is_file():
            found = read_run(run, {**settings, **settings_of(run)})
            order = cell["result"] and cell["result"]["order"]
            cells[cell["name"]] = _renamed(found, cell["name"], order)
        elif cell["status"] == "finished" and cell["result"]:
            _check_square(cell["result"], f"{path}, cell {cell['name']}")
            result = {**cell["result"], "seed": cell["seed"]}
            cells[cell["name"]] = Tested(name=cell["name"], folder=None, result=result, settings=settings)
        else:
            unfinished.append(cell)
    parts = tuple(_part(part, cells) for part in content.pop("parts"))
    return Study(head=content, parts=parts or _by_cell(cells), cells=cells, unfinished=tuple(unfinished))


def _renamed(tested: Tested, name: str, order: dict[str, Any] | None) -> Tested:
    return Tested(**{**tested.__dict__, "name": name, "result": {**tested.result, "order": order}})


def _part(part: dict[str, Any], cells: Mapping[str, Tested]) -> Part:
    rows = []
    for row in part["rows"]:
        of_row = [cells[name] for name in row["cells"] if name in cells]
        is_whole = row["accuracy"] is not None and len(of_row) == len(row["cells"])
        rows.append(
            Row(label=row["label"], settings=row["settings"], tested=tuple(of_row) if is_whole else (), values=row)
        )
    return Part(
        title=part["title"] or part["name"],
        rows=tuple(rows),
        comparisons=tuple(part["comparisons"] or ()),
        order_comparisons=tuple(part["order_comparisons"] or ()),
        note=part["comparison_note"],
    )


def _by_cell(cells: Mapping[str, Tested]) -> tuple[Part, ...]:
    """A study that was not summed up yet."""
    rows = tuple(row_of(tested, tested.name) for tested in cells.values())
    note = "The study was not summed up yet: the same command goes on with it."
    return (Part(title="Finished cells", rows=rows, note=note),) if rows else ()


def row_of(tested: Tested, label: str, *, report: float | None = None) -> Row:
    """One run as a line of the results."""
    values = {name: tested.result.get(name) for name in ("accuracy", "interval", "order", "probes", "cost")}
    values |= {"accuracies": [tested.result["accuracy"]], "report": report}
    return Row(label=label, settings=tested.settings, tested=(tested,), values=values)


def _check_square(result: dict[str, Any], where: str) -> None:
    size = len(result["per_class"])
    if not size or any(len(line) != size for line in (result["confusion"], *result["confusion"])):
        raise ValueError(f"{where} is not as fastemo writes it: confusion must be {size} x {size}, as per_class names")


def _logged(path: Path) -> tuple[str | None, str | None]:
    """Date and command of the first line of a log."""
    if not path.is_file():
        return None, None
    with path.open(encoding="utf-8", errors="replace") as file:
        found = _LOGGED_COMMAND.match(file.readline(5000))
    return (found[1], found[2]) if found else (None, None)
