"""The launch files and the Slurm script: read by the programs they are for, and run where that needs no GPU."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers import REPOSITORY, TINY_RUN, command

FOLDER = REPOSITORY / "configs" / "accelerate"
SLURM = REPOSITORY / "configs" / "slurm.sh"
# Processes, machines, whether GPUs work together, whether the CPU computes, precision.
EXPECTED = {
    "cpu": (1, 1, False, True, "no"),
    "one_gpu": (1, 1, False, False, "bf16"),
    "one_node": (8, 1, True, False, "bf16"),
    "several_nodes": (16, 2, True, False, "bf16"),
}
SMALL = [*TINY_RUN, "--corpus.max_rejected", "0", "--store.tier", "none"]


def environment(**other):
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "", **other}


def arguments_of(corpus, runs):
    return [*SMALL, "--corpus.root", str(corpus), "--runs_dir", str(runs)]


def assert_one_run(runs):
    (result,) = [json.loads(path.read_text()) for path in runs.glob("*/test.json")]
    assert result["num_clips"] == len(set((next(runs.glob("*/predictions.csv"))).read_text().splitlines())) - 1


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_launch_takes_what_it_says(name):
    arguments = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "fastemo/train.py"])
    taken, _, _ = _validate_launch_command(arguments)
    processes = (taken.num_processes, taken.num_machines, bool(taken.multi_gpu))
    assert (*processes, taken.use_cpu, taken.mixed_precision) == EXPECTED[name]


def test_there_are_no_others():
    assert {path.stem for path in FOLDER.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_has_a_comment(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    body = lines[lines.index("") + 1 :]
    assert len(body) == 2 * len(yaml.safe_load("\n".join(lines)))
    assert all(comment.startswith("# ") for comment in body[::2])
    assert not any(key.startswith("#") for key in body[1::2])


def test_several_nodes_meet_at_one_address():
    loaded = load_config_from_file(str(FOLDER / "several_nodes.yaml"))
    assert (loaded.rdzv_backend, loaded.same_network, loaded.machine_rank) == ("static", True, 0)
    assert loaded.main_process_ip
    assert loaded.main_process_port


def test_the_slurm_script_is_bash():
    done = command("bash", "-n", SLURM)
    assert done.returncode == 0, done.stderr
    wanted = [line for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --ntasks-per-node=1" in wanted  # a launcher a node, which starts the processes
    assert "#SBATCH --requeue" in wanted


# Without GPUs the processes of `one_node` join over gloo.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("cpu", [], "on cpu, 1 process"),
        ("one_gpu", [], "1 process"),
        ("one_node", ["--num_processes", "2"], "2 processes"),
    ],
)
def test_a_file_trains_without_a_gpu(name, options, shown, tiny_corpus, tmp_path):
    line = ["accelerate", "launch", "--config_file", f"configs/accelerate/{name}.yaml", *options, "fastemo/train.py"]
    done = command(*line, *arguments_of(tiny_corpus, tmp_path), cwd=REPOSITORY, **environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert shown in done.stdout
    assert_one_run(tmp_path)


FAKE_SCONTROL = """#!/bin/bash
[[ "$1 $2" == "show hostnames" && "$3" == "fake[2-3]" ]] || exit 1
printf '127.0.0.2\\n127.0.0.3\\n'
"""
# As Slurm does: the same command on every node, each with its number; the job fails with the first task that does.
FAKE_SRUN = """#!/bin/bash
[[ "$1" == --kill-on-bad-exit=1 ]] || exit 1
shift
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_nodes(tiny_corpus, tmp_path):
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for name, script in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (fakes / name).write_text(script)
        (fakes / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "fake[2-3]", "SLURM_NNODES": "2"}
    slurm |= {"SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_RESTART_COUNT": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env = environment(**slurm)
    env["PATH"] = f"{fakes}:{env['PATH']}"
    runs = tmp_path / "runs and spaces"
    done = command("bash", SLURM, *arguments_of(tiny_corpus, runs), cwd=tmp_path, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout
    assert [path.name for path in runs.iterdir()] == [f"slurm-{os.getpid()}"]
    assert_one_run(runs)
