"""Reads the flags of SGLang releases from their wheels and writes planner/sglang/flags.json.

    python3 dev.py flags 0.5.24          add a release to the list
    python3 dev.py flags --all           read every listed release again

Standard library only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sglang_cpu")]  # PYTHONSAFEPATH keeps it off

from environment import HOME, python_of, sources_of
from merge_flags import TARGET, main, order

NEWEST = "0.5.23"
MOST_STAND_INS = 25
MISSING_NAME = re.compile(r"cannot import name '(\w+)' from (?:partially initialized module )?'([\w.]+)'")
MISSING_MODULE = re.compile(r"No module named '([\w.]+)'")


def run(arguments: list[str]) -> int:
    """Read the asked releases, and write the list of them and of all that were read before."""
    listed = json.loads(TARGET.read_text(encoding="utf-8"))["versions"]
    folder = HOME / "flags"
    folder.mkdir(parents=True, exist_ok=True)
    asked = [] if "--all" in arguments else [word for word in arguments if not word.startswith("-")]
    for release in sorted({*listed, *asked}, key=order):
        file = folder / f"{release}.json"
        if not file.is_file() or "--all" in arguments:
            sys.stderr.write(f"oracle: reading the flags of SGLang {release}\n")
            file.write_text(_dump(release), encoding="utf-8")
    main(folder)
    return 0


def _dump(release: str) -> str:
    """Return the JSON list of a release's flags; modules it cannot import here get stand-ins, one by one."""
    python, folder = python_of(NEWEST), sources_of(release)
    wanted: list[str] = []
    for _ in range(MOST_STAND_INS):
        command = [str(python), str(HERE / "dump_flags.py"), str(folder), *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip().splitlines()[-1] + "\n"
        missing = _missing(done.stderr, folder)
        if missing is None or missing in wanted:
            break
        wanted.append(missing)
    raise SystemExit(f"oracle: the flags of SGLang {release} cannot be read:\n{done.stderr[-2000:]}")


def _missing(said: str, folder: Path) -> str | None:
    """Return the module (or module:name) to replace, from the last line of a traceback or its last SGLang frame."""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if match := MISSING_NAME.search(last):
        return match[2] if match[2].startswith("sglang") else f"{match[2]}:{match[1]}"
    if match := MISSING_MODULE.search(last):
        return match[1]
    frames = re.findall(rf'File "{re.escape(str(folder))}/(sglang/[\w/]+)\.py"', said)
    return frames[-1].replace("/", ".") if frames else None


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
