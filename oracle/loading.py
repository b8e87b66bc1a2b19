"""Imports the argument code of any SGLang release beside today's libraries: what it misses there gets a stand-in.

Runs inside the environment that `environment.py` builds. A trial runs in a forked child, whose ImportError names the
next module, or name of a module, to replace; when it runs through, the parent does the same for good.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told to keep it off (PYTHONSAFEPATH)

from pretend import Open, replace_kernels, replace_modules

MOST_STAND_INS = 40
ASKED = "sglang.srt.server_args"  # what is asked is never replaced: a stand-in would accept everything
MISSING_NAME = re.compile(r"cannot import name '(\w+)' from (?:partially initialized module )?'([\w.]+)'")
MISSING_MODULE = re.compile(r"No module named '([\w.]+)'")
MISSING_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")


def import_libraries() -> None:
    """Import once what every release asks for, with stand-ins for the kernels."""
    replace_kernels()
    allow_known_models()


def load(folder: str, trial: Callable[[], object], to_replace: Iterable[str] = ()) -> list[str]:
    """Put the release unpacked in `folder` on the path and replace modules until `trial` runs through.

    Returns what was replaced, which spares the next process the search when it is given as `to_replace`. Once a
    process, after `import_libraries`; `in_child` runs one release after the other.

    Raises RuntimeError with the traceback of what no stand-in mends.
    """
    sys.path.insert(0, folder)
    to_replace = list(to_replace)
    for _ in range(MOST_STAND_INS):
        traceback_text = _tried(to_replace, trial)
        if traceback_text is None:
            break
        missing = _missing(traceback_text, folder)
        if missing is None or missing in to_replace:
            raise RuntimeError(traceback_text)
        to_replace.append(missing)
    _replace(to_replace)
    trial()
    return to_replace


def in_child(work: Callable[[], str]) -> str:
    """Return what `work` returns, run in a forked child: each release has a process of its own.

    Raises RuntimeError with the traceback where it failed.
    """
    answer, failed = _forked(work)
    if failed:
        raise RuntimeError(failed)
    return answer


def _tried(to_replace: list[str], trial: Callable[[], object]) -> str | None:
    """Run the trial in a child with these replaced. Returns None when it ran through, else its traceback."""

    def work() -> str:
        _replace(to_replace)
        trial()
        return ""

    return _forked(work)[1] or None


def _forked(work: Callable[[], str]) -> tuple[str, str]:
    """Return what `work` returned in a child, and its traceback where it failed; one of the two is empty."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        answer = failed = ""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                answer = work()
        except (Exception, SystemExit):  # noqa: BLE001 - whatever stops a release is what the parent asks about
            failed = traceback.format_exc()
        with os.fdopen(writer, "w") as pipe:
            json.dump([answer, failed], pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer, failed = json.load(pipe)
    os.waitpid(child, 0)
    return answer, failed


def _replace(to_replace: list[str]) -> None:
    replace_modules(*(name for name in to_replace if ":" not in name))
    for module, _, name in (text.partition(":") for text in to_replace if ":" in text):
        setattr(importlib.import_module(module), name, Open(name, (), {}))


def _missing(traceback_text: str, folder: str) -> str | None:
    """Return the module (or module:name) to replace, from the last line of a traceback or its last SGLang frame."""
    last = traceback_text.strip().splitlines()[-1]
    if match := MISSING_NAME.search(last):
        return match[2] if match[2].startswith("sglang") else f"{match[2]}:{match[1]}"
    if match := MISSING_MODULE.search(last):
        return match[1]
    if (match := MISSING_ATTRIBUTE.search(last)) and not match[1].startswith("sglang"):
        return f"{match[1]}:{match[2]}"
    frames = re.findall(rf'File "{re.escape(folder)}/(sglang/[\w/]+)\.py"', traceback_text)
    module = frames[-1].replace("/", ".") if frames else None
    return None if module == ASKED else module


def allow_known_models() -> None:
    """Old releases register model configurations that transformers has meanwhile adopted: let them."""
    import transformers

    for name in ("AutoConfig", "AutoImageProcessor", "AutoProcessor", "AutoTokenizer", "AutoModel"):
        auto = getattr(transformers, name)
        auto.register = staticmethod(tolerant(auto.register))


def tolerant(register: Any) -> Any:
    def registered(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(ValueError):
            register(*args, **kwargs)

    return registered
