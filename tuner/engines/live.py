"""Live engines: one server at a time, supervised from the gate before it starts to the memory it gives back."""

from __future__ import annotations

import http.client
import secrets
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hwprobe.errors import SgtuneError
from hwprobe.files import encode_json, write_own
from models.config import ServerConfig
from models.costs.memory import ledger_of
from models.layout import table_of
from models.serving.estimate import Context
from models.workload import Workload
from planner.launch import launch_spec
from tuner.bench.server_side import Address, read_load
from tuner.engines.runners import Runner
from tuner.evidence.load_history import LoadSample, append_sample
from tuner.seam import Death, FailureKind, LaunchFailed, LaunchOrder, Measurement, ServerInfo
from tuner.server.ask import NO_ANSWER, HttpRequest, ask, without_secret_fields
from tuner.server.figures import BootFigures, boot_figures
from tuner.server.gate import Gate
from tuner.server.ports import Ports
from tuner.server.process import Launch, ServerProcess
from tuner.server.readiness import PHASES, ExpectedStart, Phase, Ready, Smoke, died, unheard, wait_until_ready

HOST = "127.0.0.1"
PORT_TRIES = 3
GPU_CHECK_S = 5.0
# How often a server that is measured is asked for its load, for those who watch.
LOAD_NOTED_S = 2.0
ABORT_S = 5.0
DRAIN_S = 20.0

# A server whose answers have just ended may be about to die, and its log then says why.
DIES_S = 1.0
# Whatever goes wrong while measuring: our own errors, a lost worker or socket, an unexpected answer.
MEASURING_ERRORS = (
    SgtuneError, OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    MemoryError, http.client.HTTPException, subprocess.SubprocessError, msgspec.MsgspecError,
)  # fmt: skip

Alive = Callable[[], None]
Measure = Callable[[str, Workload, Alive], Measurement]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEngine:
    """Starts real processes through `runner`; what a point measures comes from `measure(url, workload, alive)`.

    `alive` raises LaunchFailed when the server has died; a measurement calls it at least once a second.
    """

    runner: Runner
    context: Context
    model_path: str
    trials: Path
    measure: Measure
    extra_flags: tuple[str, ...] = ()
    gate: Gate = field(default_factory=Gate)
    ports: Ports = field(default_factory=Ports)
    phases: tuple[Phase, ...] = PHASES
    smoke: Smoke | None = None
    drain_s: float = DRAIN_S
    run: str = ""
    entered: Callable[[str], None] = unheard
    closing: ExitStack = field(default_factory=ExitStack)
    running: list[ServerProcess] = field(default_factory=list)
    aborted: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return self.runner.name

    def launch(self, config: ServerConfig, number: int) -> LiveServer:
        """Pass the gate, start, wait until ready. A port taken by another process costs a retry, not the trial."""
        return self.launch_order(LaunchOrder(config=config, number=number))

    def launch_order(self, order: LaunchOrder) -> LiveServer:
        """Launch what is ordered; of a server over several nodes its first rank.

        Its ranks have agreed on where to meet: there a port that is taken is a failure.
        """
        if self.aborted.is_set():
            raise LaunchFailed(FailureKind.SUPERVISOR, "the run ends", 0.0)
        if self.runner.containers is not None:
            self.runner.containers.sweep()
            self.runner.containers.wait_alone(self.gate.wait_s)
        self.gate.pass_through()
        for _ in range(PORT_TRIES - 1 if order.rank is None else 0):
            try:
                return self._start(order, self.ports.next())
            except LaunchFailed as failure:
                if failure.kind is not FailureKind.PORT:
                    raise
        return self._start(order, self.ports.next())

    def meeting_port(self) -> int:
        """Return a free port at which the ranks of a server may meet."""
        return self.ports.meeting()

    def _expected(self, served_name: str) -> ExpectedStart:
        return ExpectedStart(served_name=served_name, phases=self.phases, smoke=self.smoke, entered=self.entered)

    def _start(self, order: LaunchOrder, port: int) -> LiveServer:
        nonce = f"sgtune-{order.number}-{secrets.token_hex(4)}"
        process = self.start_process(order, port, nonce)
        with ExitStack() as undo:
            undo.callback(self.ended, process)
            ready = wait_until_ready(process, port, self._expected(nonce))
            figures = self.figures_of(process, order, ready.server_info)
            undo.pop_all()
        return LiveServer(engine=self, process=process, config=order.config, port=port, ready=ready, figures=figures)

    def folder(self, order: LaunchOrder) -> Path:
        """Return where the files of a launch are, or of one server of it."""
        return self.trials / str(order.number) / order.part

    def start_process(self, order: LaunchOrder, port: int, nonce: str) -> ServerProcess:
        """Start the process that an order asks for; it serves under the name `nonce`. Raises LaunchFailed."""
        typed, environment = self._words(order, port)
        command = self.runner.command(
            [*typed, "--served-model-name", nonce, *self.extra_flags, *order.more], environment, nonce, order.number
        )
        containers = self.runner.containers
        if containers is not None:
            containers.held.add(nonce)
        try:
            process = ServerProcess(
                command.words, self.folder(order), command.environment, drain_s=self.drain_s,
                launch=Launch(name=nonce, run=self.run, after=command.after, client_exits=command.client_exits),
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise LaunchFailed(FailureKind.SUPERVISOR, f"the supervisor did not start: {error}", 0.0) from error
        self.running.append(process)
        if self.aborted.is_set():
            process.terminate()
        return process

    def _words(self, order: LaunchOrder, port: int) -> tuple[list[str], dict[str, str]]:
        """Return SGLang's flags and environment for a port of this machine."""
        ranked = order.rank.words if order.rank else ()
        if order.typed is not None:
            return [*order.typed, *ranked, "--host", HOST, "--port", str(port)], order.environment
        spec = launch_spec(order.config, self.context.version, model_path=self.model_path, host=HOST, port=port)
        return [*spec.argv()[3:], *ranked], spec.environment | order.environment

    def figures_of(self, process: ServerProcess, order: LaunchOrder, server_info: dict[str, Any]) -> BootFigures:
        """Read what a started server said of its memory, and keep it beside its log."""
        table = table_of([order.config])
        ledger = ledger_of(self.context.memory(table), table, 0)
        figures = boot_figures(process.log_text(), server_info, ledger)
        document = {"figures": figures, **without_secret_fields(server_info)}
        file = self.folder(order) / "server_info.json"
        write_own(file, encode_json(document) + "\n", private=True)
        return figures

    def ended(self, process: ServerProcess) -> None:
        """Stop a process of this engine and forget it."""
        process.stop()
        if self.runner.containers is not None:
            self.runner.containers.held.discard(process.launch.name)
        with suppress(ValueError):  # another thread was first
            self.running.remove(process)

    def abort(self) -> None:
        """End every server that runs, whichever thread waits for it, and start none any more."""
        self.aborted.set()
        for process in list(self.running):
            process.terminate()

    def close(self) -> None:
        """Let go of the machine."""
        self.closing.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveServer:
    """A server that is ready."""

    engine: LiveEngine
    process: ServerProcess
    config: ServerConfig
    port: int
    ready: Ready
    figures: BootFigures

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def info(self) -> ServerInfo:
        per_rank = int(self.figures.kv_tokens_per_rank.measured or 0.0)
        return ServerInfo(kv_tokens=per_rank * self.config.attn_dp_size, boot_s=self.ready.boot_s)

    def measure(self, workload: Workload) -> Measurement:
        """Measure one point.

        Raises LaunchFailed, naming the concurrency, when the server or a GPU is lost, and for whatever goes wrong while
        measuring: it is an outcome of the trial, never the end of the run.
        """
        at = f"at concurrency {workload.concurrency}: "
        try:
            return self.engine.measure(self.url, workload, _Watch(self, workload.concurrency).check)
        except LaunchFailed as failure:
            raise LaunchFailed(failure.kind, at + failure.evidence, self._lived_s()) from failure
        except MEASURING_ERRORS as error:
            if self.process.dies_within(DIES_S):
                death = died(self.process)
                raise LaunchFailed(death.kind, at + death.evidence, self._lived_s()) from error
            evidence = f"{at}{error}" if isinstance(error, SgtuneError) else f"{at}{type(error).__name__}: {error}"
            raise LaunchFailed(FailureKind.MEASURING, evidence, self._lived_s()) from error

    def death(self) -> Death | None:
        """Return how it ended, None while it runs."""
        return None if self.process.alive else Death(died(self.process), self.process.ended_ago_s)

    def _lived_s(self) -> float:
        return time.monotonic() - self.process.started

    def stop(self) -> None:
        """Abort what runs, stop the tree, and wait for the GPU memory it held."""
        try:
            if self.process.alive:
                abort_all(self.port)
        finally:
            self.engine.ended(self.process)
        self.engine.gate.wait_released()


def abort_all(port: int) -> None:
    """Ask the server to drop its requests: SGLang drains on SIGTERM, however long they are."""
    with suppress(*NO_ANSWER):  # it will be killed instead
        abort = HttpRequest(host=HOST, port=port, method="POST", path="/abort_request", body={"abort_all": True})
        ask(abort, ABORT_S)


class _Watch:
    """Asked often, looks at the process every time, and at the GPUs and the server's load every few seconds."""

    def __init__(self, server: LiveServer, clients: int) -> None:
        self._server, self._clients = server, clients
        self._looked = self._noted = time.monotonic()

    def check(self) -> None:
        process, now = self._server.process, time.monotonic()
        if not process.alive:
            raise died(process)
        if now - self._looked > GPU_CHECK_S:
            self._looked = now
            self._server.engine.gate.check_gpus()
        if now - self._noted > LOAD_NOTED_S:
            self._noted = now
            self._note_load()

    def _note_load(self) -> None:
        load = read_load(Address(host=HOST, port=self._server.port, secure=False))
        sample = LoadSample(
            at_s=time.time(), clients=self._clients, running=load.running, queued=load.waiting,
            kv_share=load.token_usage,
        )  # fmt: skip
        append_sample(self._server.process.log.parent, sample)
