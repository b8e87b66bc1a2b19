#!/usr/bin/env bash
# Measures the GPUs of this server twice and compares: one command for whoever has the machine.
#
#   examples/hardware/measure.sh h200x8            writes examples/hardware/h200x8.json and h200x8-repeat.json
#   examples/hardware/measure.sh laptop --device cpu --quick
#
# Needs Python 3.11 and, for GPUs, a torch that knows them (installed here if there is none). The GPUs must be idle:
# a busy one is refused. Both files carry command, date and versions; commit the first when repeats agree within 3 %.
set -euo pipefail
name=${1:?"name the machine, as in: $0 h200x8"}
shift
home=$(cd "$(dirname "$0")" && pwd)
cd "$home/../.."
python3 dev.py sgtune --version
.venv/bin/python -c 'import torch' 2>/dev/null || .venv/bin/python -m pip install 'torch>=2.5'
for out in "$name" "$name-repeat"; do
    begin=$SECONDS
    .venv/bin/sgtune probe "$@" --out "$home/$out.json"
    echo "probe took $((SECONDS - begin)) s"
done
.venv/bin/sgtune probe --compare "$home/$name.json" "$home/$name-repeat.json"
