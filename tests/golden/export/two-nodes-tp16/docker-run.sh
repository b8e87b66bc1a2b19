#!/usr/bin/env bash
# made by: a test
# predicted: 1.0 tok/s
# ready: http://127.0.0.1:30000/health_generate answers 200; a start may take 9300 s
set -euo pipefail

# The same file runs on each of the 2 nodes:
#   NODE_RANK=0 RANK0_HOST=<address of node 0> ./docker-run.sh     (NODE_RANK=1 on the next, ...)
# NCCL and Gloo must find the right network: set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME if they do not;
# on InfiniBand name the adapters in NCCL_IB_HCA, on RoCE set NCCL_IB_GID_INDEX (often 3). NCCL_DEBUG=INFO shows both.
: "${NODE_RANK:?set NODE_RANK to the number of this node, 0 to 1}"
: "${RANK0_HOST:?set RANK0_HOST to the address of node 0}"
infiniband=()
[ ! -d /dev/infiniband ] || infiniband=(--device /dev/infiniband --cap-add IPC_LOCK)
network=(--env NCCL_SOCKET_IFNAME --env GLOO_SOCKET_IFNAME --env NCCL_IB_HCA --env NCCL_IB_GID_INDEX --env NCCL_DEBUG)
# The first start downloads 690 GB into the docker volume sglang-huggingface, not into the container's layer.

exec docker run --rm --name sglang --gpus all --shm-size 32g --network host \
  --security-opt no-new-privileges \
  --ulimit memlock=-1 --ulimit stack=67108864 \
  "${infiniband[@]}" "${network[@]}" \
  --mount type=volume,source=sglang-huggingface,target=/huggingface \
  --mount type=volume,source=sglang-cache,target=/sglang-cache \
  --env SGLANG_CACHE_DIR=/sglang-cache \
  --env HF_HOME=/huggingface \
  --env HF_TOKEN \
  lmsysorg/sglang:v0.5.23 \
  python3 -m sglang.launch_server \
  --model-path deepseek-ai/DeepSeek-R1 \
  --trust-remote-code \
  --tp-size 16 \
  --nnodes 2 \
  --mem-fraction-static 0.85 \
  --max-running-requests 64 \
  --host 0.0.0.0 \
  --port 30000 \
  --node-rank "$NODE_RANK" --dist-init-addr "$RANK0_HOST:20000" \
  "$@"
