"""The `simulated` engine: a world's truth replayed in virtual time. No process, no HTTP, no GPU."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

from models.config import ServerConfig
from models.costs.memory import Memory
from models.layout import Array, table_of
from models.serving.estimate import Context, replay_workload, statistics_ms
from models.serving.open_loop import Draw, replay_open_loop
from models.serving.replay import Replay
from models.traffic.traced_workload import TracedWorkload
from models.workload import Slo, Statistic, Workload
from tuner.engines.traced import Pace, measure_played
from tuner.engines.world import World
from tuner.engines.world_memory import OOM_BOOT_SHARE, boot_failure, fails_under_load
from tuner.seam import FailureKind, LaunchFailed, Measurement, ServerInfo

# Windows of one measurement: their spread gives the interval (Student's t for 3 windows, 95 %).
WINDOWS = 3
STUDENT_T_95 = 4.303
OOM_TEXTS = {
    FailureKind.OOM_KV: "Loaded weights leave no GPU memory for the KV cache",
    FailureKind.OOM_GRAPHS: "Capture cuda graph failed: CUDA out of memory",
}


@dataclass(frozen=True, slots=True)
class SimulatedEngine:
    """Deterministic by seed: the same configuration and point give the same figures whenever asked.

    Of an open loop the requests that keep every one of `slos` are counted.
    """

    world: World
    belief: Context
    seed: int
    name: str = "simulated"
    slos: tuple[Slo, ...] = ()

    def launch(self, config: ServerConfig, number: int) -> SimulatedServer:
        """Start the configuration in the world. Raises LaunchFailed when the world's memory does not hold it."""
        context = self.world.truth(self.belief, config)
        filled = context.memory(table_of([config]))
        failure = boot_failure(self.world, filled)
        if failure is not None:
            raise LaunchFailed(failure, OOM_TEXTS[failure], self.world.start_s(context) * OOM_BOOT_SHARE[failure])
        seed = _seed(self.seed, number, config)
        jitter = 1.0 + 0.1 * float(np.random.default_rng(seed).standard_normal())
        boot_s = self.world.start_s(context) * max(0.5, jitter)
        return SimulatedServer(self.world, context, config, seed, int(filled.kv_tokens[0]), boot_s, filled, self.slos)

    def close(self) -> None:
        """Nothing was held."""


@dataclass(frozen=True, slots=True)
class SimulatedServer:
    """A configuration running in the world."""

    world: World
    context: Context
    config: ServerConfig
    seed: int
    kv_tokens: int
    boot_s: float
    memory: Memory
    slos: tuple[Slo, ...] = ()

    def info(self) -> ServerInfo:
        return ServerInfo(kv_tokens=self.kv_tokens, boot_s=self.boot_s)

    def measure(self, workload: Workload) -> Measurement:
        """Replay the clients, and add the world's noise. Raises LaunchFailed when activations do not fit."""
        if fails_under_load(self.world, self.memory):
            raise LaunchFailed(
                FailureKind.OOM_LOAD,
                f"CUDA out of memory in prefill at concurrency {workload.concurrency}",
                self.boot_s,
            )
        rng = np.random.default_rng([self.seed, workload.concurrency])
        seed = int(rng.integers(2**31))
        if isinstance(workload, TracedWorkload):
            factors = np.exp(self.world.noise * rng.standard_normal(WINDOWS))
            return measure_played(self.context, self.config, workload, Pace(factors=factors, slos=self.slos))
        if workload.request_rate is None:
            played = replay_workload(self.context, self.config, workload, self.memory, seed=seed)
        else:
            played = replay_open_loop(self.context, self.config, workload, self.memory, Draw(seed=seed))
        return measured_in(self.world, played, workload, rng, self.slos)

    def stop(self) -> None:
        """Nothing to stop: nothing runs."""


def measured_in(
    world: World, played: Replay, workload: Workload, rng: np.random.Generator, slos: tuple[Slo, ...] = ()
) -> Measurement:
    """Return what a measurement of a replay shows under the world's noise, which `rng` draws."""
    drift = np.exp(world.noise * rng.standard_normal(WINDOWS))
    rates = played.output_tok_s / drift
    middle = float(rates.mean())
    half = STUDENT_T_95 * float(rates.std(ddof=1)) / math.sqrt(WINDOWS)
    slow = played.output_tok_s / middle
    return Measurement(
        concurrency=workload.concurrency,
        achieved_in_flight=float(workload.concurrency) if workload.request_rate is None else played.mean_running,
        output_tok_s=middle,
        output_tok_s_interval=(middle - half, middle + half),
        ttft_ms=_scaled(statistics_ms(played.ttft_s), slow),
        tpot_ms=_scaled(statistics_ms(played.tpot_s), slow),
        e2e_ms=_scaled(statistics_ms(played.e2e_s), slow),
        duration_s=played.duration_s * slow * (1.0 + 1.0 / WINDOWS),
        retractions=played.retractions,
        request_rate=workload.request_rate,
        goodput_req_s=None if workload.request_rate is None else _goodput(played, slow, slos),
    )


def _goodput(played: Replay, slow: float, slos: tuple[Slo, ...]) -> float:
    """Requests per second that keep every limit, when everything takes `slow` times as long."""
    seconds: dict[str, Array] = {"ttft": played.ttft_s, "tpot": played.tpot_s, "e2e": played.e2e_s}
    within_limits = np.ones(len(played.osl), dtype=bool)
    for slo in slos:
        within_limits &= seconds[str(slo.metric)] * slow * 1e3 <= slo.limit_ms
    return float(within_limits.mean()) * len(within_limits) / (played.duration_s * slow)


def _scaled(statistics: dict[str, float], factor: float) -> dict[str, float]:
    return {Statistic(name): float(value * factor) for name, value in statistics.items()}


def _seed(seed: int, number: int, config: ServerConfig) -> int:
    """A launch's own randomness: by run seed, trial and configuration, the same in every process."""
    return zlib.crc32(f"{seed}/{number}/{config!r}".encode())
