#!/bin/bash
# One training on several nodes under Slurm. Submit it from the repository's folder, which every node must be able to
# access, like the clips; the arguments are those of fastemo/train.py:
#
#   sbatch configs/slurm.sh --config configs/cnn_lstm.yaml --corpus.root /data/RAVDESS
#
# Lines to edit. One task per node, which starts a process for each of the node's GPUs.
#SBATCH --job-name=fastemo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%j.log
# A job that lost a node or was preempted is started again, and resumes its log and its training.
#SBATCH --requeue
# Two minutes before the time limit the training gets a signal to write a checkpoint and exit.
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -euo pipefail

# The environment with fastemo:
# source /path/to/venv/bin/activate

cd "${SLURM_SUBMIT_DIR:-.}"

# The first node is the rendezvous, at a port that two jobs on one node are unlikely to share. All names are read before
# the first is used: `| head` would sometimes end scontrol, and with it this script, by SIGPIPE.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
main_ip=${hosts%%$'\n'*}
export MAIN_IP=$main_ip
export MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000))
# Without GPUs, one process per node, which uses all its processors.
export PROCESSES_A_NODE=${PROCESSES_A_NODE:-${SLURM_GPUS_ON_NODE:-1}}

# NCCL logs errors, and with INFO its choices, too.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# For nodes with several networks: the one that connects them (`ip -br address`), and the InfiniBand cards.
# export NCCL_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5

# A restarted job resumes its run; a new job resumes an earlier one's run by its name: --name slurm-12345.
export RUN_NAME=slurm-$SLURM_JOB_ID

# SLURM_NODEID, which differs between nodes, is known only inside the task: hence a shell, which gets the arguments
# unchanged. If one task fails, the others must not wait for it.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
  exec accelerate launch \
    --config_file configs/accelerate/several_nodes.yaml \
    --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * PROCESSES_A_NODE))" \
    --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_IP" \
    --main_process_port "$MAIN_PORT" \
    fastemo/train.py --name "$RUN_NAME" --resume auto "$@"
' fastemo "$@"
