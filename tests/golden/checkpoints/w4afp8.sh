#!/usr/bin/env bash
# made by: a test
set -euo pipefail

MODEL_PATH="${MODEL_PATH:-}"
[ -n "$MODEL_PATH" ] || MODEL_PATH=Barrrrry/DeepSeek-R1-W4AFP8
PYTHON="${PYTHON:-}"
[ -n "$PYTHON" ] || PYTHON=python3
# A folder that lacks a shard would be noticed only after minutes of loading.
if [ -f "$MODEL_PATH"/model.safetensors.index.json ]; then
  lacking="$(cd -- "$MODEL_PATH" && grep -o '[^"]*\.safetensors' model.safetensors.index.json | sort -u |
    while read -r shard; do [ -s "$shard" ] || echo "$shard"; done)" || true
  [ -z "$lacking" ] || { echo "error: the weights are not complete; missing or empty: ${lacking//$'\n'/ }" >&2; exit 1; }
fi

exec "$PYTHON" -m sglang.launch_server \
  --model-path "$MODEL_PATH" \
  --trust-remote-code \
  --tp-size 8 \
  --mem-fraction-static 0.848 \
  --max-running-requests 64 \
  --chunked-prefill-size 8192 \
  --cuda-graph-max-bs 512 \
  --host 0.0.0.0 \
  --port 30000 \
  --enable-metrics \
  --reasoning-parser deepseek-r1 \
  "$@"
