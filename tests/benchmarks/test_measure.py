"""Medians, ratios and targets: arithmetic on figures that are known."""

import time

import pytest

from benchmarks.measure import Pass, cpu_costs, paired_ratio, rates, summary, timed, total
from benchmarks.targets import best_video_peer, ratios, targets


def rounds(*clips_per_second, cpu=1.0):
    return {number: Pass(10, 10 / rate, 10 * cpu) for number, rate in enumerate(clips_per_second, start=1)}


def test_summary():
    assert summary([4.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 4.0, "spread": 1.5}
    assert summary([3.0]) == {"median": 3.0, "min": 3.0, "max": 3.0, "spread": 0.0}
    assert summary([0.0, 0.0])["spread"] == 0.0


def test_rates_and_costs_are_per_clip():
    found = {1: Pass(clips=8, seconds=2.0, cpu_seconds=4.0)}
    assert rates(found) == {1: 4.0}
    assert cpu_costs(found) == {1: 0.5}
    assert total([Pass(1, 2.0, 3.0), Pass(4, 5.0, 6.0)]) == Pass(5, 7.0, 9.0)


def test_a_ratio_pairs_what_was_measured_in_the_same_round():
    assert paired_ratio({1: 8.0, 2: 4.0, 4: 100.0}, {1: 4.0, 2: 1.0, 3: 50.0})["median"] == 3.0
    assert paired_ratio({1: 1.0}, {2: 1.0}) is None
    assert paired_ratio({1: 1.0}, {1: 0.0}) is None


def test_timed_counts_wall_clock_and_processor_time():
    def sleep():
        time.sleep(0.05)
        return 3

    found = timed(sleep)
    assert found.clips == 3
    assert found.seconds >= 0.05
    assert 0 <= found.cpu_seconds < found.seconds


@pytest.fixture
def figures():
    return {
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


def test_targets_from_rounds(figures):
    memory = {"growth_mib": 19.5, "clips": "small ones", "loader": {"growth_mib": 30.0}}
    found = {it.name: it for it in targets(figures, memory)}
    assert best_video_peer(figures) == "pyav"  # neither one on the GPU, nor one that decodes no video
    values = {name: (pytest.approx(it.value), it.verdict) for name, it in found.items()}
    assert values == {
        "pruned_decode": (2.0, "reached"),
        "cold_over_best_peer": ((7.6 / 4 + 9.5 / 6) / 2, "not reached"),
        "cold_over_limit": (0.95, "reached"),
        "memory_tier": (2000.0, "reached"),
        "disk_tier_cold": (441.0, "reached"),  # 98 % of what the disk gives
        "report_over_memory": (55.0, "reached"),
        "memory_growth": (19.5, "reached"),
    }
    assert "1.91 x with the pruning" in found["pruned_decode"].note
    assert "98%" in found["disk_tier_cold"].note
    assert found["memory_growth"].note == "small ones; as many by the loader: 30.0 MiB"
    assert found["memory_growth"].as_dict()["at_most"] == 20
    assert found["memory_tier"].as_dict()["at_least"] == 2000


def test_a_disk_that_gives_more_is_no_excuse(figures):
    slow = {**figures, "disk_read": rounds(2000, 2000)}
    (found,) = [it for it in targets(slow, None) if it.name == "disk_tier_cold"]
    assert (found.bound, found.verdict) == (500, "not reached")


def test_what_was_not_measured_is_said_to_be():
    assert {it.verdict for it in targets({}, None)} == {"not measured"}
    assert {it.verdict for it in targets({}, {"skipped": "no Linux"})} == {"not measured"}
    assert ratios({}) == {}
    assert best_video_peer({"jpeg": rounds(5)}) is None


def test_more_memory_than_allowed_is_not_reached():
    (found,) = [it for it in targets({}, {"growth_mib": 20.1}) if it.name == "memory_growth"]
    assert found.verdict == "not reached"
