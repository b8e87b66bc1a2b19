#!/usr/bin/env bash
# made by: a test
# predicted: 1.0 tok/s
# ready: http://127.0.0.1:30000/ready answers 200; a start may take 9300 s
set -euo pipefail
# The first start downloads 690 GB into the docker volume sglang-huggingface, not into the container's layer.

exec docker run --rm --name sglang --gpus all --shm-size 32g --network host \
  --security-opt no-new-privileges \
  --ulimit memlock=-1 --ulimit stack=67108864 \
  --mount type=volume,source=sglang-huggingface,target=/huggingface \
  --mount type=volume,source=sglang-cache,target=/sglang-cache \
  --env SGLANG_CACHE_DIR=/sglang-cache \
  --env HF_HOME=/huggingface \
  --env HF_TOKEN \
  lmsysorg/sglang:v0.5.23 \
  python3 -m sglang.launch_server \
  --model-path deepseek-ai/DeepSeek-R1 \
  --trust-remote-code \
  --tp-size 1 \
  --mem-fraction-static 0.5 \
  --disable-decode-cuda-graph \
  --disable-prefill-cuda-graph \
  --host 0.0.0.0 \
  --port 30000 \
  --device cpu \
  --cuda-graph-bs-decode 1 2 \
  "$@"
