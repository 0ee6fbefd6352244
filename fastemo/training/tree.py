"""Nested state to plain JSON and named tensors, and back."""

from __future__ import annotations

from typing import Any

import torch


def flatten(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Separate tensors from dicts, lists and tuples.

    Returns:
        A JSON value in which each container has its kind and each tensor its name; and the tensors by name.

    Raises:
        TypeError: Something that is neither a tensor, a container nor a plain value.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            name = str(len(tensors))
            tensors[name] = item
            return {"tensor": name}
        if isinstance(item, dict):  # keys are not always text: an optimiser numbers its parameters
            return {"dict": [[key, walk(it)] for key, it in item.items()]}
        if isinstance(item, list | tuple):
            return {type(item).__name__: [walk(it) for it in item]}
        if item is None or isinstance(item, str | int | float):
            return item
        raise TypeError(f"{type(item).__name__} cannot be saved")

    return walk(value), tensors


def unflatten(plain: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value that `flatten` was given.

    Raises:
        ValueError: It is not what `flatten` returned.
    """
    if not isinstance(plain, dict):
        if isinstance(plain, list):
            raise ValueError("a list without its kind")
        return plain
    if len(plain) != 1:
        raise ValueError(f"{len(plain)} keys instead of one")
    ((kind, held),) = plain.items()
    if kind == "tensor":
        if not isinstance(held, str) or held not in tensors:
            raise ValueError(f"tensor {held} is missing")
        return tensors[held]
    if kind not in ("dict", "list", "tuple") or not isinstance(held, list):
        raise ValueError(f"unknown kind {kind}")
    if kind == "dict":
        if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int) for pair in held):
            raise ValueError("a dict that is not a list of pairs")
        return {key: unflatten(item, tensors) for key, item in held}
    items = [unflatten(item, tensors) for item in held]
    return items if kind == "list" else tuple(items)
