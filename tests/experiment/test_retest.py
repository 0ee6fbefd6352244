"""A run tested again: at another place, and on another corpus by the classes that both have."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY_RUN, command, write_video
from hypothesis import given
from hypothesis import strategies as st

from fastemo.config import read_config
from fastemo.console import Console
from fastemo.corpus import cremad, prepare
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.evaluation.evaluate import Predictions
from fastemo.experiment.retest import evaluate_run, restricted
from fastemo.experiment.run import run

FASTEMO = Path(sys.executable).parent / "fastemo"
QUIET = Console(show=False)


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """A run on RAVDESS's names and eight classes."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("runs") / "eight")


@pytest.fixture(scope="module")
def cremad_corpus(tmp_path_factory):
    """Six classes by two actors of each split."""
    root = tmp_path_factory.mktemp("other") / "crema"
    for actors in cremad.split_actors().values():
        for actor in actors[:2]:
            for emotion in cremad.EMOTIONS:
                write_video(root / f"{actor}_DFA_{emotion}_XX.mp4", 4)
    return root


def evaluated(run_dir, root, labels, *more):
    """What the command prints."""
    done = command(FASTEMO, "evaluate", run_dir, "--corpus.root", root, "--corpus.labels", labels, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@given(
    st.permutations(range(5)).flatmap(lambda order: st.integers(2, 5).map(lambda count: order[:count])),
    st.integers(0, 2**32 - 1),
)
def test_a_choice_among_some_classes_is_the_softmax_over_them(chosen, seed):
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c", "d", "e")
    labels = rng.choice(chosen, 7)
    predictions = Predictions(tuple("0123456"), labels, rng.normal(size=(7, 5)).astype(np.float32))
    found = restricted(predictions, names, [names[column] for column in chosen])
    exponentials = np.exp(predictions.logits.astype(np.float64))[:, chosen]
    np.testing.assert_allclose(found.probabilities, exponentials / exponentials.sum(1, keepdims=True))
    assert [chosen[label] for label in found.labels] == labels.tolist()
    assert found.keys == predictions.keys


def test_another_corpus_by_the_shared_classes(trained, cremad_corpus):
    result = evaluate_run(trained, QUIET, root=cremad_corpus, labels="cremad")
    assert result["split"] == "all"
    assert result["classes"] == ["neutral", "happy", "sad", "angry", "fearful", "disgust"]
    assert result["left_out"] == {}
    assert result["num_clips"] == result["num_takes"] == 36
    assert set(result["probes"]) == {"reversed", "shuffled", "frozen"}
    folder = trained / "evaluation" / "all-crema"
    assert json.loads((folder / "all.json").read_text()) == result
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.startswith("probability_")] == [
        f"probability_{name}" for name in result["classes"]
    ]
    for row in rows:
        shares = {name: float(row[f"probability_{name}"]) for name in result["classes"]}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(shares, key=shares.__getitem__)
        assert row["label"] == cremad.parse_stem(Path(row["key"]).stem).emotion


@pytest.mark.slow
def test_and_the_other_way_round(cremad_corpus, tiny_corpus, tmp_path):
    options = ["--corpus.root", str(cremad_corpus), "--corpus.labels", "cremad", "--runs_dir", str(tmp_path)]
    run_dir = run(read_config([*TINY_RUN, *options]))
    assert json.loads((run_dir / "test.json").read_text())["protocol"] == "cremad"
    # A model of six classes still has RAVDESS's eight outputs; two of them were never trained.
    shown = evaluated(run_dir, tiny_corpus, "ravdess")
    out = run_dir / "evaluation" / f"all-{tiny_corpus.name}"
    result = json.loads((out / "all.json").read_text())
    counts = {name: len(list(tiny_corpus.glob(f"*/??-??-0{number}-*"))) for number, name in enumerate(EMOTIONS, 1)}
    assert result["left_out"] == {name: counts[name] for name in ("calm", "surprised") if counts[name]}
    assert result["num_clips"] == sum(counts[name] for name in result["classes"])
    assert not {"calm", "surprised"} & set(result["per_class"])
    assert "clips of calm left out: not a class of both corpora" in shown
    examples = json.loads((out / "examples.json").read_text())["examples"]
    assert {example["prediction"] for example in examples} <= set(result["classes"])
    assert all((out / example["gradcam"]).is_file() for example in examples)


def test_the_runs_own_corpus_at_another_place(trained, tiny_corpus, tmp_path):
    moved = shutil.copytree(tiny_corpus, tmp_path / "moved")
    result = evaluate_run(trained, QUIET, split="test", root=moved, out=tmp_path / "out")
    own = json.loads((trained / "test.json").read_text())
    for name in ("accuracy", "loss", "confusion", "temperature", "calibration"):
        assert result[name] == own[name], name
    with pytest.raises(ValueError, match=r"were trained on, such as .*add --split test"):
        evaluate_run(trained, QUIET, root=moved)


def test_what_cannot_be_compared_is_refused(trained, tmp_path, cremad_corpus):
    one = write_video(tmp_path / "one" / "1001_DFA_ANG_XX.mp4", 4).parent
    for options, message in (
        ({"root": one, "labels": "cremad"}, r"has the classes angry, the run was trained on .* two shared classes"),
        ({"root": cremad_corpus}, r"--corpus\.labels cremad"),
        ({"split": "test", "labels": "cremad"}, "without --split"),
        ({"root": tmp_path / "absent"}, "is not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_run(trained, QUIET, **options)


def test_probabilities_are_calibrated_by_the_runs_temperature(trained, cremad_corpus, tmp_path):
    """On every corpus; a run of an older version has none."""
    run_dir = shutil.copytree(trained, tmp_path / "run")
    own = json.loads((run_dir / "test.json").read_text())

    def logs(temperature):
        """log(p / p of the first class), which a temperature divides."""
        (run_dir / "test.json").write_text(json.dumps({**own, "temperature": temperature} if temperature else {}))
        result = evaluate_run(run_dir, QUIET, root=cremad_corpus, labels="cremad")
        assert result["temperature"] == (temperature or 1)
        with (run_dir / "evaluation" / "all-crema" / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        shares = np.array([[float(row[f"probability_{name}"]) for name in result["classes"]] for row in rows])
        return np.log(shares / shares[:, :1]), result["accuracy"]

    (plain, accuracy), (halved, same) = logs(None), logs(2.0)
    assert np.abs(plain).max() > 0.01
    np.testing.assert_allclose(halved, plain / 2, atol=1e-4)
    assert accuracy == same
    (run_dir / "test.json").write_text('{"temperature": 0}')
    with pytest.raises(ValueError, match=r"test\.json: temperature must be"):
        evaluate_run(run_dir, QUIET)


def test_rejected_files_are_refused_until_allowed(trained, cremad_corpus, tmp_path):
    other = shutil.copytree(cremad_corpus, tmp_path / "other")
    (other / "1091_DFA_ANG_XX.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"--corpus\.max_rejected 1"):
        evaluate_run(trained, QUIET, root=other, labels="cremad")
    assert evaluate_run(trained, QUIET, root=other, labels="cremad", max_rejected=1)["num_clips"] == 36


@pytest.mark.slow
def test_real_recordings(trained, clips_folder, tmp_path):
    for name, labels, classes in (("crema-d", "cremad", ["happy", "sad", "angry"]), ("ravdess", "ravdess", None)):
        evaluated(trained, clips_folder / name, labels, "--out", tmp_path / name)
        result = json.loads((tmp_path / name / "all.json").read_text())
        assert classes in (None, result["classes"])
        assert result["num_clips"] == result["num_takes"]


def test_another_corpus_needs_no_file_of_the_runs_own(trained, cremad_corpus, tmp_path, monkeypatch):
    """Least of all the built-in corpus, which would be generated first."""
    run_dir = shutil.copytree(trained, tmp_path / "built_in")
    config = run_dir / "config.yaml"
    config.write_text(re.sub(r"^  root: .*$", "  root: null", config.read_text(), count=1, flags=re.MULTILINE))
    assert read_config(["--config", str(config)]).corpus.root is None
    monkeypatch.setattr(prepare, "synthesize", lambda *_, **__: pytest.fail("generated"))
    result = evaluate_run(run_dir, QUIET, root=cremad_corpus, labels="cremad")
    assert result["trained_on"] == "built-in (generated faces)"
