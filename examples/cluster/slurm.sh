#!/usr/bin/env bash
# Tune on four nodes of a Slurm cluster: sbatch slurm.sh --isl 1000 --osl 1000 --concurrency 256 --trials 12
# `ray` and `sgtune` on the path of every node, of one environment; SGLANG_PYTHON is the interpreter that has sglang.
#SBATCH --job-name=sgtune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=06:00:00
set -euo pipefail

gpus="${SLURM_GPUS_ON_NODE:-8}"
# Without these Ray runs servers at nice 15 and has them killed first when memory is short.
export RAY_worker_niceness=0 RAY_worker_oom_score_adjustment=0 RAY_memory_monitor_refresh_ms=0
export RAY_USAGE_STATS_ENABLED=0
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head="${hosts%%$'\n'*}"

# One Ray node on each Slurm node; the command runs on the head once all are there, and Ray stops with it.
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" --num-gpus "$gpus" -- \
  sgtune tune --hardware "${HARDWARE:-h200x8}" --engine local --python "${SGLANG_PYTHON:-python3}" \
  --cluster auto "$@"
