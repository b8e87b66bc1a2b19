#!/usr/bin/env python3
"""Host memory bandwidth by a STREAM of its own, to check `sgtune probe --device cpu` against.

    python3 benchmarks/stream.py                          the rates alone
    python3 benchmarks/stream.py --against hardware.json  beside a profile's, with the difference

A C program with OpenMP (it shares nothing with the probe, which uses torch): copy b = a, triad c = a + 3 b and
read s += a over float32 arrays of 1 GiB, median of 15 passes, counted like STREAM: bytes read plus bytes written,
without the line a store fetches first. Needs a C compiler (cc). Exit code 1 when a figure differs by more than 25 %.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TOLERANCE = 0.25
PASSES = 15
SOURCE = r"""
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    long n = atol(argv[1]);
    int passes = atoi(argv[2]);
    float *a = aligned_alloc(4096, n * 4), *b = aligned_alloc(4096, n * 4), *c = aligned_alloc(4096, n * 4), sum = 0;
    if (!a || !b || !c) { fprintf(stderr, "not enough memory\n"); return 1; }
    #pragma omp parallel for
    for (long i = 0; i < n; i++) { a[i] = (i % 997) * 0.001f; b[i] = (i % 991) * 0.002f; c[i] = 0; }
    for (int pass = -2; pass < passes; pass++) {
        double t0 = omp_get_wtime();
        #pragma omp parallel for
        for (long i = 0; i < n; i++) c[i] = a[i];
        double t1 = omp_get_wtime();
        #pragma omp parallel for
        for (long i = 0; i < n; i++) c[i] = a[i] + 3.0f * b[i];
        double t2 = omp_get_wtime();
        /* One thread reading one stream does not keep a memory channel busy: four streams a thread do. */
        #pragma omp parallel reduction(+ : sum)
        {
            long part = n / omp_get_num_threads() / 4;
            const float *p = a + omp_get_thread_num() * 4 * part, *q = p + part, *r = q + part, *s = r + part;
            for (long i = 0; i < part; i++) sum += p[i] + q[i] + r[i] + s[i];
        }
        double t3 = omp_get_wtime();
        if (pass >= 0) printf("%g %g %g\n", 8e-9 * n / (t1 - t0), 12e-9 * n / (t2 - t1), 4e-9 * n / (t3 - t2));
    }
    fprintf(stderr, "checksum %g\n", sum);
    return 0;
}
"""
NAMES = {"copy": "hbm_copy_gb_s", "triad": "hbm_triad_gb_s", "read": "hbm_gb_s"}


def stream(elements: int) -> dict[str, float]:
    """Return GB/s of copy, triad and read."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "stream.c", Path(folder) / "stream"
        source.write_text(SOURCE)
        # No memcpy for the copy: its streaming stores would skip the fetch that the triad's stores pay for.
        flags = ["-O3", "-march=native", "-ffast-math", "-fno-tree-loop-distribute-patterns", "-fopenmp"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", str(program)], check=True)
        process = subprocess.run(
            [str(program), str(elements), str(PASSES)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    rows = [[float(number) for number in line.split()] for line in process.stdout.decode().splitlines()]
    return dict(zip(("copy", "triad", "read"), map(statistics.median, zip(*rows, strict=True)), strict=True))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--against", type=Path, help="a hardware.json written by sgtune probe --device cpu")
    arguments.add_argument("--mib", type=int, default=1024, help="size of one array")
    options = arguments.parse_args()
    sys.stdout.write(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs\n")
    rates = stream(options.mib * 2**20 // 4)
    probed = json.loads(options.against.read_text())["host"]["measured"] if options.against else {}
    worst = 0.0
    for name, rate in rates.items():
        line = f"{name:6} {rate:7.2f} GB/s"
        if NAMES[name] in probed:
            value = probed[NAMES[name]]["value"]
            worst = max(worst, abs(value / rate - 1))
            line += f"   probe {value:7.2f} GB/s   {value / rate - 1:+.1%}"
        sys.stdout.write(line + "\n")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
