#!/usr/bin/env bash
# Measures the GPUs of this server twice and compares: one command for whoever has the machine.
#
#   examples/hardware/measure.sh h200x8            writes examples/hardware/h200x8.json and h200x8-repeat.json
#   examples/hardware/measure.sh laptop --device cpu --quick
#   PYTHON=/opt/sglang/bin/python examples/hardware/measure.sh h200x8      without a network
#
# PYTHON is an interpreter with torch for this driver and sgtune's base packages (msgspec, numpy, nvidia-ml-py, psutil,
# rich, typer; pip install --no-index --find-links wheels): nothing is installed then. Without it .venv is used, and the
# newest torch is installed there if there is none; a host's driver may be too old for that one.
#
# The GPUs must be idle: a busy one is refused, the others are measured, and the script ends with exit code 1. All files
# carry command, date and versions; commit the first when repeats agree within 3 %. OUT is the folder they go to.
set -euo pipefail
name=${1:?"name the machine, as in: $0 h200x8"}
shift
home=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-$home}
cd "$home/../.."
if [ -n "${PYTHON:-}" ]; then
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
else
    python3 dev.py sgtune --version
    PYTHON=$PWD/.venv/bin/python
    "$PYTHON" -c 'import torch' 2>/dev/null || "$PYTHON" -m pip install 'torch>=2.5'
fi
code=0
for out in "$name" "$name-repeat"; do
    begin=$SECONDS
    "$PYTHON" -m tuner.cli.main probe "$@" --out "$OUT/$out.json" || code=1
    echo "probe took $((SECONDS - begin)) s"
done
"$PYTHON" -m tuner.cli.main probe --compare "$OUT/$name.json" "$OUT/$name-repeat.json" || code=1
exit "$code"
