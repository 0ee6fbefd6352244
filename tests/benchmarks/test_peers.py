"""Each peer alone, as a program: the job that everybody does, on frames that say which they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import decord
import numpy as np
import pytest
from helpers import frame_number, numbered_frame, psnr, write_video

from benchmarks.epoch_peers import TRAINING_PEERS
from benchmarks.measure import Skipped
from benchmarks.peer_runs import FOLDER, PEERS, PeerRuns, choose
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_CPU)
def test_a_peer_gives_the_sampled_frames_in_batches(name, numbered, tmp_path):
    script = FOLDER / PEERS[name].script
    arguments = ["--corpus", numbered, "--size", SIZE, "--batch_size", 2, "--passes", 2, "--workers", 1]
    arguments += [*PEERS[name].arguments, "--save_first", tmp_path / "first.npy"]
    arguments += [] if PEERS[name].decodes_video else ["--frames", tmp_path / "jpegs"]
    command = [sys.executable, *map(str, [script, *arguments])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        assert "torchcodec" not in name or not os.environ.get("CI"), done.stdout
        pytest.skip(json.loads(done.stdout)["skipped"])
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["peer"] == name
    assert line["clip_shapes"] == [[10, 3, SIZE, SIZE]]
    assert line["dtypes"] == ["uint8"]
    assert [(it["clips"], it["batches"]) for it in line["passes"]] == [(NUM_CLIPS, 3)] * 2
    assert all(it["seconds"] > 0 and it["cpu_seconds"] > 0 for it in line["passes"])
    assert line["settings"]["batch_size"] == 2
    assert all(version != "absent" for version in line["versions"].values())

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


def test_choice_of_peers():
    assert choose("none", has_gpu=True) == []
    assert choose("all", has_gpu=False) == ON_CPU
    assert choose("all", has_gpu=True) == list(PEERS)
    assert choose("pyav, jpeg", has_gpu=False) == ["pyav", "jpeg"]
    with pytest.raises(ValueError, match="'torchvision'"):
        choose("pyav,torchvision", has_gpu=False)


@pytest.fixture
def without(tmp_path, monkeypatch):
    """Hide a library from programs that are started."""

    def hide(package):
        (tmp_path / "hidden").mkdir()
        (tmp_path / "hidden" / f"{package}.py").write_text(f"raise ImportError('no {package} here')")
        paths = [str(tmp_path / "hidden"), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))

    return hide


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("decord", "decord"), ("torchcodec_exact", "torchcodec")])
def test_a_peer_without_its_library_is_skipped_with_the_reason(name, package, without, numbered, tmp_path):
    without(package)
    runs = PeerRuns(numbered, tmp_path, num_frames=2, size=8, batch_size=2)
    with pytest.raises(Skipped, match=f"no {package} here.*pip install {package}"):
        runs.run(name)


@pytest.mark.slow
def test_of_the_two_decords_the_one_that_is_loaded_runs(numbered, tmp_path):
    loaded, other = ("decord", "decord2") if decord.__version__.startswith("0.") else ("decord2", "decord")
    runs = PeerRuns(numbered, tmp_path, num_frames=2, size=SIZE, batch_size=2)
    assert runs.run(loaded).clips == NUM_CLIPS
    assert runs.told[loaded]["versions"]["decord"] == decord.__version__
    with pytest.raises(Skipped, match=f"is loaded, which is {loaded}; .* then pip install {other}$"):
        runs.run(other)


@pytest.mark.slow
def test_a_peer_that_fails_says_why(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(Skipped, match="failed: "):
        PeerRuns(tmp_path / "corpus", tmp_path, num_frames=2, size=8, batch_size=2).run("pyav")


@pytest.mark.slow
def test_the_runs_of_a_peer_are_its_passes(numbered, tmp_path):
    runs = PeerRuns(numbered, tmp_path, num_frames=2, size=8, batch_size=2)
    took = runs.run("jpeg")
    assert took.clips == NUM_CLIPS
    extraction = runs.told["jpeg"]["extraction"]
    assert runs.run("jpeg").clips == NUM_CLIPS
    assert runs.told["jpeg"]["extraction"] == extraction  # of the first run; the second found the frames there
    assert Path(tmp_path / "jpegs").is_dir()
