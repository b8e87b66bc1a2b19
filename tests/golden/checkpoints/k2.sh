#!/usr/bin/env bash
# made by: a test
set -euo pipefail

MODEL_PATH="${MODEL_PATH:-}"
[ -n "$MODEL_PATH" ] || MODEL_PATH=moonshotai/Kimi-K2-Instruct
PYTHON="${PYTHON:-}"
[ -n "$PYTHON" ] || PYTHON=python3
# A folder that lacks a shard would be noticed only after minutes of loading.
if [ -f "$MODEL_PATH"/model.safetensors.index.json ]; then
  lacking="$(cd -- "$MODEL_PATH" && grep -o '[^"]*\.safetensors' model.safetensors.index.json | sort -u |
    while read -r shard; do [ -s "$shard" ] || echo "$shard"; done)" || true
  [ -z "$lacking" ] || { echo "error: the weights are not complete; missing or empty: ${lacking//$'\n'/ }" >&2; exit 1; }
fi

# The same file runs on each of the 2 nodes:
#   NODE_RANK=0 RANK0_HOST=<address of node 0> ./launch.sh     (NODE_RANK=1 on the next, ...)
# NCCL and Gloo must find the right network: set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME if they do not;
# on InfiniBand name the adapters in NCCL_IB_HCA, on RoCE set NCCL_IB_GID_INDEX (often 3). NCCL_DEBUG=INFO shows both.
: "${NODE_RANK:?set NODE_RANK to the number of this node, 0 to 1}"
: "${RANK0_HOST:?set RANK0_HOST to the address of node 0}"

exec "$PYTHON" -m sglang.launch_server \
  --model-path "$MODEL_PATH" \
  --trust-remote-code \
  --tp-size 16 \
  --nnodes 2 \
  --mem-fraction-static 0.89 \
  --max-running-requests 64 \
  --chunked-prefill-size 8192 \
  --cuda-graph-max-bs 512 \
  --host 0.0.0.0 \
  --port 30000 \
  --enable-metrics \
  --node-rank "$NODE_RANK" --dist-init-addr "$RANK0_HOST:20000" \
  "$@"
