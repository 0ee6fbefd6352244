"""Law 8: a run killed at any moment and resumed ends in the same bits as one never killed."""

import json
import re
import sys

import pytest
from helpers import REPOSITORY, command, full_or
from same_bits import SMALL, assert_same_bits, bits, trained

KILLS, EPOCHS = full_or((8, 3), (20, 8))


@pytest.mark.slow
def test_kills_change_nothing(tiny_corpus, tmp_path, fault_log):
    """Half of them some time after a step that a seed names, the others inside a checkpoint's writing."""
    options = [*SMALL, "--corpus.root", str(tiny_corpus), "--train.epochs", str(EPOCHS), "--name", "run"]
    whole = trained([*options, "--runs_dir", str(tmp_path / "whole")])
    out = tmp_path / "out.json"
    options += ["--runs_dir", str(tmp_path / "killed"), "--train.checkpoint_minutes", "1e-6", "--train.keep", "2"]
    done = command(sys.executable, "-m", "attacks.killed", out, KILLS, *options, cwd=REPOSITORY / "tests")
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(out.read_text())
    assert found["status"] == 0
    assert len(found["killed"]) == KILLS
    killed = tmp_path / "killed" / "run"
    assert_same_bits(bits(whole), bits(killed))
    assert not list((killed / "checkpoints").glob(".*"))
    # Not each attempt lived until its first checkpoint, but the kills were spread over the run.
    positions = set(re.findall(r"resuming after (epoch \d+, clip \d+)", (killed / "log.txt").read_text()))
    assert len(positions) >= 0.4 * KILLS, positions
    for where in sorted(set(found["killed"])):
        fault_log(f"kill -9 {where}", {"same bits as a run never killed": found["killed"].count(where)})
