"""What the commands' options share: help, values of --quick, checks with one message."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def make_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with --out."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=program, description=description, formatter_class=formatter)
    parser.add_argument("--out", type=Path, help="JSON file; a chart goes beside it")
    return parser


def parse_checked(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    *,
    defaults: Mapping[str, tuple[Any, ...]] | None = None,
    positive: Sequence[str] = (),
) -> argparse.Namespace:
    """Parse and check.

    Args:
        defaults: By option, its default, the one with --quick, and what else there is to it.
        positive: Options that must be at least 1 where they are given.

    Raises:
        ValueError: An option has a value that cannot be.
    """
    options = parser.parse_args(arguments)
    for name, (usual, quick, *_) in (defaults or {}).items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    for name in positive:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}")
    if options.out and options.out.suffix != ".json":
        raise ValueError(f"--out names the JSON file, which ends in .json, not '{options.out.name}'")
    return options


def choose(option: str, argument: str, known: Iterable[str], *, can_be_none: bool = False) -> list[str]:
    """The names that an option lists: `all`, some with commas between, or `none` where that is allowed.

    Raises:
        ValueError: An unknown name.
    """
    known = list(known)
    lists = {"all": known} | ({"none": []} if can_be_none else {})
    names = lists.get(argument, [name.strip() for name in argument.split(",")])
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option} takes {', '.join(lists)}, or some of {', '.join(known)}, not '{unknown[0]}'")
    return names
