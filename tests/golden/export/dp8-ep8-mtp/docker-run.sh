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
  --env SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=256 \
  --env SGLANG_CACHE_DIR=/sglang-cache \
  --env HF_HOME=/huggingface \
  --env HF_TOKEN \
  lmsysorg/sglang:v0.5.23 \
  python3 -m sglang.launch_server \
  --model-path deepseek-ai/DeepSeek-R1 \
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
