"""`fastemo fetch`: all that trainings would download, once, so that they need no network."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from helpers import command, served
from safetensors.torch import save_file
from torchvision.models.video import r3d_18

from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.experiment.fetch import fetch
from fastemo.models import pretrained
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.models.pretrained import WeightsUnavailable
from fastemo.video.faces import detector
from fastemo.video.faces.detector import FaceDetector

SMALL = "test_resnet.r160_in1k"  # 2 MB
TITLES = (f"{SMALL} (timm)", "r3d_18 (torchvision, Kinetics-400)", "YuNet, the face detector (OpenCV)")


@pytest.fixture
def configs(tmp_path: Path) -> list[Path]:
    """A run and a study; both need the same weights of timm, the study those of R3D-18, too."""
    run, study = tmp_path / "run.yaml", tmp_path / "study.yaml"
    model = {"name": "late_fusion", "backbone": SMALL}
    run.write_text(json.dumps({"model": model, "video": {"crop": "face"}}))
    cells = [{"model": model}, {"model.name": "r3d18"}, {"model.name": "early_cnn"}]
    study.write_text(json.dumps({"name": "made", "seeds": [0, 1], "parts": [{"name": "one", "cells": cells}]}))
    return [run, study]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """Empty caches, hubs at a port that nobody listens on, and a server of the detector; gives the caches' folder."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch" / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    ask = pretrained.check_reachable
    monkeypatch.setattr(pretrained, "check_reachable", lambda _: ask(endpoint))
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "detector.onnx").write_bytes(b"the detector")
    monkeypatch.setattr(detector, "SHA256", hashlib.sha256(b"the detector").hexdigest())
    with served(tmp_path / "served") as url:
        monkeypatch.setattr(detector, "ADDRESS", f"{url}/detector.onnx")
        yield tmp_path


def put_r3d18(folder: Path) -> None:
    """Torchvision's file in torch's cache, in half precision."""
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    state = {key: value.half() for key, value in r3d_18(weights=None).state_dict().items()}
    torch.save(state, folder / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth")


def test_one_that_fails_is_named_and_the_others_are_fetched(configs, caches, cache, capsys):
    put_r3d18(caches / "torch")
    for expected in ("fetched", "already in the cache"):
        with pytest.raises(UserError, match=r"^1 of 3 are not available; the lines above say why$"):
            fetch(configs, Console())
        lines = capsys.readouterr().out.splitlines()
        timms, r3d18s, faces, where = (
            next(it for it in lines if it.startswith(start)) for start in (*TITLES, "caches")
        )
        assert timms.startswith(f"{TITLES[0]}: failed: cannot get the pretrained weights {TITLES[0]} (")
        assert "run fastemo fetch CONFIG on a machine with network, " in timms
        assert (r3d18s, faces) == (f"{TITLES[1]}: already in the cache", f"{TITLES[2]}: {expected}")
        assert f" TORCH_HOME={caches / 'torch'} FASTEMO_CACHE={cache}" in where
        assert (cache / "models" / "detector.onnx").read_bytes() == b"the detector"


def test_a_cache_that_cannot_be_written_is_a_failure(configs, caches, cache, capsys):
    cache.write_text("no folder")
    with pytest.raises(UserError, match=r"^2 of 2 "):
        fetch(configs[:1], Console())
    assert f"the face detector cannot be written to {cache}" in capsys.readouterr().out


def test_nothing_needed_is_said_and_a_named_file_has_to_be_there(caches, capsys):
    path, file = caches / "run.yaml", caches / "weights.pt"
    for model in ({"name": "early_cnn"}, {"pretrained": False}):
        path.write_text(json.dumps({"model": model}))
        fetch([path], Console())
        assert capsys.readouterr().out.startswith("nothing to fetch: ")
    path.write_text(json.dumps({"model": {"weights": str(file)}, "faces": {"weights": str(file)}}))
    with pytest.raises(UserError, match=r"^1 of 1 "):
        fetch([path], Console())
    line = f"{file} (model.weights): failed: model.weights: there is no file '{file}'"
    assert capsys.readouterr().out.splitlines()[0] == line
    file.touch()
    fetch([path], Console())
    assert capsys.readouterr().out.splitlines()[0] == f"{file} (model.weights): there"


def test_offline_nothing_is_asked_for(configs, caches, monkeypatch, capsys):
    def ask(*_: object) -> None:
        raise AssertionError("it asked the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(pretrained, "check_reachable", ask)
    monkeypatch.setattr(socket, "create_connection", ask)
    monkeypatch.setattr(socket.socket, "connect", ask)
    with pytest.raises(UserError, match=r"^3 of 3 "):
        fetch(configs, Console())
    *lines, _ = capsys.readouterr().out.splitlines()
    assert all("HF_HUB_OFFLINE is set" in line and "fastemo fetch CONFIG" in line for line in lines)
    for options in ({"name": "late_fusion", "backbone": SMALL}, {"name": "r3d18"}, {"name": "cnn_lstm"}):
        with pytest.raises(WeightsUnavailable, match=r"HF_HUB_OFFLINE is set\): run fastemo fetch .*--model\.weights"):
            build_model(ModelConfig(**options), 8)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set: run fastemo fetch .*--faces\.weights PATH"):
        FaceDetector()


def test_a_wrong_file_is_refused_before_anything_is_fetched(configs, caches, capsys):
    wrong = caches / "wrong.yaml"
    for text, message in (("model: {nam: r3d18}", "unknown key model.nam"), ("parts: [1]", "wrong.yaml: ")):
        wrong.write_text(text)
        with pytest.raises(ValueError, match=message):
            fetch([*configs, wrong], Console())
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        fetch([caches / "none.yaml"], Console())
    wrong.write_text("model: {backbone: resnet0}")
    with pytest.raises(ValueError, match=r"model\.backbone is 'resnet0'"):
        fetch([*configs, wrong], Console())
    assert capsys.readouterr().out == ""


class Hub(SimpleHTTPRequestHandler):
    """Files as the hub sends them: with a commit and a tag."""

    def end_headers(self) -> None:
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"a-tag"')
        super().end_headers()


@pytest.mark.slow
def test_the_command_fetches_once_and_then_needs_no_network(configs, tmp_path):
    file = tmp_path / "hub" / "timm" / SMALL / "resolve" / "main" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(timm.create_model(SMALL, pretrained=False).state_dict(), file)
    put_r3d18(tmp_path / "torch")
    configs[0].write_text(json.dumps({"model": {"name": "cnn_lstm", "backbone": SMALL}}))
    places = {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch"), "HF_HUB_OFFLINE": ""}
    words = [sys.executable, "-m", "fastemo.cli", "fetch", *configs]
    with served(tmp_path / "hub", Hub) as url:
        done = command(*words, HF_ENDPOINT=url, **places)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, where = done.stdout.splitlines()
    assert lines == [f"{TITLES[0]}: fetched", f"{TITLES[1]}: already in the cache"]
    assert where.startswith(f"caches: HF_HOME={tmp_path / 'hf'} TORCH_HOME={tmp_path / 'torch'} FASTEMO_CACHE=")
    done = command(*words, HF_ENDPOINT=url, **places | {"HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stdout.splitlines()[:2]) == (0, [f"{it}: already in the cache" for it in TITLES[:2]])
