"""Attacks summed up: what the tests told, and what it takes to be believed."""

import json

import pytest
from helpers import REPOSITORY

from benchmarks import reliability, tables
from benchmarks.common import results
from benchmarks.reliability import main, outcome_text, summed

PASSING = """
import os
import pytest

def test_one(fault_log):
    fault_log("bit flips", {"rejected by name": 30 if os.environ["FASTEMO_FULL"] == "1" else 3})

@pytest.mark.slow
def test_slow(fault_log):
    fault_log("bit flips", {"decoded exactly": 4})

@pytest.mark.skip
def test_skipped():
    pass
"""


def line(fault, outcomes, test="tests/attacks/test_x.py::test_y"):
    return json.dumps({"fault": fault, "outcomes": outcomes, "test": test})


def lines_file(folder, *lines):
    path = folder / "faults.jsonl"
    path.write_text("".join(f"{it}\n" for it in lines))
    return path


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with attacks that a test writes, and the real conftest."""
    root = tmp_path / "clone"
    (root / "tests" / "attacks").mkdir(parents=True)
    for name in ("pyproject.toml", "tests/conftest.py"):
        (root / name).write_text((REPOSITORY / name).read_text())
    monkeypatch.setattr(results, "REPOSITORY", root)
    monkeypatch.setattr(reliability, "_ATTACKS", ("tests/attacks",))
    return root


def test_faults_of_one_name_are_added_up(tmp_path):
    path = lines_file(
        tmp_path,
        line("bit flips", {"rejected": 3, "decoded exactly": 1}),
        line("a full disk", {"reported in one line": 1}, "tests/attacks/test_z.py::test_z"),
        line("bit flips", {"rejected": 2}, "tests/attacks/test_a.py::test_a"),
    )
    tests = ["tests/attacks/test_a.py::test_a", "tests/attacks/test_x.py::test_y"]
    flips = {"fault": "bit flips", "tried": 6, "outcomes": {"rejected": 5, "decoded exactly": 1}, "tests": tests}
    disk = {"fault": "a full disk", "tried": 1, "outcomes": {"reported in one line": 1}}
    assert summed(path) == [flips, {**disk, "tests": ["tests/attacks/test_z.py::test_z"]}]
    assert outcome_text({"a": 1, "b, c": 2000}) == "2,000 b, c; 1 a"


@pytest.mark.parametrize(
    "wrong", ["{", "3", "{}", line(1, {}), line("a", {"b": "c"}), line("a", {"b": -1}), line("a", [1]), line("a", None)]
)
def test_a_wrong_line_is_named(tmp_path, wrong):
    path = lines_file(tmp_path, line("a", {"b": 1}), wrong)
    with pytest.raises(ValueError, match=r"faults.jsonl, line 2: not a fault of a test"):
        summed(path)


def test_results_from_lines_are_what_the_readme_reads(tmp_path, capsys):
    path = lines_file(tmp_path, line("bit flips", {"rejected": 3}))
    (tmp_path / "results").mkdir()
    main(["--from", str(path), "--out", str(tmp_path / "results" / "reliability-sample.json")])
    assert tables.faults_text(tables.read(tmp_path / "results")) == "No results yet."
    out = tmp_path / "results" / "reliability-x.json"
    main(["--from", str(path), "--full", "--out", str(out)])
    assert "bit flips" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["tried"], found["tests"], found["settings"]) == (3, None, {"quick": False, "full": True})
    command = "python benchmarks/reliability.py --from .../faults.jsonl --full --out .../reliability-x.json"
    assert found["command"] == command
    assert str(tmp_path) not in out.read_text()
    assert "| bit flips | 3 | 3 rejected |" in tables.faults_text(tables.read(tmp_path / "results"))


@pytest.mark.parametrize(("options", "tried", "ran"), [([], 7, 2), (["--quick"], 3, 1), (["--full"], 34, 2)])
def test_attacks_are_run_and_counted(repository, tmp_path, options, tried, ran):
    (repository / "tests" / "attacks" / "test_a.py").write_text(PASSING)
    main([*options, "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["tried"] == tried
    assert found["tests"] == {"run": ran, "skipped": 1}
    assert found["settings"] == {"quick": "--quick" in options, "full": "--full" in options}


def test_a_failed_test_leaves_no_results(repository, tmp_path):
    (repository / "tests" / "attacks" / "test_a.py").write_text(PASSING + "\ndef test_wrong():\n    assert False\n")
    with pytest.raises(SystemExit, match="a test failed"):
        main(["--out", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("def test_a(): pass", "no test reported a fault"), ("", "pytest ended with status 5")],
)
def test_attacks_that_tell_nothing(repository, tmp_path, one_line_of, content, message):
    (repository / "tests" / "attacks" / "test_a.py").write_text(content)
    assert message in one_line_of(main, ["--out", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


def test_without_the_tests_it_says_so(tmp_path, monkeypatch, one_line_of):
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    assert "run this in a clone of the repository" in one_line_of(main, [])
