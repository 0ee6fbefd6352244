"""Scaling: its arithmetic, the processes it starts; and the command itself, small."""

import json
import math
import os
import sys

import pytest
from helpers import documented_command

from benchmarks import scaling
from benchmarks.common import results
from benchmarks.common.measure import Pass, summary
from benchmarks.common.scaling import report
from benchmarks.common.scaling.launch import Hosts, Launches, parse_hosts, reason, run_together
from benchmarks.common.scaling.worker import Job, dealt
from fastemo.errors import UserError

ROUNDS = {
    "strong_1": {1: Pass(64, 8.0, 16.0), 2: Pass(64, 16.0, 16.0)},
    "strong_2": {1: Pass(64, 8.0, 16.0), 2: Pass(64, 20.0, 16.0)},
    "strong_local_2": {1: Pass(64, 6.0, 16.0), 2: Pass(64, 16.0, 16.0)},
    "weak_2": {1: Pass(128, 16.0, 16.0), 2: Pass(128, 32.0, 16.0)},
    "weak_local_2": {1: Pass(128, 14.4, 16.0), 2: Pass(128, 28.8, 16.0)},
}
ENTRIES = (
    *("date", "command", "minutes", "machine", "versions", "settings", "launches", "processors"),
    *("runs", "scaling", "equality", "headlines", "targets"),
)


def test_ratios_are_taken_within_a_round():
    found = report.compare(ROUNDS, {"1": 2, "2": 2}, steps=8)
    strong, weak = found.pop("2").values()
    assert not found
    assert strong["speed_up"] == pytest.approx(summary([1.0, 0.8]))
    assert strong["efficiency"] == pytest.approx(strong["speed_up"])  # the same processors
    assert strong["exchange_share_of_step"] == pytest.approx(summary([0.25, 0.2]))
    assert strong["exchange_ms_a_step"] == pytest.approx(summary([250.0, 500.0]))
    assert weak["speed_up"] == pytest.approx(summary([1.0, 1.0]))
    assert weak["exchange_share_of_step"]["median"] == pytest.approx(0.1)
    runs = {name: results.entry(rounds, report.title(name)) for name, rounds in ROUNDS.items()}
    rows = {row["title"]: row["value"] for row in report.headlines(runs, {"2": {"strong": strong, "weak": weak}})}
    assert rows["1 process"] == 6.0
    assert rows["2 processes, same batch a process: efficiency"] == 1.0


def test_efficiency_counts_the_hardware():
    found = report.compare(ROUNDS, {"1": 1, "2": 2}, steps=8)["2"]["strong"]
    assert found["efficiency"]["median"] == found["speed_up"]["median"] / 2


def training(*steps, padding=0):
    rows = [{"keys": list(keys), "loss": loss, "norm": norm} for keys, loss, norm in steps]
    return {"steps": rows, "padding": padding}


def test_the_same_training_is_told_from_another():
    one = training(("ab", 2.0, 4.0), ("cd", 1.5, 3.0))
    same = report.same_training({"1": one, "2": training(("ab", 2.0, 4.0), ("cd", 1.5001, 3.03), padding=1)})["2"]
    assert (same["different_batches"], same["padding"]) == (0, 1)
    assert same["largest_loss_difference"] == pytest.approx(1e-4)
    assert same["largest_norm_difference"] == pytest.approx(0.01)
    for other, name, expected in (
        (training(("ba", 2.0, 4.0), ("cd", 1.5, 3.0)), "different_batches", 1),
        (training(("ab", 2.0, 4.0)), "different_batches", 1),
        (training(("ab", 2.0, 4.0), ("cd", 1.7, 3.0)), "largest_loss_difference", pytest.approx(0.2)),
        (training(("ab", 2.0, 4.0), ("cd", math.nan, 3.0)), "largest_loss_difference", math.inf),
        (training(("ab", 2.0, 8.0), ("cd", 1.5, 6.0)), "largest_norm_difference", 1.0),
    ):
        assert report.same_training({"1": one, "2": other})["2"][name] == expected


def verdicts(equality, processors):
    compared = report.compare(ROUNDS, processors, steps=8)
    return {it.name: it.verdict for it in report.targets(compared, equality, processors)}


def test_targets():
    fine = {"2": {"different_batches": 0, "largest_loss_difference": 1e-6, "largest_norm_difference": 1e-6}}
    assert set(verdicts(fine, {"1": 2, "2": 2}).values()) == {"reached"}
    wrong = {"2": {"different_batches": 1, "largest_loss_difference": math.inf, "largest_norm_difference": 1.0}}
    assert list(verdicts(wrong, {"1": 2, "2": 2}).values()) == ["reached", *["not reached"] * 3]
    # On more hardware than one process has, nine tenths of its speed would be no feat.
    assert verdicts(fine, {"1": 1, "2": 2})["two_over_one"] == "not measured"
    assert set(verdicts({}, {"1": 2}).values()) == {"not measured"}


def test_a_global_batch_is_dealt_a_clip_at_a_time():
    assert dealt([[("a", False), ("c", False)], [("b", False), ("a", True)]]) == ["a", "b", "c"]


def test_hosts_are_read(monkeypatch):
    assert parse_hosts(None, None, None).addresses == ("127.0.0.1",)
    played = parse_hosts("127.0.0.2, 127.0.0.3", None, None)
    assert (played.rank, played.port) == (None, None)
    real = parse_hosts("10.0.0.1,node2", 1, None)
    assert (real.rank, real.port) == (1, 29500)
    assert played.used(4) == played.addresses
    assert played.used(3) == ("127.0.0.2",)
    assert set(played.processors(0)) | set(played.processors(1)) <= os.sched_getaffinity(0)
    assert played.num_processors(2) >= played.num_processors(1)
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert parse_hosts("10.0.0.1,10.0.0.2", None, 4000) == Hosts(addresses=("10.0.0.1", "10.0.0.2"), rank=1, port=4000)


ONE, PLAYED = Hosts(), Hosts(addresses=("127.0.0.2", "127.0.0.3"))
SECOND = Hosts(addresses=("10.0.0.1", "10.0.0.2"), rank=1, port=29500)


@pytest.mark.parametrize(
    ("hosts", "processes", "expected"),
    [
        (ONE, 1, [""]),
        (ONE, 2, ["127.0.0.1 2 0 2 0", "127.0.0.1 2 1 2 1"]),
        (PLAYED, 2, ["127.0.0.2 2 0 1 0 lo", "127.0.0.2 2 1 1 0 lo"]),
        (SECOND, 1, []),
        (SECOND, 4, ["10.0.0.1 4 2 2 0", "10.0.0.1 4 3 2 1"]),
    ],
)
def test_processes_learn_their_ranks(monkeypatch, tmp_path, hosts, processes, expected):
    calls = []
    monkeypatch.setattr("benchmarks.common.scaling.launch.run_together", lambda starts, _: calls.append(starts))
    numbers = dict.fromkeys(("num_frames", "size", "crop_size", "batch_size", "warm_up", "steps"), 1)
    job = Job(task="speed", folder=str(tmp_path), model="late_fusion", precision="auto", **numbers)
    names = ("MASTER_ADDR", "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "GLOO_SOCKET_IFNAME")
    for on_gpu in (False, True):
        launches = Launches(hosts, on_gpu=on_gpu)
        assert [launches.run(job, processes), launches.run(job, processes)] == [None, None]
        told = [variables for _, variables in calls[-1]]
        assert [" ".join(str(it[name]) for name in names if name in it) for it in told] == expected
        assert all(("CUDA_VISIBLE_DEVICES" in it) != on_gpu for it in told)
        assert hosts is not SECOND or all(it["MASTER_PORT"] == 29501 for it in told)  # the second launch's own
    shares = [json.loads(command[-1])["processors"] for command, _ in calls[-1]]
    assert shares == [list(PLAYED.processors(host)) if hosts is PLAYED else None for host in range(len(shares))]


def test_what_a_process_says_is_one_line():
    assert reason("W1 torch\nfastemo: error: no such clip\nConnectionError: x\n") == "no such clip"
    assert reason("Traceback\n  File\nRuntimeError: gloo\nend\n") == "RuntimeError: gloo"
    assert reason("") == "no output"


@pytest.mark.parametrize(
    ("program", "seconds", "message"),
    [
        ("raise ValueError('the reason')", 600, "failed with status 1: ValueError: the reason"),
        ("import os; os.kill(os.getpid(), 9)", 600, "failed with status -9: no output"),
        ("import time; time.sleep(3600)", 0.5, "did not end within 0.5 s"),
    ],
)
def test_one_that_fails_or_hangs_ends_all(monkeypatch, tmp_path, program, seconds, message):
    monkeypatch.setattr("benchmarks.common.scaling.launch._SECONDS", seconds)
    starts = [([sys.executable, "-c", it], {}) for it in ("import time; time.sleep(3600)", program)]
    with pytest.raises(UserError, match=message):
        run_together(starts, tmp_path / "log.txt")


def quick(run_script, tmp_path_factory, *arguments):
    out = tmp_path_factory.mktemp("scaling") / "found.json"
    command = [*documented_command("benchmarks/scaling.py"), "--quick", "--device", "cpu"]
    done = run_script(command, "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    assert str(out.parent) not in out.read_text()
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    return done.stdout, json.loads(out.read_text())


@pytest.fixture(scope="module")
def one_host(run_script, tmp_path_factory):
    return quick(run_script, tmp_path_factory, "--processes", "1,2")


@pytest.fixture(scope="module")
def two_hosts(run_script, tmp_path_factory):
    return quick(run_script, tmp_path_factory, "--hosts", "127.0.0.2,127.0.0.3")


def reached(found):
    verdict = {it["name"]: it["verdict"] for it in found["targets"]}
    return [verdict[name] for name in ("same_batches", "same_losses", "same_gradients")] == ["reached"] * 3


@pytest.mark.slow
def test_the_json_holds_everything_and_ratios_follow_from_the_rounds(one_host):
    output, found = one_host
    assert tuple(found) == ENTRIES
    assert set(found["runs"]) == set(ROUNDS)
    rounds = {}
    for name, run in found["runs"].items():
        (it,) = run["rounds"]
        rounds[name] = {it.pop("round"): Pass(**it)}
        assert it["clips"] == 3 * 8 * (2 if name.startswith("weak") else 1)
        assert it["cpu_seconds"] > 0
    assert found["scaling"] == report.compare(rounds, {"1": 1, "2": 1}, 3)
    by_name = {it["name"]: it for it in found["targets"]}
    assert by_name["two_over_one"]["value"] == found["scaling"]["2"]["strong"]["speed_up"]["median"]
    assert found["launches"]["2"]["backend"] == "gloo"
    assert found["launches"]["2"]["exchanged_mib_a_step"] > 40  # ResNet-18's 11.2 M parameters
    assert "2 processes, same global batch" in output
    assert f"{found['scaling']['2']['strong']['exchange_share_of_step']['median']:.1%}" in output


@pytest.mark.slow
def test_two_processes_train_as_one(one_host):
    _, found = one_host
    check = found["equality"]["2"]
    assert (check["steps"], check["padding"], len(set(check["losses"]))) == (8, 1, 8)
    assert reached(found)


@pytest.mark.slow
def test_two_hosts_at_loopback_addresses_train_as_one(two_hosts):
    _, found = two_hosts
    assert (found["settings"]["hosts"], found["settings"]["hosts_are"]) == (2, "this machine")
    assert found["launches"]["2"]["processes"] == 2
    assert reached(found)
    assert "2-hosts" in scaling.kind(found)
