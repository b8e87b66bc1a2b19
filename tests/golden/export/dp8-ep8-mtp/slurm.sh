#!/usr/bin/env bash
#SBATCH --job-name=sglang
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --exclusive
#SBATCH --output=sglang-%j.log
# made by: a test
# predicted: 1.0 tok/s
# submit: sbatch slurm.sh     ready: http://<first node>:30000/ready answers 200
set -euo pipefail

MODEL_PATH="${MODEL_PATH:-}"
[ -n "$MODEL_PATH" ] || MODEL_PATH=deepseek-ai/DeepSeek-R1
PYTHON="${PYTHON:-}"
[ -n "$PYTHON" ] || PYTHON=python3
export SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=256
# A folder that lacks a shard would be noticed only after minutes of loading.
if [ -f "$MODEL_PATH"/model.safetensors.index.json ]; then
  lacking="$(cd -- "$MODEL_PATH" && grep -o '[^"]*\.safetensors' model.safetensors.index.json | sort -u |
    while read -r shard; do [ -s "$shard" ] || echo "$shard"; done)" || true
  [ -z "$lacking" ] || { echo "error: the weights are not complete; missing or empty: ${lacking//$'\n'/ }" >&2; exit 1; }
fi

exec srun "$PYTHON" -m sglang.launch_server \
  --model-path "$MODEL_PATH" \
  --trust-remote-code \
  --tp-size 8 \
  --attn-dp-size 8 \
  --ep-size 8 \
  --moe-a2a-backend deepep \
  --speculative-algorithm EAGLE \
  --speculative-num-steps 1 \
  --speculative-eagle-topk 1 \
  --speculative-num-draft-tokens 2 \
  --mem-fraction-static 0.86 \
  --max-running-requests 1024 \
  --host 0.0.0.0 \
  --port 30000 \
  "$@"
