"""Resuming an interrupted run: where it stopped, with what it was begun with, or not at all."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from doubles import SquareDetector
from helpers import TRAIN, wait_until
from safetensors.torch import load_file
from same_bits import RECIPE, SMALL, assert_same_bits, bits, trained

from fastemo.config import read_config, write_config
from fastemo.corpus.manifest import read_manifest
from fastemo.errors import Stopped, UserError
from fastemo.experiment.resume import resolve
from fastemo.report.folders import read_folders
from fastemo.training import trainer as trainer_module
from fastemo.training.recipe.budget import TimeBudget
from fastemo.training.stopping import STOP
from fastemo.video.faces import boxes as face_boxes


def options(corpus, tmp_path, *more):
    fixed = ["--corpus.root", str(corpus), "--runs_dir", str(tmp_path / "runs"), "--train.epochs", "2"]
    return [*SMALL, *fixed, "--name", "run", *more]


def stopped(arguments, monkeypatch, steps):
    """Train, with a request to stop after so many steps."""
    real, left = trainer_module.Trainer._wish, [steps]

    def wish(self, loader):
        left[0] -= 1
        return STOP if left[0] == 0 else real(self, loader)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_wish", wish)
        with pytest.raises(Stopped, match=r"stopped by SIGTERM; resume with the same command and --resume .*run$"):
            trained(arguments)


def metrics_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tiny_corpus, tmp_path_factory):
    """A run that was never interrupted."""
    return trained(options(tiny_corpus, tmp_path_factory.mktemp("whole")))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "run"


@pytest.mark.parametrize("steps", [1, 17, 40, 41])
def test_a_stopped_run_ends_in_the_same_bits(whole, tiny_corpus, tmp_path, folder, monkeypatch, steps):
    stopped(options(tiny_corpus, tmp_path), monkeypatch, steps)
    info = json.loads((folder / "checkpoints" / "last" / "info.json").read_text())
    place = (info["epoch"], info["clips"], info["is_epoch_end"])
    assert place == ((steps - 1) // 40 + 1, (steps - 1) % 40 * 4 + 4, False)
    assert trained(["--resume", str(folder)]) == folder
    assert_same_bits(bits(whole), bits(folder))
    assert trained(["--resume", str(folder)]) == folder, "a finished run is left as it is"


@pytest.mark.parametrize("steps", [4, 15])
def test_a_run_with_every_key_of_a_recipe_ends_in_the_same_bits(few_clips, tmp_path, folder, monkeypatch, steps):
    """Stopped in the middle of an epoch with a frozen backbone, and of one that trains it."""
    whole = trained(options(few_clips, tmp_path / "whole", *RECIPE))
    stopped(options(few_clips, tmp_path, *RECIPE), monkeypatch, steps)
    info = json.loads((folder / "checkpoints" / "last" / "info.json").read_text())
    assert (info["epoch"], info["is_epoch_end"]) == (1 + (steps > 10), False)
    assert trained(["--resume", str(folder)]) == folder
    assert_same_bits(bits(whole), bits(folder))
    state = load_file(folder / "checkpoints" / "last" / "state.safetensors")
    assert len(state) > 2 * len(load_file(folder / "checkpoints" / "last" / "model.safetensors"))


def test_a_run_in_a_given_time_resumes_with_what_is_left_of_it(few_clips, tmp_path, folder, monkeypatch):
    """By a clock that adds a second whenever it is read: the plan is the same on every machine."""

    def timed(**options):
        return TimeBudget(**{**options, "clock": itertools.count().__next__, "started": 0.0})

    monkeypatch.setattr("fastemo.experiment.minutes.TimeBudget", timed)
    minutes = ["--minutes", "2", "--train.schedule", "plateau"]
    stopped(options(few_clips, tmp_path, *minutes), monkeypatch, 17)
    saved = read_config(["--config", str(folder / "config.yaml")])
    assert (saved.minutes, saved.train.schedule, saved.train.early_stop_patience) == (2, "onecycle", None)
    assert trained(["--resume", str(folder)]) == folder
    log = (folder / "log.txt").read_text()
    assert len(re.findall(r"48 clips decoded or read from the store in [0-9.]+ s", log)) == 2
    assert len(re.findall(r"2 minutes: an update takes 1 s, \d+% of it waiting for clips, so the step binds", log)) == 1
    rows = metrics_of(folder)
    assert 4 < len(rows) < 11
    assert rows[-1]["lr"] < rows[-2]["lr"] < max(row["lr"] for row in rows) <= 1e-3
    with pytest.raises(ValueError, match=r"with another configuration: minutes was 2\.0 and is 3\.0"):
        trained(["--resume", str(folder), "--minutes", "3"])
    with pytest.raises(ValueError, match="minutes must be above 0 and finite, not 0"):
        read_config(["--minutes", "0"])


def test_too_few_minutes_are_refused_before_the_training(few_clips, tmp_path, folder):
    """The clips that were decoded are cached, and the name is free again."""
    with pytest.raises(UserError, match=r"--minutes 0.0001 is too short: decoding the clips takes until minute \d"):
        trained(options(few_clips, tmp_path, "--minutes", "1e-4"))
    assert not folder.exists()


def test_a_run_on_faces_resumes_in_the_same_bits_without_the_detector(few_clips, tmp_path, folder, monkeypatch):
    """The detector is a double, whose boxes follow from the pictures' colours."""

    class Detector(SquareDetector):
        def faces(self, frame):
            return [(round(frame[0].to_ndarray().mean() * 10) % 90, 10, 30, 36)]

    monkeypatch.setattr(face_boxes, "FaceDetector", Detector)
    faces = ["--video.crop", "face"]
    whole = trained(options(few_clips, tmp_path / "whole", *faces))
    clips = read_manifest(whole / "manifest.csv", few_clips).clips
    assert len({clip.face for clip in clips}) > 10
    stopped(options(few_clips, tmp_path, *faces), monkeypatch, 5)
    monkeypatch.setattr(face_boxes, "FaceDetector", None)
    assert trained(["--resume", str(folder)]) == folder
    assert_same_bits(bits(whole), bits(folder))
    assert read_manifest(folder / "manifest.csv", few_clips).clips == clips


def test_testing_every_epoch_changes_nothing_else_and_survives_a_resume(
    whole, tiny_corpus, tmp_path, folder, monkeypatch, capsys
):
    stopped(options(tiny_corpus, tmp_path, "--train.test_every_epoch", "true"), monkeypatch, 45)
    capsys.readouterr()
    trained(["--resume", str(folder)])
    found = bits(folder)
    lines = [{name: line.pop(name) for name in [*line] if name.startswith("test_")} for line in found["lines"]]
    best = found["result"].pop("best_epoch_on_test")
    assert_same_bits(bits(whole), found)
    assert best["accuracy"] == max(line["test_accuracy"] for line in lines)
    assert {name: lines[best["epoch"] - 1][f"test_{name}"] for name in ("accuracy", "uar", "confusion")} == {
        name: best[name] for name in ("accuracy", "uar", "confusion")
    }
    # The result is that of the epoch chosen on validation.
    chosen = lines[found["result"]["epoch"] - 1]
    assert (chosen["test_accuracy"], chosen["test_confusion"]) == (
        found["result"]["accuracy"],
        found["result"]["confusion"],
    )
    shown = f"best epoch on test (optimistic): accuracy {best['accuracy']:.1%}, UAR {best['uar']:.1%}"
    assert f"{shown} after epoch {best['epoch']}\n" in capsys.readouterr().out


def test_between_epochs_it_stops_as_well(whole, tiny_corpus, tmp_path, folder, monkeypatch):
    arguments = options(tiny_corpus, tmp_path)
    real = trainer_module.Trainer._end_epoch

    def signalled(self, *args):
        self.signals._handle(signal.SIGINT, None)  # while validating
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_end_epoch", signalled)
        with pytest.raises(Stopped, match="stopped by SIGINT"):
            trained(arguments)
    assert len(metrics_of(folder)) == 1
    trained([*arguments, "--resume", "auto"])
    assert_same_bits(bits(whole), bits(folder))


def test_another_configuration_is_refused_by_key(tiny_corpus, tmp_path, folder, monkeypatch):
    stopped(options(tiny_corpus, tmp_path), monkeypatch, 2)
    before = (folder / "config.yaml").read_bytes()
    for extra, message in (
        (["--train.lr", "0.5"], r"train\.lr was 0\.001 and is 0\.5"),
        (["--model.name", "early_resnet18"], "model.name was early_cnn and is early_resnet18"),
        (["--seed", "4"], "seed was 3 and is 4"),
        (["--video.num_frames", "3", "--model.num_frames", "3"], r"video\.num_frames was 2 and is 3"),
        (["--augment.flip", "0", "--train.clip_norm", "1"], r"augment\.flip was .*; train\.clip_norm was"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve([*extra, "--resume", str(folder)])
    assert (folder / "config.yaml").read_bytes() == before
    config, found = resolve(["--resume", str(folder), "--train.epochs", "3", "--train.keep", "4"])
    assert (config.train.epochs, config.train.keep, config.seed, found) == (3, 4, 3, folder)


def test_a_schedule_over_all_epochs_keeps_its_length(tiny_corpus, tmp_path, folder, monkeypatch):
    stopped(options(tiny_corpus, tmp_path, "--train.schedule", "onecycle"), monkeypatch, 2)
    for _ in range(2):  # interrupted, then finished
        with pytest.raises(ValueError, match=r"train\.epochs was 2 and is 3 \(the onecycle.* --model\.weights .*run "):
            resolve(["--resume", str(folder), "--train.epochs", "3"])
        trained(["--resume", str(folder)])


class Killed(BaseException):
    """Stands for kill -9."""


def killed(arguments, monkeypatch, place):
    """Train until something is called."""

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"fastemo.experiment.run.{place}", kill)
        with pytest.raises(Killed):
            trained(arguments)


def test_a_finished_run_trained_further_equals_one_with_all_its_epochs(whole, tiny_corpus, tmp_path, monkeypatch):
    folder = trained(options(tiny_corpus, tmp_path, "--train.epochs", "1"))
    former, more = (folder / "test.json").read_bytes(), ["--resume", str(folder), "--train.epochs", "2"]
    # Before its results get another name, just after that, after the configuration is written, in the first new epoch.
    for place in ("prepare_corpus", "write_config", "split_corpus", "Trainer._train_epoch"):
        killed(more, monkeypatch, place)
        assert [path.read_bytes() for path in folder.glob("test*.json")] == [former]
    trained(more)
    assert_same_bits(bits(whole), bits(folder))
    assert (folder / "test-epoch-1.json").read_bytes() == former
    assert resolve(["--resume", str(folder)])[0].train.epochs == 2
    (found,) = read_folders([folder]).runs
    assert len(found.history) == 2
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    trained(more)
    trained(["--resume", str(folder)])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "it is finished again"


def test_early_stopping_begins_anew_when_a_run_is_trained_further(few_clips, tmp_path, capsys, monkeypatch):
    still = ["--train.lr", "1e-30", "--train.weight_decay", "0", "--train.freeze_batch_norm", "true"]
    arguments = options(few_clips, tmp_path, *still, "--train.early_stop_patience", "2", "--train.epochs", "9")
    folder = trained(arguments)
    assert len(metrics_of(folder)) == 3, "no epoch is better than the first"
    trained([*arguments, "--resume", "auto"])
    assert len(metrics_of(folder)) == 3, "the same command asks for no more"
    with pytest.raises(ValueError, match=r"finished after 3 epochs: .* set train.epochs to more than 3, not 2"):
        trained(["--resume", str(folder), "--train.epochs", "2"])
    more = ["--resume", str(folder), "--train.epochs", "10"]
    for train in (lambda it: killed(it, monkeypatch, "Trainer._train_epoch"), trained):
        capsys.readouterr()
        train(more)
        assert "early stopping had ended the run after epoch 3: epochs without a better" in capsys.readouterr().out
    assert len(metrics_of(folder)) == 5
    assert [path.name for path in sorted(folder.glob("test*"))] == ["test-epoch-3.json", "test.json"]


def test_a_finished_run_with_another_corpus_or_without_checkpoints_stays_finished(few_clips, tmp_path):
    corpus = shutil.copytree(few_clips, tmp_path / "corpus")
    folder = trained(options(corpus, tmp_path, "--train.epochs", "1"))
    before = {path: path.read_bytes() for path in folder.glob("[!l]*.*")}
    clip = next(corpus.rglob("*.mp4"))
    clip.rename(tmp_path / "away.mp4")
    with pytest.raises(ValueError, match=f"another corpus: .*{clip.name} is missing"):
        trained(["--resume", str(folder), "--train.epochs", "2"])
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match="has no checkpoint to train further from; start a new run"):
        trained(["--resume", str(folder), "--train.epochs", "2"])
    assert {path: path.read_bytes() for path in folder.glob("[!l]*.*")} == before


def test_another_corpus_is_refused_by_clip(tiny_corpus, tmp_path, folder, monkeypatch):
    corpus = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    stopped(options(corpus, tmp_path), monkeypatch, 2)
    moved = corpus.rename(tmp_path / "moved")
    again = ["--resume", str(folder), "--corpus.root", str(moved)]
    (one, other, third) = sorted((moved / "Actor_03").glob("*.mp4"))[:3]
    shutil.copyfile(other, one)
    third.unlink()
    with pytest.raises(
        ValueError, match=f"was started with another corpus: .*{third.name} is missing.*{one.name} changed"
    ):
        trained(again)
    for path in (one, third):
        shutil.copyfile(tiny_corpus / "Actor_03" / path.name, path)
    trained(again)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    # In a file of its own: `best` may share the bytes.
    path.unlink()
    path.write_bytes(data)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    whole, tiny_corpus, tmp_path, folder, monkeypatch, capsys, fault_log
):
    arguments = options(tiny_corpus, tmp_path, "--train.checkpoint_minutes", "1e-9")
    stopped(arguments, monkeypatch, 30)
    flip_a_bit(folder / "checkpoints" / "last" / "model.safetensors")
    capsys.readouterr()
    trained([*arguments, "--resume", "auto"])
    shown = capsys.readouterr().out
    assert "last is damaged: model.safetensors does not match its checksum" in shown
    assert "resuming from" in shown
    assert "resuming after epoch 1, clip 116" in shown
    assert_same_bits(bits(whole), bits(folder))
    assert len(list(folder.glob("checkpoints/damaged-last-*"))) == 1
    fault_log("a flipped bit in the last checkpoint", {"resumed from the one before, and reported": 1})


def test_without_a_whole_checkpoint_it_refuses(tiny_corpus, tmp_path, folder, monkeypatch):
    arguments = options(tiny_corpus, tmp_path, "--train.keep", "0")
    stopped(arguments, monkeypatch, 2)
    flip_a_bit(folder / "checkpoints" / "last" / "state.safetensors")
    with pytest.raises(ValueError, match="no checkpoint is intact; start a new run"):
        trained([*arguments, "--resume", "auto"])


def test_a_lost_best_checkpoint_is_replaced(tiny_corpus, tmp_path, folder, monkeypatch, capsys):
    arguments = options(tiny_corpus, tmp_path)
    stopped(arguments, monkeypatch, 45)
    shutil.rmtree(folder / "checkpoints" / "best")
    capsys.readouterr()
    trained([*arguments, "--resume", "auto"])
    assert "best is not a checkpoint" in capsys.readouterr().out
    assert json.loads((folder / "test.json").read_text())["epoch"] == 2


def test_auto_finds_the_newest_run_of_the_model_or_begins_one(tmp_path):
    base = ["--runs_dir", str(tmp_path), "--resume", "auto", "--model.name", "early_cnn", "--model.pretrained", "false"]
    assert resolve(base)[1] is None
    for name in ("early_cnn-20260101-000000", "early_cnn-20260301-000000", "early_cnn-best", "r3d18-20270101-000000"):
        (tmp_path / name).mkdir()
    assert resolve(base)[1] == tmp_path / "early_cnn-20260301-000000"
    config, folder = resolve([*base, "--name", "early_cnn-best"])
    assert (folder, config.name) == (tmp_path / "early_cnn-best", "early_cnn-best")
    assert resolve([*base, "--name", "other"])[1] is None
    with pytest.raises(ValueError, match="is a run folder"):
        resolve([*base[:2], "--resume", "nowhere"])


def test_latest_is_the_newest_finished_run(tmp_path):
    runs = ["--runs_dir", str(tmp_path)]
    for options in (["--resume", "latest"], ["--model.weights", "latest"]):
        with pytest.raises(ValueError, match=rf"^{options[0]} latest: no run in {tmp_path} is finished"):
            resolve([*runs, *options])
    for number, name in enumerate(("b", "a", "unfinished")):
        (tmp_path / name).mkdir()
        if name != "unfinished":
            (tmp_path / name / "test.json").touch()
            os.utime(tmp_path / name / "test.json", (number, number))
    assert resolve([*runs, "--resume", "latest"])[1] == tmp_path / "a"
    started, _ = resolve([*runs, "--model.weights", "latest", "--name", "started"])
    assert started.model.weights == tmp_path / "a"
    (tmp_path / "started").mkdir()
    write_config(started, tmp_path / "started" / "config.yaml")
    # Now another run is the newest, but the same command still resumes.
    os.utime(tmp_path / "b" / "test.json", (9, 9))
    resumed, folder = resolve([*runs, "--model.weights", "latest", "--name", "started", "--resume", "auto"])
    assert (resumed.model.weights, folder) == (tmp_path / "a", tmp_path / "started")
    write_config(read_config(runs), tmp_path / "b" / "config.yaml")
    with pytest.raises(ValueError, match=r"model\.weights was None and is .*b\. Start a new run"):
        resolve([*runs, "--model.weights", "latest", "--resume", "b"])
    (tmp_path / "latest").mkdir()
    assert resolve([*runs, "--resume", "latest"])[1] == tmp_path / "latest"


def test_a_run_that_is_being_trained_is_not_resumed(tiny_corpus, tmp_path, monkeypatch, fault_log):
    arguments = options(tiny_corpus, tmp_path, "--train.epochs", "1")
    refused = []
    real = trainer_module.Trainer._train_epoch

    def interrupted(self, *args):
        for more in ([], ["--resume", "auto"]):
            with pytest.raises(ValueError, match=r"is in use by another process|is never overwritten") as error:
                trained([*arguments, *more])
            refused.append(str(error.value))
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_train_epoch", interrupted)
        patch.setattr("fastemo.training.processes.AcceleratorState._reset_state", lambda *_: None)
        trained(arguments)
    assert len(refused) == 2
    fault_log("a second training on a run that is being trained", {"refused, the first unharmed": 2})


def start(arguments, cwd, *, launcher=()):
    words = [sys.executable, *launcher, str(TRAIN), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=cwd, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(process, path):
    def exists():
        assert process.poll() is None, process.communicate()
        return path.exists()

    wait_until(exists, 600)


LONG = ("--train.epochs", "500", "--train.checkpoint_minutes", "1e-9")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_says_how_to_resume(tiny_corpus, tmp_path, folder, number, fault_log):
    process = start(options(tiny_corpus, tmp_path, *LONG), tmp_path)
    wait_for(process, folder / "checkpoints" / "last")
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number, errors
    lines = [line for line in errors.splitlines() if line.startswith("fastemo:")]
    assert lines[-1] == f"fastemo: stopped by {number.name}; resume with the same command and --resume {folder}"
    assert "Traceback" not in errors
    fault_log(number.name, {"step ended, checkpoint written, command to resume printed": 1})


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_stop_at_the_same_step(tiny_corpus, tmp_path, folder, launcher, fault_log):
    words = {
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        "accelerate": ["-m", "accelerate.commands.launch", "-q", "--num_processes", "1", "--cpu"],
    }[launcher]
    arguments = options(tiny_corpus, tmp_path)
    process = start([*arguments, *LONG], tmp_path, launcher=words)
    wait_for(process, folder / "checkpoints" / "last")
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert f"stopped by SIGTERM; resume with the same command and --resume {folder}" in errors, errors
    epoch = json.loads((folder / "checkpoints" / "last" / "info.json").read_text())["epoch"]
    over = ["--train.epochs", str(epoch), "--train.checkpoint_minutes", "0"]
    again = start([*arguments, *over, "--resume", "auto"], tmp_path, launcher=words)
    output, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert "resuming after epoch" in output
    assert [row["epoch"] for row in metrics_of(folder)] == list(range(1, epoch + 1))
    fault_log(f"SIGTERM to {launcher}", {"all processes stopped at one step and resumed from it": 1})
