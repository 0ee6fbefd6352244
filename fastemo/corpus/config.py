"""Configuration of the corpus."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

LABELS = ("ravdess", "cremad", "folder")
SPLITS = ("train", "val", "test")
Protocol = Literal[
    "report", "speech", "speech+song", "split_a", "kfold5", "kfold6", "kfold", "loso", "cremad", "folders"
]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
Verify = Literal["quick", "full"]
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
OnError = Literal["stop", "drop"]


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """Strength of each nuisance: 0 = none, 1 = the default of all but `place`, 2 = twice that, the maximum.

    Attributes:
        identity: Spread of proportions, colours, hair, clothes and personal strength of expressions.
        timing: Spread of onsets, offsets, speech and intensity between takes.
        motion: Head sway, turn and approach.
        light: Brightness from take to take and its drift within a take.
        noise: Sensor noise; 1 is a standard deviation of 2.5 grey levels before encoding.
        place: Where the head is and how large, from take to take; 0 is the middle, 1 anywhere in the picture.
    """

    identity: float = 1.0
    timing: float = 1.0
    motion: float = 1.0
    light: float = 1.0
    noise: float = 1.0
    place: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0 <= value <= 2:
                raise ValueError(f"difficulty.{item.name} is {value}, allowed are 0 (none) to 2")


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The built-in corpus of generated faces.

    Attributes:
        actors: Actors 1 to `actors`, at most 24.
        clips_per_actor: Takes per actor, at most the 60 of RAVDESS's speech; fewer are balanced over classes.
        width: Frame width in pixels, even.
        height: Frame height in pixels, even.
        num_frames: Frames per clip, at 30000/1001 frames per second.
        seed: Same seed, same pixels.
        twins: Add the audio-video file of every take: the same frames, encoded separately, with silent sound.
        difficulty: Strength of each nuisance.
    """

    actors: int = 24
    clips_per_actor: int = 60
    width: int = 320
    height: int = 180
    num_frames: int = 60
    seed: int = 0
    twins: bool = False
    difficulty: Difficulty = field(default_factory=Difficulty)

    def __post_init__(self) -> None:
        limits = {
            "actors": (1, 24),
            "clips_per_actor": (1, 60),
            "width": (64, 4096),
            "height": (64, 2304),
            "num_frames": (1, 100_000),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, allowed are {low} to {high}")
        for name in ("width", "height"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed are even numbers (4:2:0 video)")


def _each(value: Any) -> list[Any]:
    """The values of an option that takes one or several."""
    return value if isinstance(value, list) else [value]


def check_labels(name: str, labels: str) -> None:
    """Raises `ValueError` unless `labels`, the value of the option `name`, is among `LABELS` or a table's path."""
    if labels not in LABELS and Path(labels).suffix.lower() not in TABLE_SUFFIXES:
        tables = ", ".join(sorted(TABLE_SUFFIXES))
        raise ValueError(f"{name} must be {', '.join(LABELS)} or a label table ({tables}), not '{labels}'")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which clips are used for training and testing.

    Attributes:
        root: Folder of the corpus, or several, whose clips are used together; `None`: the built-in corpus, generated on
            first use.
        labels: Source of the class: `ravdess` or `cremad` file names, the `folder` that a file is in, or the path of a
            label table, see `fastemo.corpus.table`. Of several corpora each one's, or one for all.
        classes: YAML file that renames classes, `found: new` or `found: null` to leave a class out; of several corpora
            under the name of each one's folder.
        subjects: Regular expression that finds the person in a path relative to the root: its first group, or all that
            it matches. A label table's column `subject` is used before it.
        protocol: How people are split into train, val and test, see `fastemo.corpus.protocol`; `None`: `speech` where
            RAVDESS's file names give labels, `cremad` where CREMA-D's do, `folders` otherwise.
        fold: The fold that `kfold5`, `kfold6`, `kfold` or `loso` tests on, from 0.
        folds: The number of folds of `kfold`, at least 3: it trains, validates and tests on different people.
        allow_shared_subjects: Accept corpora with a person or a take in several splits; every result then says that its
            accuracy is not one for unseen subjects.
        verify: How far a scan decodes each file: its first frame (`quick`) or all (`full`).
        max_rejected: Files that may be rejected before training refuses to start.
        on_error: What to do when a clip does not decode during training: stop the run (`stop`), or leave the clip out
            and list it in `dropped.csv` (`drop`).
        max_dropped: Clips that may be dropped before the run stops anyway.
        synthetic: The built-in corpus.
    """

    root: list[Path] | Path | None = None
    labels: list[str] | str = "ravdess"
    classes: Path | None = None
    subjects: str | None = None
    protocol: Protocol | None = None
    fold: int = 0
    folds: int = 5
    allow_shared_subjects: bool = False
    verify: Verify = "quick"
    max_rejected: int = 0
    on_error: OnError = "stop"
    max_dropped: int = 10
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        for labels in _each(self.labels):
            check_labels("corpus.labels", labels)
            if self.root is None and labels not in LABELS:
                raise ValueError("corpus.labels is a table, so that corpus.root must name the folder of its files")
        for name in ("root", "labels"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) == 1:
                object.__setattr__(self, name, value[0])
        num_roots = len(_each(self.root))
        if not num_roots or (isinstance(self.labels, list) and len(self.labels) != num_roots):
            raise ValueError("corpus.root must name folders, and corpus.labels one kind for all or one for each")
        if len({root and root.absolute() for root in _each(self.root)}) < num_roots:
            raise ValueError("corpus.root names a folder twice")
        try:
            re.compile(self.subjects or "")
        except re.error as error:
            raise ValueError(f"corpus.subjects is not a regular expression: {error}") from error
        if self.verify not in ("quick", "full"):
            raise ValueError(f"corpus.verify must be quick or full, not '{self.verify}'")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(f"corpus.protocol must be one of {', '.join(PROTOCOLS)}, not '{self.protocol}'")
        if self.fold < 0:
            raise ValueError(f"corpus.fold must be at least 0, not {self.fold}")
        if self.folds < 3:
            raise ValueError(f"corpus.folds must be at least 3 (training, validation, test), not {self.folds}")
        if self.on_error not in ("stop", "drop"):
            raise ValueError(f"corpus.on_error must be stop or drop, not '{self.on_error}'")
        for name in ("max_rejected", "max_dropped"):
            if getattr(self, name) < 0:
                raise ValueError(f"corpus.{name} must be at least 0, not {getattr(self, name)}")

    @property
    def parts(self) -> dict[str, CorpusConfig]:
        """The configuration of each corpus, by its folder's name; of the only one, by an empty name."""
        if not isinstance(self.root, list):
            return {"": self}
        labels = _each(self.labels) * (1 if isinstance(self.labels, list) else len(self.root))
        found: dict[str, CorpusConfig] = {}
        for number, (root, own) in enumerate(zip(self.root, labels, strict=True), start=1):
            name = root.absolute().name or "corpus"
            name = name if name not in found else f"{name}-{number}"
            found[name] = replace(self, root=root, labels=own)
        return found

    @property
    def title(self) -> str:
        """The corpus, or all of them, for people."""
        if self.root is None:
            return "built-in (generated faces)"
        return ", ".join(map(str, _each(self.root)))
