"""`python -m tuner.emulator [--hardware H] [--world W.toml] ... -- SGLANG FLAGS` behaves like SGLang with these flags.

Exit codes are SGLang's: 2 for a flag its parser refuses, 1 for a refused configuration or a port in use, death by
SIGKILL when a scheduler fails.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from hwprobe.errors import SgtuneError
from hwprobe.files import decode_json, read_bytes
from models.architecture import ModelArchitecture, deepseek_r1
from models.engine.profile import load_engine_profile
from models.serving.estimate import DEFAULT_ACCEPTANCE, Context
from models.version import NEWEST, parse_version
from planner.check.judge import Checked, check_arguments
from planner.inputs import read_hardware
from planner.plans.make import PlanQuestion
from planner.sglang.arguments import read_arguments
from tuner.emulator.boot import EmulatedMachine, boot
from tuner.emulator.log import say, write
from tuner.engines.world import load_world
from tuner.slices.launch import slice_of


def main(arguments: list[str]) -> int:
    """Run the server until it is told to stop; return its exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:split])
    try:
        context, world = _context(options), load_world(options.world)
        context = _sliced(context, arguments[split + 1 :])
    except SgtuneError as error:
        sys.stderr.write(f"emulator: error: {error}\n")
        return 2
    checked = check_arguments(arguments[split + 1 :], context.arch, context.machine, context.version)
    refusal = _refusal(checked)
    if refusal is not None:
        return refusal
    rank = int(checked.arguments.values.get("node_rank") or 0)
    faults = tuple(fault for fault in world.faults if fault.meant_for(options.launch, rank, options.server))
    return boot(
        EmulatedMachine(
            context=context,
            world=world,
            checked=checked,
            faults=faults,
            seed=options.seed,
            typed=tuple(arguments[split + 1 :]),
            server=options.server,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tuner.emulator", description=__doc__)
    parser.add_argument("--hardware", default="h200x8", help="catalogue name or hardware.json")
    parser.add_argument("--world", type=Path, help="world file: what is true here")
    parser.add_argument("--profile", type=Path, help="engine profile file")
    parser.add_argument("--architecture", type=Path, help="model architecture as JSON; default: DeepSeek-R1")
    parser.add_argument("--sglang-version", default=str(NEWEST))
    parser.add_argument("--mtp-acceptance", type=float, default=DEFAULT_ACCEPTANCE)
    parser.add_argument("--expert-skew", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launch", type=int, default=0, help="number of this launch, for the world's faults")
    parser.add_argument("--server", default="", help="name in a deployment (decode-1), for the world's servers")
    return parser


def _context(options: argparse.Namespace) -> Context:
    arch = deepseek_r1()
    if options.architecture is not None:
        arch = decode_json(
            read_bytes(options.architecture, "architecture"), ModelArchitecture, str(options.architecture)
        )
    question = PlanQuestion(
        hardware=read_hardware(options.hardware),
        arch=arch,
        version=parse_version(options.sglang_version),
        isl=1,
        osl=1,
        concurrency=1,
        acceptance=options.mtp_acceptance,
        sigma=options.expert_skew,
        engine=load_engine_profile(options.profile) if options.profile else None,
    )
    return question.context()


def _sliced(context: Context, words: list[str]) -> Context:
    """Return the context of the layers that --json-model-override-args leaves."""
    text = read_arguments(words, context.version).values.get("json_model_override_args")
    return replace(context, arch=slice_of(context.arch, text)) if text else context


def _refusal(checked: Checked) -> int | None:
    """Say what SGLang would and return its exit code, or None when it would start."""
    faults = [fault for fault in checked.arguments.faults if fault.refused]
    if faults:
        write("usage: sglang serve [-h] --model-path MODEL_PATH ...\n")
        write(f"sglang serve: error: unrecognized arguments: {faults[0].message}\n")
        return 2
    refused = [violation for violation in checked.violations if violation.refused]
    if refused:
        write(f"Traceback (most recent call last):\n  ...\nValueError: {refused[0].message}\n")
        return 1
    say(f"server_args={checked.arguments.values}")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
