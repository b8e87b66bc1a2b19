"""The one seam between the tuner's loop and the engines that run a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from msgspec import UNSET, UnsetType

from hwprobe.plain_text import clean
from models.config import ServerConfig
from models.workload import Workload
from planner.fleets.deployment import Deployment, Role

# Where servers on a node of a cluster find its name.
NODE_VARIABLE = "SGTUNE_NODE"


class FailureKind(StrEnum):
    """Why a launch or a measurement did not work; `tuner.server.failure` has the policy for each."""

    # caused by the configuration: completed trials with a violated constraint
    OOM_WEIGHTS = "oom_weights"
    OOM_KV = "oom_kv"
    OOM_GRAPHS = "oom_graphs"
    OOM_LOAD = "oom_load"
    UNSUPPORTED = "unsupported"
    WRONG_OUTPUT = "wrong_output"
    # caused by the machine or the moment: tried again
    HOST_OOM = "host_oom"
    PORT = "port"
    LAUNCH_TIMEOUT = "launch_timeout"
    NCCL = "nccl"
    WATCHDOG = "watchdog"
    STALLED = "stalled"
    KILLED = "killed"
    SUPERVISOR = "supervisor"
    NO_ANSWERS = "no_answers"
    MEASURING = "measuring"
    NODE_LOST = "node_lost"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"
    # for the operator: the run stops and can be resumed
    BAD_FLAG = "bad_flag"
    WEIGHTS_MISSING = "weights_missing"
    GPU_BUSY = "gpu_busy"
    GPU_LOST = "gpu_lost"
    SHM_FULL = "shm_full"
    CONTAINER_RUNTIME = "container_runtime"


class LaunchFailed(Exception):
    """The configuration did not start, died or could not be measured; carries the kind, the evidence as clean text, and
    the seconds it cost.
    """

    def __init__(self, kind: FailureKind, evidence: str, seconds: float) -> None:
        self.kind = kind
        self.evidence = clean(evidence)
        self.seconds = seconds
        super().__init__(self.evidence)

    def __reduce__(self) -> tuple[type[LaunchFailed], tuple[FailureKind, str, float]]:
        return LaunchFailed, (self.kind, self.evidence, self.seconds)


class Verdict(StrEnum):
    """Whether a point may teach anything: only `ok` does. In order of severity."""

    OK = "ok"
    UNSTEADY = "unsteady"
    THROTTLED = "throttled"
    LENGTHS_OFF = "lengths_off"
    CACHE_POLLUTED = "cache_polluted"
    CLIENT_LIMITED = "client_limited"
    ERRORS = "errors"
    CLOCK_JUMP = "clock_jump"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a cluster a launch ran: the node's name, its host, and the ids of its GPUs.

    Of a server over several nodes that is rank 0; `beside` are the nodes of the other ranks, in their order.
    """

    node: str
    host: str
    gpus: tuple[int, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the names of all its nodes, rank 0's first."""
        return (self.node, *self.beside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process of a server over several nodes: which, and where all of them meet (HOST:PORT)."""

    index: int
    meet_at: str

    @property
    def words(self) -> tuple[str, ...]:
        """Return SGLang's flags that say so."""
        return ("--node-rank", str(self.index), "--dist-init-addr", self.meet_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """A launch to make: trial `number` of a configuration, on one node or as one `rank` of several.

    `typed` is the command that `config` describes where it was not made here (a launch file's, a slice's), with the
    `environment` of it; --host and --port follow it, the last of two being what SGLang takes. Of a server of a
    deployment `part` is its name in it ("decode-1"), `more` the flags of its place there, which come last.
    """

    config: ServerConfig
    number: int
    typed: tuple[str, ...] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    rank: Rank | None = None
    part: str = ""
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Death:
    """A server process that has ended: why, and how many seconds ago."""

    failure: LaunchFailed
    ago_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a running server says of itself: KV tokens over all ranks, and seconds from launch to ready.

    `place` is where it runs, None on this machine.
    """

    kv_tokens: int
    boot_s: float
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """What one server of a deployment did of a point, by its own counters; None where it said nothing of it.

    `name` is its role and number in it. Means: `kv_share` of its KV cache in use, `queued` requests that wait, those of
    a decode server that wait for room (`prealloc_queued`) or for their KV cache (`transfer_queued`), one request's
    transfer: `transfer_ms` and `transfer_gb_s` (1e9 bytes/s). `slow` says against whom, empty where it is not.
    """

    name: str
    role: Role
    requests: int
    output_tok_s: float
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    kv_share: float | None = None
    queued: float | None = None
    prealloc_queued: float | None = None
    transfer_queued: float | None = None
    transfer_ms: float | None = None
    transfer_gb_s: float | None = None
    slow: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One ladder point: its load, its figures, and its duration. Latencies in ms by statistic.

    `request_rate` (1/s) is the rate an open loop sent; `goodput_req_s` the part of it within every limit. Of a
    deployment `servers` says what each of its servers did.
    """

    concurrency: int
    achieved_in_flight: float
    output_tok_s: float
    output_tok_s_interval: tuple[float, float]
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    duration_s: float
    retractions: int = 0
    verdict: Verdict = field(default=Verdict.OK)
    why: str = ""
    request_rate: float | None = None
    goodput_req_s: float | None = None
    servers: tuple[ServerFigures, ...] | UnsetType = UNSET

    @property
    def load(self) -> float:
        """What was asked of the server: requests per second of an open loop, else clients."""
        return float(self.concurrency) if self.request_rate is None else self.request_rate

    @property
    def user_tok_s(self) -> float:
        """Speed a user sees while being served; a single output token has no TPOT."""
        return 1e3 / (self.tpot_ms["mean"] or self.e2e_ms["mean"])


class Server(Protocol):
    """A running configuration."""

    def info(self) -> ServerInfo:
        """Return the server's report once it is ready."""

    def measure(self, workload: Workload) -> Measurement:
        """Measure one ladder point. Raises LaunchFailed when the server dies under load."""

    def stop(self) -> None:
        """Stop the server and everything it started; never raises for one that is already gone."""


class Engine(Protocol):
    """Launches resolved configurations, one at a time."""

    @property
    def name(self) -> str:
        """Return its name for `--engine`."""

    def launch(self, config: ServerConfig, number: int) -> Server:
        """Start trial `number` and wait until it is ready. Raises LaunchFailed when it does not start."""

    def close(self) -> None:
        """Let go of the machine: locks on its GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A server of one role measured without the other role: how, and how many seconds its start took.

    Of a prefill server every request asks for one token: its rate is prompts per second. Of a decode server prompts
    cost nothing: its TPOT is that of its step.
    """

    role: Role
    config: ServerConfig
    measured: Measurement
    boot_s: float


class FleetEngine(Protocol):
    """Launches deployments: all servers of all pools, and the router before them."""

    @property
    def name(self) -> str:
        """Return its name for `--engine`."""

    def launch_fleet(self, deployment: Deployment, number: int) -> Server:
        """Start launch `number`; it is ready once a request has come through. Raises LaunchFailed where it does not."""

    def measure_alone(self, role: Role, config: ServerConfig, workload: Workload, number: int) -> Alone:
        """Start one server of a role by itself, measure it, stop it. Raises LaunchFailed."""

    def close(self) -> None:
        """Let go of the machine."""


class OrderedEngine(Engine, Protocol):
    """An engine that also launches commands that were not made here."""

    def launch_order(self, order: LaunchOrder) -> Server:
        """Start what is ordered and wait until it is ready. Raises LaunchFailed when it does not start."""


class MortalServer(Server, Protocol):
    """A server that can be asked whether it still lives."""

    def death(self) -> Death | None:
        """Return how it ended, None while it runs."""


class NodeEngine(Protocol):
    """An engine on a node of a cluster: starts whole servers, and ranks of servers over several nodes.

    A rank beyond the first is handed back as soon as it is started; the first one's readiness is the server's.
    """

    def launch_order(self, order: LaunchOrder) -> MortalServer:
        """Start what is ordered. Raises LaunchFailed when it does not start."""

    def meeting_port(self) -> int:
        """Return a free port of this node at which ranks may meet."""

    def abort(self) -> None:
        """End every server that runs, and start none any more."""

    def close(self) -> None:
        """Let go of the machine."""
