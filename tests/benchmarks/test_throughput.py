"""The command itself, small."""

import json
import os
from types import SimpleNamespace

import pytest
from helpers import documented_command

from benchmarks import throughput
from benchmarks.common.measure import Pass, Skipped, Stage, in_rounds
from benchmarks.common.stages import memory
from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest, scan
from fastemo.video.config import VideoConfig

RUNGS = (
    *("demux", "prune", "decode_full", "decode_pruned", "decode_resize", "loader_cold"),
    *("disk_read", "loader_disk_cold", "loader_disk_warm", "loader_memory", "loader_memory_augmented"),
)
FROM_DISK = ("disk_read", "loader_disk_cold")
ENTRIES = (
    *("date", "command", "minutes", "machine", "versions", "settings", "corpus"),
    *("rungs", "peers", "memory", "ratios", "targets"),
)


@pytest.fixture(scope="module")
def quick(run_script, tmp_path_factory):
    """A run with one peer that cannot run: its output and its JSON."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "hidden").mkdir()
    (folder / "hidden" / "decord.py").write_text("raise ImportError('no decord here')")
    path = os.pathsep.join(filter(None, [str(folder / "hidden"), os.environ.get("PYTHONPATH", "")]))
    out = folder / "out" / "found.json"
    command = [*documented_command("benchmarks/throughput.py"), "--quick"]
    done = run_script(command, "--peers", "pyav,jpeg,decord", "--out", out, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text()), out


@pytest.mark.slow
def test_the_json_holds_everything(quick):
    output, found, out = quick
    assert tuple(found) == ENTRIES
    assert tuple(found["rungs"]) == RUNGS
    assert set(found["peers"]) == {"pyav", "jpeg", "decord"}
    assert "no decord here" in found["peers"]["decord"]["skipped"]
    assert found["peers"]["jpeg"]["extraction"]["seconds"] > 0
    assert found["corpus"]["kind"] == "generated"
    assert str(out.parent) not in out.read_text()
    # A system may keep pages of the store that it was asked to drop.
    measured = [it for name, it in found["rungs"].items() if name not in FROM_DISK or "skipped" not in it]
    shares = (f"{it['share_of_decode_pruned']:,.1%}" for it in measured)
    texts = ("medians of 2 rounds", "PyAV + DataLoader", "jpeg: the extraction beforehand took", "targets, stated for")
    for text in ("decord skipped: no decord here", *texts, *shares):
        assert text in output
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_figures_are_those_of_the_rounds(quick):
    _, found, _ = quick
    rounds = {}
    for name, entry in {**found["rungs"], **found["peers"]}.items():
        rounds[name] = {it.pop("round"): Pass(**it) for it in entry["rounds"]}
        assert list(rounds[name]) == ([] if "skipped" in entry else [1, 2]), name
    assert found["ratios"] == throughput.ratios(rounds)
    assert found["targets"] == [it.as_dict() for it in throughput.targets(rounds, None)]
    # Everybody reads the same clips.
    for name in ("demux", "decode_pruned", "loader_cold", "pyav", "jpeg"):
        assert {it.clips for it in rounds[name].values()} == {found["corpus"]["clips_a_pass"]}, name


def test_what_was_skipped_is_not_tried_again():
    seen = []

    def stage(name):
        return Stage(name, name, lambda: seen.append(name) or Pass(1, 1.0, 1.0))

    def absent():
        seen.append("-")
        raise Skipped("not here")

    stages = [stage("a"), stage("b"), Stage("c", "c", absent)]
    said = []
    found = in_rounds(stages, 3, said.append)
    assert "".join(seen) == "ab-baab"
    assert {name: list(rounds) for name, rounds in found.rounds.items()} == {"a": [1, 2, 3], "b": [1, 2, 3], "c": []}
    assert found.skipped == {"c": "not here"}
    assert said[:3] == ["round 1/3 a: 1.0 clips/s", "round 1/3 b: 1.0 clips/s", "c skipped: not here"]


@pytest.mark.slow
def test_memory_is_measured(tiny_corpus):
    found = memory(scan(tiny_corpus), VideoConfig(num_frames=2, size=16), 200, 8)
    for part in (found, found["loader"]):
        assert part["decodes"] >= 200
        grown = part["resident_mib_after"] - part["resident_mib_before"]
        assert part["growth_mib"] == pytest.approx(grown, abs=0.02)
        assert part["resident_mib_highest"] >= part["resident_mib_before"]


def test_memory_that_cannot_be_measured_is_skipped(tmp_path, monkeypatch):
    absent = Manifest(tmp_path, (Clip(key="absent.mp4", emotion="calm", num_frames=3),))
    monkeypatch.setattr(throughput.corpus, "lay_out", lambda *_: SimpleNamespace(manifest=absent))
    monkeypatch.setattr(throughput.corpus, "generated_folder", lambda *_: tmp_path)
    found = throughput.memory_growth(VideoConfig(), 8, tmp_path, Console(show=False))
    assert list(found) == ["skipped"]
    assert "absent.mp4" in found["skipped"]
