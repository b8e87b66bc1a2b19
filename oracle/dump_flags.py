"""Prints every command-line flag of the SGLang that is on the path, as one JSON document.

    python dump_flags.py FOLDER [MODULE | MODULE:NAME ...]

FOLDER holds the unpacked wheel; each MODULE, and each NAME that a newer library has dropped, gets a stand-in.
Runs in the environment that `environment.py` builds. Only the parser is wanted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told to keep it off (PYTHONSAFEPATH)

from pretend import replace_kernels


def main(folder: str, wanted: list[str]) -> None:
    sys.path.insert(0, folder)
    replace_kernels(*(name for name in wanted if ":" not in name))
    for module, _, name in (text.partition(":") for text in wanted if ":" in text):
        setattr(importlib.import_module(module), name, type(name, (), {}))
    allow_known_models()
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = [described(action) for action in parser._actions if action.option_strings and action.dest != "help"]
    sys.stdout.write(json.dumps(flags) + "\n")


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


def described(action: argparse.Action) -> dict[str, Any]:
    """Return what a reader of command lines must know of one flag; unset keys are left out."""
    found: dict[str, Any] = {"dest": action.dest, "names": list(action.option_strings)}
    kind = type(action).__name__
    if action.nargs is not None:
        found["nargs"] = action.nargs
    if action.type is not None:
        found["type"] = getattr(action.type, "__name__", "str")
    choices = [choice for choice in action.choices or () if isinstance(choice, str | int | float)]
    if choices and len(choices) == len(list(action.choices or ())):
        found["choices"] = choices
    if isinstance(action.default, str | int | float | bool | list):
        found["default"] = action.default
    if "Deprecated" in kind:
        found["deprecated"] = str(getattr(action, "new_flag", None) or getattr(action, "error_message", None) or "")
        found["refused"] = bool(getattr(action, "error_message", None))
    if action.nargs == 0:
        found["const"] = not isinstance(action, argparse._StoreFalseAction)
    if action.required:
        found["required"] = True
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
