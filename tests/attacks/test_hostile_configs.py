"""Configurations that are broken or mean harm: refused in one line, quickly, and nothing they say is done."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from attacks.confined import exit_code, forked, limit_memory
from helpers import below, full_or, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastemo.config import RunConfig, read_config, write_config

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def keys_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind)
    for item in fields(kind):
        hint = hints[item.name]
        yield f"{prefix}{item.name}", hint
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from keys_of(hint, f"{prefix}{item.name}.")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with dots as mappings of mappings; what lies below a key that is no mapping is left out."""
    whole: dict[str, Any] = {}
    for key in sorted(values):
        *parts, last = key.split(".")
        place: Any = whole
        for part in parts:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = values[key]
    return whole


def file_refusal(file: Path, content: str | bytes) -> str:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return refusal("--config", str(file))


# ---- nothing is executed


OF_PYTHON = "object/apply:os.system object/new:os.system object:os.system name:os.system module:os"
TAGS = [*(f"!!python/{tag}" for tag in OF_PYTHON.split()), "!!python/object/apply:builtins.exec", "!include", "!ENV"]
TAGS += ["!!python/object/apply:subprocess.check_call", "!<tag:yaml.org,2002:python/object/apply:os.system>"]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("key", ["name", "train", "corpus", "train.lr"])
def test_a_tag_runs_nothing(file, tmp_path, tag, key, fault_log):
    victim = tmp_path / "victim"
    value = f'{tag} ["touch {victim}"]'
    file_refusal(file, below(key, value))
    refusal(f"--{key}={value}")
    file_refusal(file, value)
    assert not victim.exists()
    fault_log("YAML tags that would run a command", {"refused by name, nothing run": 3})


@pytest.mark.parametrize("key", ["", "train", "corpus", "store", "corpus.synthetic"])
def test_a_class_path_imports_nothing(file, tmp_path, monkeypatch, key, fault_log):
    """jsonargparse makes classes by their import path where it may: here it may not."""
    (tmp_path / "victim_module.py").write_text("raise SystemExit('imported')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file_refusal(file, below(key, "{class_path: victim_module.Thing, init_args: {epochs: 1}}"))
    if key:
        for option in ("=victim_module.Thing", ".class_path=victim_module.Thing", "=victim_module.py"):
            refusal(f"--{key}{option}")
    assert "victim_module" not in sys.modules
    fault_log("configurations that name a class to import", {"refused by name, nothing run": 4 if key else 1})


@pytest.mark.parametrize("part", [key for key, hint in keys_of(RunConfig) if is_dataclass(hint)])
def test_a_part_is_not_read_from_another_file(file, tmp_path, part, fault_log):
    """jsonargparse would read it, unchecked."""
    (tmp_path / "part.yaml").write_text("{}")
    other = str(tmp_path / "part.yaml")
    wanted = f"{part} must be a group of keys, not {other}"
    assert file_refusal(file, below(part, other)) == wanted
    assert refusal(f"--{part}={other}") == refusal(f"--{part}", other) == wanted
    fault_log("configurations that name another file to read", {"refused by name": 3})


def test_text_stays_text(file, fault_log):
    """No interpolation, no expansion of variables, no commands."""
    for text in ("${HOME}", "${env:HOME}", "${oc.env:HOME}", "$HOME", "`id`", "$(id)", "{{ 7 * 7 }}", "%(seed)s"):
        file.write_text(f"name: '{text}'\n")
        assert read_config(["--config", str(file)]).name == text
    fault_log("names that a template would expand", {"taken as they are": 8})


# ---- memory, stack and time


HEAVY = {
    "aliases that grow a thousand million times": LAUGHS + "seed: *j\n",
    "an alias of itself": "name: &a [*a]\n",
    "a mapping that holds itself": "train: &a {lr: *a}\n",
    "merged aliases": "a: &a {lr: 1}\ntrain: {<<: *a}\n",
    "deep lists": "name: " + "[" * 30_000,
    "deep closed lists": "name: " + "[" * 30_000 + "]" * 30_000,
    "deep mappings": "{a: " * 16_000,
    "deep blocks": "".join(f"{' ' * depth}a:\n" for depth in range(300)),
    "a sequence of sequences": "- " * 30_000,
    "a file of many megabytes": "seed: 1 # " + "x" * 3_000_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(6000)),
    "a long number": "seed: " + "9" * 60_000,
    "an unknown key with a long value": "bogus: " + "x" * 60_000,
    "a wrong value that is long": "seed: " + "x" * 60_000,
    "a number in base sixty": "seed: " + "59:" * 20_000 + "59",
}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_what_would_take_memory_stack_or_time(file, fault_log):
    def attack() -> None:
        limit_memory(2**29)
        for what, text in HEAVY.items():
            assert re.search(r"run\.yaml|seed|name|k0|bogus", file_refusal(file, text)), what
            value = text.partition(": ")[2]
            if len(value) < 130_000 and "lists" in what:
                # Nested too deep, or, by a libyaml that parses no such thing, no number.
                assert "train.lr" in refusal(f"--train.lr={value}")
                refusal("--train.lr", value)

    assert exit_code(forked(attack)) == 0
    fault_log("aliases that multiply, deep nesting, files of megabytes", {"refused by name": len(HEAVY)})


def test_aliases_on_the_command_line():
    laughs = "{" + ", ".join(LAUGHS.splitlines()) + "}"
    assert "--train.lr contains a YAML alias" in refusal(f"--train.lr={laughs}")
    assert "alias" in refusal("--train.lr", laughs)
    assert read_config(["--name", "*star"]).name == "*star"
    assert read_config(["--name=a & b, *c"]).name == "a & b, *c"


# ---- files that are none


def test_paths_that_are_no_file(tmp_path, fault_log):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    names = ("pipe", "folder", "circle", "gone", "absent", "folder/../pipe")

    def attack() -> None:
        for name in names:
            assert name in refusal("--config", str(tmp_path / name))
        for name in ("/dev/zero", "/dev/stdin", "-", ""):
            refusal("--config", name)

    assert exit_code(forked(attack)) == 0
    fault_log("a folder, pipe, device or nothing as configuration", {"refused by name": len(names) + 4})


def test_a_configuration_that_includes_itself(file, tmp_path, fault_log):
    (tmp_path / "other.yaml").write_text("seed: 3\n")
    for name in (file, tmp_path / "other.yaml"):
        assert "unknown key config" in file_refusal(file, f"config: {name}\n")
        assert "unknown key config" in file_refusal(file, f'"config": [{name}]\n')
    fault_log("configurations that name another file to read", {"refused by name": 4})


BROKEN = {
    "a NUL": b"seed: 1\0",
    "a NUL inside quotes": b'name: "a\\0b"',
    "Latin-1": b"name: caf\xe9",
    "UTF-16 without a mark": "seed: 1".encode("utf-16-le"),
    "half a character": b"name: \xf0\x9f",
    "a surrogate": b"name: \xed\xb3\xa9",
    "an escaped surrogate": b'name: "\\udce9"',
    "control characters": b"name: a\x07b",
    "two documents": b"seed: 1\n---\nseed: 2",
    "an open quote": b"name: 'a",
    "a tab for a space": b"\tseed: 1",
    "a key given twice": b"seed: 1\nseed: 2",
    "an inner key given twice": b"train: {lr: 1, epochs: 2, lr: 3}",
    "a part given twice": b"train: {lr: 1}\ncorpus: {}\ntrain: {epochs: 2}",
    "a list for a key": b"[1, 2]: 3",
    "a mapping for a key": b"{a: 1}: 3",
    "a number for a key": b"7: 3",
    "null for a key": b"null: 3",
    "a number for an inner key": b"train: {7: 3}",
    "a key of nothing": b"'': 3",
    "a dotted key of nothing": b"train.: 3",
    "a dot alone": b".: 3",
    "a private key": b"__class__: 3",
    "a private inner key": b"train: {__dict__: {lr: 3}}",
    "a path": b"__path__: /etc/passwd",
    "an end of file": b"train: {lr: 1",
    "an open list": b"seed: [1",
    "a value inside a value": b"a: b: c",
    "words": b"just words",
    "random bytes": bytes(range(256)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file(file, what, fault_log):
    message = file_refusal(file, BROKEN[what])
    if "given twice" in what:
        assert "twice" in message
        assert str(file) in message
    fault_log("broken YAML: NUL, wrong bytes, keys twice, keys that are not text", {"refused by name": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("seed", it) for it in ("9" * 5000, "1e400", ".inf", ".nan", "1.5", "0x", "[1]", "{}", "2020-01-01")],
        *[("train.lr", it) for it in (".inf", "-.inf", ".nan", "1e400", "nan", "inf", "9" * 400, "[.inf]", "yes")],
        *[("train.clip_norm", it) for it in (".inf", ".nan", "1e999")],
        *[("train.weight_decay", it) for it in (".inf", ".nan", "-1")],
        *[("train.checkpoint_minutes", it) for it in (".inf", ".nan", "-1")],
        *[("store.max_gib", it) for it in (".inf", ".nan", "0")],
        *[("corpus.synthetic.difficulty.noise", it) for it in (".inf", ".nan", "-1")],
        *[("augment.flip", it) for it in (".inf", ".nan", "-1")],
        *[("video.size", it) for it in (".inf", "9" * 5000, "0", "-1")],
        *[("train.batch_size", it) for it in (".inf", "9" * 5000, "0", "-1")],
    ],
)
def test_numbers_that_are_none(file, key, value, fault_log):
    last = key.split(".")[-1]
    assert last in file_refusal(file, below(key, value))
    assert last in refusal(f"--{key}={value}")
    fault_log("numbers that are infinite, NaN, huge or of another type", {"refused by name": 2})


def test_an_option_that_is_no_text():
    latin = os.fsdecode(b"caf\xe9")
    for key in ("name", "corpus.root", "runs_dir", "store.root"):
        assert key in refusal(f"--{key}={latin}")
        assert key in refusal(f"--{key}=a\0b")


# ---- anything for any key


KEYS = dict(keys_of(RunConfig))
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-(2**63), -1, 0, 1, 2, 2**31, 2**63, 2**64, 10**30]),
    st.floats(),
    TEXT,
    st.sampled_from(["~", "null", "true", "1e-3", "0x10", "2020-01-01", "*a", "&a", "!!str", "a: b", "- a", "{", "#"]),
    st.dates(),
    st.binary(max_size=8),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


class Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


@st.composite
def settings_of_keys(draw: st.DrawFn) -> dict[str, Any]:
    """A few keys with values of any type, or of nearly the right one."""
    found: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True)):
        hint = KEYS[key]
        plain = [it for it in get_args(hint) if isinstance(it, str)]
        near = [st.sampled_from(plain)] if plain else []
        near += [st.integers(-2, 300)] * (int in (hint, *get_args(hint)))
        near += [st.floats(-2, 300)] * (float in (hint, *get_args(hint)))
        near += [TEXT] * (bool({str, Path} & {hint, *get_args(hint)}))
        found[key] = draw(st.one_of(near) if near and draw(st.booleans()) else VALUES)
    return found


def outcome_of(arguments: list[str], file: Path, keys: list[str]) -> str:
    """A configuration that can be written and read again, or a refusal that says what of."""
    try:
        config = read_config(arguments)
    except ValueError as error:
        message = str(error)
        assert message
        assert "\n" not in message, message
        names = {part for key in keys for part in key.split(".")}
        is_named = str(file) in message or any(name in message for name in names)
        assert is_named or re.fullmatch("unknown key .+", message), message
        return "refused by name"
    write_config(config, file.with_name("written.yaml"))
    assert read_config(["--config", str(file.with_name("written.yaml"))]) == config
    return "accepted, and unchanged when written and read again"


CHECKS = list(HealthCheck)
PIECES = [*KEYS, *"{}[]:,-?&*!|>'\"%@`#~\n \t", ": ", "- ", "\n  ", "<<", "1", "null", "---\n", "é"]
OPTIONS = st.one_of(st.text(max_size=30), SCALARS.map(str), VALUES.map(lambda it: yaml.dump(it, Dumper=Dumper)))
# What is tried -> what is drawn, and how many examples of it, in the sample and in full.
ANYTHING = {
    "any value for any key, in a configuration file": (settings_of_keys(), (25, 325)),
    "any value for any key, in the command line": (st.tuples(st.sampled_from(sorted(KEYS)), OPTIONS), (25, 325)),
    "random pieces of YAML as configuration": (st.lists(st.sampled_from(PIECES), max_size=25), (40, 300)),
}


@pytest.mark.parametrize("fault", ANYTHING)
def test_anything(file, fault, fault_log):
    drawn, (sample, full) = ANYTHING[fault]
    outcomes: Counter[str] = Counter()

    @settings(max_examples=full_or(sample, full), derandomize=True, database=None, suppress_health_check=CHECKS)
    @given(values=drawn)
    def attack(values: dict[str, Any] | tuple[str, str] | list[str]) -> None:
        arguments, keys = ["--config", str(file)], sorted(KEYS)
        if isinstance(values, dict):
            keys = list(values)
            file.write_text(yaml.dump(nested(values), Dumper=Dumper, allow_unicode=True), encoding="utf-8")
        elif isinstance(values, tuple):
            keys = [values[0]]
            arguments = [f"--{values[0]}={values[1]}"]
        else:
            file.write_text("".join(values), encoding="utf-8")
        outcomes[outcome_of(arguments, file, keys)] += 1

    attack()
    assert sum(outcomes.values()) >= full_or(sample, full)
    assert outcomes.keys() <= {"refused by name", "accepted, and unchanged when written and read again"}
    fault_log(fault, outcomes)
