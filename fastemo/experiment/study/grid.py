"""From a study file to its runs: each a complete configuration, duplicates removed.

name: fusion
description: How late fusion joins its frames.
base: {video: {num_frames: 10}}            # keys of every run, over the defaults
seeds: [0, 1]
parts:
  - name: fusion
    title: Late fusion by kind
    base: {model.name: late_fusion}        # keys may be nested or joined by dots
    compare: all                           # rows that are compared: all pairs, or each with the `first`
    cells: [{}, {train.lr: 3e-4}]          # sets of keys, one after the other
    grid: {model.fusion: [mean, max]}      # every combination of values, with each of `cells`

The value `all` of `corpus.fold` stands for every fold of the protocol, and `part:NAME` of `model.weights` for the
weights of the only run of an earlier part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from fastemo.config import RunConfig, config_leaves, read_config, with_lists
from fastemo.corpus.config import CorpusConfig
from fastemo.corpus.folds import RAVDESS_FOLDS
from fastemo.experiment.study.content import check_mapping, flat, list_of, text_of
from fastemo.experiment.study.naming import argument, cell_name, label_of, plain
from fastemo.yaml_files import load_yaml

Settings = dict[str, Any]

_STUDY_KEYS = ("name", "description", "base", "seeds", "parts")
_PART_KEYS = ("name", "title", "base", "compare", "cells", "grid")
_COMPARE = ("all", "first")
_CELLS = Path("cells")  # of the runs, in the study's folder
# Set by the study for each of its runs.
_OWN = ("name", "runs_dir", "resume")
# Keys that do not affect the result: a run stays the same run.
_NO_RESULT = re.compile(
    r"name|runs_dir|resume|store\..+|video\.(prefetch_batches|decode_threads)|train\.(checkpoint_minutes|keep|trackers)|"
    r"model\.size"  # it is augment.crop_size
)
# Keys in which the runs of one row differ: the row is their mean.
REPEATS = ("seed", "corpus.fold", "corpus.synthetic.seed")
_NUM_FOLDS = {"kfold": CorpusConfig.folds, **{name: len(folds) for name, folds in RAVDESS_FOLDS.items()}}
# Keys that version 0.1.0 did not have: at their defaults, a run stays the same run.
_LATER = (
    *(
        "minutes",
        "corpus.folds",
        "corpus.allow_shared_subjects",
        "corpus.subjects",
        "corpus.classes",
        "train.test_every_epoch",
    ),
    *("corpus.synthetic.difficulty.place", "video.face_margin", "video.no_face", "faces.weights"),
    *("model.architecture", "model.shift", "model.drop_path", "video.stored_frames", "evaluate.views"),
    *("augment.color_jitter", "augment.random_erasing", "augment.mixup", "augment.cutmix"),
    *("train.optimizer", "train.warmup_epochs", "train.label_smoothing", "train.class_weights", "train.oversample"),
    *("train.ema", "train.backbone_lr", "train.layer_decay", "train.freeze_epochs"),
)
_MOST_CELLS = 1000


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study.

    Attributes:
        name: Folder name, made of the settings and a digest of the whole configuration.
        settings: The settings of the study, by dotted key; `seed` is always among them.
        config: Complete except for name and folder.
        start: Name of the run from whose weights it starts.
    """

    name: str
    settings: Settings
    config: RunConfig
    start: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs that differ only in seed, fold and seed of the built-in corpus.

    Attributes:
        label: What distinguishes it from the part's other rows, as text.
        settings: The same as keys and values.
        cells: Names of its runs, by fold and seed in the order of the file.
    """

    label: str
    settings: Settings
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows that are compared with each other, or each with the first.

    Attributes:
        compare: `all` or `first`.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    compare: str = "all"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Attributes:
    cells: Each configuration once, in the order of the file.
    """

    name: str
    description: str
    cells: tuple[Cell, ...]
    parts: tuple[Part, ...]


def read_study(path: Path, arguments: Sequence[str] = ()) -> Study:
    """Read a study file.

    Args:
        arguments: `--KEY VALUE` or `--KEY=VALUE` for every run, overriding the file.

    Raises:
        ValueError: The file does not exist or has a key or value that is not allowed, or an argument sets a key that
            the study varies; the message names the file and the key.
    """
    content = load_yaml(path)
    try:
        return _study(content, _overrides(arguments))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _study(content: Any, overrides: Settings) -> Study:
    check_mapping(content, "the study", _STUDY_KEYS, needed=("name", "parts"))
    name, description = text_of(content, "name"), text_of(content, "description", "")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}", name):
        raise ValueError(f"name must be letters, digits, '_', '.' and '-', at most 60, not {name!a}")
    seeds = list_of(content, "seeds", [0])
    base = flat(content.get("base") or {}, "base")
    cells: dict[str, Cell] = {}
    parts: list[Part] = []
    for position, part in enumerate(list_of(content, "parts", [])):
        where = f"part {position + 1}"
        check_mapping(part, where, _PART_KEYS, needed=("name",))
        where = f"part {text_of(part, 'name')}"
        chosen = _combinations(part, base, where)
        _check_overrides([settings for settings, _ in chosen], overrides, where)
        chosen = [it for settings, own in chosen for it in _folds({**settings, **overrides}, own, where)]
        chosen = [({**settings, **_weights(settings, parts, where)}, own) for settings, own in chosen]
        if len(chosen) * len(seeds) > _MOST_CELLS:
            raise ValueError(f"{where} has more than {_MOST_CELLS} runs, the limit")
        parts.append(_part(part, chosen, seeds, cells, where))
    if not parts:
        raise ValueError("parts is empty: add at least one part with cells or a grid")
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("two parts have the same name")
    return Study(name=name, description=description, cells=tuple(cells.values()), parts=tuple(parts))


def _part(
    part: Mapping[str, Any],
    chosen: Sequence[tuple[Settings, frozenset[str]]],
    seeds: Sequence[Any],
    cells: dict[str, Cell],
    where: str,
) -> Part:
    """A part's rows; their runs are added to `cells` by digest."""
    rows: dict[str, tuple[Settings, list[str]]] = {}
    for settings, own in chosen:
        for seed in [settings["seed"]] if "seed" in settings else seeds:
            config = _config({**settings, "seed": seed}, where)
            leaves = {key: plain(value) for key, value in config_leaves(config)}
            whole = {key: leaves[key] for key in (*settings, "seed")}
            # The part's own cells and grid distinguish its rows; the model is always named.
            shown = {key: leaves[key] for key in ("model.name", *settings) if key in own | {"model.name"}}
            digest = _digest(leaves)
            weights = config.model.weights
            start = next((it.name for it in cells.values() if weights == _CELLS / it.name), None)
            cell = Cell(name=cell_name(config, shown, digest), settings=whole, config=config, start=start)
            name = cells.setdefault(digest, cell).name
            row = {key: value for key, value in shown.items() if key not in REPEATS}
            members = rows.setdefault(repr(sorted(row.items())), (row, []))[1]
            if name not in members:
                members.append(name)
    return Part(
        name=text_of(part, "name"),
        title=text_of(part, "title", text_of(part, "name")),
        compare=_compare(part),
        rows=tuple(
            Row(label=label_of(settings), settings=settings, cells=tuple(members))
            for settings, members in rows.values()
        ),
    )


def _combinations(part: Mapping[str, Any], base: Settings, where: str) -> list[tuple[Settings, frozenset[str]]]:
    """Every run's keys over the bases of study and part, and which of them are its own."""
    base = {**base, **flat(part.get("base") or {}, f"{where}: base")}
    listed = [flat(cell or {}, f"{where}: cells") for cell in list_of(part, "cells", [{}])]
    grid = flat(part.get("grid") or {}, f"{where}: grid", lists=True)
    if not listed or not all(grid.values()):
        raise ValueError(f"{where} has an empty list of values")
    return [
        ({**base, **cell, **dict(zip(grid, values, strict=True))}, frozenset(cell) | frozenset(grid))
        for cell in listed
        for values in product(*grid.values())
    ]


def _folds(settings: Settings, own: frozenset[str], where: str) -> list[tuple[Settings, frozenset[str]]]:
    """A run's keys; if `corpus.fold` is `all`, those of a run for each fold of the protocol."""
    if settings.get("corpus.fold") != "all":
        return [(settings, own)]
    protocol = str(settings.get("corpus.protocol"))
    count = str((protocol == "kfold" and settings.get("corpus.folds")) or _NUM_FOLDS.get(protocol, ""))
    if not count:
        raise ValueError(
            f"{where}: corpus.fold all needs a corpus.protocol whose folds are known without the corpus: "
            f"{', '.join(_NUM_FOLDS)}; list those of {protocol}, such as [0, 1, 2]"
        )
    # What is no number of folds is refused with the configuration.
    folds = range(int(count) if re.fullmatch(r"\d{1,4}", count) else 1)
    return [({**settings, "corpus.fold": fold}, own | {"corpus.fold"}) for fold in folds]


def _compare(part: Mapping[str, Any]) -> str:
    kind = text_of(part, "compare", "all")
    if kind not in _COMPARE:
        raise ValueError(f"compare must be one of {', '.join(_COMPARE)}, not {kind!a}")
    return kind


def _weights(settings: Settings, parts: Sequence[Part], where: str) -> Settings:
    """The key by which a run starts from another one of the study."""
    name = str(settings.get("model.weights"))
    if not name.startswith("part:"):
        return {}
    cells = {cell for part in parts if f"part:{part.name}" == name for row in part.rows for cell in row.cells}
    if len(cells) != 1:
        raise ValueError(f"{where}: model.weights {name} must name an earlier part that has one run, not {len(cells)}")
    return {"model.weights": str(_CELLS / cells.pop())}


def _check_overrides(chosen: Sequence[Settings], overrides: Settings, where: str) -> None:
    """Reject options that would make different runs of a part equal."""
    for key in overrides:
        if key in _OWN:
            raise ValueError(f"--{key} is set by the study for each of its runs; choose the study's folder with --out")
        if _num_different(chosen, {key}) < _num_different(chosen, set()):
            raise ValueError(f"--{key} cannot be set for all runs: {where} compares its values")


def _num_different(chosen: Sequence[Settings], without: set[str]) -> int:
    return len({repr(sorted((key, value) for key, value in it.items() if key not in without)) for it in chosen})


def _config(settings: Settings, where: str) -> RunConfig:
    for key in _OWN:
        if key in settings:
            raise ValueError(f"{where}: {key} is set by the study for each of its runs")
    if unknown := settings.keys() - dict(config_leaves(RunConfig())).keys():
        raise ValueError(f"{where}: unknown key {min(unknown)}; keys are those of fastemo train --help")
    try:
        return read_config([f"--{key}={argument(value)}" for key, value in settings.items()])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _overrides(arguments: Sequence[str]) -> Settings:
    """`--key value` and `--key=value` as settings."""
    found: Settings = {}
    waiting = with_lists(arguments)
    while waiting:
        name, has_value, value = waiting.pop(0).partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise ValueError(f"{name} is not an option: give --KEY VALUE, with the keys of fastemo train --help")
        if not has_value:
            if not waiting:
                raise ValueError(f"{name} needs a value")
            value = waiting.pop(0)
        if name[2:] in found:
            raise ValueError(f"{name} is given twice; remove one of them")
        found[name[2:]] = value
    return found


def _digest(leaves: Settings) -> str:
    """A hash of all keys that may affect the result."""
    defaults = dict(config_leaves(RunConfig()))
    # Version 0.1.0's default had a name.
    named = {**leaves, "model.backbone": leaves["model.backbone"] or "resnet18"}
    told = [
        f"{key}={value!r}"
        for key, value in named.items()
        if not _NO_RESULT.fullmatch(key) and not (key in _LATER and value == defaults[key])
    ]
    return hashlib.blake2b("\n".join(told).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def with_folder(cell: Cell, runs_dir: Path) -> RunConfig:
    """The configuration of a cell with the name and folder of its run."""
    weights = cell.config.model.weights if cell.start is None else runs_dir / cell.start
    model = replace(cell.config.model, weights=weights)
    return replace(cell.config, name=cell.name, runs_dir=runs_dir, model=model)
