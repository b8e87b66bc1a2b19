"""Before the first launch of a deployment: what would make every one fail alike on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hwprobe.errors import InputError
from planner.sglang.arguments import read_arguments
from tuner.choices import EngineName, ServersChoice
from tuner.fleet_engines.router import check_router
from tuner.run.engine_factory import preflight
from tuner.run.question import TuneQuestion
from tuner.server.ports import candidates, is_free

ASK_S = 60.0
BACKEND = "disaggregation_transfer_backend"
DEFAULT_BACKEND = "mooncake"


@dataclass(frozen=True, slots=True)
class Library:
    """What moves KV caches: the module a server imports, and what installs it."""

    module: str
    package: str


# By the value of --disaggregation-transfer-backend, as SGLang's disaggregation/*/conn.py imports them.
LIBRARIES = {
    "mooncake": Library("mooncake.engine", "mooncake-transfer-engine"),
    "mooncake_tcp": Library("mooncake.engine", "mooncake-transfer-engine"),
    "nixl": Library("nixl._api", "nixl"),
    "mori": Library("mori.io", "mori"),
}
Imports = Callable[[str, str], str]


def why_not_imported(python: str, module: str) -> str:
    """Import a module in an interpreter; return the last line of what went wrong, empty where nothing did."""
    try:
        ran = subprocess.run(
            [python, "-c", f"import {module}"], capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = ran.stderr.strip().splitlines()
    return "" if ran.returncode == 0 else (lines or ["no reason given"])[-1]


def fleet_preflight(question: TuneQuestion, imports: Imports = why_not_imported) -> None:
    """Raise InputError where no deployment could start; engines without real servers need a router at most."""
    if question.engine is EngineName.SIMULATED:
        return
    check_router()
    _check_ports(question.plan.hardware.gpus_per_node)
    if question.engine is not EngineName.LOCAL:
        return
    preflight(question)
    if question.servers is not ServersChoice.MIXED:
        check_transfer(question.python, backend_of(question), partial(imports, question.python))


def backend_of(question: TuneQuestion) -> str:
    """Return what moves KV caches, by the flags of every server."""
    values = read_arguments(question.server_flags, question.plan.version).values
    return str(values.get(BACKEND) or DEFAULT_BACKEND)


def check_transfer(python: str, backend: str, why_not: Callable[[str], str]) -> None:
    """Raise InputError where an interpreter lacks what a transfer backend needs."""
    library = LIBRARIES.get(backend)
    why = why_not(library.module) if library else ""
    if library and why:
        raise InputError(
            f"prefill and decode servers move KV caches with {backend}, and '{python}' cannot import {library.module} "
            f"({why}): pip install {library.package} there, name another with `-- --disaggregation-transfer-backend`, "
            "or ask for --servers mixed"
        )


def _check_ports(servers: int) -> None:
    """Raise InputError where there are too few ports for a server a GPU: one each, one to meet at, two of a router."""
    needed, free = 2 * servers + 2, 0
    for port in candidates():
        free += is_free(port)
        if free >= needed:
            return
    raise InputError(
        f"a deployment of {servers} servers takes {needed} ports, {free} are free: SGTUNE_PORTS=FIRST-LAST names others"
    )
