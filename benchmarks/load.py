"""What the load generator itself adds: known schedules against what it reports, on this machine.

    python benchmarks/load.py            64, 1,024 and 4,096 streams against benchmarks/load_stub.py

The stub runs on the same machine and takes its share of the cores.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.workload import Workload
from tuner.bench.point import MeasuredPoint, Settings, measure_point

STUB = Path(__file__).with_name("load_stub.py")
INPUT_TOKENS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A known schedule: streams, TTFT and TPOT, the spread of the half-normal delay of every token, output tokens."""

    streams: int
    ttft_ms: float
    tpot_ms: float
    jitter_ms: float
    osl: int

    @property
    def true_ttft_ms(self) -> float:
        """Return the mean TTFT that is served: the delay of each token has this mean."""
        return self.ttft_ms + self.jitter_ms * math.sqrt(2 / math.pi)


CASES = (
    Case(streams=64, ttft_ms=200.0, tpot_ms=20.0, jitter_ms=2.0, osl=200),
    Case(streams=1024, ttft_ms=500.0, tpot_ms=50.0, jitter_ms=5.0, osl=100),
    Case(streams=4096, ttft_ms=2000.0, tpot_ms=500.0, jitter_ms=20.0, osl=20),
)


@contextmanager
def known_server(case: Case) -> Iterator[str]:
    """Serve a case on a port of its own and yield the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    words = [sys.executable, str(STUB), "--port", str(port), "--ttft-ms", str(case.ttft_ms), "--tpot-ms",
             str(case.tpot_ms), "--jitter-ms", str(case.jitter_ms)]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE) as stub:
        try:
            assert stub.stdout is not None
            stub.stdout.readline()
            yield f"http://127.0.0.1:{port}"
        finally:
            stub.kill()


def measure(
    streams: int, ttft_ms: float, tpot_ms: float, jitter_ms: float, osl: int, waves: float = 5.0
) -> MeasuredPoint:
    """Serve this schedule and measure it with sgtune's own generator."""
    case = Case(streams=streams, ttft_ms=ttft_ms, tpot_ms=tpot_ms, jitter_ms=jitter_ms, osl=osl)
    with known_server(case) as url:
        workload = Workload.checked(INPUT_TOKENS, osl, streams)
        return measure_point(url, workload, settings=Settings(waves=waves, least_s=5.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, help="only this case")
    options = parser.parse_args()
    sys.stdout.write(f"{os.cpu_count()} cores; load average {os.getloadavg()[0]:.2f} before\n")
    heading = ("streams", "in flight", "TTFT asked", "seen", "error", "TPOT asked", "seen", "error", "tok/s",
               "CPU s / 1,000 tok", "core share", "lag p99 ms", "verdict")  # fmt: skip
    sys.stdout.write(" | ".join(heading) + "\n")
    for case in CASES:
        if options.streams not in (None, case.streams):
            continue
        point = measure(case.streams, case.ttft_ms, case.tpot_ms, case.jitter_ms, case.osl)
        window, own = point.window, point.window.generator
        ttft, tpot = case.true_ttft_ms, case.tpot_ms
        seen_ttft, seen_tpot = window.ttft.by["mean"], window.tpot.by["mean"]
        row = (
            f"{case.streams:,}", f"{window.in_flight:,.1f}", f"{ttft:.1f}", f"{seen_ttft:.1f}",
            f"{100 * (seen_ttft / ttft - 1):+.2f} %", f"{tpot:.2f}", f"{seen_tpot:.3f}",
            f"{100 * (seen_tpot / tpot - 1):+.2f} %", f"{window.output_tok_s:,.0f}",
            f"{own.cpu_s_per_1000_tokens:.4f}", f"{own.cpu_share:.2f}", f"{own.loop_lag_p99_ms:.1f}",
            f"{point.verdict} {point.why}",
        )  # fmt: skip
        sys.stdout.write(" | ".join(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
