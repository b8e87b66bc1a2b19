#!/usr/bin/env bash
# Real SGLang with DeepSeek-R1's own dimensions on one GPU: made-up FP8 weights, slices of 4 and 5 layers foretelling 6.
#
#   tools/slice_on_gpu.sh --dry-run              print every command, run nothing
#   WHEELS=/media/wheels tools/slice_on_gpu.sh   run it all; results in $OUT
#
# Each depth is a step of at most LIMIT_S. A step that fails or runs out of time ends the script; run it again and it
# goes on where it was: points are kept one by one in $OUT/points.jsonl, servers' logs in $OUT/points.jsonl.logs.
#
# For a machine without a network whose Python has torch already: SGLang and what it imports are brought as wheels
# (pip download on another machine, as PINS says; 383 MB; large ones may be split, and joined with cat). The release
# follows torch: 0.5.17 is the newest for torch 2.11, 0.5.18 to 0.5.21 want 2.13, 0.5.22 and 0.5.23 want 2.14.1.
#
#   PYTHON   interpreter with torch and CUDA; a compiler (nvcc) under CUDA_HOME    (python3)
#   SGTUNE   interpreter with sgtune                                               (.venv/bin/python of this checkout)
#   WHEELS   folder of wheels; empty: PYTHON has SGLang already                    (wheels)
#   RELEASE  SGLang release of those wheels                                        (0.5.17)
#   PINS     list of wheels with their versions; it must pin that release          (tools/slice_wheels.txt)
#   HARDWARE catalogue name of the GPU                                             (h200x1)
#   OUT      folder for results                                                    (slices-on-gpu)
#   LIMIT_S  ends each step after so many seconds                                  (600)
#   DEPTHS   only these depths of 4, 5 and 6, as in DEPTHS='4'; less than all are not compared, '' only installs
set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
SGTUNE=${SGTUNE:-$HERE/.venv/bin/python}
WHEELS=${WHEELS-wheels}
RELEASE=${RELEASE:-0.5.17}
HARDWARE=${HARDWARE:-h200x1}
OUT=${OUT:-slices-on-gpu}
LIMIT_S=${LIMIT_S:-600}
PINS=${PINS:-$HERE/tools/slice_wheels.txt}
DEPTHS=${DEPTHS-4 5 6}
DRY=${1:-}
if [ $# -gt 1 ] || { [ -n "$DRY" ] && [ "$DRY" != --dry-run ]; }; then
  echo "slice_on_gpu.sh: error: unknown arguments '$*'; it takes --dry-run or nothing" >&2
  exit 2
fi
if [ -z "$DRY" ]; then mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd); fi

if [ -n "$WHEELS" ] && ! grep -qx "sglang==$RELEASE" "$PINS"; then
  echo "slice_on_gpu.sh: error: $PINS does not pin sglang==$RELEASE; name a list that does with PINS" >&2
  exit 2
fi
again() {
  echo "slice_on_gpu.sh: step $1 did not end well (exit code $2; 124 is out of time). Run the same again: it goes on." >&2
  exit "$2"
}

run() {
  printf '%q ' "$@"
  printf '\n'
  if [ -z "$DRY" ]; then "$@"; fi
}

echo "# 1. SGLang beside the machine's own torch, which stays as it is"
if [ -n "$WHEELS" ] && [ ! -e "$OUT/installed-$RELEASE" ]; then
  run timeout "$LIMIT_S" "$PYTHON" -m pip install --no-index --no-deps --no-compile --find-links "$WHEELS" --upgrade \
    --target "$OUT/site" -r "$PINS" || again 1 $?
  if [ -z "$DRY" ]; then touch "$OUT/installed-$RELEASE"; fi
fi

echo "# 2. An interpreter with them first; no hub; kernels are compiled when first used, not all beforehand"
SETTINGS=(HF_HUB_OFFLINE=1 SGLANG_JIT_DEEPGEMM_PRECOMPILE=0
  CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}")
wrapper() {
  printf '#!/bin/sh\nunset PYTHONSAFEPATH\nPYTHONPATH=%q${PYTHONPATH:+:$PYTHONPATH} exec env %s %q "$@"\n' \
    "$OUT/site" "$(printf '%q ' "${SETTINGS[@]}")" "$PYTHON" >"$1"
  chmod +x "$1"
}
run wrapper "$OUT/python"

echo "# 3. The model: R1's config.json (FP8 in blocks of 128 x 128) and a tokenizer of bytes; weights are made up on load"
run "$SGTUNE" "$HERE/sglang_cpu/model.py" "$OUT/r1"

echo "# 4. Slices of 4 and 5 layers (1 and 2 of them MoE), and the 6 layers they are to foretell within 5 %"
ASKED=(--hardware "$HARDWARE" --sglang-version "$RELEASE" --python "$OUT/python" --model-path "$OUT/r1" --slices "4,5"
  --whole 6 --decode "128/256@1,4,16,64,256" --prefill "2048/16@1,8" --repeats 3 --point-s 5
  --points "$OUT/points.jsonl")
FLAGS=(--tp-size 1 --sampling-backend pytorch --mem-fraction-static 0.85 --max-running-requests 256
  --cuda-graph-max-bs-decode 256 --context-length 8192)
for depth in $DEPTHS; do
  run timeout "$LIMIT_S" "$SGTUNE" "$HERE/benchmarks/slices.py" "${ASKED[@]}" --only "$depth" -- "${FLAGS[@]}" ||
    again "4, $depth layers," $?
done
if [ "$DEPTHS" != "4 5 6" ]; then exit 0; fi
run timeout "$LIMIT_S" "$SGTUNE" "$HERE/benchmarks/slices.py" "${ASKED[@]}" -- "${FLAGS[@]}" || again 4 $?

echo "# 5. The profile they yield: its table shows the shipped one of this release (before) beside it (after); and the"
echo "#    whole of R1 on eight such GPUs by that profile"
run "$SGTUNE" -m tuner.cli.main calibrate --points "$OUT/points.jsonl" --hardware "$HARDWARE" --target h200x8 \
  --out "$OUT/profile.json"
