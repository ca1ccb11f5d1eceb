#!/bin/bash
# sbatch pipelines/slurm/train.sh SETTINGS OUTPUT [OPTIONS of nephi train]
# One agent of torchrun per task; OUTPUT and the data have to be on a file system that all nodes share.
# Before its time limit the job is requeued, and resumes from the last saved state.
#SBATCH --job-name=nephi-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -euo pipefail

settings=$1 output=$2
shift 2
[ ! -e "$output/resume.safetensors" ] || set -- --resume "$@"

# the address by which SLURM itself reaches the first node; names may not be known to all nodes
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER="--master-addr=$address --master-port=$((20000 + SLURM_JOB_ID % 20000))"
export AGENTS="--nnodes=$SLURM_NTASKS --nproc-per-node=${NEPHI_PROCESSES:-gpu}"

trap 'echo "requeued before the time limit"; scontrol requeue "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit bash -c 'exec torchrun $AGENTS --node-rank=$SLURM_PROCID $MASTER -m nephi train "$@"' \
  train "$settings" --output "$output" "$@" &
wait $! # which the signal interrupts
