"""A run's model on new videos: the answers of its test, whatever way the frames take."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from helpers import empty_figures, smooth_frame, turn, write_image, write_images, write_video
from networks import NETWORKS, shallow_networks

import fastemo
from fastemo.config import read_config
from fastemo.errors import UserError
from fastemo.experiment.run import run
from fastemo.inference import files as files_module
from fastemo.inference.files import array_clip, read_clip
from fastemo.inference.network import Network
from fastemo.inference.parts import file_parts
from fastemo.inference.recognizer import Recognizer
from fastemo.inference.runs import find_run, read_runs
from fastemo.inference.windows import Plan, window_clips
from fastemo.models.config import ModelName
from fastemo.models.fusion import FrameModel
from fastemo.video.config import FrameSpec

SMALL = ["--model.pretrained", "false", "--train.epochs", "1", "--train.batch_size", "16", "--video.num_frames", "6"]
SMALL += ["--video.size", "36", "--augment.crop_size", "32", "--train.precision", "fp32"]
MOBILENET = ["--model.backbone", "mobilenetv3_small_050"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(few_clips, tmp_path_factory):
    """Name -> a run in fp32, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def get(name: str) -> Path:
        if name not in made:
            (file := folder / f"{name}.yaml").write_text(json.dumps({"model": NETWORKS[name]}))
            options = ["--model.name", name.partition("-")[0], "--corpus.root", str(few_clips), "--name", name]
            with empty_figures(), shallow_networks():
                made[name] = run(read_config(["--config", str(file), *SMALL, *options, "--runs_dir", str(folder)]))
        return made[name]

    return get


@pytest.fixture(scope="module")
def model(trained) -> Recognizer:
    return fastemo.load(trained("late_fusion"))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """12 s of 96x64 at 25 frames a second."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(path, 300, 96, 64, draw=smooth_frame, options={"g": "25", "bf": "2"}, silence=True)


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def furthest(found, row) -> float:
    return max(abs(share - float(row[f"probability_{name}"])) for name, share in found.probabilities.items())


@pytest.fixture
def shallow():
    with shallow_networks():
        yield


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_answers_are_those_of_the_runs_own_test(trained, few_clips, name):
    folder = trained(name)
    found = fastemo.load(folder)
    rows = rows_of(folder)
    answers = list(found.predict(few_clips / row["key"] for row in rows))
    for row, answer in zip(rows, answers, strict=True):
        assert (answer.path, answer.error, answer.label) == (str(few_clips / row["key"]), None, row["prediction"])
        assert furthest(answer, row) < 1e-5
        assert len(answer.times) == 6
        assert answer.embedding.dtype == np.float32
    assert json.loads((folder / "test.json").read_text())["temperature"] != 1
    one = found.predict(str(few_clips / rows[0]["key"]))
    assert furthest(one, rows[0]) < 1e-5
    assert np.allclose(found.embed(one.path), answers[0].embedding, atol=1e-5)
    assert {it.partition("-")[0] for it in NETWORKS} == {*get_args(ModelName)}
    assert repr(found).endswith("8 classes, 6 frames a clip by pyav, fp32 on cpu)")


def test_a_run_in_half_precision_is_answered_in_fp32_and_agrees(tiny_run, tiny_corpus):
    found = fastemo.load(tiny_run)
    assert found.precision == "fp32"
    for row, answer in zip(
        rows := rows_of(tiny_run), found.predict(tiny_corpus / row["key"] for row in rows), strict=True
    ):
        assert furthest(answer, row) < 0.02
        second, first = sorted(answer.probabilities.values())[-2:]
        assert first - second < 0.04 or answer.label == row["prediction"]


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_are_answered_as_if_each_were_alone_and_frames_are_encoded_once(trained, video, name, monkeypatch):
    found = fastemo.load(trained(name))
    encoded, encode = [], FrameModel.encode
    monkeypatch.setattr(FrameModel, "encode", lambda self, it: (encoded.append(len(it)), encode(self, it))[1])
    answers = list(found.stream(video, window=2.0, hop=0.4))
    num_encoded = sum(encoded)
    with file_parts(video, found.spec) as parts:
        windows = list(window_clips(parts, Plan(2.0, 0.4, 6), ahead=1))
    assert len(answers) == len(windows) == 26
    [network] = found._networks
    for answer, window in zip(answers, windows, strict=True):
        probabilities, embedding = network.predict([""], [window], {})
        assert np.allclose([*answer.probabilities.values()], probabilities[0], atol=1e-5)
        assert np.allclose(answer.embedding, embedding[0], atol=1e-4)
        assert (answer.start, answer.end, answer.times) == (window.start, window.end, window.times)
    if isinstance(network._model, FrameModel):
        assert num_encoded == len({number for window in windows for number in window.numbers}) < 6 * len(windows)


def test_broken_files_between_others_are_errors_by_name(model, few_clips, video, tmp_path):
    good = sorted(few_clips.rglob("*.mp4"))[:6]
    data = good[0].read_bytes()
    bad = {
        "empty.mp4": (b"", "zero length"),
        "text.mp4": (b"no video at all", "unreadable"),
        "cut.mp4": (data[: len(data) // 2], "truncated"),
        "list.m3u8": (b"#EXTM3U\n/etc/passwd\n", "not a video file|unreadable"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nothing").mkdir()
    reasons = {
        **{name: reason for name, (_, reason) in bad.items()},
        "nothing": "no images",
        "missing.mp4": "No such file",
    }
    paths = [path for pair in zip(good, [tmp_path / name for name in reasons], strict=True) for path in pair]
    answers = list(model.predict(paths))
    assert [answer.path for answer in answers] == [str(path) for path in paths]
    for path, answer in zip(good, answers[::2], strict=True):
        assert answer == pytest.approx(answer)
        assert answer.label == model.predict(path).label
    for path, answer, reason in zip(paths[1::2], answers[1::2], reasons.values(), strict=True):
        assert (answer.label, answer.probabilities, answer.embedding) == (None, {}, None)
        with pytest.raises(UserError, match=f"{path.name}.*({reason})"):
            model.predict(path)
        assert [it.error for it in model.predict_videos([path])] == [answer.error]


def test_a_video_without_frames_is_an_error_in_windows_too(model, tmp_path):
    write_video(tmp_path / "none.mkv", 0, silence=True)
    reason = "no frame decodes: the video stream has no packets"
    for answers in (model.predict([tmp_path / "none.mkv"]), model.predict_videos([tmp_path / "none.mkv"], window=1.0)):
        assert [answer.error for answer in answers] == [reason]
    with pytest.raises(UserError, match=rf"none\.mkv: {reason}"):
        list(model.stream(tmp_path / "none.mkv"))


def test_hostile_names_are_only_names(model, few_clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = next(few_clips.rglob("*.mp4"))
    names = [
        "-i.mp4",
        "a; touch ran.mp4",
        "$(touch ran).mp4",
        "concat:x|y.mp4",
        "udp:x.mp4",
        "%d.mp4",
        "line\nbreak.mp4",
    ]
    names += ["'quoted' \"name\".mp4", os.fsdecode(b"latin-\xe9.mp4"), "file:..mp4"]
    for name in names:
        shutil.copy(source, tmp_path / name)
    answers = list(model.predict(map(Path, names)))
    assert [(answer.path, answer.error) for answer in answers] == [(name, None) for name in names]
    assert len({answer.label for answer in answers}) == 1
    assert sorted(os.listdir()) == sorted(names)


def test_pictures_and_folders_of_frames_are_clips_without_times(model, tmp_path):
    write_images(tmp_path / "frames", 7)
    write_image(tmp_path / "one.png", smooth_frame(3, 64, 48))
    for path in (tmp_path / "frames", tmp_path / "one.png"):
        answer = model.predict(path)
        assert (answer.start, answer.end, answer.times) == (0.0, 0.0, ())
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        [same] = model.predict_videos([path])
        assert same.label == answer.label
        with pytest.raises(UserError, match="no windows"):
            list(model.stream(path))


def test_frames_in_memory(model, video):
    frames = np.stack([smooth_frame(number, 96, 64) for number in range(300)])
    answer, of_file = model.predict_frames(frames), model.predict(video)
    shares = [[*it.probabilities.values()] for it in (answer, of_file)]
    assert np.allclose(*shares, atol=0.02)  # the file's were encoded
    assert np.array_equal(model.embed(frames), answer.embedding)
    assert array_clip(frames, model.spec).numbers == (0, 59, 119, 179, 239, 299)
    for wrong in (frames[..., :1], frames[0], frames.astype(np.float32), frames[:0]):
        with pytest.raises(ValueError, match=r"uint8|frames"):
            model.predict_frames(wrong)


def test_files_of_any_length(model, few_clips, video):
    short = next(few_clips.rglob("*.mp4"))
    found = list(model.predict_videos([short, video, short]))
    assert [answer.path for answer in found] == [str(short), *[str(video)] * 19, str(short)]
    assert [answer.start for answer in found[1:-1]] == [number / 2 for number in range(19)]
    assert found[1:-1] == list(model.stream(video))
    assert model.predict(video).times[-1] == pytest.approx(299 / 25)
    assert len(list(model.predict_videos([video], window=4.0, hop=4.0))) == 3
    assert len(list(model.predict_videos([short], window=0.2))) == 2
    with pytest.raises(ValueError, match="the hop at most the window"):
        model.predict_videos([short], window=1.0, hop=2.0)


def test_a_truncated_video_has_its_windows_and_an_error(model, tmp_path):
    whole = write_video(tmp_path / "a.mp4", 250, 96, 64, draw=smooth_frame, options={"g": "25"}, faststart=True)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    *windows, last = model.stream(cut, window=2.0, hop=1.0)
    assert len(windows) >= 3
    assert all(window.error is None for window in windows[:-1])
    assert last.error.startswith("truncated")


def test_a_file_too_large_for_memory_is_read_twice_to_the_same_frames(model, video, tmp_path, monkeypatch):
    avi = write_video(tmp_path / "a.avi", 60, 96, 64, codec="mpeg4", draw=smooth_frame)
    for path in (video, avi):
        once = read_clip(path, model.spec)
        with monkeypatch.context() as patch:
            patch.setattr(files_module, "_MOST_BYTES", 0)
            twice = read_clip(path, model.spec)
            assert read_clip(path, model.spec, most_seconds=1.0) is None
        assert (twice.numbers, twice.times, twice.start, twice.end) == (
            once.numbers,
            pytest.approx(once.times),
            *once_ends(once),
        )
        assert all(np.array_equal(twice.frames[number], once.frames[number]) for number in once.numbers)


def once_ends(clip):
    return pytest.approx(clip.start), pytest.approx(clip.end)


def set_backend(folder: Path, backend: str) -> None:
    config = folder / "config.yaml"
    config.write_text(re.sub("^  backend: .*$", f"  backend: {backend}", config.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("backend", ["decord", "dali"])
def test_files_are_decoded_by_the_runs_backend(trained, tmp_path, backend):
    vp9 = {"deadline": "realtime", "cpu-used": "8", "b": "2M", "g": "10"}
    clips = [
        write_video(tmp_path / f"{n}.webm", 40, 160, 90, codec="libvpx-vp9", options=vp9, draw=smooth_frame)
        for n in (1, 2)
    ]
    clips.append(turn(write_video(tmp_path / "plain.mp4", 30, 160, 96, draw=smooth_frame), tmp_path / "turned.mp4", 5))
    folder = shutil.copytree(trained("late_fusion"), tmp_path / "run")
    by_pyav = list(fastemo.load(folder).predict(clips))
    set_backend(folder, backend)
    found = fastemo.load(folder)
    assert found.backend == backend
    for one, other in zip(found.predict(clips), by_pyav, strict=True):
        assert one.error is None
        assert (one.times, one.start, one.end) == (pytest.approx(other.times), one.start, pytest.approx(other.end))
        assert np.allclose([*one.probabilities.values()], [*other.probabilities.values()], atol=0.02)


def test_a_backend_that_is_not_here_leaves_files_to_pyav(trained, few_clips, tmp_path, monkeypatch):
    folder = shutil.copytree(trained("late_fusion"), tmp_path / "run")
    set_backend(folder, "dali")
    monkeypatch.setattr("fastemo.video.dali.why_unavailable", lambda device=None: "DALI is not installed")
    with pytest.warns(UserWarning, match="PyAV decodes: video.backend dali: DALI is not installed"):
        found = fastemo.load(folder)
    assert found.backend == "pyav"
    assert found.predict(next(few_clips.rglob("*.mp4"))).error is None


def test_whole_frames_of_any_shape(few_clips, tmp_path):
    options = ["--model.name", "late_fusion", *MOBILENET, "--video.crop", "full", "--corpus.root", str(few_clips)]
    with empty_figures():
        folder = run(read_config([*SMALL, *options, "--runs_dir", str(tmp_path), "--name", "full"]))
    paths = [write_video(tmp_path / f"{w}x{h}.mp4", 10, w, h) for w, h in ((64, 48), (48, 64), (200, 100))]
    assert [answer.error for answer in fastemo.load(folder).predict(paths)] == [None] * 3


def test_a_label_that_is_not_sure_enough(trained, few_clips):
    path = next(few_clips.rglob("*.mp4"))
    sure = fastemo.load(trained("late_fusion")).predict(path)
    unsure = fastemo.load(trained("late_fusion"), min_confidence=sure.confidence + 1e-6).predict(path)
    assert (unsure.label, unsure.probabilities) == ("unsure", sure.probabilities)
    assert fastemo.load(trained("late_fusion"), min_confidence=sure.confidence).predict(path).label == sure.label
    with pytest.raises(ValueError, match="min_confidence"):
        fastemo.load(trained("late_fusion"), min_confidence=1.5)


def study_of(folder: Path, *runs: Path) -> Path:
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({"cells": [{"folder": str(it.name)} for it in runs]}))
    for it in runs:
        shutil.copytree(it, folder / it.name)
    return folder


def test_a_studys_folds_answer_by_their_mean(trained, few_clips, tmp_path):
    first = trained("late_fusion")
    second = shutil.copytree(first, tmp_path / "other-seed")
    text = (second / "config.yaml").read_text()
    (second / "config.yaml").write_text(re.sub("^seed: .*$", "seed: 1", text, flags=re.MULTILINE))
    result = json.loads((second / "test.json").read_text())
    (second / "test.json").write_text(json.dumps(result | {"temperature": 3.0}))
    path = next(few_clips.rglob("*.mp4"))
    one, other, mean = (
        fastemo.load(it).predict(path) for it in (first, second, study_of(tmp_path / "s", first, second))
    )
    for name, share in mean.probabilities.items():
        assert share == pytest.approx((one.probabilities[name] + other.probabilities[name]) / 2)
    assert np.allclose(mean.embedding, np.concatenate([one.embedding, other.embedding]))
    with pytest.raises(ValueError, match=r"several models \(model.name.*give one of them"):
        fastemo.load(study_of(tmp_path / "t", first, trained("early_cnn")))
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "study.json").write_text('{"cells": []}')
    with pytest.raises(ValueError, match="no run of the study is finished"):
        fastemo.load(tmp_path / "u")


def test_latest_is_the_newest_finished_run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no run in runs is finished"):
        find_run("latest")
    for age, name in enumerate(("new", "old", "unfinished")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if name != "unfinished":
            (folder / "test.json").write_text("{}")
            os.utime(folder / "test.json", (1e9 - age, 1e9 - age))
    assert find_run("latest") == Path("runs/new")
    assert find_run("old") == Path("runs/old")
    assert find_run(tmp_path / "runs" / "latest") == tmp_path / "runs" / "new"
    (tmp_path / "runs" / "latest").mkdir()
    assert find_run("latest") == Path("runs/latest")
    with pytest.raises(ValueError, match="neither nosuch nor runs/nosuch is a run folder"):
        fastemo.load("nosuch")


def test_what_is_no_finished_run_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"it has no config\.yaml"):
        fastemo.load(tmp_path)
    folder = shutil.copytree(trained("late_fusion"), tmp_path / "run")
    result = json.loads((folder / "test.json").read_text())
    for change, reason in (
        ({"per_class": {}}, "per_class must name the classes"),
        ({"temperature": 0}, "temperature must be"),
        ({"per_class": dict.fromkeys("abc", 0.5)}, r"does not fit its config\.yaml"),
    ):
        (folder / "test.json").write_text(json.dumps(result | change))
        with pytest.raises(ValueError, match=reason):
            fastemo.load(folder)
    (folder / "test.json").unlink()
    with pytest.raises(ValueError, match=r"is not finished.*--resume"):
        fastemo.load(folder)
    with pytest.raises(ValueError, match="device nosuch is not available"):
        fastemo.load(trained("late_fusion"), device="nosuch")


def test_a_run_of_another_version_says_so(trained, tmp_path):
    folder = shutil.copytree(trained("late_fusion"), tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastemo.load(folder)
    result = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps(result | {"versions": {"fastemo": "0.0.7"}}))
    with pytest.warns(UserWarning, match=f"was made by fastemo 0.0.7, this is {fastemo.__version__}"):
        fastemo.load(folder)
    old = Path(__file__).parent.parent / "data" / "0.1.0" / "runs"
    for run_dir in sorted(it.parent for it in old.glob("*/test.json")):
        with pytest.warns(UserWarning, match=r"0\.1\.0"):
            assert fastemo.load(run_dir).predict(next((old.parent / "corpus").rglob("*.mp4"))).error is None


def test_an_answer_that_is_not_a_number_is_an_error(trained, few_clips):
    found = fastemo.load(trained("early_cnn"))
    [network] = found._networks
    torch.nn.init.constant_(network._model.classifier[0].bias, float("nan"))
    answers = list(found.predict(sorted(few_clips.rglob("*.mp4"))[:2]))
    assert [(answer.label, answer.error) for answer in answers] == [(None, "the model's output is not a number")] * 2


def test_the_package_imports_nothing_heavy_until_it_is_used():
    code = "import sys, fastemo; assert 'torch' not in sys.modules; fastemo.Recognizer; assert 'torch' in sys.modules"
    heavy = "; assert not {'sklearn', 'scipy', 'matplotlib', 'accelerate', 'pydantic', 'cv2'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code + heavy], check=True)
    with pytest.raises(AttributeError, match="nosuch"):
        fastemo.nosuch  # noqa: B018


def test_real_recordings(model, clips_folder):
    paths = [it for it in sorted(clips_folder.rglob("*")) if it.suffix in (".mp4", ".mov", ".flv")]
    assert len(paths) >= 13
    for answer, path in zip(model.predict(paths), paths, strict=True):
        assert answer.error is None
        spec = FrameSpec(num_frames=6, size=36)
        assert answer.times == read_clip(path, spec).times
        windows = list(model.stream(path, window=1.0, hop=0.5))
        assert all(window.error is None for window in windows)
        assert windows[-1].times[-1] == pytest.approx(answer.times[-1])


def test_a_checkpoint_that_is_damaged_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained("late_fusion"), tmp_path / "run")
    weights = folder / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors does not match its checksum"):
        fastemo.load(folder)
    assert [type(Network(it, CPU)) for it in read_runs(trained("late_fusion"))] == [Network]
