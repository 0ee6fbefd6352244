"""Models on the hub: pushed and loaded through a server on this machine that speaks its endpoints."""

import json
import re
import sys
from pathlib import Path

import pytest
from helpers import command
from hub import TOKEN, Hub, served_hub
from huggingface_hub import constants
from sharing.runs import run_of

from fastemo.cli import main
from fastemo.config import read_config
from fastemo.inference.exports.hub import downloaded
from fastemo.json_files import read_json
from fastemo.report.schema import Gap, Result
from fastemo.sharing.card import without_names


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory) -> Path:
    return run_of(tiny_run, tmp_path_factory.mktemp("runs") / "tiny", name="early_cnn")


@pytest.fixture
def hub():
    with served_hub() as hub:
        yield hub


@pytest.fixture
def call(hub, tmp_path, monkeypatch, capfd):
    """Run a command in this process beside the hub: its exit status and all that it printed."""
    settings = {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hf"), "HF_TOKEN_PATH": str(tmp_path / "token")}
    # The hub's own protocol for large files is no part of the server here.
    settings["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {**settings, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)

    def run_command(*words: object, token: str = "", offline: bool = False) -> tuple[int, str]:
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline)))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)  # it was read when the client was imported
        status = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        said = "".join(capfd.readouterr())
        assert "Traceback" not in said, said
        assert TOKEN not in said
        return status, said

    return run_command


@pytest.fixture
def shares(call, few_clips, tmp_path):
    """What a model predicts for a clip: its probabilities."""
    clip = min(few_clips.rglob("*.mp4"))

    def predicted(model: object, **options: bool) -> list[float]:
        status, said = call("predict", model, clip, "--out", tmp_path / "found.json", **options)
        assert status == 0, said
        [found] = json.loads((tmp_path / "found.json").read_text())
        return [*found["probabilities"].values()]

    return predicted


def push(call, run: Path, token: str = TOKEN, **options: bool) -> tuple[int, str]:
    return call("push", run, "user/name", token=token, **options)


def test_a_pushed_model_is_loaded_with_the_same_predictions(hub: Hub, call, shares, run, tmp_path):
    status, said = push(call, run)
    assert status == 0, said
    [(commit, files)] = hub.commits["user/name"]
    assert f'in Python: fastemo.load("hf://user/name@{commit}")' in said.splitlines()
    assert {*files} == {
        "README.md", "config.yaml", "model.safetensors", "preprocess.json", "test.json", "metrics.jsonl",
        "curves.png", "confusion_matrix.png", "per_class_accuracy.png", "reliability.png",
    }  # fmt: skip
    everything = b"".join(files.values())
    root = read_config(["--config", str(run / "config.yaml")]).corpus.root
    for private in (TOKEN, str(run.parent), str(root.parent)):
        assert private.encode() not in everything
    assert b'load("hf://user/name")' in files["README.md"]
    result = json.loads(files["test.json"])
    assert result["accuracy"] == json.loads((run / "test.json").read_text())["accuracy"]
    assert not {"actor", "subject"} & {*result["groups"]}

    expected = shares(run)
    assert shares("hf://user/name") == pytest.approx(expected, abs=1e-6)
    # Another model under the same name: the pinned revision stays what it was, and the cache needs no network.
    other = run_of(run, tmp_path / "other", name="early_cnn")
    assert push(call, other)[0] == 0
    assert len(hub.commits["user/name"]) == 2
    assert shares("hf://user/name") != pytest.approx(expected, abs=1e-6)
    assert shares(f"hf://user/name@{commit}") == pytest.approx(expected, abs=1e-6)
    hub.requests.clear()
    assert shares(f"hf://user/name@{commit}", offline=True) == pytest.approx(expected, abs=1e-6)
    assert hub.requests == []
    assert not [file for file in (tmp_path / "hf").rglob("*") if file.is_file() and TOKEN in file.read_text("latin-1")]


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(hub: Hub, run, tmp_path):
    known = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, "-m", "fastemo.cli"]
    done = command(*words, "push", run, "user/name", "--private", cwd=tmp_path, **known)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert [*hub.commits["user/name"][0][1]]
    done = command(*words, "predict", "hf://user/name", "no.mp4", cwd=tmp_path, **known)
    assert (done.returncode, "8 classes" in done.stdout) == (1, True)


def test_an_interruption_is_made_good_by_the_same_command(hub: Hub, call, shares, run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own retries
    hub.cut, hub.cuts = "/upload/", 99
    status, said = push(call, run)
    assert (status, hub.commits["user/name"]) == (2, [])
    assert "fastemo: error: hf://user/name: the hub's client failed" in said
    hub.cuts = 0
    assert push(call, run)[0] == 0

    hub.cut, hub.cuts = "/model.safetensors", 99
    status, said = call("predict", "hf://user/name", "no.mp4")
    assert (status, "fastemo: error: hf://user/name: " in said) == (2, True)
    hub.cuts = 0
    assert len(shares("hf://user/name")) == 8


def test_what_cannot_be_pushed_or_loaded_is_said_in_one_line(hub: Hub, call, run):
    def error(words: tuple[int, str]) -> str:
        status, said = words
        assert status == 2
        return said.splitlines()[-1].removeprefix("fastemo: error: hf://user/")

    assert error(push(call, run, token="")).startswith("name: no token of the hub: log in with hf auth login")
    assert "401" in error(push(call, run, token="hf_another"))
    assert error(push(call, run, offline=True)) == "name: HF_HUB_OFFLINE is set: unset it to push"
    assert error(call("predict", "hf://user/none", "x.mp4")).startswith("none: the hub has no such model")
    assert "HF_HUB_OFFLINE=1" in error(call("predict", "hf://user/none", "x.mp4", offline=True))
    hub.commits["user/others"] = [("0" * 40, {"config.json": b"{}"})]
    assert error(call("predict", "hf://user/others", "x.mp4")) == (
        "others is not complete, or no model of fastemo: it has no config.yaml, preprocess.json, model.safetensors"
    )
    assert error(call("predict", "hf://user/others@v2", "x.mp4")) == "others@v2: the model has no such revision"
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
