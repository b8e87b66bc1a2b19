"""The first half hour on a GPU as a kit: run it, carry its folder home, read report.md, apply constants.patch.

    python tools/first_gpu.py --out first-gpu             parts A, B and C, ten minutes each at most
    python tools/first_gpu.py --out first-gpu --part B    one part; killed or out of time: the same again goes on
    python tools/first_gpu.py --dry-run                   print the steps, and run all that a CPU can
    python tools/first_gpu.py --needs                     what to carry to a machine without a network

Exit code 0: complete; 1: complete, and something failed or is not as expected (see report.md); 2: wrong usage;
75: a part is out of time; run the same again; 130: stopped by hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OUT_OF_TIME = 75
MODULES = {"msgspec": "msgspec", "numpy": "numpy", "psutil": "psutil", "pynvml": "nvidia-ml-py", "torch": "torch"}
NEEDS = """\
A machine without a network needs, beside this checkout:
  Python 3.11 or newer, with a torch that its driver takes (nvidia-smi names the newest CUDA; torch 2.11 for 13.0)
  wheels of msgspec, numpy, nvidia-ml-py, psutil: pip download -d wheels msgspec numpy nvidia-ml-py psutil
  for part C: jinja2 optuna packaging pyyaml rich tomli-w typer aiohttp, and SGLang's wheels (383 MB):
    pip download --no-deps --only-binary :all: --python-version 3.12 -d wheels -r tools/slice_wheels.txt
  a compiler for DeepGEMM's kernels: nvcc under CUDA_HOME
  no more than 64 GiB of disk; no model: weights are made up, the config is R1's
It is checked before anything runs: --dry-run on the machine itself measures its CPU by the same code.
"""


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("first-gpu"), help="folder of results")
    arguments.add_argument("--part", choices=("all", "A", "B", "C"), default="all")
    arguments.add_argument("--limit-s", type=float, default=600.0, help="seconds a part may take in one run")
    arguments.add_argument("--dry-run", action="store_true", help="print the steps and run what a CPU can")
    arguments.add_argument("--needs", action="store_true", help="print what a machine without a network needs")
    arguments.add_argument("--go-on", action="store_true", help="measure on though a GPU is far below its data sheet")
    arguments.add_argument("--again", action="store_true", help="run failed, late and skipped items again")
    arguments.add_argument("--name", default="", help="name of the machine's file; default: as in h200x8")
    arguments.add_argument("--sglang-python", default="", help="interpreter with SGLang (part C)")
    arguments.add_argument("--wheels", default="", help="folder of wheels to install SGLang from (part C)")
    return arguments


def missing_modules() -> list[str]:
    """Return the packages that are not installed here."""
    return [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.needs:
        print(NEEDS, end="")
        return 0
    lacking = missing_modules()
    if lacking:
        print(f"first_gpu.py: error: not installed here: {', '.join(lacking)}; --needs says how", file=sys.stderr)
        return 2
    if options.limit_s <= 0:
        print(f"first_gpu.py: error: --limit-s is {options.limit_s:g}; it must be above 0", file=sys.stderr)
        return 2
    from hwprobe.errors import SgtuneError

    try:
        return half_hour_of(options)
    except KeyboardInterrupt:
        print("first_gpu.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    except SgtuneError as error:
        print(f"first_gpu.py: error: {error}", file=sys.stderr)
        return error.exit_code


def half_hour_of(options: argparse.Namespace) -> int:
    """Run the parts that are asked for, and write the report whatever became of them."""
    from hwprobe.catalogue import match_gpu
    from hwprobe.first_gpu.doing import RealDoing, nvidia_smi
    from hwprobe.first_gpu.folder import Folder
    from hwprobe.first_gpu.items import KitPart, half_hour
    from hwprobe.first_gpu.kit import Kit, KitLimits
    from hwprobe.first_gpu.words import write_report
    from hwprobe.inventory.looks import open_eyes
    from hwprobe.session import settled

    inventory = settled()
    out = options.out.resolve()
    if options.dry_run:
        out = out.with_name(f"{out.name}-dry-run")
        for item in half_hour(max(1, len(inventory.gpus))):
            print(f"{item.name}: {item.title}, at most {item.limit_s:.0f} s")
        print(f"\nOn this machine's CPU, into {out}:")
    elif not inventory.gpus:
        print(f"first_gpu.py: error: no GPU here: {inventory.absent}; --dry-run runs what a CPU can", file=sys.stderr)
        return 2
    folder = Folder(out)
    gpu = next((match_gpu(gpu.name, gpu.memory_mib) for gpu in inventory.gpus), None) or "unknown"
    name = options.name or f"{gpu}x{len(inventory.gpus)}"
    doing = RealDoing(
        checkout=ROOT, folder=out, sglang_python=options.sglang_python, wheels=options.wheels, hardware=f"{gpu}x1"
    )
    kit = Kit(folder, folder.begin(inventory), half_hour(len(inventory.gpus), cpu=options.dry_run), doing)
    parts = list(KitPart) if options.part == "all" else [KitPart(options.part)]
    complete = True
    with open_eyes() as look, nvidia_smi(out) as unkept:
        if unkept:
            print(unkept)
        try:
            for part in parts:
                wish = KitLimits(limit_s=options.limit_s, go_on=options.go_on, again=options.again)
                complete = kit.run(part, wish, look, lambda text: print(text, flush=True))
                if not complete:
                    break
        finally:
            print(f"report: {write_report(kit, name, ROOT)}")
    if not complete:
        return OUT_OF_TIME
    return 0 if kit.went_well() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
