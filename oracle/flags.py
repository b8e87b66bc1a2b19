"""Reads the flags of SGLang releases from their wheels and writes planner/sglang/flags.json.

python3 dev.py flags 0.5.24                  add a release: its wheel alone is fetched and read
python3 dev.py flags --all                   read every listed release again
python3 dev.py flags 0.5.24 --environment    in the environment of the oracle (2 GB), should the wheel alone not do
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "sglang_cpu")]  # PYTHONSAFEPATH keeps it off

from environment import HOME, python_of, sources_of
from merge_flags import TARGET, merged, order, read_dump, read_listed, write

# Sets of choices are written in the same order every time.
SAME_ORDER = {"PYTHONHASHSEED": "0"}


def run(arguments: list[str]) -> int:
    """Read the asked releases and add them to the listed ones. Returns an exit code."""
    listed = read_listed()
    named = [word for word in arguments if not word.startswith("-")]
    releases = sorted({*listed, *named} if "--all" in arguments else {*named}, key=order)
    if not releases:
        sys.stderr.write(f"name a release, as in: python3 dev.py flags 0.5.24\n{__doc__}")
        return 2
    folder = HOME / "flags"
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(releases, start=1):
        sys.stderr.write(f"[{number}/{len(releases)}] SGLang {name}: fetching its wheel\n")
        source = sources_of(name)
        sys.stderr.write(f"[{number}/{len(releases)}] SGLang {name}: reading its flags\n")
        if not _read(source, folder, whole="--environment" in arguments):
            return 1
        listed[name] = read_dump(folder / f"{name}.json")
    write(merged(listed))
    sys.stderr.write(f"{TARGET.name}: {len(listed)} releases, {', '.join(releases)} read\n")
    return 0


def _read(source: Path, folder: Path, *, whole: bool) -> bool:
    """Write a release's flags into `folder`; say what went wrong and return False where that fails."""
    if whole:
        from models.version import NEWEST

        command = [str(python_of(NEWEST)), str(HERE / "dump_flags.py"), str(folder), str(source)]
    else:
        command = [sys.executable, str(HERE / "light_flags.py"), str(folder), str(source)]
    ran = subprocess.run(command, env=os.environ | SAME_ORDER, stderr=subprocess.PIPE, text=True, check=False)
    if ran.returncode == 0:
        return True
    last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
    more = "" if whole else "; try again with --environment"
    sys.stderr.write(f"error: the flags of SGLang {source.name} could not be read: {last}{more}\n")
    return False


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
