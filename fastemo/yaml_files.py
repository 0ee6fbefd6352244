"""YAML files, checked before anything reads them: small, shallow, and without tags or aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

# A larger or deeper file is not a configuration: parsing it would only cost memory, or overflow the stack.
MOST_BYTES, _DEEPEST, _MOST_DIGITS = 2**16, 16, 100
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: Path) -> Any:
    """The content of a YAML file other than a configuration: dicts, lists, text, numbers, booleans and None.

    Raises:
        ValueError: It is not a file, too large, not YAML, or holds a tag, an alias or a duplicate key.
    """
    root = file_root(path)
    return None if root is None else _loaded(root, str(path))


def _loaded(node: yaml.Node, where: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_loaded(item, where) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in found:
                raise ValueError(f"{where} sets {name} twice; remove one of them")
            found[name] = _loaded(value, where)
        return found
    check_digits(node, where)
    value = yaml.SafeLoader("").construct_object(node)
    # Dates stay text.
    return value if isinstance(value, (bool, int, float, type(None))) else str(node.value)


def file_root(path: Path) -> yaml.Node | None:
    """The node tree of a YAML file.

    Raises:
        ValueError: It is not a file, too large or not YAML, or `_parse` rejects it.
    """
    if not path.exists():
        raise ValueError(f"the configuration file {path} does not exist")
    if not path.is_file():
        raise ValueError(f"the configuration {path} is not a file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES // 1024} KiB, the limit for a configuration")
    try:
        return parse(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error


def parse(text: str, what: str) -> yaml.Node | None:
    """The node tree of a YAML text, which must not contain aliases, tags or deep nesting.

    Raises:
        ValueError: It contains one of these.
        yaml.YAMLError: It is not YAML.
    """
    depth, has_alias = 0, False
    for event in yaml.parse(text, Loader=_YAML):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"{what} is nested deeper than {_DEEPEST} levels, the limit for a configuration")
        has_alias |= isinstance(event, yaml.AliasEvent)
        if tag := getattr(event, "tag", None):
            raise ValueError(f"{what} contains the YAML tag {tag}; write the value without it")
    root = yaml.compose(text, Loader=_YAML)
    if has_alias:
        raise ValueError(f"{what} contains a YAML alias (*name); write the value itself")
    return root


def check_digits(node: yaml.Node, where: str) -> None:
    if node.tag == "tag:yaml.org,2002:int" and len(str(node.value)) > _MOST_DIGITS:
        raise ValueError(f"{where} is a number of more than {_MOST_DIGITS} digits")
