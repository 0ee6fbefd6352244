"""A run's accuracy as a file of results: its figures, and nothing that names a folder of the machine."""

import json

import pytest

from benchmarks.accuracy import command, of_run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "/home/x/main/fastemo/train.py --config /home/x/main/configs/quick.yaml --name a --seed 1 --runs_dir=/r",
            "accelerate launch fastemo/train.py --config configs/quick.yaml --seed 1",
        ),
        ("/venv/bin/fastemo train --seed 1", "fastemo train --seed 1"),
    ],
)
def test_the_command_is_what_a_reader_can_type(line, expected):
    assert command(line) == expected


def test_a_run_is_read_and_anything_else_refused(tmp_path):
    result = {
        "model": "early_cnn",
        "corpus": "built-in (generated faces)",
        "accuracy": 0.5,
        "intervals": {"accuracy": [0.4, 0.6]},
        "seed": 3,
        "per_class": dict.fromkeys(("sad", "disgust", "surprised", "fearful"), 0.5),
        "confusion": [[5, 1, 0, 0], [2, 4, 0, 0], [1, 0, 6, 1], [0, 0, 3, 3]],
    }
    (tmp_path / "test.json").write_text(json.dumps(result))
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ValueError, match="not a finished run"):
        of_run(tmp_path)
    (tmp_path / "log.txt").write_text("2026-01-01 00:00:00 command: /x/fastemo/train.py --seed 3\n")
    found = of_run(tmp_path)
    assert {"date", "machine", "versions"} <= set(found)
    assert (found["model"], found["epochs"], found["accuracy"], found["interval"]) == ("early_cnn", 2, 0.5, [0.4, 0.6])
    assert (found["seed"], found["note"]) == (3, "temporal-order pairs: 18 right, 7 swapped")
    assert found["command"] == "accelerate launch fastemo/train.py --seed 3"
    (tmp_path / "test.json").write_text(json.dumps({**result, "corpus": "/data/RAVDESS"}))
    with pytest.raises(ValueError, match="built-in"):
        of_run(tmp_path)
