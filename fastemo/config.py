"""RunConfig: the configuration of a run, read from YAML files and overridden by the command line."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonargparse
import yaml  # type: ignore[import-untyped]

from fastemo.corpus.config import CorpusConfig
from fastemo.evaluation.config import EvaluateConfig
from fastemo.machine import write_text
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.video.config import AugmentConfig, FacesConfig, StoreConfig, VideoConfig
from fastemo.yaml_files import MOST_BYTES, check_digits, file_root, parse

_SEVERAL = ("--corpus.root", "--corpus.labels")
_LONGEST_MESSAGE = 1000
_LONGEST_NAME = 200  # file systems allow 255 bytes, and some file names are derived from it
# Characters that a quoted string may hold in JSON but not in YAML.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of a run. The defaults are the recipe of Roy (2025).

    Attributes:
        name: The run folder's name; `None`: the model's name and the time.
        runs_dir: Folder that holds the run folders.
        seed: Seed of all random numbers.
        resume: Run to resume, interrupted or, with more `train.epochs` than its own, finished: its folder, its name,
            `latest`: the newest finished run, or `auto`: the run `name` or, without a name, the newest run of the
            model; a new run if there is none.
        minutes: Time for the whole run, from which the number of epochs follows; the schedule is `onecycle`,
            without early stopping. `None`: no limit.
        corpus: Which clips are used.
        video: How clips are sampled and decoded.
        faces: The face detector.
        store: Where decoded clips are cached.
        augment: Augmentation in training.
        model: The model.
        train: The training recipe.
        evaluate: How the trained model is tested.
    """

    name: str | None = None
    runs_dir: Path = Path("runs")
    seed: int = 0
    resume: str | None = None
    minutes: float | None = None
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    faces: FacesConfig = field(default_factory=FacesConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if self.name is not None and (self.name in ("", "..") or Path(self.name).name != self.name):
            raise ValueError(f"name must be a plain folder name, not '{self.name}'")
        if self.name is not None and (len(os.fsencode(self.name)) > _LONGEST_NAME or not self.name.isprintable()):
            raise ValueError(f"name must be printable and at most {_LONGEST_NAME} bytes long, not {self.name!a}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2^63 - 1, not {self.seed}")
        if self.minutes is not None:
            if not 0 < self.minutes < math.inf:
                raise ValueError(f"minutes must be above 0 and finite, not {self.minutes}")
            in_time = replace(self.train, schedule="onecycle", warmup_epochs=0.0, early_stop_patience=None)
            object.__setattr__(self, "train", in_time)
        follows = {
            "num_frames": ("video.num_frames", self.video.num_frames),
            "size": ("augment.crop_size", self.augment.crop_size),
        }
        for name, (key, value) in follows.items():
            own = getattr(self.model, name)
            if own is None:
                followed: dict[str, Any] = {name: value}
                object.__setattr__(self, "model", replace(self.model, **followed))
            elif own != value:
                raise ValueError(
                    f"model.{name} is {own} but {key} is {value}; set only {key}, and the model follows it"
                )
        if self.augment.crop_size > self.video.size:
            raise ValueError(
                f"augment.crop_size {self.augment.crop_size} is larger than video.size {self.video.size}; "
                f"raise video.size or lower augment.crop_size"
            )
        self._check_recipe()

    def _check_recipe(self) -> None:
        """Reject recipe keys that have no effect with the other keys."""
        train = self.train
        for name in ("backbone_lr", "layer_decay", "freeze_epochs"):
            if self.model.backbone_name is None and getattr(train, name) != getattr(TrainConfig, name):
                raise ValueError(f"train.{name} needs a model with a backbone, which {self.model.name} has not")
        if self.augment.mixes and self.store.tier == "none":
            name = "mixup" if self.augment.mixup else "cutmix"
            raise ValueError(
                f"augment.{name} reads each clip a second time, which store.tier none would decode twice; choose "
                f"another --store.tier"
            )
        if self.evaluate.views > 2 and self.video.stored_frames is None:
            raise ValueError(
                f"evaluate.views {self.evaluate.views} needs video.stored_frames: a clip's {self.video.num_frames} "
                f"frames have two views, as they are and mirrored"
            )


class _ConfigFile(jsonargparse.ActionConfigFile):
    """`--config PATH`, checked before jsonargparse reads it."""

    def __call__(
        self, parser: argparse.ArgumentParser, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        _check_file(Path(values).expanduser())
        super().__call__(parser, cfg, values, option_string)


def parser(prog: str | None = None) -> jsonargparse.ArgumentParser:
    result = jsonargparse.ArgumentParser(
        prog=prog,
        description="Train and test an emotion recogniser; every key of the configuration is an option.",
        add_help=False,  # train.py shows the options people use
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,  # `--train.l` is a mistyped key, not a short form of one
    )
    result.add_argument("--help-all", action="help", help="list every key with its type and default")
    result.add_argument("--config", action=_ConfigFile, help="YAML file; later options override it")
    result.add_class_arguments(RunConfig, sub_configs=False)
    return result


def read_config(arguments: Sequence[str], *, prog: str | None = None) -> RunConfig:
    """Read the configuration that a command line gives.

    Raises:
        ValueError: An unknown key, a wrong type or a value that is not allowed, in one line.
    """
    made = parser(prog)
    arguments = with_lists(arguments)
    try:
        for before, argument in zip(["", *arguments], arguments, strict=False):
            _check_option(before, argument)
        parsed = made.parse_args(arguments)
        _check_shape(RunConfig, parsed)
        chosen = made.instantiate(parsed)
    except (jsonargparse.ArgumentError, ValueError) as error:
        raise ValueError(_one_line(error)) from error
    return RunConfig(**{field.name: chosen[field.name] for field in fields(RunConfig)})


def with_lists(arguments: Sequence[str]) -> list[str]:
    """The arguments with several values after an option of `_SEVERAL`, as in `--corpus.root A B`, as one YAML list."""
    found: list[str] = []
    waiting = list(arguments)
    while waiting:
        found.append(waiting.pop(0))
        if found[-1] in _SEVERAL:
            values = [*takewhile(lambda value: not value.startswith("--"), waiting)]
            del waiting[: len(values)]
            found += [json.dumps(values)] if len(values) > 1 else values
    return found


def write_config(config: RunConfig, path: Path) -> None:
    """Write the complete configuration; `read_config(["--config", path])` restores it."""
    write_text(path, "".join(_yaml_lines(_plain(config))))


def config_leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and its value, nested keys joined by dots, of a dataclass or of the nested dicts of a file."""
    is_file = isinstance(value, dict)
    items = value.items() if is_file else ((it.name, getattr(value, it.name)) for it in fields(value))
    for name, held in items:
        if isinstance(held, dict) if is_file else is_dataclass(held):
            yield from config_leaves(held, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", held


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and paths as text, for YAML."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _yaml_lines(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Scalars as JSON, which is valid YAML: text is quoted, so that a run named `1e-3` is not read as a number."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:\n"
            yield from _yaml_lines(value, indent + "  ")
        else:
            text = _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
            yield f"{indent}{name}: {text}\n"


def _check_shape(kind: type, values: jsonargparse.Namespace, prefix: str = "") -> None:
    """Reject what jsonargparse accepts: a value in place of a group of keys, and null where it has no meaning."""
    for name, hint in get_type_hints(kind).items():
        value = values[name]
        if is_dataclass(hint):
            if not isinstance(value, jsonargparse.Namespace):
                raise ValueError(f"{prefix}{name} must be a group of keys, not {_as_yaml(value)}")
            assert isinstance(hint, type)
            _check_shape(hint, value, f"{prefix}{name}.")
        elif value is None and type(None) not in get_args(hint):
            raise ValueError(f"{prefix}{name} must not be null")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{prefix}{name} must be a finite number, not {value}")
        elif re.search("[\0\ud800-\udfff]", "".join(map(str, value if isinstance(value, list) else [value]))):
            # Neither a file name nor config.yaml can hold it.
            raise ValueError(f"{prefix}{name} must be text in UTF-8 without NUL, not {str(value)!a}")


def _check_option(before: str, argument: str) -> None:
    """Reject a command-line value that is too large, or nested too deeply, to be read as YAML."""
    name, is_given, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
    if len(argument) > MOST_BYTES:
        raise ValueError(f"{name[:99]} is longer than {MOST_BYTES} characters, the limit for a value")
    try:
        node = parse(value, name)
    except (yaml.YAMLError, UnicodeEncodeError):
        node = None  # plain text
    if is_given:
        key = name.removeprefix("--")
        _check_value(node, value, key)
        _check_keys(node, f"{key}.", name)


def _check_file(path: Path) -> None:
    """Reject a configuration that is not a file of keys and values, before jsonargparse reads it."""
    _check_keys(file_root(path), "", str(path))


def _check_keys(root: yaml.Node | None, prefix: str, where: str) -> None:
    """Reject unknown and duplicate keys.

    jsonargparse would use the last duplicate, and treats some keys as its own: `class_path` imports a module.
    """
    waiting = [(prefix, root)]
    while waiting:
        prefix, node = waiting.pop()
        if not isinstance(node, yaml.MappingNode):
            continue
        names = [str(key.value) for key, _ in node.value]
        for name, count in Counter(names).items():
            if not name.strip():
                raise ValueError(f"{where} has a key without a name")
            if f"{prefix}{name}" not in _known_keys():
                raise ValueError(f"unknown key {prefix}{name}")
            if count > 1:
                raise ValueError(f"{where} sets {prefix}{name} twice; remove one of them")
        for name, (_, value) in zip(names, node.value, strict=True):
            _check_value(value, str(value.value), f"{prefix}{name}")
            waiting.append((f"{prefix}{name}.", value))


def _check_value(node: yaml.Node | None, text: str, key: str) -> None:
    """Reject what jsonargparse or Python cannot handle: a file name for a group of keys, and very long numbers."""
    if _known_keys().get(key) and not isinstance(node, yaml.CollectionNode):
        raise ValueError(f"{key} must be a group of keys, not {text or 'null'}")
    if node is not None:
        check_digits(node, key)


@cache
def _known_keys() -> dict[str, bool]:
    """Every key, and whether it is a group of keys, such as `corpus.synthetic`."""
    return dict(_keys(RunConfig))


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, bool]]:
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}", is_dataclass(hint)
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _keys(hint, f"{prefix}{name}.")


def _one_line(error: Exception) -> str:
    """jsonargparse's message in one line, about keys and values rather than classes."""
    text = " ".join(str(error).split())
    if unknown := re.fullmatch(r"(?:Group '(.+)' does not accept o|O)ption '(.+?)'(?: is not accepted)?", text):
        return f"unknown key {'.'.join(filter(None, unknown.groups()))}"
    if text.startswith("Unexpected config:"):
        return f"a configuration file holds keys and their values, such as `seed: 1`, not '{text[19:99]}'"
    if wrong := re.fullmatch(r'Parser key "([^"]+)": (.*?) (?:Got|Given) value: (.*)', text):
        kinds = re.findall(r"(?:Expected an?|Not of type) (?:<class '(\w+)'>|.*?Literal\[(.*?)\]|(Path))", wrong[2])
        wanted = ["null" if kind == ("NoneType", "", "") else "".join(kind) for kind in kinds]
        if wanted:
            wanted.sort(key="null".__eq__)  # last, in whatever order the version lists them
            text = f"{wrong[1]} must be {' or '.join(wanted)}, not {wrong[3]}"
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE - 3]}..."


def _as_yaml(value: object) -> str:
    return "null" if value is None else repr(value)
