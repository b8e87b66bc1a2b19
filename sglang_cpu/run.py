"""The real SGLang on this machine's CPU, serving a tiny DeepSeek-V3.

    python3 dev.py sglang-cpu                   install it (once, about two minutes) and say how to start it
    python3 dev.py sglang-cpu --port 30000      and start a server; further SGLang flags may follow
    python3 dev.py sglang-cpu --port 30000 --disaggregation-mode prefill      or decode: Mooncake over TCP is installed

Standard library only: it runs with any Python.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from environment import HOME, python_of
from model import DEEP_LAYERS, write_model
from transfer import transfer_variables

RELEASE = "0.5.23"
# What SGLang needs to know to run on a CPU at all, and limits that keep its request table small.
FLAGS = (
    "--load-format", "dummy", "--device", "cpu", "--attention-backend", "torch_native",
    "--context-length", "4096", "--max-total-tokens", "16384", "--max-running-requests", "64",
)  # fmt: skip
# What a prefill or decode server needs beyond them: without a GPU SGLang cannot send early, and idle schedulers of
# several servers would each take a core.
ROLE_FLAGS = ("--disaggregation-transfer-backend", "mooncake_tcp", "--disable-overlap-schedule", "--sleep-on-idle")
# The environment: the CPU engine; one model file instead of 240; no torch.compile (20-30 s at the first request);
# one OpenMP thread (spinning threads on a busy small machine cost a factor of five); no hub.
VARIABLES = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_cpu_models",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(HERE / "site"),
}


@dataclass(frozen=True)
class Installed:
    """An interpreter that can run SGLang here (a script that sets the environment), and models for it.

    `deep` is the same model with 8 layers, for slices of it.
    """

    python: Path
    model: Path
    deep: Path


def install(release: str = RELEASE, *, transfer: bool = False) -> Installed:
    """Build the environment if it is missing; with `transfer` one that moves KV caches between servers.

    Raises subprocess.CalledProcessError when pip fails, with `transfer` also OSError where there is no apt-get.
    """
    real = python_of(release)
    model = write_model(HOME / "tiny-deepseek-v3")
    deep = write_model(HOME / f"tiny-deepseek-v3-{DEEP_LAYERS}", DEEP_LAYERS)
    wrapper = real.parent / ("sglang-python-transfer" if transfer else "sglang-python")
    variables = dict(VARIABLES)
    if transfer:
        more = transfer_variables()
        variables |= {**more, "PYTHONPATH": f"{VARIABLES['PYTHONPATH']}:{more['PYTHONPATH']}"}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    # Without bytecode every start compiles some 2,000 files, in each of its three processes.
    wrapper.write_text(
        f'#!/bin/sh\nunset PYTHONSAFEPATH PYTHONDONTWRITEBYTECODE\nexec env {settings} {shlex.quote(str(real))} "$@"\n'
    )
    wrapper.chmod(0o755)
    return Installed(python=wrapper, model=model, deep=deep)


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write((__doc__ or "") + "\n")
        return 0
    apart = "--disaggregation-mode" in arguments
    try:
        installed = install(transfer=apart)
    except (subprocess.SubprocessError, OSError) as error:
        sys.stderr.write(
            f"sglang-cpu: error: SGLang {RELEASE} could not be installed ({error}); pip's message is above\n"
        )
        return 1
    command = [str(installed.python), "-m", "sglang.launch_server", "--model-path", str(installed.model), *FLAGS]
    command += ROLE_FLAGS if apart else ()
    if not arguments:
        sys.stdout.write(shlex.join(command) + "\n")
        return 0
    os.execv(command[0], [*command, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
