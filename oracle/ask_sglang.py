"""Asks SGLang releases what they make of command lines: their own parsers, resolvers and checks.

    python ask_sglang.py < IN > OUT

Each line of IN is one run, {"folder", "gpus": [{"name", "memory_mib", "capability"}, ...], "lines": [argv, ...]}, of
the wheel unpacked in the folder, on GPUs of one kind; each line of OUT has for each GPU the list of its answers
(nothing where the release does not run here), {"accepted", "resolved" or "stage", "error", "where"}.
What old releases settle or refuse after the arguments is run too, by their own code (settled.py); the sizes of their
decode graphs are added to `resolved` as `captured_bs` (captured.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told to keep it off (PYTHONSAFEPATH)

from captured import captured_sizes
from loading import import_libraries, in_child, load
from pretend import pretend_gpu
from settled import settle

# What SGLang raises when it refuses a launch; anything else is a defect of this script and ends it.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
            TypeError, ValueError)  # fmt: skip


def main() -> None:
    import_libraries()
    replaced: dict[str, list[str]] = {}
    for text in sys.stdin:
        run = json.loads(text)
        folder = run["folder"]
        try:
            replaced[folder], answers = json.loads(in_child(partial(answered, run, replaced.get(folder, []))))
        except RuntimeError as error:  # the release does not run here, as the last line of its traceback says
            sys.stderr.write(f"oracle: {Path(folder).name} cannot be asked: {str(error).strip().splitlines()[-1]}\n")
            answers = []
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


def answered(run: dict[str, Any], replaced_before: list[str]) -> str:
    """Return what had to be replaced and the answers to every line of a run, by GPU. Once a process."""
    gpus, folder, lines = run["gpus"], Path(run["folder"]).resolve(), run["lines"]
    replaced = load(str(folder), partial(answer_plainly, gpus[0], lines[0][:2]), replaced_before)
    answers = [json.loads(in_child(partial(answered_on, gpu, folder, lines))) for gpu in gpus]
    return json.dumps([replaced, answers])


def answered_on(gpu: dict[str, Any], folder: Path, lines: list[list[str]]) -> str:
    """Return the answers to every line on one GPU. Once a process: SGLang remembers what it was told of a GPU."""
    pretend_gpu(gpu["name"], gpu["memory_mib"], tuple(gpu["capability"]))
    return json.dumps([ask(argv, folder, gpu["memory_mib"]) for argv in lines], default=repr)


def answer_plainly(gpu: dict[str, Any], model: list[str]) -> None:
    """Resolve a plain launch on the pretended GPU: what is missing for that is missing for all."""
    pretend_gpu(gpu["name"], gpu["memory_mib"], tuple(gpu["capability"]))
    resolve([*model, "--tp-size", "8"])


def resolve(argv: list[str]) -> Any:
    """Return SGLang's own arguments after its parser and its resolver."""
    from sglang.srt.server_args import prepare_server_args

    args = prepare_server_args(argv)
    if hasattr(args, "resolve_once"):  # from 0.5.17 on; before, construction resolved
        args.resolve_once()
    return args


def ask(argv: list[str], folder: Path, memory_mib: float) -> dict[str, Any]:
    """Parse, resolve and check one command line. SGLang's resolution writes to the environment: put it back."""
    environment, printed, stage = dict(os.environ), io.StringIO(), "parse or resolve"
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            args = resolve(argv)
            stage = "check"
            check(args)
            stage = "start"
            args = settle(folder, args)
            fields = resolved(args)
            if fields.get("cuda_graph_config") is None:
                fields["captured_bs"] = captured_sizes(folder, args, memory_mib)
            return {"accepted": True, "resolved": fields}
    except SystemExit:
        lines = printed.getvalue().strip().splitlines()
        return {"accepted": False, "stage": "parse", "error": lines[-1][:300] if lines else ""}
    except REFUSALS as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('sglang/')[2]}:{frame.lineno} {frame.name}"
        return {"accepted": False, "stage": stage, "error": f"{type(error).__name__}: {error}"[:300], "where": where}
    finally:
        os.environ.clear()
        os.environ.update(environment)


def check(args: Any) -> None:
    for name in ("check_server_args", "check_lora_server_args"):  # the latter since 0.5.1, before a part of the former
        if hasattr(args, name):
            getattr(args, name)()
            return
    try:
        from sglang.srt.arg_groups.validation_hook import check_server_args
    except ImportError:
        return  # releases that check where they resolve
    check_server_args(args)


def resolved(args: Any) -> dict[str, Any]:
    if hasattr(args, "resolved_dict"):
        return dict(args.resolved_dict())
    return dict(vars(args))


if __name__ == "__main__":
    main()
