#!/usr/bin/env python3
"""Which tuned Triton kernels each SGLang release ships for DeepSeek-R1: read from wheels, written as data.

    pip download --no-deps sglang==0.5.2 -d wheels      (one for every release to read)
    python tools/read_tuned_kernels.py wheels           writes models/data/tuned_kernels.json

A configuration file is named after what it was tuned for: number of experts and width of a shard, or rows and
columns of a block-FP8 GEMM, and the device. The data list, by device and shape, the releases that have the file.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "models" / "data" / "tuned_kernels.json"
NAME = re.compile(
    r"configs/(?:triton_[\d_]+/)?(?P<shape>E=\d+,N=\d+|N=\d+,K=\d+),"
    r"device_name=(?P<device>[^,]+),dtype=fp8_w8a8,block_shape=\[128, 128\]\.json"
)
# R1's experts, whole or by EP rank, with and without the shared one fused in (once, or a copy per TP rank).
EXPERTS = (16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 264, 272)


def shapes(wheel: Path) -> set[tuple[str, str]]:
    """Return (device, shape) of every tuned block-FP8 kernel in a wheel that R1 may ask for."""
    device_shapes = set()
    for name in zipfile.ZipFile(wheel).namelist():
        match = NAME.search(name)
        if match and (match["shape"].startswith("N=") or int(match["shape"][2:].split(",")[0]) in EXPERTS):
            device_shapes.add((match["device"], match["shape"]))
    return device_shapes


def main() -> int:
    """Read the wheels of a folder and write the data."""
    wheels = {Version(path.name.split("-")[1]): path for path in Path(sys.argv[1]).glob("sglang-*.whl")}
    releases = sorted(wheels)
    by_shape: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, version in enumerate(releases):
        for device, shape in sorted(shapes(wheels[version])):
            by_shape[device][shape].append(place)
    document = {
        "source": "configuration files in the wheels of these SGLang releases (tools/read_tuned_kernels.py)",
        "releases": [str(version) for version in releases],
        "devices": {
            device: {shape: _runs(places) for shape, places in sorted(places_of.items())}
            for device, places_of in sorted(by_shape.items())
        },
    }
    text = json.dumps(document, indent=1)
    DATA.write_text(re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n", encoding="utf-8")
    return 0


def _runs(places: list[int]) -> list[list[int]]:
    """Shorten sorted places to runs: first and last of each."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return runs


if __name__ == "__main__":
    sys.exit(main())
