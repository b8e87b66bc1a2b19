"""Which files an address of the dashboard may name: those below the folder of runs and below where it was started."""

from __future__ import annotations

from pathlib import Path

from dashboard.readers.runs import runs_folder
from hwprobe.errors import InputError
from hwprobe.plain_text import one_line

LONGEST = 1000


def roots() -> tuple[Path, Path]:
    """Return the folder of runs and the folder the dashboard was started in."""
    return runs_folder().resolve(), Path.cwd().resolve()


def within_roots(name: str) -> str:
    """Return a machine's name, or its file's path if that lies below a root.

    Raises InputError otherwise, in the same words whether there is such a file or not.
    """
    if "/" not in name and not name.endswith(".json"):
        return name
    return file_within_roots(name, "neither a machine of the catalogue nor a file")


def file_within_roots(name: str, what: str = "no file") -> str:
    """Return a file's path if it lies below a root. Raises InputError otherwise, be there such a file or not."""
    try:
        file = Path(name[:LONGEST]).resolve()
    except (OSError, ValueError, RuntimeError):
        file = None
    if file is None or not any(file.is_relative_to(root) for root in roots()):
        raise InputError(
            f"'{one_line(name)}' is {what} below {' or '.join(map(str, roots()))}: the dashboard reads no other"
        )
    return str(file)
