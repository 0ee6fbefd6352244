"""RunConfig: the parts' own dataclasses put together, read from YAML with the command line over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import jsonargparse

from fastemo.corpus.config import CorpusConfig
from fastemo.machine import write_text
from fastemo.models import ModelConfig
from fastemo.training.trainer import TrainConfig
from fastemo.video.augment import AugmentConfig
from fastemo.video.loader import VideoConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole. The defaults are the report's recipe.

    Attributes:
        name: The run folder's name; `None`: the model's name and the time.
        runs_dir: Folder that holds the run folders.
        seed: Of everything random.
    """

    name: str | None = None
    runs_dir: Path = Path("runs")
    seed: int = 0
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.name is not None and (not self.name or Path(self.name).name != self.name):
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
        chosen = made.instantiate_classes(made.parse_args(list(arguments)))
    except jsonargparse.ArgumentError as error:
        raise ValueError(_one_line(error)) from error
    return RunConfig(**{field.name: chosen[field.name] for field in fields(RunConfig)})


def write_config(config: RunConfig, path: Path) -> None:
    """Write the complete configuration; `read_config(["--config", path])` gives it back."""
    made = parser()
    text = made.dump(made.parse_object(_plain(config)), skip_none=False)
    write_text(path, text)


def _plain(value: object) -> object:
    """Dataclasses as dicts and paths as text, as YAML has them."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return str(value) if isinstance(value, Path) else value


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)
