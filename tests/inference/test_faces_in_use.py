"""Runs on squares around faces, with the real detector: the predictions of their test, and one for each face."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, command, empty_figures, write_video

import fastemo
from fastemo.config import read_config
from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.corpus.config import Difficulty, SyntheticConfig
from fastemo.corpus.synthetic.synthesis import render_frames, synthesize
from fastemo.errors import UserError
from fastemo.experiment.retest import evaluate_run
from fastemo.experiment.run import run

TINY = ["--model.name", "early_cnn", "--train.epochs", "1", "--train.batch_size", "16", "--video.num_frames", "3"]
TINY += ["--video.size", "36", "--augment.crop_size", "32", "--train.precision", "fp32"]
PREDICT = [sys.executable, "-m", "fastemo.cli", "predict"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two takes of each actor, heads anywhere."""
    config = SyntheticConfig(clips_per_actor=2, width=160, height=90, num_frames=12, difficulty=Difficulty(place=1.0))
    return synthesize(tmp_path_factory.mktemp("placed") / "corpus", config, workers=1)


@pytest.fixture(scope="module")
def trained(corpus, face_weights, tmp_path_factory) -> Path:
    options = ["--video.crop", "face", "--faces.weights", str(face_weights), "--corpus.root", str(corpus)]
    with empty_figures():
        return run(read_config([*TINY, *options, "--runs_dir", str(tmp_path_factory.mktemp("runs")), "--name", "tiny"]))


def pair(path: Path, seconds: float = 4.0) -> Path:
    """Two generated actors side by side."""
    config = SyntheticConfig(width=160, height=120, num_frames=30)
    takes = [next(it for it in ravdess.speech_performances(actor)) for actor in (1, 2)]
    sides = [render_frames(take, config) for take in takes]
    num_frames = round(seconds * 25)
    return write_video(path, num_frames, 320, 120, draw=lambda n, *_: np.hstack([side[n % 30] for side in sides]))


def test_predictions_are_those_of_the_runs_own_test(trained, corpus):
    with (trained / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = fastemo.load(trained)
    assert (found.faces, found.backend, found.note) == ("largest", "pyav", "")
    for row, answer in zip(rows, found.predict(corpus / row["key"] for row in rows), strict=True):
        assert answer.error is None
        for name, share in answer.probabilities.items():
            assert abs(share - float(row[f"probability_{name}"])) < 1e-5
        assert answer.face == 1
    with (trained / "manifest.csv").open() as file:
        boxes = {row["key"]: row["face"] for row in csv.DictReader(file)}
    assert " ".join(map(str, answer.box)) == boxes[rows[-1]["key"]]
    assert len(set(boxes.values())) > 30


def test_each_face_has_its_own_prediction(trained, tmp_path):
    video = pair(tmp_path / "two.mp4")
    largest, everyone = fastemo.load(trained), fastemo.load(trained, faces="all")
    answers = list(everyone.predict([video]))
    assert [(answer.face, answer.error) for answer in answers] == [(1, None), (2, None)]
    sides = sorted(answer.box[0] + answer.box[2] / 2 for answer in answers)
    assert 40 < sides[0] < 120 < 200 < sides[1] < 280
    one = everyone.predict(video)
    assert one.box == max((answer.box for answer in answers), key=lambda box: box[2] * box[3])
    assert len(list(largest.predict([video]))) == 1
    windows = list(everyone.stream(video, window=2.0, hop=1.0))
    assert [(it.start, it.face) for it in windows] == [(float(start), face) for start in range(3) for face in (1, 2)]
    assert [it.face for it in largest.stream(video, window=2.0, hop=1.0)] in ([1] * 3, [2] * 3)
    frames = np.repeat(np.hstack([render(1), render(2)])[None], 4, axis=0)
    assert everyone.predict_frames(frames).box is not None
    assert everyone.embed(frames).shape == answers[0].embedding.shape


def render(actor: int) -> np.ndarray:
    take = ravdess.speech_performances(actor)[0]
    return render_frames(take, SyntheticConfig(width=160, height=120, num_frames=1))[0]


def test_without_a_face_there_is_no_prediction(trained, tmp_path):
    empty = write_video(tmp_path / "empty.mp4", 100, 160, 90, draw=lambda n, w, h: np.full((h, w, 3), 90, np.uint8))
    found = fastemo.load(trained)
    for answers in (found.predict([empty]), found.stream(empty, window=2.0, hop=1.0)):
        for answer in answers:
            assert (answer.error, answer.label, answer.face, answer.box) == ("no face", None, 0, None)
    with pytest.raises(UserError, match=r"empty\.mp4: no face"):
        found.predict(empty)
    nothing = np.zeros((4, 90, 160, 3), np.uint8)
    assert found.predict_frames(nothing).error == "no face"
    with pytest.raises(UserError, match="cannot be embedded: no face"):
        found.embed(nothing)


def test_the_backend_of_a_face_run_is_pyav_and_weights_may_be_elsewhere(trained, face_weights, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "run")
    config = folder / "config.yaml"
    text = config.read_text().replace('backend: "auto"', 'backend: "decord"')
    config.write_text(text.replace(str(face_weights), "/nowhere/w.onnx"))
    with pytest.warns(UserWarning, match="PyAV decodes instead of decord: faces are found in its frames"):
        found = fastemo.load(folder, face_weights=face_weights)
    assert found.backend == "pyav"
    monkeypatch.setenv("FASTEMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fastemo.video.faces.detector.ADDRESS", "http://127.0.0.1:9/w.onnx")
    with pytest.raises(UserError, match=r"cannot be downloaded .*--faces\.weights PATH"):
        fastemo.load(folder)


@pytest.mark.parametrize("faces", ["largest", "all"])
def test_a_run_on_another_crop_has_one_prediction_a_window(tiny_run, faces):
    with pytest.raises(ValueError, match=rf"faces {faces}: .* crop center, .*train a run with video\.crop: face"):
        fastemo.load(tiny_run, faces=faces)
    assert fastemo.load(tiny_run).faces is None


def test_faces_must_be_known(trained):
    with pytest.raises(ValueError, match="faces must be largest or all, not 'every'"):
        fastemo.load(trained, faces="every")


def test_the_command_says_which_face(trained, face_weights, tmp_path, tiny_run):
    pair(tmp_path / "two.mp4", 12.0)
    write_video(tmp_path / "empty.mp4", 20, 160, 90, draw=lambda n, w, h: np.full((h, w, 3), 90, np.uint8))
    words = [trained, "two.mp4", "--faces", "all", "--faces.weights", face_weights, "--window", "3", "--hop", "3"]
    files = ["--out", "a.csv", "--features", "a.npz", "--annotate", "a.mp4"]
    done = command(*PREDICT, *words, *files, cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert [line.split()[4:6] for line in done.stdout.splitlines()[2:10]] == [["face", "1"], ["face", "2"]] * 4
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["face"] for row in rows] == ["1", "2"] * 4
    assert {int(row["left"]) // 160 for row in rows} == {0, 1}
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["face"].tolist() == [1, 2] * 4
    assert (tmp_path / "a.mp4").stat().st_size > 10_000
    done = command(*PREDICT, trained, "empty.mp4", cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert (done.returncode, done.stderr) == (0, "")  # that nobody is there is no failure
    assert done.stdout.splitlines()[2].split()[-2:] == ["no", "face"]
    done = command(*PREDICT, tiny_run, "two.mp4", "--faces", "all", cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "video.crop: face" in done.stderr


def test_a_corpus_is_evaluated_and_drawn_on_its_faces(trained, corpus, face_weights, tmp_path):
    own = evaluate_run(trained, Console(show=False), out=tmp_path / "own")
    assert own["accuracy"] == json.loads((trained / "test.json").read_text())["accuracy"]
    other = synthesize(
        tmp_path / "other",
        SyntheticConfig(clips_per_actor=1, width=160, height=90, num_frames=6, seed=5, actors=4),
        workers=1,
    )
    with empty_figures():
        found = evaluate_run(trained, Console(show=False), out=tmp_path / "all", root=other)
    assert found["num_clips"] == 4
    words = ["figures", "corpus", corpus, "--crop", "face", "--faces.weights", face_weights, "--out", "drawn"]
    done = command(sys.executable, "-m", "fastemo.cli", *words, cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert "faces: in 48 of 48 clips" in done.stdout
    assert (tmp_path / "drawn" / "crop.jpg").stat().st_size > 1000


# ---- what it is for


@pytest.fixture(scope="module")
def learned(face_weights, tmp_path_factory) -> dict[str, Path]:
    """Crop -> a run on easy takes whose heads are anywhere in the picture."""
    home = tmp_path_factory.mktemp("learned")
    easy = Difficulty(identity=0, motion=0, light=0, place=1)
    config = SyntheticConfig(clips_per_actor=16, num_frames=8, difficulty=easy)
    corpus = synthesize(home / "corpus", config)
    recipe = ["--config", str(REPOSITORY / "configs" / "quick_face.yaml"), "--train.precision", "fp32"]
    recipe += ["--video.size", "48", "--augment.crop_size", "48", "--video.num_frames", "4", "--train.epochs", "6"]
    recipe += ["--video.face_margin", "0.1", "--augment.enabled", "false", "--train.batch_size", "8"]
    recipe += ["--faces.weights", str(face_weights)]
    recipe += ["--corpus.root", str(corpus), "--corpus.protocol", "kfold5"]
    with empty_figures():
        return {
            crop: run(read_config([*recipe, "--video.crop", crop, "--runs_dir", str(home), "--name", crop]))
            for crop in ("face", "center")
        }


@pytest.mark.slow
def test_with_heads_anywhere_faces_beat_the_centre(learned):
    face, center = (json.loads((learned[it] / "test.json").read_text())["accuracy"] for it in ("face", "center"))
    assert face >= center + 0.2, (face, center)


@pytest.mark.slow
def test_two_actors_are_right_more_often_than_one_prediction_for_both(learned, tmp_path):
    """Each shows one emotion after the other, never both the same; the largest face's prediction stands for both."""
    easy = Difficulty(identity=0, motion=0, light=0, noise=0)
    config = SyntheticConfig(width=160, height=90, num_frames=50, difficulty=easy)
    everyone, largest = (fastemo.load(learned["face"], faces=faces) for faces in ("all", "largest"))
    own, both = [], []
    for left, right in ((2, 5), (14, 15)):
        shown = {left: ["happy", "angry", "calm", "happy"], right: ["angry", "happy", "happy", "calm"]}
        sides = [
            np.concatenate([render_frames(take_of(actor, name), config) for name in names])
            for actor, names in shown.items()
        ]
        joined = np.concatenate(sides, axis=2)
        video = write_video(tmp_path / "two.mp4", 200, 320, 90, draw=lambda n, *_, joined=joined: joined[n])
        windows = list(everyone.stream(video, window=2.0, hop=2.0))
        assert [it.face for it in windows] == [1, 2] * 4
        who = {it.face: left if it.box[0] < 160 else right for it in windows}
        assert sorted(who.values()) == [left, right]
        own += [it.label == shown[who[it.face]][round(it.start / 2)] for it in windows]
        for it in largest.stream(video, window=2.0, hop=2.0):
            both += [it.label == names[round(it.start / 2)] for names in shown.values()]
    assert len(own) == len(both) == 16
    assert sum(own) > sum(both), (own, both)


def take_of(actor: int, emotion: str) -> ravdess.Performance:
    return next(it for it in ravdess.speech_performances(actor) if it.emotion_name == emotion and it.intensity == 2)
