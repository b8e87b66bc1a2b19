#!/usr/bin/env python3
"""A Slurm of three nodes with eight pretended GPUs each, on this machine's loopback address, until Ctrl-C.

Needs root and Debian, whose packages it installs; README.md beside this file says what to try.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.real.packages import install
from tests.real.slurm import Slurm
from tests.real.stage import stay

if __name__ == "__main__":
    if why := install("slurm"):
        sys.exit(f"error: {why}")
    slurm = Slurm()
    try:
        slurm.start()
        stay(slurm.environment, slurm.home / "env", "sinfo -N; squeue; sbatch ... (see README.md)")
    finally:
        slurm.close()
