"""Tables, JSON and chart of a run that never was."""

import json
import tempfile
from pathlib import Path

from benchmarks import results
from benchmarks.measure import Pass
from benchmarks.targets import targets
from fastemo.console import Console

ROUNDS = {
    "decode_full": {1: Pass(8, 2.0, 4.0), 2: Pass(8, 4.0, 4.0)},
    "decode_pruned": {1: Pass(8, 1.0, 2.0), 2: Pass(8, 2.0, 2.0)},
    "loader_cold": {1: Pass(8, 1.25, 2.0), 2: Pass(8, 2.5, 2.0)},
    "pyav": {1: Pass(8, 4.0, 8.0), 2: Pass(8, 4.0, 8.0)},
    "decord": {},
}


def whole():
    found = {
        "rungs": {name: results.entry(ROUNDS[name], f"title of {name}") for name in list(ROUNDS)[:3]},
        "peers": {name: results.entry(ROUNDS[name], f"title of {name}") for name in ("pyav", "decord")},
    }
    for entries in found.values():
        results.add_shares(entries, ROUNDS)
    found["peers"]["decord"]["skipped"] = "no decord here"
    found["peers"]["pyav"]["extraction"] = {"seconds": 3.0, "clips": 2}
    settings = {"num_frames": 10, "size": 128, "rounds": 2}
    return {**found, "settings": settings, "corpus": {"kind": "invented"}, "machine": results.machine()}


def test_an_entry_keeps_every_round():
    found = results.entry(ROUNDS["decode_full"], "decode")
    assert found["title"] == "decode"
    assert found["rounds"][1] == {"round": 2, "clips": 8, "seconds": 4.0, "cpu_seconds": 4.0}
    assert found["clips_per_second"] == {"median": 3.0, "min": 2.0, "max": 4.0, "spread": 2 / 3}
    assert found["cpu_seconds_per_clip"]["median"] == 0.5
    assert results.entry({}, "nothing") == {"title": "nothing", "rounds": []}


def test_shares_of_the_limits_pair_rounds():
    found = whole()
    assert found["rungs"]["loader_cold"]["share_of_decode_pruned"] == 0.8
    assert found["rungs"]["loader_cold"]["share_of_decode_full"] == 1.6
    assert found["peers"]["pyav"]["share_of_decode_full"] == 0.75
    assert "share_of_decode_full" not in found["peers"]["decord"]


def test_tables_name_everything(capsys):
    results.show(Console(), whole(), targets(ROUNDS, None))
    shown = capsys.readouterr().out
    for text in ("title of loader_cold", "title of pyav", "80%", "decord skipped: no decord here", "1.50 s a clip"):
        assert text in shown
    assert shown.count("not measured") == 4
    assert shown.count("not reached") == 1  # 0.8 of the limit


def test_json_and_chart_are_written_beside_each_other(tmp_path):
    path = tmp_path / "new" / "found.json"
    results.write(path, whole())
    assert json.loads(path.read_text()) == json.loads(json.dumps(whole()))
    assert (tmp_path / "new" / "found.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(it.name for it in path.parent.iterdir()) == ["found.json", "found.png"]


def test_no_folder_of_this_machine_gets_into_a_file():
    assert results.command("benchmarks/x.py", ["--corpus", "/data/of/mine/", "--out=/a/b.json", "--size", "8"]) == (
        "python benchmarks/x.py --corpus .../mine --out=.../b.json --size 8"
    )
    text = f"{tempfile.gettempdir()}/x and {Path(results.__file__).parent}/y and {Path.home()}/z"
    assert results.without_paths(text) == "(temporary folder)/x and ./benchmarks/y and ~/z"


def test_a_machine_has_a_short_name():
    about = {"processor": "Intel(R) Xeon(R) CPU @ 2.20GHz", "gpus": [], "processors_used": 4}
    assert results.machine_slug(about) == "intel-xeon-cpu-2-20ghz-4-cores"
    assert results.machine_slug({**about, "gpus": ["NVIDIA H100"]}) == "nvidia-h100-4-cores"
    path = results.default_path(about, quick=False)
    assert path.parent == Path(results.__file__).parent / "results"
    assert path.name.startswith("throughput-intel-xeon-cpu-2-20ghz-4-cores-20")
    assert results.default_path(about, quick=True) != path
