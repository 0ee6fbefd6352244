#!/bin/bash
# One training on several nodes under Slurm, from the repository's folder, which every node must see, as it must see
# the clips; arguments are those of fastemo/train.py:
#
#   sbatch configs/slurm.sh --config configs/cnn_lstm.yaml --corpus.root /data/RAVDESS
#
# The lines to edit. One task a node: it starts a process for each of the node's GPUs.
#SBATCH --job-name=fastemo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%j.log
# A job that lost a node, or was preempted, is started again, and its log and its training go on.
#SBATCH --requeue
# Two minutes before the time is up the training is asked to end: it writes a checkpoint first.
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -euo pipefail

# The environment that fastemo was installed in:
# source /path/to/venv/bin/activate

cd "${SLURM_SUBMIT_DIR:-.}"

# All nodes meet at the first one, at a port that two jobs on one node hardly share. All names are read before the first
# is taken: a reader that leaves early (head) ends scontrol by SIGPIPE now and then, and with it this script.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
main_ip=${hosts%%$'\n'*}
export MAIN_IP=$main_ip
export MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000))
# Without GPUs one process a node, which takes all its processors.
export PROCESSES_A_NODE=${PROCESSES_A_NODE:-${SLURM_GPUS_ON_NODE:-1}}

# NCCL says what went wrong, and with INFO what it chose.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# Where nodes have several networks: the one that leads to the others (`ip -br address`), and the InfiniBand cards.
# export NCCL_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5

# A job that is started again goes on with its run; a new job does so by the first one's name: --name slurm-12345.
export RUN_NAME=slurm-$SLURM_JOB_ID

# What differs between nodes, SLURM_NODEID, is known only inside the task: hence a shell of its own, which gets the
# arguments untouched. When one task fails, the others must not wait for it.
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
