"""Writes every command-line flag of SGLang releases, one JSON document each.

    python dump_flags.py OUT FOLDER ...     OUT/<name of FOLDER>.json for each

Each FOLDER holds an unpacked wheel. Runs in the environment that `environment.py` builds. Only parsers are wanted.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told to keep it off (PYTHONSAFEPATH)

from loading import import_libraries, in_child, load


def main(out: Path, folders: list[Path]) -> None:
    import_libraries()
    for folder in folders:
        sys.stderr.write(f"oracle: reading the flags of SGLang {folder.name}\n")
        (out / f"{folder.name}.json").write_text(in_child(partial(dumped, folder.resolve())), encoding="utf-8")


def dumped(folder: Path) -> str:
    """Return the JSON list of the flags of the release in `folder`. Once a process."""
    load(str(folder), parser_of_sglang)
    flags = [described(action) for action in parser_of_sglang()._actions]
    return json.dumps([flag for flag in flags if flag["names"] and flag["dest"] != "help"]) + "\n"


def parser_of_sglang() -> argparse.ArgumentParser:
    """Return the release's own parser of launch lines."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser


def described(action: argparse.Action) -> dict[str, Any]:
    """Return what a reader of command lines must know of one flag; unset keys are left out."""
    record: dict[str, Any] = {"dest": action.dest, "names": list(action.option_strings)}
    kind = type(action).__name__
    if action.nargs is not None:
        record["nargs"] = action.nargs
    if action.type is not None:
        record["type"] = getattr(action.type, "__name__", "str")
    choices = [choice for choice in action.choices or () if isinstance(choice, str | int | float)]
    if choices and len(choices) == len(list(action.choices or ())):
        record["choices"] = choices
    if isinstance(action.default, str | int | float | bool | list):
        record["default"] = action.default
    if "Deprecated" in kind:
        record["deprecated"] = str(getattr(action, "new_flag", None) or getattr(action, "error_message", None) or "")
        record["refused"] = bool(getattr(action, "error_message", None)) or _stops(action)
    if action.nargs == 0:
        record["const"] = not isinstance(action, argparse._StoreFalseAction)
    if action.required:
        record["required"] = True
    return record


def _stops(action: argparse.Action) -> bool:
    """Say whether an action of a release refuses to be called, as those for retired flags did to 0.5.3."""
    try:
        action(argparse.ArgumentParser(), argparse.Namespace(), None, action.option_strings[0])
    except ValueError:
        return True
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
