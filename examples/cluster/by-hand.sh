#!/usr/bin/env bash
# One Ray node for sgtune, by hand. On the first machine:  ./by-hand.sh head
# on every other one:  ./by-hand.sh node FIRST_MACHINE:6379     and to end it, on each:  ray stop
# Both need `ray` on the path, of the environment that holds sgtune[cluster]; GPUS says how many GPUs a node has.
set -euo pipefail

gpus="${GPUS:-8}"
# Without these Ray runs servers at nice 15 and has them killed first when memory is short.
export RAY_worker_niceness=0 RAY_worker_oom_score_adjustment=0 RAY_memory_monitor_refresh_ms=0
export RAY_USAGE_STATS_ENABLED=0
# Who reaches the head's port runs code on every node: keep it inside the cluster's own network, or share a token
# (`ray get-auth-token --generate` on one machine, the file copied to the others) and uncomment:
# export RAY_AUTH_MODE=token

case "${1:-}" in
  head) ray start --head --port "${PORT:-6379}" --num-gpus "$gpus" --include-dashboard false ;;
  node) ray start --address "${2:?name the head: ./by-hand.sh node FIRST_MACHINE:6379}" --num-gpus "$gpus" ;;
  *) echo "usage: ./by-hand.sh head | node HEAD:PORT" >&2; exit 2 ;;
esac
