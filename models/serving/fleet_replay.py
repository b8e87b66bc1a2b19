"""Replay of a prefill/decode fleet: a router, prefill servers, the KV transfer, decode servers, in virtual time.

Each server is the scheduler of `models.serving.scheduler` in its role. A prefill server ends a request with its first
token; a decode server admits it without a prefill pass, when it has a free slot and room in its KV cache. The client
sees the first token when the decode server has admitted the request: what waits for a slot waits for its first token.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from models.config import ServerConfig
from models.engine.profile import ASSUMED_TRANSFER_GB_S
from models.layout import Array
from models.serving.estimate import Context
from models.serving.replay import Replay
from models.serving.request import Request
from models.serving.role_times import DecodeTimes, PrefillTimes, per_rank_prefill, prefill_speed, shares_network
from models.serving.scheduler import DUE, INITIAL_NEW_TOKEN_RATIO, Limits, Scheduler, run_batch, take_finished
from models.serving.step_times import StepTimes

# The handshakes of one request's transfer, in seconds (assumed).
TRANSFER_LATENCY_S = 0.05
# Decode steps run as one: arrivals of other servers are seen within so many steps of a decode server.
STRIDE = 8.0
# A prefill server's cap is on what it prefills and transfers; prompts come out of it one pass at a time.
NO_CAP = 1_000_000
# Events of the replay: the next batch of a prefill server (0) or a decode server (1), or a KV cache that has been sent.
SENT = 2
# Running requests of a decode server at which a first token waits for half of its stream interval: a server with next
# to nothing to do sends it at once (B200, H200 and GB200 fleets of 1 to 128 clients).
HALF_HELD = 16.0


class Limit(StrEnum):
    """A fleet's bottleneck."""

    PREFILL = "prefill"
    DECODE = "decode"
    TRANSFER = "transfer"
    KV = "kv"
    CAP = "cap"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerModel:
    """One server of a pool: its step times and limits."""

    times: StepTimes
    limits: Limits


def prefill_role(server: ServerModel, config: ServerConfig, context: Context) -> ServerModel:
    """Return a server as one that only prefills: its passes at the speed of its role, its limits per rank."""
    times = PrefillTimes(server.times, speed=prefill_speed(context, config))
    return ServerModel(times=times, limits=per_rank_prefill(server.limits, config))


def decode_role(server: ServerModel, config: ServerConfig, context: Context) -> ServerModel:
    """Return a server as one that only decodes; its step times are those of `decode_context`."""
    times = DecodeTimes(
        server.times,
        speed=context.engine.parameters.decode_role,
        shares_network=shares_network(config, context.machine),
    )
    limits = replace(server.limits, longest_stride=STRIDE, chunk=NO_CAP, max_prefill=NO_CAP)
    return ServerModel(times=times, limits=limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What moving a request's KV cache costs: a latency (s), and bytes over a rate (bytes/s)."""

    latency_s: float
    bytes_per_token: float
    bytes_s: float

    def seconds(self, tokens: int) -> float:
        """Return the time one request of `tokens` prompt tokens takes alone."""
        return self.latency_s + tokens * self.bytes_per_token / self.bytes_s


def transfer_of(context: Context) -> Transfer:
    """Return the cost of moving one request's KV cache: at the learned rate, else at the assumed one."""
    rate = 1e9 * context.engine.parameters.transfer_gb_s
    if not transfer_is_learned(context):
        rate = min(rate, max(context.machine.network_bytes_s, 1e9))
    return Transfer(
        latency_s=TRANSFER_LATENCY_S, bytes_per_token=context.arch.kv_bytes_per_token(), bytes_s=rate
    )  # fmt: skip


def transfer_is_learned(context: Context) -> bool:
    """Whether the transfer's rate was learned from measurements of fleets."""
    return context.engine.parameters.transfer_gb_s != ASSUMED_TRANSFER_GB_S


def transfer_note(context: Context) -> str:
    """State the assumed cost of the KV transfer, and the source of its rate."""
    rate = transfer_of(context).bytes_s / 1e9
    learned = transfer_is_learned(context)
    basis = "as the profile learned it" if learned else "assumed, not measured"
    return (
        f"prefill/decode: KV transfer at {rate:.3g} GB/s per request {basis}, and {1e3 * TRANSFER_LATENCY_S:.0f} ms "
        "of handshakes"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """A prefill/decode fleet: servers of each role, alike within it, and the transfer between them.

    A decode server streams every `stream_interval` tokens: the first that a client sees waits for the others.
    """

    prefill: ServerModel
    prefill_servers: int
    decode: ServerModel
    decode_servers: int
    transfer: Transfer
    stream_interval: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReplay:
    """What clients saw, the mean requests on one decode server, and where a request's life before decode was spent.

    `waits_s` are mean seconds per request: in the prefill queue and pass, in transfer, waiting for a decode slot.
    """

    seen: Replay
    decode_batch: float
    waits_s: dict[Limit, float]

    @property
    def limit(self) -> Limit:
        """Return the longest wait of requests, or the decode itself if they hardly wait."""
        decode_s = float(self.seen.e2e_s.mean() - self.seen.ttft_s.mean())
        longest = max(self.waits_s, key=lambda name: self.waits_s[name])
        return longest if self.waits_s[longest] > WAITS_MATTER * decode_s else Limit.DECODE


# A wait shorter than this share of the decode time does not decide what a fleet delivers.
WAITS_MATTER = 0.1


@dataclass(slots=True)
class _Life:
    """Times of one request, in seconds since the start."""

    sent_s: float
    prefilled_s: float = 0.0
    moved_s: float = 0.0
    first_token_s: float = 0.0
    done_s: float = 0.0


@dataclass(slots=True)
class _Fleet:
    """The state of a replay: servers of both roles, and the lives of all requests."""

    model: FleetModel
    isl: list[int]
    osl: list[int]
    prefill: list[Scheduler]
    decode: list[Scheduler]
    on_prefill: list[int]
    on_decode: list[int]
    planned: tuple[list[float], list[float]]
    sending: list[list[tuple[float, int]]]
    lives: dict[int, _Life] = field(default_factory=dict)
    next: list[tuple[float, int, int]] = field(default_factory=list)
    sent: int = 0
    done: list[int] = field(default_factory=list)

    def plan(self, role: int, index: int) -> None:
        """Note when a server does its next piece of work, replacing an earlier note."""
        at_s = _next_s((self.prefill, self.decode)[role][index], waits=role == 0)
        if at_s != self.planned[role][index]:
            self.planned[role][index] = at_s
            heapq.heappush(self.next, (at_s, role, index))

    def take_next(self) -> tuple[int, int]:
        """Return role and index of the server that is furthest behind among those with work."""
        while True:
            at_s, role, index = heapq.heappop(self.next)
            if role == SENT:
                self.release(index, at_s)
            elif self.planned[role][index] == at_s:
                self.planned[role][index] = math.inf
                return role, index

    def hold(self, index: int, sent: Sequence[int]) -> None:
        """Keep the slots of the requests of a pass until the last of their KV caches has arrived where it decodes.

        Under attention DP every rank has slots of its own, and the others go on.
        """
        if self.model.prefill.times.ranks > 1:
            return
        self.prefill[index].held += len(sent)
        last_s = max(self.lives[request].moved_s for request in sent)
        self.sending[index].append((last_s, len(sent)))
        heapq.heappush(self.next, (last_s, SENT, index))

    def release(self, index: int, at_s: float) -> None:
        """Free the slots of a pass whose KV caches have arrived."""
        server = self.prefill[index]
        arrived = [count for last_s, count in self.sending[index] if last_s <= at_s]
        self.sending[index] = [(last_s, count) for last_s, count in self.sending[index] if last_s > at_s]
        server.held -= sum(arrived)
        server.now_s = max(server.now_s, at_s) if self.planned[0][index] == math.inf else server.now_s
        self.plan(0, index)

    def send(self, at_s: float) -> None:
        """Let a client send its next request: the router gives it to the prefill server with the fewest."""
        if self.sent >= len(self.isl):
            return
        index, self.sent = self.sent, self.sent + 1
        self.lives[index] = _Life(sent_s=at_s)
        server_index = self.on_prefill.index(min(self.on_prefill))
        self.on_prefill[server_index] += 1
        times, new = self.model.prefill.times, self.isl[index]
        visible_s = at_s + times.front_end_s + times.front_end_token_s * new
        self.prefill[server_index].arrive(Request(index, new, 1, at_s, visible_s, prompt=new))
        self.plan(0, server_index)

    def move(self, server: int, request: Request, at_s: float) -> None:
        """Hand a prefilled request to the decode server with the fewest, after its transfer."""
        self.on_prefill[server] -= 1
        life = self.lives[request.index]
        life.prefilled_s = at_s
        life.moved_s = at_s + self.model.transfer.seconds(request.isl)
        server_index = self.on_decode.index(min(self.on_decode))
        self.on_decode[server_index] += 1
        self.decode[server_index].arrive(
            Request(request.index, request.isl, self.osl[request.index], life.sent_s, life.moved_s, prompt=request.isl)
        )
        self.plan(1, server_index)

    def finish(self, server: int, request: Request, at_s: float) -> None:
        """Take a complete answer; its client sends the next request."""
        self.on_decode[server] -= 1
        life = self.lives[request.index]
        own_s = self.model.decode.times.prefill_s(1, request.isl, 0.0)  # the others wait for its arrival, not itself
        life.first_token_s, life.done_s = max(life.moved_s, request.first_token_s - own_s), at_s
        self.done.append(request.index)
        self.send(at_s + self.model.decode.times.front_end_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLoad:
    """Requests sent to a fleet: lengths in tokens, and `concurrency` clients in a closed loop.

    With `arrivals_s` (seconds) an open loop: request i is sent at that time, regardless of those in flight. Clients of
    a closed loop start `apart_s` one after the other.
    """

    isl: npt.NDArray[np.int64]
    osl: npt.NDArray[np.int64]
    concurrency: int
    arrivals_s: Array | None = None
    apart_s: float = 0.0


def replay_fleet(
    model: FleetModel, load: FleetLoad, measure_from: int = 0, measure_to: int | None = None
) -> FleetReplay:
    """Run the requests through the fleet, behind its router.

    `measure_from`: completions before this one are warm-up and not in the result; from `measure_to` on clients have
    nothing more to send, and the fleet runs dry.
    """
    fleet = _Fleet(
        model=model,
        isl=load.isl.tolist(),
        osl=load.osl.tolist(),
        prefill=[_server(model.prefill.times, model.prefill.limits) for _ in range(model.prefill_servers)],
        decode=[_server(model.decode.times, model.decode.limits) for _ in range(model.decode_servers)],
        on_prefill=[0] * model.prefill_servers,
        on_decode=[0] * model.decode_servers,
        planned=([math.inf] * model.prefill_servers, [math.inf] * model.decode_servers),
        sending=[[] for _ in range(model.prefill_servers)],
    )
    if load.arrivals_s is None:
        for number in range(min(load.concurrency, len(fleet.isl))):
            fleet.send(number * load.apart_s)
    else:
        for at_s in load.arrivals_s.tolist():
            fleet.send(at_s)
    while len(fleet.done) < len(fleet.isl):
        _advance(fleet)
    return _summary(fleet, measure_from, len(fleet.done) if measure_to is None else measure_to)


def _server(times: StepTimes, limits: Limits) -> Scheduler:
    return Scheduler(times=times, limits=limits, ratio=INITIAL_NEW_TOKEN_RATIO * limits.conservativeness)


def _advance(fleet: _Fleet) -> None:
    """Run one batch of the server that is furthest behind among those with work."""
    role, index = fleet.take_next()
    server = (fleet.prefill, fleet.decode)[role][index]
    run_batch(server)
    if server.finishing and server.finishing[0][0] <= server.step + DUE:
        finished = take_finished(server)
        for request in finished:
            (fleet.move, fleet.finish)[role](index, request, server.now_s)
        if role == 0:
            fleet.hold(index, [request.index for request in finished])
    fleet.plan(role, index)


def _next_s(server: Scheduler, *, waits: bool) -> float:
    """Return when a server does its next piece of work: an idle one when its next request arrives, or never.

    A prefill server `waits` where all its slots are held by requests that are being sent.
    """
    if waits and server.chunked is None and server.held >= server.limits.max_running:
        return math.inf
    if server.running or server.waiting or server.chunked is not None:
        return server.now_s
    return max(server.now_s, server.arriving[0][0]) if server.arriving else math.inf


def _summary(fleet: _Fleet, measure_from: int, measure_to: int) -> FleetReplay:
    measured = fleet.done[measure_from:measure_to]
    lives = [fleet.lives[index] for index in measured]
    sent = np.array([life.sent_s for life in lives])
    first = np.array([life.first_token_s for life in lives])
    ends = np.array([life.done_s for life in lives])
    lengths = np.array([float(fleet.osl[index]) for index in measured])
    began = fleet.lives[fleet.done[measure_from - 1]].done_s if measure_from else 0.0
    elapsed = max(float(ends.max()) - began, 1e-12)
    running = float((ends - first).sum()) / elapsed
    each = running / len(fleet.decode)
    busy = each / (each + HALF_HELD)
    held_share = np.minimum(fleet.model.stream_interval - 1.0, lengths - 1.0) / np.maximum(lengths - 1.0, 1.0)
    seen_s = first + busy * held_share * np.maximum(ends - first, 0.0)
    delay = fleet.model.decode.times.front_end_s
    streamed = Replay(
        ttft_s=seen_s - sent,
        tpot_s=np.maximum(ends + delay - first, 0.0) / np.maximum(lengths - 1.0, 1.0),
        e2e_s=ends + delay - sent,
        finish_s=ends,
        osl=lengths,
        duration_s=elapsed,
        output_tok_s=float(lengths.sum()) / elapsed,
        mean_running=running,
        peak_kv_tokens=int(max(server.peak_kv for server in fleet.decode)),
        retractions=sum(server.retractions for server in fleet.decode),
    )
    return FleetReplay(seen=streamed, decode_batch=each, waits_s=_waits_s(fleet, lives, first))


def _waits_s(fleet: _Fleet, lives: Sequence[_Life], first: Array) -> dict[Limit, float]:
    """Return mean seconds a request spends before decode: in prefill, in transfer, waiting for a slot or KV cache."""
    prefill = float(np.mean([life.prefilled_s - life.sent_s for life in lives]))
    transfer = float(np.mean([life.moved_s - life.prefilled_s for life in lives]))
    slot = float(np.mean(np.maximum(first - [life.moved_s for life in lives], 0.0)))
    limits = fleet.model.decode.limits
    fits = limits.kv_tokens / float(np.mean(fleet.isl) + np.mean(fleet.osl))
    scarce = Limit.CAP if limits.max_running <= fits else Limit.KV
    return {Limit.PREFILL: prefill, Limit.TRANSFER: transfer, scarce: slot}
