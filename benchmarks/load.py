"""What the load generator itself adds: known schedules against what it reports, on this machine.

    python benchmarks/load.py            64, 1,024 and 4,096 streams against benchmarks/load_stub.py

The stub runs on the same machine and takes its share of the cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from models.workload import Workload
from tuner.load.point import Point, Settings, measure_point

STUB = Path(__file__).with_name("load_stub.py")
# streams, TTFT ms, TPOT ms, jitter ms, output tokens
CASES = ((64, 200.0, 20.0, 2.0, 200), (1024, 500.0, 50.0, 5.0, 100), (4096, 2000.0, 500.0, 20.0, 20))
INPUT_TOKENS = 100


def measure(streams: int, ttft_ms: float, tpot_ms: float, jitter_ms: float, osl: int, waves: float = 5.0) -> Point:
    """Start a stub of this schedule, measure it, stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    words = [sys.executable, str(STUB), "--port", str(port), "--ttft-ms", str(ttft_ms), "--tpot-ms", str(tpot_ms),
             "--jitter-ms", str(jitter_ms)]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE) as stub:
        try:
            assert stub.stdout is not None
            stub.stdout.readline()
            workload = Workload.checked(INPUT_TOKENS, osl, streams)
            return measure_point(f"http://127.0.0.1:{port}", workload, settings=Settings(waves=waves, least_s=5.0))
        finally:
            stub.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, help="only this case")
    asked = parser.parse_args()
    sys.stdout.write(f"{os.cpu_count()} cores; load average {os.getloadavg()[0]:.2f} before\n")
    heading = ("streams", "in flight", "TTFT asked", "seen", "error", "TPOT asked", "seen", "error", "tok/s",
               "CPU s / 1,000 tok", "core share", "lag p99 ms", "verdict")  # fmt: skip
    sys.stdout.write(" | ".join(heading) + "\n")
    for streams, ttft, tpot, jitter, osl in CASES:
        if asked.streams not in (None, streams):
            continue
        point = measure(streams, ttft, tpot, jitter, osl)
        window, own = point.window, point.window.generator
        late = jitter * (2 / 3.141592653589793) ** 0.5  # mean of the half-normal delay of each token
        seen_ttft, seen_tpot = window.ttft.by["mean"], window.tpot.by["mean"]
        row = (
            f"{streams:,}", f"{window.in_flight:,.1f}", f"{ttft + late:.1f}", f"{seen_ttft:.1f}",
            f"{100 * (seen_ttft / (ttft + late) - 1):+.2f} %", f"{tpot:.2f}", f"{seen_tpot:.3f}",
            f"{100 * (seen_tpot / tpot - 1):+.2f} %", f"{window.output_tok_s:,.0f}",
            f"{own.cpu_s_per_1000_tokens:.4f}", f"{own.cpu_share:.2f}", f"{own.loop_lag_p99_ms:.1f}",
            f"{point.verdict} {point.why}",
        )  # fmt: skip
        sys.stdout.write(" | ".join(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
