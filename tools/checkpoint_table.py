#!/usr/bin/env python3
"""The table of docs/checkpoints.md: checkpoints by size published and computed, memory and machines.

    python tools/checkpoint_table.py [--sglang-version 0.5.23]

Markdown. The error is computed over published; a size published in GB has no more digits than that.
"""

from __future__ import annotations

import argparse
import sys

from packaging.version import Version

from models.architecture.shipped import Checkpoint, checkpoints
from models.architecture.stored import stored_bytes
from models.version import NEWEST, parse_version
from planner.plans.smallest import runs_on, tp8_weights_gib

HEAD = "| checkpoint | weights | published GB | computed GB | error | GiB per GPU, TP8 | KV bytes a token | runs on |"
FEW = 3


def main() -> int:
    """Print the table, then the sources of the published sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sglang-version", default=NEWEST, help="whose machines; default: the newest known")
    version = parse_version(parser.parse_args().sglang_version)
    print(HEAD)
    print("|---|---|--:|--:|--:|--:|--:|---|")
    for checkpoint in checkpoints():
        print(_row(checkpoint, version))
    print()
    for checkpoint in checkpoints():
        if checkpoint.published_bytes is not None:
            print(f"- {checkpoint.name}: {checkpoint.source}")
    return 0


def _row(checkpoint: Checkpoint, version: Version) -> str:
    arch, published = checkpoint.arch, checkpoint.published_bytes
    computed = stored_bytes(arch)
    size, error = "-", "-"
    if published is not None:
        size = f"{published / 1e9:,.3f}" if checkpoint.unit == 1 else f"{published / 1e9:,.0f}"
        error = f"{100 * (computed / published - 1):+.2f} %"
    machines = ", ".join(runs_on(arch, version)[:FEW]) or "none of up to four nodes"
    return (
        f"| {checkpoint.name} | {arch.weights} | {size} | {computed / 1e9:,.3f} | {error} "
        f"| {tp8_weights_gib(arch, version):.1f} | {arch.kv_bytes_per_token(2.0):,.0f} | {machines} |"
    )


if __name__ == "__main__":
    sys.exit(main())
