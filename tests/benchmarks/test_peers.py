"""Each peer alone, as a program: the job that everybody does, on frames that say which they are."""

import json
import math
import os
import subprocess
from pathlib import Path

import decord
import numpy as np
import pytest
from helpers import frame_number, numbered_frame, psnr, write_video

from benchmarks.common.measure import Skipped
from benchmarks.common.peers import FOLDER, PEERS, TRAINING_PEERS, PeerRuns, started
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

ON_CPU = [name for name, peer in PEERS.items() if not peer.on_gpu]
NUM_CLIPS, NUM_FRAMES, SIZE = 5, 40, 64
SPEC = FrameSpec(num_frames=10, size=SIZE)


def tinted(number, width, height):
    """Numbered stripes in colours, brighter towards the bottom."""
    shade = np.linspace(0.7, 1, height)[:, None, None] * np.array([1.0, 0.8, 0.9])
    return (numbered_frame(number, width, height) * shade).astype(np.uint8)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Square clips, of which the centre crop keeps every stripe."""
    folder = tmp_path_factory.mktemp("numbered")
    options = {"x264-params": "keyint=12:bframes=2:b-adapt=0", "crf": "12"}
    for number in range(NUM_CLIPS):
        path = folder / f"Actor_01/02-01-0{number + 1}-01-01-01-01.mp4"
        write_video(path, NUM_FRAMES, 128, 128, options=options, draw=tinted)
    return folder


def runs_of(corpus, folder, num_frames=2, size=8):
    options = {"corpus": corpus, "num_frames": num_frames, "size": size, "batch_size": 2, "workers": 1}
    return PeerRuns(options, folder / "jpegs")


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_CPU)
def test_a_peer_gives_the_sampled_frames_in_batches(name, numbered, tmp_path):
    options = {**runs_of(numbered, tmp_path, 10, SIZE).options, "save_first": tmp_path / "first.npy"}
    command = PEERS[name].command(options, tmp_path / "jpegs")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        assert "torchcodec" not in name or not os.environ.get("CI"), done.stdout
        pytest.skip(json.loads(done.stdout)["skipped"])
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["peer"] == name
    assert line["clip_shapes"] == [[10, 3, SIZE, SIZE]]
    assert line["dtypes"] == ["uint8"]
    assert (line["pass"]["clips"], line["pass"]["batches"]) == (NUM_CLIPS, 3)
    assert line["pass"]["seconds"] > 0
    assert line["pass"]["cpu_seconds"] > 0
    assert line["settings"]["batch_size"] == 2

    first = np.load(tmp_path / "first.npy")
    wanted = frame_indices(NUM_FRAMES, 10)
    assert [frame_number(frame.transpose(1, 2, 0)) for frame in first] == wanted.tolist()
    ours = decode_clip(numbered / "Actor_01/02-01-01-01-01-01-01.mp4", wanted, SPEC)
    assert psnr(first, ours) >= 27  # resizers and JPEG differ; colours that are swapped or off give below 20
    if name == "jpeg":
        assert line["extraction"]["frames"] == NUM_CLIPS * NUM_FRAMES
        assert len(list((tmp_path / "jpegs").rglob("frame*.jpg"))) == NUM_CLIPS * NUM_FRAMES


def test_peers_import_nothing_of_the_package():
    for path in FOLDER.glob("*.py"):
        text = path.read_text()
        assert "import fastemo" not in text, path.name
        assert "from fastemo" not in text, path.name
        assert "benchmarks" not in text, path.name


def test_every_program_is_run():
    known = {peer.script for peer in (*PEERS.values(), *TRAINING_PEERS.values())}
    assert known == {path.name for path in FOLDER.glob("*.py")} - {"peer.py"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("decord", "decord"), ("torchcodec_exact", "torchcodec")])
def test_a_peer_without_its_library_is_skipped_with_the_reason(name, package, numbered, tmp_path, monkeypatch):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package} here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    with pytest.raises(Skipped, match=f"no {package} here.*pip install {package}"):
        runs_of(numbered, tmp_path).run(name)


@pytest.mark.slow
def test_of_the_two_decords_the_one_that_is_loaded_runs(numbered, tmp_path):
    loaded, other = ("decord", "decord2") if decord.__version__.startswith("0.") else ("decord2", "decord")
    runs = runs_of(numbered, tmp_path, size=SIZE)
    assert runs.run(loaded).clips == NUM_CLIPS
    assert runs.told[loaded]["versions"]["decord"] == decord.__version__
    with pytest.raises(Skipped, match=f"is loaded, which is {loaded}; .* then pip install {other}$"):
        runs.run(other)


@pytest.mark.slow
def test_a_peer_that_fails_says_why(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(Skipped, match="failed: "):
        runs_of(tmp_path / "corpus", tmp_path, size=8).run("pyav")


@pytest.mark.slow
def test_the_runs_of_a_peer_are_its_passes(numbered, tmp_path):
    runs = runs_of(numbered, tmp_path, size=8)
    took = runs.run("jpeg")
    assert took.clips == NUM_CLIPS
    extraction = runs.told["jpeg"]["extraction"]
    assert runs.run("jpeg").clips == NUM_CLIPS
    assert runs.told["jpeg"]["extraction"] == extraction  # of the first run; the second found the frames there
    assert Path(tmp_path / "jpegs").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [("report", "early_cnn"), ("report", "cnn_lstm"), ("plain", "late_fusion"), ("plain", "r3d18")],
)
def test_a_peer_trains_an_epoch_when_told(name, model, numbered, tmp_path):
    options = {**runs_of(numbered, tmp_path, size=36).options, "model": model, "crop_size": 32}
    try:
        with started(name, options, tmp_path / "frames") as peer:
            told, found = peer.told, [peer.epoch() for _ in range(2)]
    except Skipped as reason:
        pytest.skip(str(reason))
    assert told["num_classes"] == 8
    assert told["settings"]["batch_size"] == 2
    for it in found:
        assert (it.clips, it.steps) == (NUM_CLIPS, 3)
        assert math.isfinite(it.loss)
        assert 0 <= it.accuracy <= 1
        assert it.seconds > 0
    if name == "report":
        assert told["extraction"]["clips"] == NUM_CLIPS
        assert told["extraction"]["frames"] == len(list((tmp_path / "frames").rglob("frame*.jpg")))


@pytest.mark.slow
def test_a_training_peer_that_fails_says_why(tmp_path):
    (tmp_path / "noname.mp4").write_bytes(b"no video")
    options = {"corpus": tmp_path, "model": "early_cnn"}
    with (
        pytest.raises(Skipped, match=r"failed: noname\.mp4 has no RAVDESS name"),
        started("report", options, tmp_path / "frames"),
    ):
        pass
