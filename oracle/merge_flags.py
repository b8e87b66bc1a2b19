"""Merges the flag lists of many releases into planner/sglang/flags.json: one record per flag and span of releases.

    python3 oracle/merge_flags.py FOLDER    FOLDER holds <release>.json files of dump_flags.py

Standard library only. `dev.py flags` calls it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Up to 0.5.13 argparse stored these under the flag's long name; ServerArgs has always called them so.
FIELDS = {
    "tensor_parallel_size": "tp_size",
    "pipeline_parallel_size": "pp_size",
    "data_parallel_size": "dp_size",
    "expert_parallel_size": "ep_size",
}
TARGET = Path(__file__).parent.parent / "planner" / "sglang" / "flags.json"


def main(folder: Path) -> None:
    releases = sorted((path.stem for path in folder.glob("*.json")), key=order)
    records: list[dict[str, Any]] = []
    open_records: dict[str, dict[str, Any]] = {}
    for release in releases:
        still_open = {}
        for flag in json.loads((folder / f"{release}.json").read_text(encoding="utf-8")):
            flag["dest"] = FIELDS.get(flag["dest"], flag["dest"])
            key = json.dumps(flag, sort_keys=True)
            still_open[key] = open_records.get(key) or {**flag, "since": release}
            if key not in open_records:
                records.append(still_open[key])
            still_open[key]["until"] = release
        open_records = still_open
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    TARGET.write_text(f'{{"versions": {json.dumps(releases)},\n"flags": [\n{lines}\n]}}\n', encoding="utf-8")
    sys.stdout.write(f"{len(records)} records of {len(releases)} releases in {TARGET.name}\n")


def order(release: str) -> list[int]:
    """Return what sorts releases: 0.4.3 before 0.4.3.post2 before 0.4.10."""
    main_part, _, post = release.partition(".post")
    return [*(int(part) for part in main_part.split(".")), int(post or 0)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
