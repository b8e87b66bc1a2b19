"""The flag lists of many releases as planner/sglang/flags.json: one record per flag and span of releases.

Standard library only. `dev.py flags` uses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
SPAN = ("since", "until")
Flag = dict[str, Any]


def read_listed(file: Path = TARGET) -> dict[str, list[Flag]]:
    """Return the flags of every listed release, in the order of the file, without their spans."""
    document = json.loads(file.read_text(encoding="utf-8"))
    return {
        release: [
            {name: value for name, value in flag.items() if name not in SPAN}
            for flag in document["flags"]
            if order(flag["since"]) <= order(release) <= order(flag["until"])
        ]
        for release in document["versions"]
    }


def read_dump(file: Path) -> list[Flag]:
    """Return the flags that dump_flags.py or light_flags.py wrote, under the names of ServerArgs."""
    flags: list[Flag] = json.loads(file.read_text(encoding="utf-8"))
    return [flag | {"dest": FIELDS.get(flag["dest"], flag["dest"])} for flag in flags]


def merged(flags_of: Mapping[str, list[Flag]]) -> tuple[list[str], list[Flag]]:
    """Return the releases in order, and a record for every flag and span of releases in which it looked the same."""
    releases = sorted(flags_of, key=order)
    records: list[Flag] = []
    open_records: dict[str, Flag] = {}
    for release in releases:
        still_open = {}
        for flag in flags_of[release]:
            key = _looks(flag)
            still_open[key] = open_records.get(key) or {**flag, "since": release}
            if key not in open_records:
                records.append(still_open[key])
            still_open[key]["until"] = release
        open_records = still_open
    return releases, records


def _looks(flag: Flag) -> str:
    """Return what tells two looks of a flag apart: some releases keep choices in a set, without an order."""
    return json.dumps(flag | {"choices": sorted(map(str, flag.get("choices", ())))}, sort_keys=True)


def text_of(releases: list[str], records: list[Flag]) -> str:
    """Return the file's text, a record a line."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    return f'{{"versions": {json.dumps(releases)},\n"flags": [\n{lines}\n]}}\n'


def write(releases_and_flags: tuple[list[str], list[Flag]]) -> None:
    """Write planner/sglang/flags.json."""
    TARGET.write_text(text_of(*releases_and_flags), encoding="utf-8")


def order(release: str) -> list[int]:
    """Return what sorts releases: 0.4.3 before 0.4.3.post2 before 0.4.10."""
    main_part, _, post = release.partition(".post")
    return [*(int(part) for part in main_part.split(".")), int(post or 0)]
