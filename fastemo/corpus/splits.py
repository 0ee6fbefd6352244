"""The clips of train, val and test, and whether people are shared between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fastemo.corpus.clip import Clip
from fastemo.corpus.config import SPLITS
from fastemo.corpus.folds import by_number


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The clips of train, val and test.

    Attributes:
        class_names: Class i's name at position i.
        notes: Remarks for the log: twins left out, actors missing from a split, classes missing from the test.
        allow_shared_subjects: Whether a person or a take may be in several splits.
        identical_to_training: Test clips with the bytes of a training clip; `None`: not looked for.

    Raises:
        ValueError: A person or a take is in several splits; the message says how many are.
    """

    protocol: str
    class_names: tuple[str, ...]
    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]
    notes: tuple[str, ...] = ()
    allow_shared_subjects: bool = False
    identical_to_training: int | None = None

    def __post_init__(self) -> None:
        if self.subjects == "shared" and not self.allow_shared_subjects:
            people, takes = self._shared
            name, where = next(iter((people or takes).items()))
            raise ValueError(
                f"{_in_several_splits(people, takes)}, such as {'person' if people else 'take'} {name} in "
                f"{' and '.join(where)}: move the clips of each into one split, or "
                f"accept an accuracy that is not one for unseen subjects with --corpus.allow_shared_subjects true"
            )

    @property
    def subjects(self) -> Literal["unseen", "shared", "unknown"]:
        """Whether the people of a split are in no other one; `unknown` if a clip's person is."""
        if any(self._shared):
            return "shared"
        return "unseen" if all(clip.person for name in SPLITS for clip in self[name]) else "unknown"

    @property
    def about_people(self) -> dict[str, str | None]:
        """What a result says of the people tested: `subjects`, and a `caveat` unless they are unseen."""
        caveats = {
            "shared": f"not an accuracy for unseen subjects: {_in_several_splits(*self._shared)}",
            "unknown": "whether people are unseen is unknown",
        }
        return {"subjects": self.subjects, "caveat": caveats.get(self.subjects)}

    @cached_property
    def _shared(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The people and the takes that are in several splits, with the names of these."""

        def shared(what: Callable[[Clip], str]) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for name in SPLITS:
                for value in {what(clip) for clip in self[name]} - {""}:
                    found.setdefault(value, []).append(name)
            return {value: found[value] for value in sorted(found, key=by_number) if len(found[value]) > 1}

        return shared(lambda clip: clip.person), shared(lambda clip: clip.take)

    def __getitem__(self, name: str) -> tuple[Clip, ...]:
        if name not in SPLITS:
            raise KeyError(name)
        clips: tuple[Clip, ...] = getattr(self, name)
        return clips

    def count_table(self) -> list[dict[str, str | int]]:
        """One row per split: clips, takes, actors (people), and the clips of each class."""
        table: list[dict[str, str | int]] = []
        for name in SPLITS:
            clips = self[name]
            counts = Counter(clip.emotion for clip in clips)
            table.append(
                {
                    "split": name,
                    "clips": len(clips),
                    "takes": len({clip.take for clip in clips}),
                    "actors": len({clip.person for clip in clips if clip.person}),
                    **{class_name: counts[class_name] for class_name in self.class_names},
                }
            )
        return table


def _in_several_splits(people: Collection[str], takes: Collection[str]) -> str:
    """`1 person and 12 takes are in several splits`."""
    counts = ((len(people), "person" if len(people) == 1 else "people"), (len(takes), f"take{'s' * (len(takes) != 1)}"))
    verb = "is" if len(people) + len(takes) == 1 else "are"
    return f"{' and '.join(f'{number} {what}' for number, what in counts if number)} {verb} in several splits"
