"""Deployments on the `simulated` engine: the fleet replay under a world's truth, in virtual time."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from models.config import ServerConfig
from models.layout import table_of
from models.serving.estimate import Context
from models.workload import Workload
from planner.fleets.alone import play_alone
from planner.fleets.deployed import ContextOf, PlayedDeployment, play_deployment
from planner.fleets.deployment import Deployment, Role
from tuner.engines.simulated import OOM_TEXTS, measured_in
from tuner.engines.world import World
from tuner.engines.world_memory import OOM_BOOT_SHARE, boot_failure, fails_under_load
from tuner.seam import Alone, FailureKind, LaunchFailed, Measurement, ServerFigures, ServerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFleetEngine:
    """Deterministic by seed: the same launch and load give the same figures whenever asked.

    `belief_of` says what the planner takes a server to stand on; the world makes it true.
    """

    world: World
    belief_of: ContextOf
    seed: int
    name: str = "simulated"

    def truth_of(self, config: ServerConfig) -> Context:
        """Return what is true of a server of this configuration."""
        return self.world.truth(self.belief_of(config), config)

    def launch_fleet(self, deployment: Deployment, number: int) -> SimulatedFleet:
        """Start a deployment in the world. Raises LaunchFailed where the memory of one of its servers does not do."""
        for pool in deployment.pools:
            self._check_memory(pool.config)
        rng = np.random.default_rng(_seed(self.seed, number, deployment))
        return SimulatedFleet(self, deployment, self._boot_s(deployment.pools[-1].config, rng), rng)

    def measure_alone(self, role: Role, config: ServerConfig, workload: Workload, number: int) -> Alone:
        """Measure one server of a role by itself."""
        self._check_memory(config)
        rng = np.random.default_rng(_seed(self.seed, number, (role, config)))
        boot_s = self._boot_s(config, rng)
        played = play_alone(role, self.truth_of(config), config, workload, seed=int(rng.integers(2**31)))
        measured = measured_in(self.world, played, workload, rng)
        return Alone(role=role, config=config, measured=measured, boot_s=boot_s)

    def _boot_s(self, config: ServerConfig, rng: np.random.Generator) -> float:
        return self.world.start_s(self.truth_of(config)) * max(0.5, 1.0 + 0.1 * float(rng.standard_normal()))

    def _check_memory(self, config: ServerConfig) -> None:
        context = self.truth_of(config)
        filled = context.memory(table_of([config]))
        failure = boot_failure(self.world, filled)
        if failure is not None:
            raise LaunchFailed(failure, OOM_TEXTS[failure], self.world.start_s(context) * OOM_BOOT_SHARE[failure])
        if fails_under_load(self.world, filled):
            raise LaunchFailed(FailureKind.OOM_LOAD, "CUDA out of memory in prefill", self.world.start_s(context))

    def close(self) -> None:
        """Nothing was held."""


@dataclass(frozen=True, slots=True)
class SimulatedFleet:
    """A deployment running in the world."""

    engine: SimulatedFleetEngine
    deployment: Deployment
    boot_s: float
    rng: np.random.Generator

    def info(self) -> ServerInfo:
        pool = self.deployment.pools[-1]
        filled = self.engine.truth_of(pool.config).memory(table_of([pool.config]))
        return ServerInfo(kv_tokens=pool.servers * int(filled.kv_tokens[0]), boot_s=self.boot_s)

    def measure(self, workload: Workload) -> Measurement:
        """Play the clients, and add the world's noise."""
        seed = int(self.rng.integers(2**31))
        transfer = self.engine.world.transfer(self.engine.truth_of(self.deployment.pools[-1].config))
        played = play_deployment(self.deployment, self.engine.truth_of, workload, transfer, seed)
        measured = measured_in(self.engine.world, played.seen, workload, self.rng)
        return replace(measured, servers=self._figures(played, measured))

    def _figures(self, played: PlayedDeployment, measured: Measurement) -> tuple[ServerFigures, ...]:
        """Return what each server did: servers of a pool are alike."""
        figures = []
        requests = len(played.seen.osl)
        for pool in self.deployment.pools:
            decodes, sends = pool.role is not Role.PREFILL, pool.role is Role.DECODE
            for index in range(pool.servers):
                tokens_s = measured.output_tok_s if decodes else measured.output_tok_s / float(played.seen.osl.mean())
                figures.append(
                    ServerFigures(
                        name=f"{pool.role}-{index}",
                        role=pool.role,
                        requests=requests // pool.servers,
                        output_tok_s=tokens_s / pool.servers,
                        tpot_ms=measured.tpot_ms["mean"] if decodes else None,
                        transfer_ms=1e3 * played.transfer_s if sends else None,
                        transfer_gb_s=1e-9 * played.transfer_bytes / played.transfer_s if sends else None,
                    )
                )
        return tuple(figures)

    def stop(self) -> None:
        """Nothing to stop: nothing runs."""


def _seed(seed: int, number: int, what: object) -> int:
    """A launch's own randomness: by run seed, launch and what is launched, the same in every process."""
    return zlib.crc32(f"{seed}/{number}/{what!r}".encode())
