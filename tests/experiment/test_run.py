"""The main job, whole: the real commands on the built-in corpus and on real recordings."""

import csv
import itertools
import json
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from helpers import REPOSITORY, TINY_RUN, TRAIN, command, empty_figures, files_of, write_images
from networks import TINY_VIDEOMAE
from safetensors.torch import load_file

import fastemo
from fastemo.config import read_config
from fastemo.console import Console
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.evaluation.calibration import calibration, fit_temperature
from fastemo.evaluation.compare import compare, read_predictions
from fastemo.evaluation.evaluate import Predictions
from fastemo.evaluation.metrics import compute_metrics
from fastemo.experiment.resume import resolve
from fastemo.experiment.retest import evaluate_run
from fastemo.experiment.run import _temperature, run
from fastemo.training.trainer import Trainer

BIN = Path(sys.executable).parent
QUICK = REPOSITORY / "configs" / "quick.yaml"
SMALL = [
    *("--video.size", "36", "--augment.crop_size", "32", "--video.num_frames", "2"),
    *("--train.epochs", "2", "--train.batch_size", "16"),
]
CHECKPOINT_FILES = ("model.safetensors", "state.safetensors", "state.json", "checksums.json", "info.json")
RUN_FILES = {
    *("config.yaml", "manifest.csv", "splits.csv", "metrics.jsonl", "test.json", "predictions.csv", "log.txt"),
    *(
        "curves.png",
        "confusion_matrix.png",
        "per_class_accuracy.png",
        "reliability.png",
        "misclassified.png",
        "examples.json",
    ),
    *(f"checkpoints/{name}/{file}" for name in ("last", "best") for file in CHECKPOINT_FILES),
}
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
ROY2025, STRONG = (REPOSITORY / "configs" / "recipes" / f"{name}.yaml" for name in ("roy2025", "strong"))


def assert_run_files(run_dir):
    """There may be more checkpoints, in case the last is damaged."""
    assert {name for name in files_of(run_dir) if not name.startswith("checkpoints/epoch-")} == RUN_FILES


@empty_figures()
def run_here(tmp_path, *options, config=QUICK):
    """In this process, which is quicker by the import of torch."""
    return run(read_config(["--config", str(config), *SMALL, "--runs_dir", str(tmp_path / "runs"), *options]))


@pytest.fixture(scope="module")
def launched(tiny_corpus, tmp_path_factory):
    """One training by `accelerate launch`, as the README says."""
    folder = tmp_path_factory.mktemp("launched")
    done = command(
        *(BIN / "accelerate", "launch", TRAIN, "--config", QUICK, *SMALL),
        *("--corpus.root", tiny_corpus, "--name", "first"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "first", done


def test_a_run_leaves_its_files_and_prints_lines_without_progress(launched):
    run_dir, done = launched
    assert_run_files(run_dir)
    assert not {"\x1b", "\r"} & set(done.stdout)
    assert sum(line.startswith("epoch") for line in done.stdout.splitlines()) == 2
    assert "1 process\n" in done.stdout
    assert "decoding by pyav (the device is CPU); decoded clips are cached in memory" in done.stdout
    assert "test: accuracy" in done.stdout


def test_results_agree_with_each_other(launched, tiny_corpus):
    run_dir, _ = launched
    with (run_dir / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    result = json.loads((run_dir / "test.json").read_text())
    expected_keys = sorted(
        p.relative_to(tiny_corpus).as_posix() for a in ("23", "24") for p in (tiny_corpus / f"Actor_{a}").glob("*.mp4")
    )
    assert [row["key"] for row in rows] == expected_keys
    assert result["num_clips"] == result["num_takes"] == len(expected_keys)
    labels, predicted = ([EMOTIONS.index(row[name]) for row in rows] for name in ("label", "prediction"))
    metrics = compute_metrics(labels, predicted, EMOTIONS).to_json()
    assert {name: result[name] for name in metrics} == metrics
    shares = np.array([[float(row[f"probability_{name}"]) for name in EMOTIONS] for row in rows])
    assert np.allclose(shares.sum(1), 1, atol=1e-5)
    assert shares.argmax(1).tolist() == predicted
    best = json.loads((run_dir / "checkpoints" / "best" / "info.json").read_text())
    assert result["epoch"] == best["epoch"]
    # The speed is that of the second epoch of two.
    (_, last) = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    assert {name: result["cost"][name] for name in ("clips_per_second", "epoch_seconds")} == {
        name: last[name] for name in ("clips_per_second", "epoch_seconds")
    }
    weights = load_file(run_dir / "checkpoints" / "best" / "model.safetensors")
    counted = sum(value.numel() for name, value in weights.items() if "running" not in name and "num_" not in name)
    assert result["cost"]["parameters"] == counted
    assert result["cost"]["flops_per_clip"] > counted
    assert result["machine"]["processors"] >= 1


def test_probabilities_are_calibrated_on_the_validation_split(launched, tmp_path):
    run_dir, done = launched
    result, table = json.loads((run_dir / "test.json").read_text()), read_predictions(run_dir / "predictions.csv")
    error = result["calibration"]
    assert calibration(table.correct, table.probabilities.max(1))["ece"] == pytest.approx(error["ece"], abs=1e-5)
    words = f"expected calibration error {error['ece_before']:.1%} -> {error['ece']:.1%} on the test split"
    assert f"calibrated by temperature {result['temperature']:.2f}: {words}\n" in done.stdout
    # What the run fitted: its own validation clips, with the temperature taken off again.
    found = evaluate_run(run_dir, Console(show=False), split="val", out=tmp_path)
    assert found["temperature"] == result["temperature"] != 1
    table = read_predictions(tmp_path / "predictions.csv")
    logits = np.log(np.maximum(table.probabilities, 1e-7)) * found["temperature"]
    assert fit_temperature(logits, table.labels) == pytest.approx(result["temperature"], rel=0.01)
    examples = json.loads((run_dir / "examples.json").read_text())["examples"]
    table = read_predictions(run_dir / "predictions.csv")
    shares = dict(zip(table.keys, table.probabilities.max(1), strict=True))
    assert [it["probability"] for it in examples] == pytest.approx([shares[it["key"]] for it in examples], abs=1e-6)


def test_without_a_temperature_it_is_1_and_logged():
    console = Mock()
    broken = Predictions(("a",), np.zeros(1, np.int64), np.full((1, 2), np.nan, np.float32))
    assert _temperature(broken, console) == 1
    console.say.assert_called_once_with(
        "probabilities are not calibrated on the validation split: a logit is not a finite number"
    )


def test_a_validation_clip_that_breaks_after_training_is_noted(few_clips, tmp_path, monkeypatch):
    corpus = shutil.copytree(few_clips, tmp_path / "corpus")
    fit = Trainer.fit

    def fit_then_cut(self, train, val, *rest, **options):
        fit(self, train, val, *rest, **options)
        (corpus / val.clips[0].key).write_bytes(b"cut")

    monkeypatch.setattr(Trainer, "fit", fit_then_cut)
    options = ["--corpus.root", str(corpus), "--corpus.on_error", "drop", "--store.tier", "none", "--train.epochs", "1"]
    run_dir = run_here(tmp_path, *options)
    with (run_dir / "dropped.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["split"] == "val"
    assert "temperature" in json.loads((run_dir / "test.json").read_text())


def test_evaluate_repeats_the_test_and_takes_other_splits(launched, tmp_path):
    run_dir, _ = launched
    done = command(BIN / "fastemo", "evaluate", run_dir, cwd=run_dir.parent)
    assert done.returncode == 0, done.stderr
    again = json.loads((run_dir / "evaluation" / "test" / "test.json").read_text())
    first = json.loads((run_dir / "test.json").read_text())
    same = ("accuracy", "uar", "macro_f1", "confusion", "per_class", "intervals", "epoch", "num_clips", "calibration")
    assert {name: again[name] for name in same} == {name: first[name] for name in same}
    shutil.rmtree(run_dir / "evaluation")
    found = evaluate_run(run_dir, Console(show=False), split="val", out=tmp_path)
    assert json.loads((tmp_path / "val.json").read_text()) == found
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert found["accuracy"] == max(line["val_accuracy"] for line in lines)


def test_a_run_folder_is_never_overwritten(launched, tiny_corpus):
    run_dir, _ = launched
    before = {name: (run_dir / name).read_bytes() for name in RUN_FILES}
    with pytest.raises(ValueError, match="is never overwritten; choose another --name"):
        run_here(run_dir.parent.parent, "--corpus.root", str(tiny_corpus), "--name", "first")
    assert before == {name: (run_dir / name).read_bytes() for name in RUN_FILES}


def test_a_rejected_file_stops_training_unless_allowed(tiny_corpus, tmp_path, capsys):
    corpus = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    (corpus / "synthetic.json").unlink()
    victim = next((corpus / "Actor_05").glob("*.mp4"))
    victim.write_bytes(victim.read_bytes()[:700])
    options = ["--corpus.root", str(corpus), "--name", "a", "--train.epochs", "1"]
    with pytest.raises(ValueError, match=r"1 files .* rejected, 0 are allowed.*--corpus\.max_rejected 1"):
        run_here(tmp_path, *options)
    assert f"rejected Actor_05/{victim.name}: truncated" in capsys.readouterr().out
    assert not list((tmp_path / "runs").iterdir())  # the name is free again
    run_dir = run_here(tmp_path, *options, "--corpus.max_rejected", "1")
    assert victim.name in (run_dir / "manifest.csv").read_text()
    assert_run_files(run_dir)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_runs(config, few_clips, tmp_path, request):
    options = ["--corpus.root", str(few_clips), "--model.pretrained", "false", "--train.epochs", "1"]
    if "crop: face" in config.read_text():
        options += ["--faces.weights", str(request.getfixturevalue("face_weights"))]
    assert_run_files(run_here(tmp_path, *options, config=config))


@pytest.mark.parametrize("config", [*CONFIGS, STRONG], ids=lambda path: path.stem)
def test_shipped_configs_hold_differences_only_with_a_comment_each(config):
    for before, line in itertools.pairwise(config.read_text().splitlines()):
        if line.startswith(" ") and not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#"), f"no comment above {line}"
    read, default = read_config(["--config", str(config)]), read_config([])
    for part, given in yaml.safe_load(config.read_text()).items():
        for name in given:
            if (part, name) != ("model", "name"):
                assert getattr(getattr(read, part), name) != getattr(getattr(default, part), name), name


def test_a_recipe_follows_the_config_of_a_model(few_clips, tmp_path):
    options = ["--config", str(STRONG), "--corpus.root", str(few_clips), "--train.warmup_epochs", "0"]
    config = read_config(["--config", str(run_here(tmp_path, *options) / "config.yaml")])
    assert (config.model.name, config.train.optimizer) == ("early_resnet18", "adamw")


def test_the_recipe_files_set_the_same_keys_and_one_is_the_default():
    strong, roy = (yaml.safe_load(path.read_text()) for path in (STRONG, ROY2025))
    assert {part: {*of} for part, of in strong.items()} == {part: {*of} for part, of in roy.items()}
    assert read_config(["--config", str(ROY2025)]) == read_config([])


def test_real_recordings_train_for_a_few_steps(clips_folder, tmp_path):
    """Seven clips of one actor mean nothing; copies under other actors' names make three splits of them."""
    corpus = tmp_path / "corpus"
    for actor in ("01", "21", "23"):
        (corpus / f"Actor_{actor}").mkdir(parents=True)
        for path in sorted((clips_folder / "ravdess").rglob("*.mp4")):
            shutil.copy(path, corpus / f"Actor_{actor}" / f"{path.stem[:-2]}{actor}.mp4")
    run_dir = run_here(tmp_path, "--corpus.root", str(corpus), "--train.batch_size", "3", "--train.epochs", "2")
    result = json.loads((run_dir / "test.json").read_text())
    assert (result["num_clips"], result["num_takes"]) == (5, 5)  # seven files are five takes
    log = (run_dir / "log.txt").read_text()
    assert "6 files left out: the same take in another modality" in log
    assert "train lacks actors 2-20" in log


def test_both_files_of_a_take_are_tested_and_told_apart(few_clips, tmp_path):
    corpus = shutil.copytree(few_clips, tmp_path / "corpus")
    for path in [*corpus.rglob("02-*.mp4")]:
        shutil.copy(path, path.with_name(f"01{path.name[2:]}"))
    options = ["--corpus.root", str(corpus), "--corpus.protocol", "report", "--train.epochs", "1"]
    run_dir = run_here(tmp_path, *options)
    result, table = json.loads((run_dir / "test.json").read_text()), read_predictions(run_dir / "predictions.csv")
    assert (result["num_clips"], result["num_takes"]) == (8, 4)
    assert result["intervals"]["takes"]["num_groups"] == result["one_file_a_take"]["num_clips"] == 4
    assert table.correct.mean() == result["accuracy"]
    (row,) = compare({"one": [table], "other": [table]})
    assert (row["num_clips"], row["num_takes"]) == (8, 4)


def test_the_reports_frame_folders_train_like_videos(tmp_path):
    corpus = tmp_path / "corpus"
    for number, split in enumerate(("train", "val", "test")):
        for emotion in ("angry", "surprise"):
            for clip in (1, 2):
                write_images(corpus / split / emotion / f"actor{number:02d}_clip{clip:02d}{emotion}", 5)
    run_dir = run_here(tmp_path, "--corpus.root", str(corpus), "--train.batch_size", "2", "--train.epochs", "1")
    result = json.loads((run_dir / "test.json").read_text())
    assert (result["protocol"], result["num_clips"]) == ("folders", 4)
    assert list(result["per_class"]) == ["angry", "surprised"]


def test_a_users_own_folders_and_classes_train(tiny_corpus, tmp_path):
    corpus = tmp_path / "mine"
    sources = sorted(tiny_corpus.rglob("*.mp4"))
    for number, path in enumerate(sources[:24]):
        target = corpus / ("bored" if number % 2 else "amused") / f"clip_{number}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    run_dir = run_here(tmp_path, "--corpus.root", str(corpus), "--corpus.labels", "folder", "--train.epochs", "1")
    result = json.loads((run_dir / "test.json").read_text())
    assert list(result["per_class"]) == ["amused", "bored"]
    assert "the same person may be in several splits" in (run_dir / "log.txt").read_text()


@empty_figures()
def test_a_run_starts_from_another_which_it_then_no_longer_needs(tiny_run, few_clips, tmp_path, capsys):
    first = shutil.copytree(tiny_run, tmp_path / "first")
    options = [*TINY_RUN, "--model.weights", str(first), "--runs_dir", str(tmp_path), "--name", "second"]
    second = run(read_config([*options, "--corpus.root", str(few_clips)]))
    assert f"32 of 32 tensors from {first}\n" in capsys.readouterr().out, "the classes are the same by name"
    shutil.rmtree(first)
    evaluate_run(second, Console(show=False))
    run(*resolve(["--resume", str(second), "--train.epochs", "2"]))
    assert "tensors from" not in capsys.readouterr().out
    assert read_config(["--config", str(second / "config.yaml")]).model.weights == first


def test_a_damaged_checkpoint_is_no_start(tiny_run, tmp_path):
    damaged = shutil.copytree(tiny_run, tmp_path / "damaged")
    path = damaged / "checkpoints" / "best" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    for weights in (damaged, path):
        # Refused before the corpus is scanned, which is absent.
        options = [*TINY_RUN, "--corpus.root", str(tmp_path / "absent"), "--runs_dir", str(tmp_path / "runs")]
        with pytest.raises(ValueError, match=r"^model\.weights: checkpoint .*best is damaged: model\.safetensors"):
            run(read_config([*options, "--model.weights", str(weights)]))
    assert not list((tmp_path / "runs").iterdir())


@empty_figures()
def test_a_videomae_run_holds_its_architecture_and_needs_the_hub_no_more(few_clips, tmp_path):
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    hub = tmp_path / "someone" / "videomae-tiny"
    VideoMAEForVideoClassification(VideoMAEConfig(**json.loads(TINY_VIDEOMAE))).save_pretrained(hub)
    options = ["--model.name", "videomae", "--model.backbone", str(hub), "--runs_dir", str(tmp_path), "--name", "mae"]
    asked = [*SMALL, *options, "--train.epochs", "1", "--corpus.root", str(few_clips)]
    run_dir = run(read_config(asked))
    saved = read_config(["--config", str(run_dir / "config.yaml")]).model
    architecture = json.loads(saved.architecture)
    assert {key: architecture[key] for key in json.loads(TINY_VIDEOMAE)} == json.loads(TINY_VIDEOMAE)
    shutil.rmtree(hub)
    evaluate_run(run_dir, Console(show=False))
    assert fastemo.load(run_dir).predict(next(few_clips.rglob("*.mp4"))).error is None
    run(*resolve([*asked, "--resume", str(run_dir), "--train.epochs", "2"]))
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_model_that_cannot_take_the_clips_is_one_line(tmp_path):
    options = [
        "--model.name",
        "video",
        "--model.backbone",
        "s3d",
        "--video.num_frames",
        "3",
        "--augment.crop_size",
        "16",
    ]
    options += ["--model.pretrained", "false", "--runs_dir", str(tmp_path), "--corpus.root", str(tmp_path / "absent")]
    done = command(sys.executable, "-m", "fastemo.cli", "train", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "fastemo: error: video with model.backbone s3d cannot take clips of 3 frames of 16 pixels: "
        "the nearest video.num_frames is 5 and the nearest augment.crop_size is 17"
    )
    assert not list(tmp_path.iterdir())


def test_an_unknown_backbone_is_refused_before_the_corpus_is_scanned(tmp_path: Path) -> None:
    options = ["--model.backbone", "resnet1800", "--runs_dir", str(tmp_path), "--corpus.root", str(tmp_path / "absent")]
    with pytest.raises(ValueError, match=r"model.backbone is 'resnet1800', must be one of timm.list_models"):
        run(read_config(options))
    assert not list(tmp_path.iterdir())
