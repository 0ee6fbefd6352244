"""Models on the hub: pushed and loaded through a server on this machine that speaks its endpoints."""

import json
import re
import sys
from pathlib import Path

import pytest
from helpers import command
from hub import TOKEN, Hub, served_hub
from sharing.runs import run_of

import fastemo
from fastemo.inference.exports.hub import downloaded
from fastemo.json_files import read_json
from fastemo.report.schema import Gap, Result
from fastemo.sharing.card import without_names

PREDICT = """
import sys, fastemo
print(*fastemo.load(sys.argv[1]).predict(sys.argv[2]).probabilities.values())
"""


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory) -> Path:
    return run_of(tiny_run, tmp_path_factory.mktemp("runs") / "tiny", name="early_cnn")


@pytest.fixture
def hub():
    with served_hub() as hub:
        yield hub


@pytest.fixture
def call(hub, tmp_path):
    """Run Python beside the hub: its exit status and all that it printed."""

    def run_python(*words: object, **environment: str) -> tuple[int, str]:
        known = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "HF_HUB_OFFLINE": ""}
        # The hub's own protocol for large files is no part of the server here.
        known |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
        done = command(sys.executable, *words, cwd=tmp_path, **known)
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        assert TOKEN not in said
        return done.returncode, said

    return run_python


def push(call, run: Path, *more: str, **environment: str) -> tuple[int, str]:
    return call("-m", "fastemo.cli", "push", run, "user/name", *more, **{"HF_TOKEN": TOKEN, **environment})


@pytest.mark.slow
def test_a_pushed_model_is_loaded_with_the_same_predictions(hub: Hub, call, run, few_clips, tmp_path):
    status, said = push(call, run)
    assert status == 0, said
    [(commit, files)] = hub.commits["user/name"]
    assert said.splitlines()[-1] == f'in Python: fastemo.load("hf://user/name@{commit}")'
    assert {*files} == {
        "README.md", "config.yaml", "model.safetensors", "preprocess.json", "test.json", "metrics.jsonl",
        "curves.png", "confusion_matrix.png", "per_class_accuracy.png", "reliability.png",
    }  # fmt: skip
    everything = b"".join(files.values())
    for private in (TOKEN, str(run.parent), str(few_clips.parent)):
        assert private.encode() not in everything
    assert b'load("hf://user/name")' in files["README.md"]
    result = json.loads(files["test.json"])
    assert result["accuracy"] == json.loads((run / "test.json").read_text())["accuracy"]
    assert not {"actor", "subject"} & {*result["groups"]}

    clip = sorted(few_clips.rglob("*.mp4"))[0]
    expected = fastemo.load(run).predict(clip).probabilities.values()
    status, said = call("-c", PREDICT, "hf://user/name", clip)
    assert (status, [float(it) for it in said.split()]) == (0, pytest.approx([*expected], abs=1e-6))
    # Another model under the same name: the pinned revision stays what it was, and the cache needs no network.
    other = run_of(run, tmp_path / "other", name="early_cnn")
    assert push(call, other)[0] == 0
    assert len(hub.commits["user/name"]) == 2
    newest, pinned = (call("-c", PREDICT, f"hf://user/name{it}", clip)[1] for it in ("", f"@{commit}"))
    assert (pinned, newest != pinned) == (said, True)
    hub.requests.clear()
    assert call("-c", PREDICT, f"hf://user/name@{commit}", clip, HF_HUB_OFFLINE="1") == (0, said)
    assert hub.requests == []
    assert not [file for file in (tmp_path / "hf").rglob("*") if file.is_file() and TOKEN in file.read_text("latin-1")]


@pytest.mark.slow
def test_an_interruption_is_made_good_by_the_same_command(hub: Hub, call, run, few_clips):
    hub.cut, hub.cuts = "/upload/", 99  # longer than the client's own retries
    status, said = push(call, run)
    assert (status, hub.commits["user/name"]) == (2, [])
    assert "fastemo: error: hf://user/name: the hub's client failed" in said
    hub.cuts = 0
    assert push(call, run)[0] == 0

    hub.cut, hub.cuts = "/model.safetensors", 1
    clip = sorted(few_clips.rglob("*.mp4"))[0]
    call("-c", f"import contextlib\nwith contextlib.suppress(Exception):\n exec({PREDICT!r})", "hf://user/name", clip)
    status, said = call("-c", PREDICT, "hf://user/name", clip)
    assert (status, len(said.split())) == (0, 8)


@pytest.mark.slow
def test_what_cannot_be_pushed_or_loaded_is_said_in_one_line(hub: Hub, call, run):
    def error(words: tuple[int, str]) -> str:
        status, said = words
        assert status == 2
        return said.splitlines()[-1].removeprefix("fastemo: error: hf://user/")

    predict = ("-m", "fastemo.cli", "predict")
    assert error(push(call, run, HF_TOKEN="")).startswith("name: no token of the hub: log in with hf auth login")
    assert "401" in error(push(call, run, HF_TOKEN="hf_another"))
    assert error(push(call, run, HF_HUB_OFFLINE="1")) == "name: HF_HUB_OFFLINE is set: unset it to push"
    assert error(call(*predict, "hf://user/none", "x.mp4")).startswith("none: the hub has no such model")
    assert "HF_HUB_OFFLINE=1" in error(call(*predict, "hf://user/none", "x.mp4", HF_HUB_OFFLINE="1"))
    hub.commits["user/others"] = [("0" * 40, {"config.json": b"{}"})]
    assert error(call(*predict, "hf://user/others", "x.mp4")) == (
        "others is not complete, or no model of fastemo: it has no config.yaml, preprocess.json, model.safetensors"
    )
    assert error(call(*predict, "hf://user/others@v2", "x.mp4")) == "others@v2: the model has no such revision"
    assert not any("model.safetensors" in request for request in hub.requests)


@pytest.mark.parametrize("address", ["hf://name", "hf://a/b/c", "hf://user/name@", "hf://user/../x@y z"])
def test_malformed_addresses_are_refused(address):
    with pytest.raises(ValueError, match=re.escape(f"{address}: a model on the hub is hf://USER/NAME")):
        downloaded(address)


def test_names_of_people_do_not_leave(run):
    gaps = read_json(run / "test.json", Result).gaps
    assert {gap.by for gap in gaps} >= {"actor", "gender"}
    for gap in map(without_names, gaps):
        assert (gap.best == "") == (gap.by in ("actor", "subject"))
        assert isinstance(gap, Gap)
