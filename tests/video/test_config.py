"""Which backend decodes, and why."""

import sys

import decord
import pytest
import torch

from fastemo.video import dali
from fastemo.video.backends import choose_backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_auto_is_pyav_for_a_cpu_and_dali_for_a_gpu(monkeypatch):
    assert choose_backend("auto", CPU) == ("pyav", "the device is CPU")
    monkeypatch.setattr(dali, "why_unavailable", lambda device: None)
    assert choose_backend("auto", CUDA)[0] == "dali"
    monkeypatch.setattr(dali, "why_unavailable", lambda device: "DALI is not installed")
    assert choose_backend("auto", CUDA) == ("pyav", "DALI is not installed")


def test_what_is_asked_for_is_taken_or_refused(monkeypatch):
    chosen, why = choose_backend("decord", CUDA)
    assert chosen == "decord"
    assert why.startswith(f"as asked, decord {decord.__version__} with libavcodec ")
    assert choose_backend("pyav", CUDA) == ("pyav", "as asked")
    monkeypatch.setattr(dali, "why_unavailable", lambda device: "DALI is not installed")
    with pytest.raises(ValueError, match=r"video\.backend dali: DALI is not installed"):
        choose_backend("dali", CPU)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ValueError, match=r"decord cannot be loaded \(import of decord halted.*pip install decord2"):
        choose_backend("decord", CPU)


def test_two_packages_in_decords_folder_are_named(monkeypatch):
    installed = ["decord", "decord2"]
    monkeypatch.setattr("fastemo.video.backends.distributions", lambda name: [it for it in installed if it == name])
    chosen, why = choose_backend("decord", CPU)
    assert chosen == "decord"
    assert "pip uninstall -y decord decord2, then pip install decord2" in why
    installed.pop(0)
    assert "pip" not in choose_backend("decord", CPU)[1]
