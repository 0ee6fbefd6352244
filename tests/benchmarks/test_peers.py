"""Each peer alone, as a program: the job that everybody does, on frames that say which they are."""

import math
import os
import re

import decord
import numpy as np
import pytest
from helpers import frame_number, numbered_frame, psnr, write_video

from benchmarks.common import peers
from benchmarks.common.measure import Skipped
from benchmarks.common.peers import FOLDER, PEERS, TRAINED_BY_PEERS, TRAINING_PEERS, peer_stage, started
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

DECORD, OTHER_DECORD = ("decord", "decord2") if decord.__version__.startswith("0.") else ("decord2", "decord")
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


def options_of(corpus, num_frames=2, size=8, **more):
    return {"corpus": corpus, "num_frames": num_frames, "size": size, "batch_size": 2, "workers": 1, **more}


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_the_sampled_frames_in_batches(name, numbered, tmp_path):
    told = {}
    options = options_of(numbered, 10, SIZE, save_first=tmp_path / "first.npy")
    stage = peer_stage(name, options, tmp_path / "jpegs", told)
    try:
        taken = [stage.run() for _ in range(2)]
    except Skipped as reason:
        if name == DECORD or (name.startswith("torchcodec") and not PEERS[name].on_gpu and os.environ.get("CI")):
            raise
        pytest.skip(str(reason))
    for took in taken:
        assert took.clips == NUM_CLIPS
        assert took.seconds > 0
        assert took.cpu_seconds > 0
    line = told[name]
    assert line["peer"] == name
    assert line["clip_shapes"] == [[10, 3, SIZE, SIZE]]
    assert line["dtypes"] == ["uint8"]
    assert line["settings"]["batch_size"] == 2
    if name.startswith("decord"):
        assert line["versions"]["decord"] == decord.__version__

    first = np.load(tmp_path / "first.npy")
    wanted = frame_indices(NUM_FRAMES, 10)
    assert [frame_number(frame.transpose(1, 2, 0)) for frame in first] == wanted.tolist()
    ours = decode_clip(numbered / "Actor_01/02-01-01-01-01-01-01.mp4", wanted, SPEC)
    assert psnr(first, ours) >= 27  # resizers and JPEG differ; colours that are swapped or off give below 20
    if name == "jpeg":  # extracted in the first run; the second found the frames there
        assert line["extraction"]["frames"] == NUM_CLIPS * NUM_FRAMES
        assert len(list((tmp_path / "jpegs").rglob("frame*.jpg"))) == NUM_CLIPS * NUM_FRAMES


def test_the_networks_of_training_peers_are_listed():
    text = (FOLDER / "training.py").read_text(encoding="utf-8")
    listed = text.partition("NETWORKS: ")[2].partition("\n}")[0]
    assert tuple(re.findall(r'^    "(\w+)":', listed, re.MULTILINE)) == TRAINED_BY_PEERS


def test_every_program_is_run_and_imports_nothing_of_the_package():
    programs = {path.name: path.read_text() for path in FOLDER.glob("*.py")}
    assert {peer.script for peer in (*PEERS.values(), *TRAINING_PEERS.values())} == programs.keys() - {"peer.py"}
    for name, text in programs.items():
        assert not re.search("import fastemo|from fastemo|benchmarks", text), name


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A peer of one's own: `start(text)` runs that program in the place of `pyav`."""

    def start(text):
        (tmp_path / "loaders.py").write_text(f"import sys, time; sys.path.append({str(FOLDER)!r}); {text}")
        return started("pyav", {"corpus": tmp_path}, tmp_path)

    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    return start


def test_what_libraries_print_is_passed_over(stand_in):
    noise = r"sys.stderr.buffer.write(b'a warning \xff without an end'); sys.stderr.flush()"
    work = "import peer; peer.serve({'peer': 'it'}, [], lambda: {'clips': 3})"
    with stand_in(f"{noise}; {work}") as peer:
        assert peer.told["peer"] == "it"
        assert [peer.run().clips for _ in range(2)] == [3, 3]


def test_a_peer_that_hangs_is_ended(stand_in, monkeypatch):
    monkeypatch.setattr(peers, "_SECONDS", 1)
    with pytest.raises(Skipped, match="failed: status -9"), stand_in("time.sleep(60)"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("decord", "decord"), ("torchcodec_exact", "torchcodec")])
def test_a_peer_without_its_library_is_skipped_with_the_reason(name, package, numbered, tmp_path, monkeypatch):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package} here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    with pytest.raises(Skipped, match=f"no {package} here.*pip install {package}"):
        peer_stage(name, options_of(numbered), tmp_path, {}).run()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("pyav", {}, "failed: "),
        ("report", {"model": "early_cnn"}, r"failed: noname\.mp4 has no RAVDESS name"),
        (OTHER_DECORD, {}, f"is loaded, which is {DECORD}; .* then pip install {OTHER_DECORD}$"),
    ],
)
def test_a_peer_that_fails_says_why(name, more, reason, tmp_path):
    (tmp_path / "noname.mp4").write_bytes(b"no video")
    with pytest.raises(Skipped, match=reason), started(name, {"corpus": tmp_path, **more}, tmp_path / "frames"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [("report", "early_cnn"), ("report", "cnn_lstm"), ("plain", "late_fusion"), ("plain", "r3d18")],
)
def test_a_peer_trains_an_epoch_when_told(name, model, numbered, tmp_path):
    options = options_of(numbered, size=36, model=model, crop_size=32)
    try:
        with started(name, options, tmp_path / "frames") as peer:
            told, found = peer.told, [peer.run() for _ in range(2)]
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
