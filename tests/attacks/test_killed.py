"""Law 8: a run killed at any moment and gone on with ends in the same bits as one never killed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from same_bits import SMALL, assert_same_bits, bits

from fastemo.resume import resolve
from fastemo.run import run

SCRIPT = Path(__file__).with_name("killed.py")


@pytest.mark.slow
def test_twenty_kills_change_nothing(tiny_corpus, tmp_path, fault_log):
    options = [*SMALL, "--corpus.root", str(tiny_corpus), "--train.epochs", "8"]
    options += ["--train.checkpoint_minutes", "1e-6", "--train.keep", "2"]
    whole = run(*resolve([*options, "--runs_dir", str(tmp_path / "whole"), "--name", "run"]))
    out = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), str(out), "20", *options]
    done = subprocess.run(
        [*command, "--runs_dir", str(tmp_path / "killed"), "--name", "run"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(out.read_text())
    assert found["status"] == 0
    assert len(found["killed"]) == 20
    killed = tmp_path / "killed" / "run"
    assert_same_bits(bits(whole), bits(killed))
    assert not list((killed / "checkpoints").glob(".*"))
    # Not each attempt lived until its first checkpoint, but the kills were spread over the run.
    positions = set(re.findall(r"going on after (epoch \d+, clip \d+)", (killed / "log.txt").read_text()))
    assert len(positions) >= 8, positions
    for where in sorted(set(found["killed"])):
        fault_log(f"kill -9 {where}", {"same bits as a run never killed": found["killed"].count(where)})
