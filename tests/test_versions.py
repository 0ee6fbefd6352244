"""The versions that setup.cfg promises, and those that `.ci/versions` tries."""

from __future__ import annotations

import configparser

from helpers import REPOSITORY
from packaging.requirements import Requirement


def requirements() -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    text = config["options"]["install_requires"] + "".join(
        map(extras.get, ("export", "demo", "trackers", "transformers", "test"))
    )
    lines = filter(None, map(str.strip, text.splitlines()))
    return [Requirement(line) for line in lines if not line.startswith(("#", "fastemo["))]


def test_the_lowest_versions_are_those_of_setup_cfg():
    lines = (REPOSITORY / "lowest.txt").read_text(encoding="utf-8").splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = {it.name: [part.version for part in it.specifier if part.operator == ">="] for it in requirements()}
    assert asked.keys() == tried.keys()
    for name, versions in asked.items():
        (version,) = versions
        assert f"{tried[name]}.".startswith(f"{version}."), f"{name}: setup.cfg allows {version}"


def test_nothing_hides_the_newest():
    """An upper bound stands only where the next major version is known to break; there is none now."""
    assert [str(it) for it in requirements() if any(part.operator not in (">=", "!=") for part in it.specifier)] == []
