"""Medians, ratios, targets, tables, files: arithmetic on known figures, and a run that never was."""

import json
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.common import measure, results
from benchmarks.common.measure import Pass, paired_ratio, summary
from benchmarks.throughput import best_video_peer, ratios, targets
from fastemo.console import Console
from fastemo.errors import UserError


def rounds(*clips_per_second, cpu=1.0):
    return {number: Pass(10, 10 / rate, 10 * cpu) for number, rate in enumerate(clips_per_second, start=1)}


FIGURES = {
    "prune": rounds(200, 200, cpu=0.01),
    "decode_full": rounds(4, 4, cpu=0.44),
    "decode_pruned": rounds(8, 10, cpu=0.22),
    "loader_cold": rounds(7.6, 9.5),
    "disk_read": rounds(450, 450),
    "loader_disk_cold": rounds(441, 441),
    "loader_memory": rounds(3000, 1000),
    "decord": rounds(4, 4),
    "pyav": rounds(4, 6),
    "opencv": {},
    "torchcodec_cuda": rounds(100, 100),
    "jpeg": rounds(50, 20),
}
MEMORY = {"growth_mib": 19.5, "clips": "small ones", "loader": {"growth_mib": 30.0}}


def test_summary():
    assert summary([4.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 4.0, "spread": 1.5}
    assert summary([3.0]) == {"median": 3.0, "min": 3.0, "max": 3.0, "spread": 0.0}
    assert summary([0.0, 0.0])["spread"] == 0.0


def test_rates_and_costs_are_per_clip():
    found = {1: Pass(clips=8, seconds=2.0, cpu_seconds=4.0)}
    assert measure.rates(found) == {1: 4.0}
    assert measure.cpu_costs(found) == {1: 0.5}
    assert measure.total([Pass(1, 2.0, 3.0), Pass(4, 5.0, 6.0)]) == Pass(5, 7.0, 9.0)


def test_a_ratio_pairs_what_was_measured_in_the_same_round():
    assert paired_ratio({1: 8.0, 2: 4.0, 4: 100.0}, {1: 4.0, 2: 1.0, 3: 50.0})["median"] == 3.0
    assert paired_ratio({1: 1.0}, {2: 1.0}) is None
    assert paired_ratio({1: 1.0}, {1: 0.0}) is None


def test_timed_counts_wall_clock_and_processor_time():
    found = measure.timed(lambda: time.sleep(0.05) or 3)
    assert found.clips == 3
    assert found.seconds >= 0.05
    assert 0 <= found.cpu_seconds < found.seconds


@pytest.mark.parametrize(
    ("names", "num_rounds", "order"), [("abcd", 4, "abcdbcdacdabdabc"), ("ab", 3, "abbaab"), ("a", 2, "aa")]
)
def test_each_round_begins_elsewhere(names, num_rounds, order):
    found = list(measure.in_turns(names, num_rounds))
    assert "".join(name for _, name in found) == order
    assert [number for number, _ in found] == sorted([*range(1, num_rounds + 1)] * len(names))


@pytest.mark.slow
def test_what_fails_in_a_process_of_its_own_says_why():
    assert measure.in_own_process(abs, -3) == 3
    with pytest.raises(UserError, match=r"^ValueError: invalid literal"):
        measure.in_own_process(int, "x")


def test_targets_from_rounds():
    found = {it.name: it for it in targets(FIGURES, MEMORY)}
    assert best_video_peer(FIGURES) == "pyav"  # neither one on the GPU, nor one that decodes no video
    values = {name: (pytest.approx(it.value), it.verdict) for name, it in found.items()}
    assert values == {
        "pruned_decode": (2.0, "reached"),
        "cold_over_best_peer": ((7.6 / 4 + 9.5 / 6) / 2, "not reached"),
        "cold_over_limit": (0.95, "reached"),
        "memory_tier": (2000.0, "reached"),
        "disk_tier_cold": (441.0, "reached"),  # 98 % of the disk's own speed
        "report_over_memory": (55.0, "reached"),
        "memory_growth": (19.5, "reached"),
    }
    assert "1.91 x with the time of pruning" in found["pruned_decode"].note
    assert "98%" in found["disk_tier_cold"].note
    assert found["memory_growth"].note == "small ones; as many by the loader: 30.0 MiB"
    assert found["memory_growth"].as_dict()["at_most"] == 20
    assert found["memory_tier"].as_dict()["at_least"] == 2000


def test_what_is_not_reached():
    found = {it.name: it for it in targets({**FIGURES, "disk_read": rounds(2000, 2000)}, {"growth_mib": 20.1})}
    assert (found["disk_tier_cold"].bound, found["memory_growth"].bound) == (500, 20)  # a faster disk is no excuse
    assert found["disk_tier_cold"].verdict == found["memory_growth"].verdict == "not reached"


def test_what_was_not_measured_is_said_to_be():
    assert {it.verdict for it in targets({}, None)} == {"not measured"}
    assert {it.verdict for it in targets({}, {"skipped": "no Linux"})} == {"not measured"}
    assert ratios({}) == {}
    assert best_video_peer({"jpeg": rounds(5)}) is None


def whole():
    parts = {"rungs": ("decode_full", "decode_pruned", "loader_cold"), "peers": ("pyav", "opencv")}
    found = {part: {it: results.entry(FIGURES[it], f"title of {it}") for it in its} for part, its in parts.items()}
    for entries in found.values():
        throughput.add_shares(entries, FIGURES)
    found["peers"]["opencv"]["skipped"] = "no OpenCV here"
    settings = {"num_frames": 10, "size": 128, "rounds": 2}
    return {
        **found,
        "settings": settings,
        "corpus": {"kind": "invented"},
        "machine": results.machine(),
        "targets": targets(FIGURES, None),
    }


def test_an_entry_keeps_every_round_and_its_share_of_the_limits():
    found = whole()
    entry = found["rungs"]["decode_pruned"]
    assert entry["title"] == "title of decode_pruned"
    assert entry["rounds"][1] == {"round": 2, "clips": 10, "seconds": 1.0, "cpu_seconds": 2.2}
    assert entry["clips_per_second"] == {"median": 9.0, "min": 8.0, "max": 10.0, "spread": pytest.approx(2 / 9)}
    assert entry["cpu_seconds_per_clip"]["median"] == pytest.approx(0.22)
    assert found["rungs"]["loader_cold"]["share_of_decode_pruned"] == pytest.approx(0.95)
    assert found["peers"]["pyav"]["share_of_decode_full"] == pytest.approx(1.25)
    assert found["peers"]["opencv"] == {"title": "title of opencv", "rounds": [], "skipped": "no OpenCV here"}


def test_numbers_of_nested_entries_are_one_list():
    found = {
        "clips": 8,
        "text": "x",
        "memory": {"mib": 1191.2, "gpu_mib": None},
        "parts": {"n": [1], "shares": {"a": 0.25}},
    }
    assert results.figures_of(found) == {
        "clips": "8",
        "memory: mib": "1,191",
        "memory: gpu_mib": "-",
        "shares: a": "0.25",
    }


def test_json_and_chart_are_written_beside_each_other(tmp_path):
    path = tmp_path / "new" / "found.json"
    results.write(path, whole(), Console(show=False), throughput.chart)
    found = json.loads(path.read_text())
    assert found.pop("targets") == [it.as_dict() for it in targets(FIGURES, None)]
    assert found == json.loads(json.dumps({name: it for name, it in whole().items() if name != "targets"}))
    assert (tmp_path / "new" / "found.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(it.name for it in path.parent.iterdir()) == ["found.json", "found.png"]


def test_no_folder_of_this_machine_gets_into_a_file():
    assert results.command("benchmarks/x.py", ["--corpus", "/data/of/mine/", "--out=/a/b.json", "--size", "8"]) == (
        "python benchmarks/x.py --corpus .../mine --out=.../b.json --size 8"
    )
    text = f"{tempfile.gettempdir()}/x and {results.REPOSITORY}/y and {Path.home()}/z"
    assert results.without_paths(text) == "(temporary folder)/x and ./y and ~/z"


def test_a_machine_has_a_short_name():
    about = {"processor": "Intel(R) Xeon(R) CPU @ 2.20GHz", "gpus": [], "processors_used": 4}
    assert results.machine_slug(about) == "intel-xeon-cpu-2-20ghz-4-cores"
    assert results.machine_slug({**about, "gpus": ["NVIDIA H100"]}) == "nvidia-h100-4-cores"
    path = results.default_path(about, quick=False, program="x")
    assert path.parent == results.REPOSITORY / "benchmarks" / "results"
    assert path.name.startswith("x-intel-xeon-cpu-2-20ghz-4-cores-20")
    assert results.default_path(about, quick=True, program="x") != path
