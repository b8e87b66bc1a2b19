"""Asks the SGLang of its environment what it makes of command lines: its parser, resolver and checks.

    python ask_sglang.py '{"name": "NVIDIA H200", "memory_mib": 143771, "capability": [9, 0]}' < IN > OUT

IN and OUT are JSON lines: {"id", "argv"} to {"id", "accepted", "resolved" or "stage", "error", "where"}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told to keep it off (PYTHONSAFEPATH)

from pretend import pretend_gpu, replace_kernels

# What SGLang raises when it refuses a launch; anything else is a defect of this script and ends it.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
            TypeError, ValueError)  # fmt: skip


def main(gpu: dict[str, Any]) -> None:
    replace_kernels()
    pretend_gpu(gpu["name"], gpu["memory_mib"], tuple(gpu["capability"]))
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"id": question["id"], **ask(question["argv"])}
        sys.__stdout__.write(json.dumps(answer, default=repr) + "\n")
        sys.__stdout__.flush()


def ask(argv: list[str]) -> dict[str, Any]:
    """Parse, resolve and check one command line. SGLang's resolution writes to the environment: put it back."""
    environment, said, stage = dict(os.environ), io.StringIO(), "parse"
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            from sglang.srt.server_args import prepare_server_args

            args = prepare_server_args(argv)
            stage = "resolve"
            if hasattr(args, "resolve_once"):  # from 0.5.17 on; before, construction resolved
                args.resolve_once()
            stage = "check"
            check(args)
            return {"accepted": True, "resolved": resolved(args)}
    except SystemExit:
        lines = said.getvalue().strip().splitlines()
        return {"accepted": False, "stage": stage, "error": lines[-1][:300] if lines else ""}
    except REFUSALS as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('sglang/')[2]}:{frame.lineno} {frame.name}"
        return {"accepted": False, "stage": stage, "error": f"{type(error).__name__}: {error}"[:300], "where": where}
    finally:
        os.environ.clear()
        os.environ.update(environment)


def check(args: Any) -> None:
    if hasattr(args, "check_server_args"):
        args.check_server_args()
        return
    from sglang.srt.arg_groups.validation_hook import check_server_args

    check_server_args(args)


def resolved(args: Any) -> dict[str, Any]:
    if hasattr(args, "resolved_dict"):
        return dict(args.resolved_dict())
    return dict(vars(args))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
