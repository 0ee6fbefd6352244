"""Shared options of the commands: help, values of --quick, checks with one message."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Numbers = Mapping[str, tuple[int, int, str]]  # by option: default, default with --quick, help


def make_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the option --out."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=program, description=description, formatter_class=formatter)
    parser.add_argument("--out", type=Path, help="JSON file; a chart is written beside it")
    return parser


def add_numbers(parser: argparse.ArgumentParser, numbers: Numbers) -> None:
    """Add options whose defaults `parse_checked` sets."""
    for name, (usual, quick, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, help=f"{text}: {usual}, with --quick {quick}")


def parse_checked(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    *,
    numbers: Numbers | None = None,
    positive: Sequence[str] = (),
) -> argparse.Namespace:
    """Parse and check.

    Args:
        numbers: As in `add_numbers`; they must be at least 1.
        positive: Other options that must be at least 1 if given.

    Raises:
        ValueError: An option has a value that is not allowed.
    """
    options, numbers = parser.parse_args(arguments), numbers or {}
    for name, (usual, quick, _) in numbers.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    for name in (*numbers, *positive):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}")
    if options.out and options.out.suffix != ".json":
        raise ValueError(f"--out must be a JSON file ending in .json, not '{options.out.name}'")
    return options


def choose(option: str, argument: str, known: Iterable[str], *, can_be_none: bool = False) -> list[str]:
    """The names that an option lists: `all`, comma-separated names, or `none` if that is allowed.

    Raises:
        ValueError: An unknown name.
    """
    known = list(known)
    lists = {"all": known} | ({"none": []} if can_be_none else {})
    names = lists.get(argument, [name.strip() for name in argument.split(",")])
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option} takes {', '.join(lists)}, or some of {', '.join(known)}, not '{unknown[0]}'")
    return names
