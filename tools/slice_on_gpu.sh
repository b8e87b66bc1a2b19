#!/usr/bin/env bash
# Real SGLang with DeepSeek-R1's own dimensions on one GPU: made-up FP8 weights, slices of 4 and 5 layers foretelling 6.
#
#   tools/slice_on_gpu.sh --dry-run              print every command, run nothing
#   WHEELS=/media/wheels tools/slice_on_gpu.sh   run it all; results in $OUT
#
# For a machine without a network whose Python has torch already: SGLang and what it imports are brought as wheels
# (pip download on another machine; large ones may be split, and joined with cat). The release follows torch: 0.5.17 is
# the newest for torch 2.11, 0.5.18 to 0.5.21 want 2.13, 0.5.22 and 0.5.23 want 2.14.1.
#
#   PYTHON   interpreter with torch and CUDA; a compiler (nvcc) under CUDA_HOME    (python3)
#   SGTUNE   interpreter with sgtune                                               (.venv/bin/python of this checkout)
#   WHEELS   folder of wheels; empty: PYTHON has SGLang already                    (wheels)
#   RELEASE  SGLang release of those wheels                                        (0.5.17)
#   HARDWARE catalogue name of the GPU                                             (h200x1)
#   OUT      folder for results                                                    (slices-on-gpu)
#   LIMIT_S  ends the measurement after so many seconds                            (3600)
set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
SGTUNE=${SGTUNE:-$HERE/.venv/bin/python}
WHEELS=${WHEELS-wheels}
RELEASE=${RELEASE:-0.5.17}
HARDWARE=${HARDWARE:-h200x1}
OUT=${OUT:-slices-on-gpu}
LIMIT_S=${LIMIT_S:-3600}
DRY=${1:-}
if [ $# -gt 1 ] || { [ -n "$DRY" ] && [ "$DRY" != --dry-run ]; }; then
  echo "slice_on_gpu.sh: error: unknown arguments '$*'; it takes --dry-run or nothing" >&2
  exit 2
fi
if [ -z "$DRY" ]; then mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd); fi

run() {
  printf '%q ' "$@"
  printf '\n'
  if [ -z "$DRY" ]; then "$@"; fi
}

echo "# 1. SGLang beside the machine's own torch, which stays as it is"
if [ -n "$WHEELS" ]; then
  run "$PYTHON" -m pip install --no-index --no-deps --no-compile --find-links "$WHEELS" --target "$OUT/site" \
    "sglang==$RELEASE" sglang-kernel flashinfer-python transformers tokenizers apache-tvm-ffi xgrammar sgl-deep-gemm \
    zstandard pydantic pydantic-core soundfile openai pyzmq ipython watchfiles rpds-py jiter msgspec \
    compressed-tensors cffi fastapi orjson gguf dill pybase64 jsonschema uvicorn traitlets starlette \
    opentelemetry-api loguru setproctitle referencing python-multipart jsonschema-specifications distro sniffio \
    partial-json-parser annotated-types
fi

echo "# 2. An interpreter with them first; no hub; kernels are compiled when first used, not all beforehand"
SETTINGS=(PYTHONPATH="$OUT/site" HF_HUB_OFFLINE=1 SGLANG_JIT_DEEPGEMM_PRECOMPILE=0
  CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}")
wrapper() {
  printf '#!/bin/sh\nunset PYTHONSAFEPATH\nexec env %s %q "$@"\n' "$(printf '%q ' "${SETTINGS[@]}")" "$PYTHON" >"$1"
  chmod +x "$1"
}
run wrapper "$OUT/python"

echo "# 3. The model: R1's config.json (FP8 in blocks of 128 x 128) and a tokenizer of bytes; weights are made up on load"
run "$SGTUNE" "$HERE/sglang_cpu/model.py" "$OUT/r1"

echo "# 4. Slices of 4 and 5 layers (1 and 2 of them MoE), and the 6 layers they are to foretell within 5 %"
run timeout "$LIMIT_S" "$SGTUNE" "$HERE/benchmarks/slices.py" --hardware "$HARDWARE" --sglang-version "$RELEASE" \
  --python "$OUT/python" --model-path "$OUT/r1" --slices 4,5 --whole 6 --decode 128/256@1,4,16,64,256 \
  --prefill 2048/16@1,8 --repeats 3 --point-s 5 --points "$OUT/points.jsonl" -- --tp-size 1 \
  --sampling-backend pytorch --mem-fraction-static 0.85 --max-running-requests 256 --cuda-graph-max-bs-decode 256 \
  --context-length 8192

echo "# 5. The profile they yield: its table shows the shipped one of this release (before) beside it (after); and the"
echo "#    whole of R1 on eight such GPUs by that profile"
run "$SGTUNE" -m tuner.cli.main calibrate --points "$OUT/points.jsonl" --hardware "$HARDWARE" --target h200x8 \
  --out "$OUT/profile.json"
