#!/usr/bin/env bash
#SBATCH --job-name=sglang
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --exclusive
#SBATCH --output=sglang-%j.log
# made by: a test
# predicted: 1.0 tok/s
# submit: sbatch slurm.sh     ready: http://<first node>:30000/health_generate answers 200
set -euo pipefail

MODEL_PATH="${MODEL_PATH:-}"
[ -n "$MODEL_PATH" ] || MODEL_PATH=deepseek-ai/DeepSeek-R1
PYTHON="${PYTHON:-}"
[ -n "$PYTHON" ] || PYTHON=python3
# A folder that lacks a shard would be noticed only after minutes of loading.
if [ -f "$MODEL_PATH"/model.safetensors.index.json ]; then
  lacking="$(cd -- "$MODEL_PATH" && grep -o '[^"]*\.safetensors' model.safetensors.index.json | sort -u |
    while read -r shard; do [ -s "$shard" ] || echo "$shard"; done)" || true
  [ -z "$lacking" ] || { echo "error: the weights are not complete; missing or empty: ${lacking//$'\n'/ }" >&2; exit 1; }
fi
# NCCL and Gloo must find the right network: export NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME here if they do not;
# on InfiniBand name the adapters in NCCL_IB_HCA, on RoCE set NCCL_IB_GID_INDEX (often 3). NCCL_DEBUG=INFO shows both.
HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export RANK0_HOST="${HOSTS%%$'\n'*}"

# shellcheck disable=SC2016  # every node puts its own number in
exec srun --kill-on-bad-exit=1 \
  bash -c 'exec "$@" --node-rank "$SLURM_NODEID" --dist-init-addr "$RANK0_HOST:20000"' node \
  "$PYTHON" -m sglang.launch_server \
  --model-path "$MODEL_PATH" \
  --trust-remote-code \
  --tp-size 16 \
  --nnodes 2 \
  --mem-fraction-static 0.85 \
  --max-running-requests 64 \
  --host 0.0.0.0 \
  --port 30000 \
  "$@"
