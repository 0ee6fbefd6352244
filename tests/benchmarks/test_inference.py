"""The benchmark of inference: joined videos, ratios; and the command itself, small."""

import json
import shutil

import av
import pytest
from helpers import documented_command, frame_number, numbered_frame, write_video

from benchmarks import inference
from benchmarks.common import results
from benchmarks.common.inference import report
from benchmarks.common.inference.material import CONFIG, join, make_run
from benchmarks.common.inference.stages import Alone, opencv_loop
from benchmarks.common.measure import Pass
from fastemo.corpus.manifest import Manifest, scan
from fastemo.inference.runs import load
from fastemo.inference.windows import Plan
from fastemo.video.decode import decode_clip

STAGES = {
    *("decode_files", "forward_files", "predict"),
    *("decode_windows", "forward_windows", "stream", "loop"),
    *("imports", "command"),
}
FACE_STAGES = {
    *("decode_for_faces", "find_faces", "loader_center", "loader_face"),
    *("stream_faces", "loop_faces", "loop_every_face"),
}
FACE_RATIOS = {
    *("find_faces_over_decode_for_faces", "loader_face_over_loader_center"),
    *("stream_faces_over_loop_faces", "stream_faces_over_loop_every_face"),
}
RATIOS = {
    *("predict_over_sum_files", "predict_over_decode_files", "stream_over_sum_windows", "stream_over_decode_windows"),
    *("stream_over_loop", "command_over_imports"),
}
ENTRIES = (
    *("date", "command", "minutes", "machine", "versions", "settings", "network", "corpus", "passes"),
    *("video", "live", "live_faces", "memory_files", "memory_windows", "ratios", "headlines", "targets"),
)
ROUNDS = {
    "decode_files": {1: Pass(8, 2.0, 4.0), 2: Pass(8, 4.0, 4.0)},
    "forward_files": {1: Pass(8, 2.0, 4.0), 2: Pass(8, 1.0, 4.0)},
    "predict": {1: Pass(8, 5.0, 8.0), 2: Pass(8, 4.0, 8.0)},
    "stream": {1: Pass(60, 2.0, 4.0)},
    "loop": {1: Pass(60, 6.0, 4.0)},
    "imports": {1: Pass(1, 4.0, 4.0)},
    "command": {1: Pass(1, 5.0, 4.0)},
}


def write_clips(folder, **of_second):
    """Two clips with B-frames, 41 and 50 frames at 25 a second, told apart by their numbers."""
    options = {"bf": "2", "g": "12"}
    write_video(folder / "a.mp4", 41, options=options)
    draw = {"draw": lambda number, *size: numbered_frame(100 + number, *size)}
    write_video(folder / "b.mp4", 50, options=options, **(draw | of_second))
    found = scan(folder)
    return Manifest(found.root, found.unlabelled)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    return join(write_clips(folder / "clips"), 1, folder / "long.mp4")


def numbers_in(path) -> list[int]:
    with av.open(str(path)) as container:
        return [frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_a_joined_video_is_its_clips_one_after_another(joined):
    once = [*range(41), *range(100, 150)]
    count = joined.num_frames
    assert count == 41 * len([path for path, _ in joined.parts if path.name == "a.mp4"]) + 50 * (len(joined.parts) // 2)
    assert numbers_in(joined.path) == (once * count)[:count]
    assert 60 <= joined.seconds < 62


def test_its_parts_hold_the_frames_that_windows_need(joined):
    plan = Plan(3.0, 1.0, CONFIG.video.num_frames)
    windows = plan.add([number / 25 for number in range(joined.num_frames)]) + plan.finish()
    every = numbers_in(joined.path)
    needed = [every[number] for number in sorted({number for window in windows for number in window.numbers})]
    shown = []
    for path, wanted in joined.parts:
        shown += [frame_number(it.transpose(1, 2, 0)) for it in decode_clip(path, wanted, None)] if wanted else []
    assert shown == needed
    assert (joined.num_needed, joined.num_windows) == (len(needed), len(windows))


def test_clips_of_several_kinds_are_not_joined(tmp_path):
    clips = write_clips(tmp_path / "clips", width=96)
    with pytest.raises(ValueError, match=r"b\.mp4: its codec, size, rate or encoder setting"):
        join(clips, 1, tmp_path / "long.mp4")


def test_predict_stream_and_the_loop_run_the_same_model(joined, tmp_path):
    run = make_run(tmp_path / "run", ("calm", "sad"))
    model = load(run, device="cpu")
    assert model.class_names == ("calm", "sad")
    first, *others = model.stream(joined.path, window=3.0, hop=1.0)
    assert len(others) + 1 == joined.num_windows
    assert first.error is None
    assert opencv_loop(Alone(run).model, joined, 5) == 5


def test_ratios_are_taken_within_a_round():
    found = {name: it["median"] for name, it in report.ratios(ROUNDS).items()}
    assert found == pytest.approx(
        {
            "predict_over_sum_files": (4 / 5 + 5 / 4) / 2,
            "predict_over_decode_files": (2 / 5 + 4 / 4) / 2,
            "stream_over_loop": 3.0,
            "command_over_imports": 1.25,
        }
    )


def test_windows_are_compared_with_the_speed_of_the_video():
    titles = {"predict": "clips: predict", "stream": "windows: stream", "command": "start: fastemo predict"}
    rows = report.headlines({name: results.entry(ROUNDS[name], title) for name, title in titles.items()})
    found = {row["title"]: (row["value"], row["unit"]) for row in rows}
    assert found == {
        "clips: predict": (1.8, "clips/s"),
        "windows: stream": (30.0, "x real time"),
        "start: fastemo predict": (5.0, "s"),
    }


def test_generated_clips_claim_nothing_about_pruning():
    found = {"ratios": report.ratios(ROUNDS)}
    for is_genuine in (True, False):
        rows = {it.name: it for it in report.targets(found, is_genuine=is_genuine)}
        assert ("nothing about the gain by pruning" in rows["predict_over_sum_files"].note) is not is_genuine
        assert rows["stream_over_loop"].verdict == "reached"
        assert rows["live_delay"].verdict == "not measured"


@pytest.mark.slow
def test_the_command_measures_everything(run_script, tmp_path):
    out = tmp_path / "found.json"
    words = [*documented_command("benchmarks/inference.py"), "--quick", "--faces.weights", "none.onnx"]
    done = run_script(words, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found) == set(ENTRIES)
    assert set(found["passes"]) == STAGES
    assert set(found["ratios"]) == RATIOS
    assert "none.onnx cannot be read" in found["live_faces"]["skipped"]
    assert all(len(it["rounds"]) == 1 for it in found["passes"].values())
    assert found["video"]["needed_frames"] <= 10 * found["video"]["windows"]
    assert found["memory_files"]["answers"] == 20
    assert found["memory_windows"]["answers"] == found["video"]["windows"]
    assert len(found["targets"]) == 15
    assert str(tmp_path) not in out.read_text()
    if shutil.which("ffmpeg"):
        assert found["live"]["windows"] + found["live"]["windows_skipped"] >= 2
    else:
        assert "ffmpeg" in found["live"]["skipped"]
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_command_measures_faces(run_script, tmp_path, face_weights):
    out = tmp_path / "found.json"
    words = [*documented_command("benchmarks/inference.py"), "--quick", "--parts", "faces"]
    done = run_script(words, "--faces.weights", face_weights, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found["passes"]) == FACE_STAGES
    assert set(found["ratios"]) == FACE_RATIOS
    if shutil.which("ffmpeg"):
        assert found["live_faces"]["answers_a_window"] == 2


def test_what_is_not_an_option_is_refused_in_one_line(one_line_of):
    assert "--parts takes all, or some of files, windows" in one_line_of(inference.main, ["--parts", "peers"])
    assert "--live_seconds must be more than a window of 3 s" in one_line_of(inference.main, ["--live_seconds", "3"])
    assert "--memory_files must be at most 1440" in one_line_of(inference.main, ["--memory_files", "2000"])
    assert "--minutes must be at least 1, not 0" in one_line_of(inference.main, ["--minutes", "0"])


def test_parts_without_rates_have_an_empty_chart():
    assert not report.chart({"passes": {}}).axes
