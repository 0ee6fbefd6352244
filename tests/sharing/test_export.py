"""Exports: every model in every format gives the predictions of its run, and what is wrong is refused."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from helpers import REPOSITORY, command, smooth_frame, write_video
from networks import NETWORKS, shallow_networks
from sharing.runs import run_of

import fastemo
from fastemo.cli import main
from fastemo.config import read_config, write_config
from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.inference.exports import FILES, PREPROCESS_FILE
from fastemo.machine import sha256_of
from fastemo.models.config import ModelName
from fastemo.sharing import export as export_module
from fastemo.sharing.card import model_card
from fastemo.sharing.export import export_run, one_run

# Variants that only differ in weights, or in layers that others have, too.
ALIKE = ("late_fusion-max", "tsm-efficientnet", "tsm-mobilenetv4", "video-mc3_18", "video-swin3d_s")
VARIANTS = [name for name in NETWORKS if name not in ALIKE]


@pytest.fixture(autouse=True)
def shallow():
    with shallow_networks():
        yield


@pytest.fixture(scope="module")
def made(tiny_run, tmp_path_factory):
    """Name -> a finished run of that model."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}

    def get(name: str) -> Path:
        if name not in runs:
            options = {"name": name.partition("-")[0], **NETWORKS[name]}
            with shallow_networks():
                runs[name] = run_of(tiny_run, folder / name, num_frames=6, size=32, **options)
        return runs[name]

    return get


@pytest.fixture(scope="module")
def exported(made):
    """Format -> an export of `early_cnn`."""
    return lambda kind: export_run(made("early_cnn"), kind, Console(show=False))


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(Console, "say", lambda self, text: said.append(text))
    return said


def test_the_battery_holds_every_model():
    assert {name.partition("-")[0] for name in VARIANTS} == {*get_args(ModelName)}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_format_gives_the_predictions_of_the_run(made, few_clips, lines, name):
    run = made(name)
    clips = sorted(few_clips.rglob("*.mp4"))[:11]  # a whole batch of 8, and a part of one
    expected = list(fastemo.load(run).predict(clips))
    for kind in FILES:
        out = export_run(run, kind, Console(show=False))
        [told] = [line for line in lines if line.startswith("largest difference of logits")]
        assert re.fullmatch(r".*: \d\.\de[-+]\d\d on 3 random clips, \d\.\de[-+]\d\d on 4 clips of the corpus", told)
        lines.clear()
        model = fastemo.load(out)
        assert (model.precision, model.class_names) == ("fp32", fastemo.load(run).class_names)
        for found, wanted in zip(model.predict(clips), expected, strict=True):
            assert found.error is None
            assert np.allclose([*found.probabilities.values()], [*wanted.probabilities.values()], atol=1e-4)
            assert np.allclose(found.embedding, wanted.embedding, atol=1e-3)


@pytest.mark.slow
def test_windows_of_a_long_video_are_predicted_alike(made, tmp_path):
    video = write_video(tmp_path / "long.mp4", 60, 96, 64, draw=smooth_frame)
    run = made("cnn_lstm-gru")
    expected = [it.probabilities for it in fastemo.load(run).stream(video, window=1.0, hop=0.5)]
    assert len(expected) > 2
    for kind in FILES:
        found = [
            it.probabilities
            for it in fastemo.load(export_run(run, kind, Console(show=False))).stream(video, window=1.0, hop=0.5)
        ]
        for one, other in zip(found, expected, strict=True):
            assert np.allclose([*one.values()], [*other.values()], atol=1e-4)


def test_an_export_that_computes_something_else_is_not_written(made, tmp_path, monkeypatch):
    run, out = made("early_cnn"), tmp_path / "out"
    export_run(run, "safetensors", Console(show=False), out=out)
    before, write = (out / "model.safetensors").read_bytes(), export_module._write_model

    def write_another(model, *others):
        model.classifier[-1].bias.data += 0.002
        write(model, *others)
        model.classifier[-1].bias.data -= 0.002

    monkeypatch.setattr(export_module, "_write_model", write_another)
    with pytest.raises(UserError, match=r"logits differ from the model's by 0\.002 on random clips"):
        export_run(run, "safetensors", Console(show=False), out=out)

    def refuse(*_: object) -> None:
        raise RuntimeError("no such\n operator")

    monkeypatch.setattr(export_module, "_write_model", refuse)
    with pytest.raises(UserError, match=r"early_cnn cannot be exported as onnx: no such operator"):
        export_run(run, "onnx", Console(show=False), out=out)
    assert (out / "model.safetensors").read_bytes() == before
    assert [*tmp_path.iterdir()] == [out]


def test_only_an_export_is_replaced(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="is not an export: choose another folder with --out"):
        export_run(made("early_cnn"), "safetensors", Console(show=False), out=tmp_path / "mine")
    for _ in range(2):
        export_run(made("early_cnn"), "safetensors", Console(show=False), out=tmp_path / "new" / "one")
    assert sorted(it.name for it in (tmp_path / "new" / "one").iterdir()) == [
        "README.md", "config.yaml", "model.safetensors", "preprocess.json",
    ]  # fmt: skip


def test_without_the_corpus_random_clips_are_checked_and_it_says_so(made, tmp_path, lines):
    run = shutil.copytree(made("early_cnn"), tmp_path / "run")
    config = read_config(["--config", str(run / "config.yaml"), "--corpus.root", str(tmp_path / "away")])
    write_config(config, run / "config.yaml")
    export_run(run, "safetensors", Console(show=False))
    assert "0.0e+00 on 3 random clips, no real ones, for the run's corpus is not here" in lines[0]


def test_what_is_no_single_run_is_refused(made, exported, tmp_path, capsys):
    with pytest.raises(ValueError, match="is an export: give the run itself"):
        export_run(exported("safetensors"), "onnx", Console(show=False))
    for words in (["evaluate"], ["train", "--resume"]):
        with pytest.raises(SystemExit):
            main([*words, str(exported("safetensors"))])
        assert "is an export, which can only predict: give the run itself" in capsys.readouterr().err
    for name in "ab":
        shutil.copytree(made("early_cnn"), tmp_path / name)
    (tmp_path / "study.json").write_text(json.dumps({"cells": [{"folder": "a"}, {"folder": "b"}]}))
    with pytest.raises(ValueError, match=f"holds 2 runs: give one of them, such as {tmp_path / 'a'}"):
        export_run(tmp_path, "onnx", Console(show=False))


def test_damaged_exports_are_named(exported, tmp_path):
    def copy(kind: str) -> Path:
        return shutil.copytree(exported(kind), tmp_path / kind, dirs_exist_ok=True)

    def sign(folder: Path, kind: str) -> None:
        found = json.loads((folder / PREPROCESS_FILE).read_text())
        (folder / PREPROCESS_FILE).write_text(json.dumps(found | {"sha256": sha256_of(folder / FILES[kind])}))

    for kind, reason in (
        ("onnx", "ONNX Runtime cannot open it"),
        ("torch", "torch cannot open it"),
        ("safetensors", "cannot be read as weights"),
    ):
        folder = copy(kind)
        (folder / FILES[kind]).write_bytes(b"no model" * 9)
        with pytest.raises(ValueError, match=f"{FILES[kind]} is damaged: its SHA-256"):
            fastemo.load(folder)
        sign(folder, kind)
        with pytest.raises(ValueError, match=reason):
            fastemo.load(folder)
        (folder / FILES[kind]).unlink()
        with pytest.raises(ValueError, match=f"is not complete: it has no {FILES[kind]}"):
            fastemo.load(folder)
    folder = copy("safetensors")
    found = json.loads((folder / PREPROCESS_FILE).read_text())
    for change, place in (
        ({"temperature": 0}, "temperature"),
        ({"format": "exe"}, "format"),
        ({"class_names": []}, "class_names"),
    ):
        (folder / PREPROCESS_FILE).write_text(json.dumps(found | change))
        with pytest.raises(ValueError, match=rf"{PREPROCESS_FILE} is damaged.*{place}"):
            fastemo.load(folder)
    (folder / PREPROCESS_FILE).write_text(json.dumps(found | {"class_names": ["a", "b"]}))
    with pytest.raises(ValueError, match=r"does not fit its config\.yaml"):
        fastemo.load(folder)


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("part", ["weights", "constants", "inputs", "legacy"])
def test_pickles_in_a_program_are_not_loaded(exported, tmp_path, monkeypatch, part):
    """torch itself would run what they hold."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(exported("torch"), tmp_path / "torch")
    file = folder / FILES["torch"]
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    [home] = {name.partition("/")[0] for name in parts}
    trap, saved = pickle.dumps(_Trap()), io.BytesIO()
    torch.save(_Trap(), saved)
    if part == "inputs":
        parts[f"{home}/data/sample_inputs/model.pt"] = saved.getvalue()
    elif part == "legacy":
        parts[f"{home}/data/weights/model.pt"] = saved.getvalue()
    else:
        [name] = [name for name in parts if name.endswith(f"{part}/model_{part}_config.json")]
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        parts[name] = json.dumps({"config": {**json.loads(parts[name])["config"], "trap": payload}}).encode()
        parts[f"{home}/data/{part}/opaque_obj_0"] = trap
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    found = json.loads((folder / PREPROCESS_FILE).read_text())
    (folder / PREPROCESS_FILE).write_text(json.dumps(found | {"sha256": sha256_of(file)}))
    with pytest.raises(ValueError, match="torch cannot open it"):
        fastemo.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_missing_packages_are_named(made, exported, monkeypatch):
    folder = exported("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs ONNX Runtime: pip install 'fastemo\[export\]'"):
        fastemo.load(folder)
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"--to onnx needs onnxscript: pip install 'fastemo\[export\]'"):
        export_run(made("early_cnn"), "onnx", Console(show=False))


@pytest.mark.slow
def test_the_command_and_the_lines_of_the_documentation_without_fastemo_and_torch(made, few_clips, tmp_path):
    """In an environment of onnxruntime, PyAV, Pillow and numpy alone."""
    run = made("late_fusion")
    fastemo_command = [sys.executable, "-m", "fastemo.cli"]
    done = command(*fastemo_command, "export", run, "--to", "onnx", "--out", "exported", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["largest difference of logits", "written"]
    again = command(*fastemo_command, "export", tmp_path / "exported", "--to", "onnx", cwd=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    clip = shutil.copy(sorted(few_clips.rglob("*.mp4"))[0], tmp_path / "clip.mp4")

    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    [home] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for package in (
        "onnxruntime",
        "av",
        "av.libs",
        "PIL",
        "pillow.libs",
        "numpy",
        "numpy.libs",
        "google",
        "flatbuffers",
        "packaging",
    ):
        source = Path(np.__file__).parent.parent / package
        if source.exists():
            (home / package).symlink_to(source)
    python = tmp_path / "venv" / "bin" / "python"
    absent = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in absent.stderr
    [code] = re.findall(
        r"```python\n(import json, av.*?)```", (REPOSITORY / "docs" / "export.md").read_text(), re.DOTALL
    )
    code = code.replace("print(", "print(*__import__('sys').modules); print(").replace(
        "shares / shares.sum()", "(shares / shares.sum()).tolist()"
    )
    assert len([line for line in code.splitlines() if line]) == 11  # an import, and ten
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules, found = done.stdout.splitlines()
    assert not {"torch", "fastemo"} & {*modules.split()}
    wanted = fastemo.load(tmp_path / "exported").predict(clip).probabilities
    found = json.loads(found.replace("'", '"'))
    assert found.keys() == wanted.keys()
    assert max(abs(found[name] - wanted[name]) for name in wanted) < 0.05


def test_the_card_says_what_the_run_found(made):
    run = one_run(made("early_cnn"))
    card = model_card(run, "hf://user/name", ["curves.png"])
    front, text = card.removeprefix("---\n").split("\n---\n")
    metadata, result = yaml.safe_load(front), json.loads((run.folder / "test.json").read_text())
    assert (metadata["license"], metadata["pipeline_tag"]) == ("cc-by-nc-sa-4.0", "video-classification")
    [entry] = metadata["model-index"]
    assert entry["results"][0]["metrics"][0]["value"] == round(result["accuracy"], 4)
    for wanted in (
        "CC BY-NC-SA 4.0", "Article 5(1)(f)", "160, 16, 16", "16 test clips, 16 takes of 2 subjects",
        f"| accuracy | {100 * result['accuracy']:.1f} % |", "RAVDESS's hardest pair", 'fastemo.load("hf://user/name")',
        "![curves.png](curves.png)", "what people are told to act is not what they feel", "| gender |",
    ):  # fmt: skip
        assert wanted in " ".join(text.split()), wanted
    for name, recall in result["per_class"].items():
        assert f"| {name} | {100 * recall:.1f} % |" in text


def test_neither_paths_nor_people_leave_with_an_export(made, exported, few_clips):
    folder = exported("safetensors")
    text = "".join((folder / name).read_text() for name in ("config.yaml", "README.md", PREPROCESS_FILE))
    run = made("early_cnn")
    assert str(run.parent) not in text
    config = read_config(["--config", str(run / "config.yaml")])
    assert str(config.corpus.root.parent) not in text
    assert read_config(["--config", str(folder / "config.yaml")]).corpus.root == Path(config.corpus.root.name)
