"""Deployment: pools of servers alike behind a router, with the names people give them and the router's command."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from packaging.version import Version

from models.config import ServerConfig
from planner.plans.space import as_launched
from planner.sglang.dialects import to_argv

SERVER_PORT = 30000
ROUTER_PORT = 8000
BOOTSTRAP_PORT = 8998
DEFAULT_POLICY = "cache_aware"
# Seconds after which the router (0.3.2) asks a server that has failed again; its own default is a minute. Measured by
# `python benchmarks/fleet_kills.py`: a lost role's new server is used after 12 s, not 60.
RECOVERY_FLAGS = (("--health-check-interval-secs", "5"), ("--cb-timeout-duration-secs", "5"))


class Role(StrEnum):
    """What a server does: both phases of a request, or one of them."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"


SHORT_ROLE = {Role.PREFILL: "P", Role.DECODE: "D"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Equal servers: their role, number and configuration; `hardware` where roles differ in it."""

    role: Role
    servers: int
    config: ServerConfig
    hardware: str | None = None

    @property
    def gpus(self) -> int:
        """GPUs of all servers of the pool."""
        return self.servers * self.config.gpu_count

    @property
    def name(self) -> str:
        """The pool in short: "4 x TP8 DP8", "1P TP8"; one mixed server is its layout alone."""
        if self.role is not Role.MIXED:
            return f"{self.servers}{SHORT_ROLE[self.role]} {self.config.label}"
        return self.config.label if self.servers == 1 else f"{self.servers} x {self.config.label}"

    def argv(self, version: Version) -> list[str]:
        """Return SGLang's flags of one server. Raises InputError for a setting the release cannot express."""
        return [*to_argv(as_launched(self.config, version), version), *self.own_flags]

    @property
    def own_flags(self) -> list[str]:
        """Flags that give a server its role, where its configuration does not say it."""
        has_role = self.role is Role.MIXED or self.config.flag("disaggregation_mode") is not None
        return [] if has_role else ["--disaggregation-mode", str(self.role)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Pools behind a router; one mixed pool of one server needs none."""

    pools: tuple[Pool, ...]

    @property
    def name(self) -> str:
        """Return the short name: "TP8 DP8", "4 x TP8 DP8", "1P TP8 + 3D TP8 DP8 EP8/deepep"."""
        return " + ".join(pool.name for pool in self.pools)

    @property
    def servers(self) -> int:
        """All servers."""
        return sum(pool.servers for pool in self.pools)

    @property
    def gpus(self) -> int:
        """All GPUs that servers occupy."""
        return sum(pool.gpus for pool in self.pools)

    @property
    def prefill_share(self) -> float:
        """GPUs of prefill pools over all."""
        return sum(pool.gpus for pool in self.pools if pool.role is Role.PREFILL) / self.gpus

    @property
    def router_argv(self) -> list[str] | None:
        """Return the router's command with a placeholder per server, None for a single server."""
        if self.servers == 1:
            return None
        command = ["python3", "-m", "sglang_router.launch_router"]
        prefill = [pool for pool in self.pools if pool.role is Role.PREFILL]
        if prefill:
            command.append("--pd-disaggregation")
        for pool in self.pools:
            urls = [f"http://{str(pool.role).upper()}_{index}:{SERVER_PORT}" for index in range(pool.servers)]
            if pool.role is Role.MIXED:
                command += ["--worker-urls", *urls]
            for url in urls if pool.role is not Role.MIXED else []:
                port = [str(BOOTSTRAP_PORT)] if pool.role is Role.PREFILL else []
                command += [f"--{pool.role}", url, *port]
        recovery = [word for flag in RECOVERY_FLAGS for word in flag]
        return [*command, "--policy", DEFAULT_POLICY, *recovery, "--host", "127.0.0.1", "--port", str(ROUTER_PORT)]
