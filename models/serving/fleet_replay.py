"""Replay of a prefill/decode fleet: a router, prefill servers, the KV transfer, decode servers, in virtual time.

Each server is the scheduler of `models.serving.scheduler` in its role. A prefill server ends a request with its first
token; a decode server admits it without a prefill pass, when it has a free slot and room in its KV cache. The client
sees the first token when the decode server has admitted the request: what waits for a slot waits for its first token.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from models.engine.profile import ASSUMED_TRANSFER_GB_S
from models.layout import Array
from models.serving.estimate import Context
from models.serving.prefill_server import Prefilled, PrefillServer, prefill_server, run_pass
from models.serving.replay import Replay
from models.serving.request import Request
from models.serving.role_times import DP_ADMITS, PrefillModel, ServerModel, held_tokens
from models.serving.scheduler import DUE, INITIAL_NEW_TOKEN_RATIO, Limits, Scheduler, run_batch, take_finished
from models.serving.step_times import StepTimes

# The handshakes of one request's transfer, in seconds (assumed).
TRANSFER_LATENCY_S = 0.05
# Events of the replay: the next batch of a prefill or of a decode server, or KV caches that have been sent.
PREFILLS, DECODES, SENT = 0, 1, 2
# Wait of a benchmark's first requests: servers meet each other and these shapes for the first time. Runs of ten
# requests a client: means of TTFT above medians by a tenth of it.
COLD_S = 1.2


class Limit(StrEnum):
    """A fleet's bottleneck."""

    PREFILL = "prefill"
    DECODE = "decode"
    TRANSFER = "transfer"
    KV = "kv"
    CAP = "cap"


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

    prefill: PrefillModel
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
    prefill: list[PrefillServer]
    decode: list[Scheduler]
    on_prefill: list[int]
    on_decode: list[int]
    planned: tuple[list[float], list[float]]
    lives: dict[int, _Life] = field(default_factory=dict)
    next: list[tuple[float, int, int]] = field(default_factory=list)
    sent: int = 0
    clients: int = 0
    cold_s: float = 0.0
    done: list[int] = field(default_factory=list)

    def plan(self, role: int, index: int) -> None:
        """Note when a server does its next piece of work, replacing an earlier note."""
        at_s = self.prefill[index].next_s() if role == PREFILLS else _next_s(self.decode[index])
        if at_s != self.planned[role][index]:
            self.planned[role][index] = at_s
            heapq.heappush(self.next, (at_s, role, index))

    def take_next(self) -> tuple[int, int]:
        """Return role and index of the server that is furthest behind among those with work."""
        while True:
            at_s, role, index = heapq.heappop(self.next)
            if role == SENT:
                self.prefill[index].release(at_s)
                self.plan(PREFILLS, index)
            elif self.planned[role][index] == at_s:
                self.planned[role][index] = math.inf
                return role, index

    def hold(self, index: int, prompts: list[Prefilled]) -> None:
        """Keep slots and KV cache of the prompts of a pass until the last of them has arrived where it decodes.

        Under attention DP they are free at once: else passes of seven ranks and of one alternate, which no run shows.
        """
        server = self.prefill[index]
        if len(server.ranks) > 1:
            server.free(prompts)
            return
        last_s = max(self.lives[prompt.request.index].moved_s for prompt in prompts)
        server.sending.append((last_s, prompts))
        heapq.heappush(self.next, (last_s, SENT, index))

    def send(self, at_s: float) -> None:
        """Let a client send its next request: the router gives it to the prefill server with the fewest."""
        if self.sent >= len(self.isl):
            return
        index, self.sent = self.sent, self.sent + 1
        self.lives[index] = _Life(sent_s=at_s)
        server_index = self.on_prefill.index(min(self.on_prefill))
        self.on_prefill[server_index] += 1
        times, new = self.model.prefill.times, self.isl[index]
        cold_s = self.cold_s if index < self.clients else 0.0
        visible_s = at_s + cold_s + times.front_end_s + times.front_end_token_s * new
        self.prefill[server_index].arrive(Request(index, new, 1, at_s, visible_s, prompt=new))
        self.plan(PREFILLS, server_index)

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
        self.plan(DECODES, server_index)

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
    a closed loop start `apart_s` one after the other, and what each sends first is seen `cold_s` later.
    """

    isl: npt.NDArray[np.int64]
    osl: npt.NDArray[np.int64]
    concurrency: int
    arrivals_s: Array | None = None
    apart_s: float = 0.0
    cold_s: float = 0.0


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
        prefill=[prefill_server(model.prefill.times, model.prefill.limits) for _ in range(model.prefill_servers)],
        decode=[_server(model.decode.times, model.decode.limits) for _ in range(model.decode_servers)],
        on_prefill=[0] * model.prefill_servers,
        on_decode=[0] * model.decode_servers,
        planned=([math.inf] * model.prefill_servers, [math.inf] * model.decode_servers),
    )
    if load.arrivals_s is None:
        fleet.clients, fleet.cold_s = load.concurrency, load.cold_s
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
    if role == PREFILLS:
        _prefill(fleet, index)
    else:
        server = fleet.decode[index]
        run_batch(server)
        if server.finishing and server.finishing[0][0] <= server.step + DUE:
            for request in take_finished(server):
                fleet.finish(index, request, server.now_s)
    fleet.plan(role, index)


def _prefill(fleet: _Fleet, index: int) -> None:
    server = fleet.prefill[index]
    prompts = run_pass(server)
    for prompt in prompts:
        fleet.move(index, prompt.request, server.now_s)
    if prompts:
        fleet.hold(index, prompts)


def _next_s(server: Scheduler) -> float:
    """Return when a decode server does its next piece of work: an idle one when its next request arrives, or never."""
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
    decoding_s = np.maximum(ends - first, 0.0)
    tokens = np.maximum(lengths - 1.0, 1.0)
    waited_tokens = held_tokens(fleet.model.stream_interval, fleet.model.decode.times.ranks, each)
    seen_s = first + np.minimum(waited_tokens / tokens, 1.0) * decoding_s
    if fleet.model.decode.times.ranks > 1:
        step_s = fleet.model.decode.times.accepted * decoding_s / tokens
        seen_s = np.maximum(seen_s, np.array([life.moved_s for life in lives]) + DP_ADMITS * step_s)
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
