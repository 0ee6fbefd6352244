"""The content of a study file: keys and values that are what they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def flat(content: Any, where: str, *, lists: bool = False, prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots.

    Args:
        lists: Whether every value must be a list, or must not be.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must hold keys and values")
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            inner = flat(value, where, lists=lists, prefix=f"{prefix}{key}.")
        else:
            inner = {f"{prefix}{key}": value}
            if isinstance(value, list) != lists:
                raise ValueError(f"{where}: {prefix}{key} must {'' if lists else 'not '}be a list of values")
        if twice := found.keys() & inner.keys():
            raise ValueError(f"{where} sets {min(twice)} twice; remove one of them")
        found |= inner
    return found


def check_mapping(content: Any, what: str, allowed: Sequence[str], *, needed: Sequence[str]) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} must hold keys and values, {', '.join(allowed)}")
    for key in content:
        if key not in allowed:
            raise ValueError(f"{what} has the unknown key {key!a}; allowed are {', '.join(allowed)}")
    for key in needed:
        if key not in content:
            raise ValueError(f"{what} needs the key {key}")


def text_of(content: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = content.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, not {value!a}")
    return value


def list_of(content: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    value = content.get(key, default)
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list, not {value!a}")
    if key == "seeds" and (not value or len({repr(it) for it in value}) < len(value)):
        raise ValueError("seeds must be different numbers, at least one")
    return value
