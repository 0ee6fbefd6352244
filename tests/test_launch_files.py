"""The launch files and the Slurm script: read by the programs they are for, and run where that needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "configs" / "accelerate"
SLURM = REPOSITORY / "configs" / "slurm.sh"
NAMES = ("cpu", "one_gpu", "one_node", "several_nodes")
EXPECTED = {
    "cpu": {"distributed_type": "NO", "use_cpu": True, "num_processes": 1, "num_machines": 1},
    "one_gpu": {"distributed_type": "NO", "use_cpu": False, "num_processes": 1, "num_machines": 1},
    "one_node": {"distributed_type": "MULTI_GPU", "use_cpu": False, "num_processes": 8, "num_machines": 1},
    "several_nodes": {"distributed_type": "MULTI_GPU", "use_cpu": False, "num_processes": 16, "num_machines": 2},
}
SMALL = (
    *("--corpus.max_rejected", "0", "--model.name", "early_cnn", "--video.num_frames", "2", "--video.size", "36"),
    *("--augment.crop_size", "32", "--train.batch_size", "16", "--train.epochs", "1", "--store.tier", "none"),
)


def environment(**other):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "", **other}


def arguments_of(corpus, runs):
    return [*SMALL, "--corpus.root", str(corpus), "--runs_dir", str(runs)]


def launch(name, *options, corpus, runs, **other):
    """`accelerate launch` with a file; returns what was printed."""
    line = ["accelerate", "launch", "--config_file", f"configs/accelerate/{name}.yaml", *options, "fastemo/train.py"]
    done = subprocess.run(
        [*line, *arguments_of(corpus, runs)], cwd=REPOSITORY, env=environment(**other), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_one_run(runs):
    (result,) = [json.loads(path.read_text()) for path in runs.glob("*/test.json")]
    assert result["num_clips"] == len(set((next(runs.glob("*/predictions.csv"))).read_text().splitlines())) - 1


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it(name):
    loaded = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert loaded.compute_environment.value == "LOCAL_MACHINE"
    found = {key: getattr(loaded, key) for key in EXPECTED[name]}
    found["distributed_type"] = loaded.distributed_type.value
    assert found == EXPECTED[name]
    assert loaded.mixed_precision == ("no" if name == "cpu" else "bf16")


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_launch_takes_what_it_says(name):
    arguments = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "fastemo/train.py"])
    taken, _, _ = _validate_launch_command(arguments)
    assert taken.num_processes == EXPECTED[name]["num_processes"]
    assert taken.num_machines == EXPECTED[name]["num_machines"]
    assert bool(taken.multi_gpu) == (EXPECTED[name]["distributed_type"] == "MULTI_GPU")
    assert taken.mixed_precision == ("no" if name == "cpu" else "bf16")


def test_there_are_no_others():
    assert {path.stem for path in FOLDER.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
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
    done = subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = [line for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --ntasks-per-node=1" in wanted  # a launcher a node, which starts the processes
    assert "#SBATCH --requeue" in wanted


@pytest.mark.slow
def test_the_cpu_file_trains(tiny_corpus, tmp_path):
    assert "on cpu, 1 process" in launch("cpu", corpus=tiny_corpus, runs=tmp_path)
    assert_one_run(tmp_path)


@pytest.mark.slow
def test_the_one_node_file_trains_on_two_processes(tiny_corpus, tmp_path):
    """Without GPUs the same processes join over gloo."""
    shown = launch("one_node", "--num_processes", "2", corpus=tiny_corpus, runs=tmp_path)
    assert "2 processes" in shown
    assert_one_run(tmp_path)


@pytest.mark.slow
def test_the_one_gpu_file_trains_without_one(tiny_corpus, tmp_path):
    assert "1 process" in launch("one_gpu", corpus=tiny_corpus, runs=tmp_path)
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
    done = subprocess.run(
        ["bash", str(SLURM), *arguments_of(tiny_corpus, runs)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout
    assert [path.name for path in runs.iterdir()] == [f"slurm-{os.getpid()}"]
    assert_one_run(runs)
