"""A real Ray cluster on this machine: three raylets with eight logical GPUs each, in a process of its own.

Ray must not be loaded where other tests run. As a script: prints the cluster's address, ends a raylet or the head as
the lines it reads say, and the cluster at the end of its input.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {
    "RAY_worker_niceness": "0", "RAY_worker_oom_score_adjustment": "0", "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1",
}  # fmt: skip
GPUS = 8
READY = "cluster at "


@dataclass(slots=True)
class ThreeNodes:
    """The cluster's address, and how many raylets it has beside the head."""

    address: str
    process: subprocess.Popen[str]
    raylets: int = 2

    def end_a_raylet(self) -> None:
        """Kill the youngest raylet; returns when it is gone."""
        self._do("end a raylet")
        self.raylets -= 1

    def end_the_head(self) -> None:
        """Kill the head's control service (GCS): the cluster is of no use any more."""
        self._do("end the head")
        self.raylets = 0

    def _do(self, order: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"


@contextmanager
def three_nodes(gpus: int = GPUS, variables: Mapping[str, str] | None = None) -> Iterator[ThreeNodes]:
    """Start the cluster, its nodes with so many logical GPUs; servers inherit `variables`."""
    environment = os.environ | ENVIRONMENT | dict(variables or {})
    command = [sys.executable, str(Path(__file__)), str(gpus)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith(READY))
        try:
            yield ThreeNodes(line.removeprefix(READY).strip(), process)
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def main() -> None:
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 4, "num_gpus": int(sys.argv[1]), "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False, "node_name": "n1"})
    raylets = [cluster.add_node(**small, node_name=name) for name in ("n2", "n3")]
    sys.stdout.write(f"{READY}{cluster.address}\n")
    sys.stdout.flush()
    for order in sys.stdin:
        if order.strip() == "end the head":
            cluster.head_node.kill_gcs_server(check_alive=False)
        else:
            cluster.remove_node(raylets.pop(), allow_graceful=False)
        sys.stdout.write("done\n")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
