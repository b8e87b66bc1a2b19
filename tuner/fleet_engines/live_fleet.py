"""Deployments as processes of this machine: every server and the router, started, watched, measured, stopped as one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from hwprobe.errors import SgtuneError
from models.config import ServerConfig
from models.workload import Workload
from planner.fleets.deployment import Deployment, Pool, Role
from tuner.engines.live import DIES_S, MEASURING_ERRORS, LiveEngine, Measure, abort_all
from tuner.fleet_engines.fleet_figures import FleetWatch, Named
from tuner.fleet_engines.machine_parts import Divide, MachinePart, undivided
from tuner.fleet_engines.router import ROUTER, Routed, RouterPorts, router_words, start_router, wait_for_router
from tuner.seam import Alone, FailureKind, LaunchFailed, LaunchOrder, Measurement, ServerInfo
from tuner.server.figures import BootFigures
from tuner.server.ports import Ports
from tuner.server.process import ServerProcess
from tuner.server.readiness import ExpectedStart, died, unheard, wait_until_ready

# A decode server that meets no prefill server; of a prefill server its requests alone say so.
ALONE = {Role.PREFILL: (), Role.DECODE: ("--disaggregation-transfer-backend", "fake")}
METRICS = "--enable-metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedServer:
    """The command of one server of a pool, as a launch file has it."""

    words: tuple[str, ...]
    environment: dict[str, str]


# Returns the engine that starts a server of this configuration under this name, on this part of the machine.
EngineOf = Callable[[ServerConfig, str, MachinePart], LiveEngine]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A server of a deployment that is being started: what it is, where it listens, its process."""

    name: str
    pool: Pool
    engine: LiveEngine
    order: LaunchOrder
    routed: Routed
    nonce: str
    process: ServerProcess

    @property
    def named(self) -> Named:
        return Named(self.name, self.pool.role, self.routed.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFleetEngine:
    """Starts deployments; `divide` says which part of the machine each server gets.

    `python` is the interpreter that has the router; `measure_alone_with` measures a server of one role. `entered` hears
    the phases of each server's start.
    """

    name: str
    engine_of: EngineOf
    trials: Path
    measure: Measure
    measure_alone_with: Measure
    python: str
    run: str = ""
    divide: Divide = undivided
    entered: Callable[[str], None] = unheard
    ports: Ports = field(default_factory=Ports)
    closing: ExitStack = field(default_factory=ExitStack)

    def launch_fleet(
        self, deployment: Deployment, number: int, typed: Mapping[Role, TypedServer] | None = None
    ) -> LiveFleet:
        """Start all servers together, then the router; ready once a request has come through it.

        Servers of a role in `typed` are started with its command.
        """
        began_s = time.monotonic()
        with ExitStack() as undo:
            members: list[Member] = []
            undo.callback(_stop_all, members)
            for member in self._started(deployment, number, typed or {}):
                members.append(member)
            figures = _all_ready(members, self.entered)
            ports = RouterPorts(serving=self.ports.next(), metrics=self.ports.next())
            words = router_words(self.python, [member.routed for member in members], ports)
            router = start_router(words, self.trials / str(number) / ROUTER, self.run)
            undo.callback(router.stop)
            fleet = LiveFleet(
                engine=self, members=tuple(members), router=router, port=ports.serving, figures=tuple(figures),
                began_s=began_s, ready_s=[],
            )  # fmt: skip
            wait_for_router(router, ports.serving, len(members), fleet.check_alive)
            fleet.ready_s.append(time.monotonic() - began_s)
            undo.pop_all()
        return fleet

    def _started(self, deployment: Deployment, number: int, typed: Mapping[Role, TypedServer]) -> Iterator[Member]:
        """Start the processes one after the other, without waiting for any to be ready."""
        places = [(pool, index) for pool in deployment.pools for index in range(pool.servers)]
        parts = self.divide([pool.config.gpu_count for pool, _ in places])
        for (pool, index), part in zip(places, parts, strict=True):
            more = (METRICS, *pool.own_flags)
            order = LaunchOrder(config=pool.config, number=number, part=f"{pool.role}-{index}", more=more)
            if pool.role in typed:
                own = typed[pool.role]
                order = replace(order, typed=own.words, environment=own.environment)
            yield self._member(pool, order, part, first=(pool, index) == places[0])

    def _member(self, pool: Pool, order: LaunchOrder, part: MachinePart, *, first: bool) -> Member:
        """Start one server, on ports of its own; the first of a launch waits until the machine is free."""
        name = order.part
        engine = self.engine_of(pool.config, name, part)
        if first:
            engine.gate.pass_through()
        order, port = replace(order, environment=order.environment | part.environment), self.ports.next()
        bootstrap = self.ports.next() if pool.role is Role.PREFILL else 0
        if bootstrap:
            order = replace(order, more=(*order.more, "--disaggregation-bootstrap-port", str(bootstrap)))
        nonce = f"sgtune-{order.number}-{name}-{secrets.token_hex(4)}"
        process = engine.start_process(order, port, nonce)
        routed = Routed(role=pool.role, port=port, bootstrap_port=bootstrap)
        return Member(
            name=name, pool=pool, engine=engine, order=order, routed=routed, nonce=nonce, process=process
        )  # fmt: skip

    def measure_alone(self, role: Role, config: ServerConfig, workload: Workload, number: int) -> Alone:
        """Start one server of a role that meets no other, measure it, stop it."""
        pool = Pool(role=role, servers=1, config=config)
        more = (METRICS, *pool.own_flags, *ALONE[role])
        order = LaunchOrder(config=config, number=number, part=f"{role}-alone", more=more)
        member = self._member(pool, order, self.divide([config.gpu_count])[0], first=True)
        try:
            _all_ready([member], self.entered)
            boot_s = time.monotonic() - member.process.started
            url = member.routed.url
            measured = measured_watched(
                lambda: self.measure_alone_with(url, workload, lambda: _check([member])), [member], workload
            )
        finally:
            _stop_all([member])
        return Alone(role=role, config=config, measured=measured, boot_s=boot_s)

    def close(self) -> None:
        """Let go of the machine."""
        self.closing.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFleet:
    """A deployment that is ready, its router on `port`; `ready_s` are the seconds its start took."""

    engine: LiveFleetEngine
    members: tuple[Member, ...]
    router: ServerProcess
    port: int
    figures: tuple[BootFigures, ...]
    began_s: float
    ready_s: list[float]

    def info(self) -> ServerInfo:
        """Return the KV tokens of all servers that decode."""
        tokens = 0
        for member, figures in zip(self.members, self.figures, strict=True):
            per_rank = int(figures.kv_tokens_per_rank.measured or 0.0)
            tokens += 0 if member.pool.role is Role.PREFILL else per_rank * member.pool.config.attn_dp_size
        return ServerInfo(kv_tokens=tokens, boot_s=self.ready_s[0])

    def check_alive(self) -> None:
        """Raise LaunchFailed (degraded) where a server or the router has ended."""
        _check(self.members)
        if not self.router.alive:
            raise _degraded(ROUTER, self.router)

    def measure(self, workload: Workload) -> Measurement:
        """Measure through the router. Raises LaunchFailed (degraded) where a server or the router is lost."""
        watch = FleetWatch([member.named for member in self.members])

        def alive() -> None:
            self.check_alive()
            watch.look()

        url = f"http://127.0.0.1:{self.port}"
        measured = measured_watched(lambda: self.engine.measure(url, workload, alive), self.members, workload)
        self.check_alive()
        return replace(measured, servers=watch.figures())

    def stop(self) -> None:
        """Stop the router, then all servers together."""
        self.router.stop()
        _stop_all(self.members)


def measured_watched(measure: Callable[[], Measurement], members: Sequence[Member], workload: Workload) -> Measurement:
    """Measure; whatever goes wrong is an outcome of the launch. Raises LaunchFailed naming the load."""
    at = f"at concurrency {workload.concurrency}: "
    try:
        return measure()
    except LaunchFailed as failure:
        raise LaunchFailed(failure.kind, at + failure.evidence, failure.seconds) from failure
    except MEASURING_ERRORS as error:
        if any(member.process.dies_within(DIES_S / len(members)) for member in members):
            _check(members)
        evidence = f"{at}{error}" if isinstance(error, SgtuneError) else f"{at}{type(error).__name__}: {error}"
        raise LaunchFailed(FailureKind.MEASURING, evidence, 0.0) from error


def _check(members: Sequence[Member]) -> None:
    """Raise LaunchFailed (degraded) where a server has ended."""
    for member in members:
        if not member.process.alive:
            raise _degraded(member.name, member.process)


def _degraded(name: str, process: ServerProcess) -> LaunchFailed:
    death = died(process)
    code = "its supervisor was killed" if process.returncode is None else f"exit code {process.returncode}"
    return LaunchFailed(FailureKind.DEGRADED, f"{name} ended ({code})\n{death.evidence}", death.seconds)


def _all_ready(members: Sequence[Member], entered: Callable[[str], None]) -> list[BootFigures]:
    """Wait until every server is ready. Raises LaunchFailed naming the first that is not."""
    with ThreadPoolExecutor(len(members)) as threads:
        waiting = [threads.submit(_ready, member, entered) for member in members]
        finished, _ = wait(waiting, return_when=FIRST_EXCEPTION)
        failed = next((future for future in waiting if future in finished and future.exception()), None)
        if failed is not None:  # the others' threads end with their servers
            for member in members:
                member.process.terminate()
            raise _named(members[waiting.index(failed)], failed.exception())
        return [future.result() for future in waiting]


def _named(member: Member, error: BaseException | None) -> BaseException:
    if not isinstance(error, LaunchFailed):
        return error or RuntimeError("no failure")
    return LaunchFailed(error.kind, f"{member.name}: {error.evidence}", error.seconds)


def _ready(member: Member, entered: Callable[[str], None]) -> BootFigures:
    engine = member.engine
    expected = ExpectedStart(
        served_name=member.nonce, phases=engine.phases, entered=lambda phase: entered(f"{member.name}: {phase}"),
        generates=member.pool.role is Role.MIXED, smoke=engine.smoke if member.pool.role is Role.MIXED else None,
    )  # fmt: skip
    ready = wait_until_ready(member.process, member.routed.port, expected)
    return engine.figures_of(member.process, member.order, ready.server_info)


def _stop_all(members: Sequence[Member]) -> None:
    """Stop all servers together, and wait for what they held."""
    if not members:
        return
    with ThreadPoolExecutor(len(members)) as threads:
        list(threads.map(_stop, members))
    members[0].engine.gate.wait_released()


def _stop(member: Member) -> None:
    try:
        if member.process.alive:
            abort_all(member.routed.port)
    finally:
        member.engine.ended(member.process)
