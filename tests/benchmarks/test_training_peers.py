"""Each peer that trains, as a program: epochs on demand, over all clips, with finite losses."""

import math
from pathlib import Path

import pytest

from benchmarks.epoch_peers import TRAINING_PEERS, choose, started
from benchmarks.measure import Skipped

NUM_CLIPS, BATCH_SIZE = 6, 4


@pytest.fixture(scope="module")
def few_clips(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for source in sorted(tiny_corpus.rglob("*.mp4"))[:NUM_CLIPS]:
        (folder / source.name).symlink_to(source.resolve())
    return folder


def arguments(corpus, model):
    options = {"corpus": corpus, "model": model, "num_frames": 2, "size": 36, "crop_size": 32, "workers": 1}
    options |= {"batch_size": BATCH_SIZE}
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [("report", "early_cnn"), ("report", "cnn_lstm"), ("plain", "late_fusion"), ("plain", "r3d18")],
)
def test_a_peer_trains_an_epoch_when_told(name, model, few_clips, tmp_path):
    try:
        with started(name, arguments(few_clips, model), tmp_path / "frames") as peer:
            told, found = peer.told, [peer.epoch() for _ in range(2)]
    except Skipped as reason:
        pytest.skip(str(reason))
    assert told["num_classes"] == 8
    assert told["settings"]["batch_size"] == BATCH_SIZE
    for it in found:
        assert it.clips == NUM_CLIPS
        assert it.steps == 2
        assert math.isfinite(it.loss)
        assert 0 <= it.accuracy <= 1
        assert it.seconds > 0
    if name == "report":
        assert told["extraction"]["clips"] == NUM_CLIPS
        assert told["extraction"]["frames"] == len(list(Path(tmp_path / "frames").rglob("frame*.jpg")))


@pytest.mark.slow
def test_a_peer_that_fails_says_why(tmp_path):
    (tmp_path / "noname.mp4").write_bytes(b"no video")
    with (
        pytest.raises(Skipped, match=r"failed: noname\.mp4 has no RAVDESS name"),
        started("report", arguments(tmp_path, "early_cnn"), tmp_path / "frames"),
    ):
        pass


def test_choice_of_peers():
    assert choose("none") == []
    assert choose("all") == list(TRAINING_PEERS)
    assert choose("plain, report") == ["plain", "report"]
    with pytest.raises(ValueError, match="'lightning'"):
        choose("lightning")
