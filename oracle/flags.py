"""Reads the flags of SGLang releases from their wheels and writes planner/sglang/flags.json.

python3 dev.py flags 0.5.24          add a release to the list
python3 dev.py flags --all           read every listed release again

"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sglang_cpu")]  # PYTHONSAFEPATH keeps it off

from environment import HOME, python_of, sources_of
from merge_flags import TARGET, main, order

from models.version import NEWEST


def run(arguments: list[str]) -> int:
    """Read the asked releases, and write the list of them and of all that were read before."""
    listed = json.loads(TARGET.read_text(encoding="utf-8"))["versions"]
    folder = HOME / "flags"
    folder.mkdir(parents=True, exist_ok=True)
    named_releases = [] if "--all" in arguments else [word for word in arguments if not word.startswith("-")]
    releases = sorted({*listed, *named_releases}, key=order)
    unread = [name for name in releases if "--all" in arguments or not (folder / f"{name}.json").is_file()]
    if unread:
        command = [str(python_of(NEWEST)), str(HERE / "dump_flags.py"), str(folder)]
        subprocess.run([*command, *(str(sources_of(name)) for name in unread)], check=True)
    main(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
