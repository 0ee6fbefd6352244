"""RunConfig: the parts' own dataclasses put together, read from YAML with the command line over it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonargparse

from fastemo.corpus.config import CorpusConfig
from fastemo.machine import write_text
from fastemo.models import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.video.augment import AugmentConfig
from fastemo.video.config import VideoConfig
from fastemo.video.store import StoreConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole. The defaults are the report's recipe.

    Attributes:
        name: The run folder's name; `None`: the model's name and the time.
        runs_dir: Folder that holds the run folders.
        seed: Of everything random.
        resume: Go on with an interrupted run: its folder, its name, or `auto`, which is the run `name` or, without a
            name, the newest run of the model, and a new run where there is none.
    """

    name: str | None = None
    runs_dir: Path = Path("runs")
    seed: int = 0
    resume: str | None = None
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.name is not None and (self.name in ("", "..") or Path(self.name).name != self.name):
            raise ValueError(f"name must be a plain folder name, not '{self.name}'")
        if self.model.num_frames is None:
            object.__setattr__(self, "model", replace(self.model, num_frames=self.video.num_frames))
        elif self.model.num_frames != self.video.num_frames:
            raise ValueError(
                f"model.num_frames is {self.model.num_frames} and video.num_frames {self.video.num_frames}; "
                f"set video.num_frames alone, the model follows it"
            )
        if self.augment.crop_size > self.video.size:
            raise ValueError(
                f"augment.crop_size {self.augment.crop_size} is larger than video.size {self.video.size}; "
                f"raise video.size or lower augment.crop_size"
            )


def parser(prog: str | None = None) -> jsonargparse.ArgumentParser:
    result = jsonargparse.ArgumentParser(
        prog=prog,
        description="Train and test an emotion recogniser; every key of the configuration is an option.",
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,  # `--train.l` is a mistyped key, not a short form of one
    )
    result.add_argument("--config", action="config", help="YAML file; options after it win")
    result.add_class_arguments(RunConfig, sub_configs=False)
    return result


def read_config(arguments: Sequence[str], *, prog: str | None = None) -> RunConfig:
    """Put together what the command line says.

    Raises:
        ValueError: An unknown key, a wrong type or a value that is not allowed, in one line.
    """
    made = parser(prog)
    try:
        parsed = made.parse_args(list(arguments))
        _check_shape(RunConfig, parsed)
        chosen = made.instantiate(parsed)
    except jsonargparse.ArgumentError as error:
        raise ValueError(_one_line(error)) from error
    return RunConfig(**{field.name: chosen[field.name] for field in fields(RunConfig)})


def write_config(config: RunConfig, path: Path) -> None:
    """Write the complete configuration; `read_config(["--config", path])` gives it back."""
    write_text(path, "".join(_yaml_lines(_plain(config))))


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and paths as text, as YAML has them."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return str(value) if isinstance(value, Path) else value


def _yaml_lines(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Scalars as JSON writes them, which is YAML: text is quoted, so that a run called `1e-3` is no number."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:\n"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}\n"


def _check_shape(kind: type, values: jsonargparse.Namespace, prefix: str = "") -> None:
    """Refuse what jsonargparse lets through: a value where keys belong, and null where it has no meaning."""
    for name, hint in get_type_hints(kind).items():
        value = values[name]
        if is_dataclass(hint):
            if not isinstance(value, jsonargparse.Namespace):
                raise ValueError(f"{prefix}{name} must hold keys of its own, not {_as_yaml(value)}")
            assert isinstance(hint, type)
            _check_shape(hint, value, f"{prefix}{name}.")
        elif value is None and type(None) not in get_args(hint):
            raise ValueError(f"{prefix}{name} must not be null")


def _one_line(error: Exception) -> str:
    """jsonargparse's message in one line, and in terms of keys and values where it speaks of classes."""
    text = " ".join(str(error).split())
    if unknown := re.fullmatch(r"(?:Group '(.+)' does not accept o|O)ption '(.+?)'(?: is not accepted)?", text):
        return f"unknown key {'.'.join(filter(None, unknown.groups()))}"
    if text.startswith("Unexpected config:"):
        return f"a configuration file holds keys and their values, such as `seed: 1`, not '{text[19:99]}'"
    if wrong := re.fullmatch(r'Parser key "([^"]+)": (.*?) (?:Got|Given) value: (.*)', text):
        kinds = re.findall(r"(?:Expected an?|Not of type) (?:<class '(\w+)'>|.*?Literal\[(.*?)\]|(Path))", wrong[2])
        wanted = ["null" if kind == ("NoneType", "", "") else "".join(kind) for kind in kinds]
        if wanted:
            return f"{wrong[1]} must be {' or '.join(wanted)}, not {wrong[3]}"
    return text


def _as_yaml(value: object) -> str:
    return "null" if value is None else repr(value)
