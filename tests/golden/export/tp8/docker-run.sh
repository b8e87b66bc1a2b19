#!/usr/bin/env bash
# made by: a test
# predicted: 1.0 tok/s
# ready: http://127.0.0.1:30000/ready answers 200; a start may take 3600 s
set -euo pipefail
# A folder that lacks a shard would be noticed only after minutes of loading.
if [ -f /models/DeepSeek-R1/model.safetensors.index.json ]; then
  lacking="$(cd -- /models/DeepSeek-R1 && grep -o '[^"]*\.safetensors' model.safetensors.index.json | sort -u |
    while read -r shard; do [ -s "$shard" ] || echo "$shard"; done)" || true
  [ -z "$lacking" ] || { echo "error: the weights are not complete; missing or empty: ${lacking//$'\n'/ }" >&2; exit 1; }
fi

exec docker run --rm --name sglang --gpus all --shm-size 32g --network host \
  --security-opt no-new-privileges \
  --ulimit memlock=-1 --ulimit stack=67108864 \
  --mount type=bind,source=/models/DeepSeek-R1,target=/models/DeepSeek-R1,readonly \
  --mount type=volume,source=sglang-cache,target=/sglang-cache \
  --env SGLANG_CACHE_DIR=/sglang-cache \
  lmsysorg/sglang:v0.5.23 \
  python3 -m sglang.launch_server \
  --model-path /models/DeepSeek-R1 \
  --trust-remote-code \
  --tp-size 8 \
  --mem-fraction-static 0.88 \
  --max-running-requests 64 \
  --chunked-prefill-size 8192 \
  --host 0.0.0.0 \
  --port 30000 \
  "$@"
