"""The command itself, small."""

import json
import os
from types import SimpleNamespace

import pytest
from helpers import readme_command

from benchmarks import throughput
from benchmarks.common.measure import Pass, Skipped, Stage, summary
from benchmarks.common.stages import memory
from fastemo.console import Console
from fastemo.corpus.manifest import Manifest, scan
from fastemo.video.config import VideoConfig

RUNGS = (
    *("demux", "prune", "decode_full", "decode_pruned", "decode_resize", "loader_cold"),
    *("disk_read", "loader_disk_cold", "loader_disk_warm", "loader_memory", "loader_memory_augmented"),
)
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
    command = [*readme_command("benchmarks/throughput.py"), "--quick"]
    done = run_script(command, "--peers", "pyav,jpeg,decord", "--out", out, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text()), out


@pytest.mark.slow
def test_the_json_holds_everything(quick):
    _, found, out = quick
    assert tuple(found) == ENTRIES
    assert tuple(found["rungs"]) == RUNGS
    assert set(found["peers"]) == {"pyav", "jpeg", "decord"}
    assert "no decord here" in found["peers"]["decord"]["skipped"]
    assert found["peers"]["decord"]["rounds"] == []
    assert found["peers"]["jpeg"]["extraction"]["seconds"] > 0
    assert found["machine"]["processor"]
    assert found["versions"]["av"]
    assert found["corpus"]["kind"] == "generated"
    assert str(out.parent) not in out.read_text()


@pytest.mark.slow
def test_figures_follow_from_the_rounds(quick):
    _, found, _ = quick
    entries = {**found["rungs"], **found["peers"]}
    for name, entry in entries.items():
        if "skipped" in entry:
            continue
        assert [it["round"] for it in entry["rounds"]] == [1, 2], name
        rates = [it["clips"] / it["seconds"] for it in entry["rounds"]]
        costs = [it["cpu_seconds"] / it["clips"] for it in entry["rounds"]]
        assert entry["clips_per_second"] == pytest.approx(summary(rates)), name
        assert entry["cpu_seconds_per_clip"] == pytest.approx(summary(costs)), name

    def rates_of(name):
        return [it["clips"] / it["seconds"] for it in entries[name]["rounds"]]

    for name, ratio in found["ratios"].items():
        if name.startswith("cpu_"):
            continue
        above, below = name.split("_over_")
        expected = [one / other for one, other in zip(rates_of(above), rates_of(below), strict=True)]
        assert ratio == pytest.approx(summary(expected)), name
    by_name = {target["name"]: target for target in found["targets"]}
    assert by_name["cold_over_best_peer"]["value"] == found["ratios"]["loader_cold_over_pyav"]["median"]
    assert by_name["memory_growth"]["verdict"] == "not measured"
    assert len(by_name) == 7


@pytest.mark.slow
def test_everybody_reads_the_same_clips(quick):
    _, found, _ = quick
    num_clips = found["corpus"]["clips_a_pass"]
    for name in ("demux", "decode_pruned", "loader_cold"):
        assert {it["clips"] for it in found["rungs"][name]["rounds"]} == {num_clips}
    for name in ("pyav", "jpeg"):
        assert {it["clips"] for it in found["peers"][name]["rounds"]} == {num_clips}


@pytest.mark.slow
def test_tables_and_chart(quick):
    output, _, out = quick
    assert "decord skipped: no decord here" in output
    assert "medians of 2 rounds" in output
    assert "PyAV + DataLoader" in output
    assert "targets, stated for" in output
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


class NoPeers:
    def run(self, name):
        raise Skipped(f"{name} is not here")


def test_rounds_begin_elsewhere_and_skips_are_not_tried_again():
    seen = []

    def stage(name):
        return Stage(name, name, lambda: seen.append(name) or Pass(1, 1.0, 1.0))

    found, skipped = throughput.measure([stage("a"), stage("b"), stage("c")], NoPeers(), ["d"], 4, Console(show=False))
    assert "".join(seen) == "abcbcacababc"
    assert [list(found[name]) for name in "abc"] == [[1, 2, 3, 4]] * 3
    assert found["d"] == {}
    assert skipped == {"d": "d is not here"}


@pytest.mark.slow
def test_memory_is_measured(tiny_corpus):
    found = memory(scan(tiny_corpus), VideoConfig(num_frames=2, size=16), 200, 8)
    for part in (found, found["loader"]):
        assert part["decodes"] >= 200
        grown = part["resident_mib_after"] - part["resident_mib_before"]
        assert part["growth_mib"] == pytest.approx(grown, abs=0.02)
        assert part["resident_mib_highest"] >= part["resident_mib_before"]


def test_memory_that_cannot_be_measured_is_skipped(tmp_path, monkeypatch):
    empty = SimpleNamespace(manifest=Manifest(tmp_path, ()))
    monkeypatch.setattr(throughput.corpus, "lay_out", lambda *_: empty)
    monkeypatch.setattr(throughput.corpus, "generated_folder", lambda *_: tmp_path)
    monkeypatch.setattr(throughput, "in_own_process", lambda work, *arguments: 1 / len(arguments[0].clips))
    found = throughput.memory_growth(VideoConfig(), 8, tmp_path, Console(show=False))
    assert found == {"skipped": "ZeroDivisionError: division by zero"}
