"""The fewest servers that keep the SLOs of a trace, and what their cache and their router are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hwprobe.errors import InputError
from models.layout import table_of
from models.serving.estimate import Context, Prediction
from models.serving.trace_replay import Routing, TraceServers
from models.traffic.trace import Trace
from models.workload import Metric, Slo, Statistic, missed
from planner.plans.candidates import Candidate, Found, Rejected
from planner.plans.make import COARSE, Plan, PlanQuestion, more_nodes
from planner.plans.search import Effort, search
from planner.plans.space import default_space
from planner.traffic_plans.served import ServedTrace, on, serve, servers_of

# Requests replayed at most: of a longer trace its busiest stretch of so many.
MOST_REPLAYED = 20_000
# Clients per server for which configurations are looked for; the trace decides among them.
CROWDS = (64, 256)
FAMILIES = 2
MOST_SERVERS = 32
# What is kept where nothing is asked.
TAKEN_SLO = Slo(metric=Metric.TTFT, statistic=Statistic.P99, limit_ms=10_000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficQuestion:
    """A trace, how much of it counts, and what must hold."""

    trace: Trace
    name: str
    rate_scale: float
    slos: tuple[Slo, ...]
    window_s: tuple[float, float]
    requests_in_all: int

    @property
    def whole(self) -> bool:
        return len(self.trace) == self.requests_in_all


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPlan:
    """The plan, what its servers do under the trace, and without cache or with other routers.

    `servers_without_cache`: the fewest without a radix cache, None where not even `MOST_SERVERS` do.
    """

    plan: Plan
    asked: TrafficQuestion
    served: ServedTrace | None
    without_cache: ServedTrace | None
    servers_without_cache: int | None
    routings: dict[Routing, ServedTrace]


def traffic_question(trace: Trace, name: str, rate_scale: float, slos: tuple[Slo, ...]) -> TrafficQuestion:
    """Return what is replayed of a trace. Raises InputError for a rate scale of no meaning."""
    if not (0.001 <= rate_scale <= 1000.0):
        raise InputError(f"--rate-scale is {rate_scale:g}; it must be from 0.001 to 1,000")
    scaled = trace.scaled(rate_scale)
    start = 0
    if len(scaled) > MOST_REPLAYED:
        spans = scaled.sent_s[MOST_REPLAYED - 1 :] - scaled.sent_s[: 1 - MOST_REPLAYED]
        start = int(np.argmin(spans))
    indices = np.arange(start, min(start + MOST_REPLAYED, len(scaled)))
    window_s = (float(scaled.sent_s[indices[0]]), float(scaled.sent_s[indices[-1]]))
    return TrafficQuestion(
        trace=scaled.taken(indices) if len(indices) < len(scaled) else scaled,
        name=name,
        rate_scale=rate_scale,
        slos=slos or (TAKEN_SLO,),
        window_s=window_s,
        requests_in_all=len(trace),
    )


def plan_traffic(question: PlanQuestion, trace_question: TrafficQuestion) -> TrafficPlan:
    """Find the configuration and the fewest servers of it that keep the SLOs over the trace."""
    context = question.context()
    longest = int((trace_question.trace.isl + trace_question.trace.osl).max())
    if longest > question.arch.max_position_embeddings:
        raise InputError(
            f"'{trace_question.name}' has a request of {longest:,} tokens; the model's context is "
            f"{question.arch.max_position_embeddings:,}"
        )
    question.checked()
    leaders, rejected, evaluated = _leaders(question, context, trace_question, longest)
    if not leaders:
        return _plan(
            question, context, trace_question, Found(candidates=(), rejected=rejected, evaluated=evaluated), {}
        )
    sized = _sized(context, leaders, trace_question)
    candidates = tuple(_candidate(candidate, served, trace_question.slos) for candidate, served in sized)
    result = Found(candidates=candidates, rejected=rejected, evaluated=evaluated)
    return _plan(question, context, trace_question, result, {0: sized[0][1]})


def _leaders(
    question: PlanQuestion, context: Context, trace_question: TrafficQuestion, longest: int
) -> tuple[list[Candidate], tuple[Rejected, ...], int]:
    """Return the best configurations for loads of the trace's mean lengths whose KV cache holds its longest request."""
    space = default_space(context.machine, context.version, arch=context.arch, mtp=question.mtp)
    space = replace(space, fractions=space.fractions[::COARSE], chunks=space.chunks[::2])
    leaders: dict[str, Candidate] = {}
    rejected: tuple[Rejected, ...] = ()
    evaluated = 0
    # One cache for all finds more than one per attention-DP rank, which loads without a trace do not show.
    undivided = replace(space, layouts=tuple(layout for layout in space.layouts if layout.attn_dp_size == 1))
    for clients in CROWDS:
        for among in (space, undivided):
            result = search(context, among, question.workload(clients), trace_question.slos, Effort(replayed=FAMILIES))
            evaluated += result.evaluated
            rejected = result.rejected if among is space else rejected
            for candidate in result.candidates:
                if candidate.ledger.kv_tokens_per_rank >= longest:
                    leaders.setdefault(f"{candidate.config}", candidate)
    return list(leaders.values()), rejected, evaluated


def _sized(
    context: Context, leaders: list[Candidate], trace_question: TrafficQuestion
) -> list[tuple[Candidate, ServedTrace]]:
    """Return each with the fewest servers that keep the SLOs, the fewest GPUs first, then the fastest answer."""
    sized = []
    most = MOST_SERVERS
    for candidate in leaders:
        servers = servers_of(context, candidate.config, len(trace_question.trace))
        served = fewest(context, candidate, trace_question, servers, most)
        sized.append((candidate, served))
        if served.excess(trace_question.slos) <= 0.0:
            most = min(most, served.servers)  # nobody with more of them is better

    def key(item: tuple[Candidate, ServedTrace]) -> tuple[float, float, float]:
        candidate, served = item
        excess = max(0.0, served.excess(trace_question.slos))
        return (excess, served.servers * candidate.config.gpu_count, served.e2e_ms["mean"])

    return sorted(sized, key=key)


def fewest(
    context: Context, candidate: Candidate, trace_question: TrafficQuestion, servers: TraceServers, most: int
) -> ServedTrace:
    """Return the trace on the fewest of these servers that keep the SLOs, on `most` of them where none do.

    More servers are taken never to be slower, so the number is bisected. Where the cache-aware router sends too much to
    too few, one that counts requests is tried.
    """

    def at(count: int) -> ServedTrace:
        answer = serve(context, candidate.config, trace_question.trace, on(servers, count), trace_question.slos)
        if answer.excess(trace_question.slos) <= 0.0 or count == 1 or not servers.cache:
            return answer
        idlest = on(servers, count, routing=Routing.LEAST_REQUESTS)
        other = serve(context, candidate.config, trace_question.trace, idlest, trace_question.slos)
        return min(answer, other, key=lambda served: served.excess(trace_question.slos))

    low, high = 0, 1
    served = at(high)
    if (
        served.excess(trace_question.slos) > 0.0
        and high < most
        and (crowd := at(most)).excess(trace_question.slos) > 0.0
    ):
        return crowd
    while served.excess(trace_question.slos) > 0.0 and high < most:
        low, high = high, min(most, 2 * high)
        served = at(high)
    if served.excess(trace_question.slos) > 0.0:
        return served
    while high - low > 1:
        middle = (low + high) // 2
        tried = at(middle)
        if tried.excess(trace_question.slos) <= 0.0:
            high, served = middle, tried
        else:
            low = middle
    return served


def _candidate(candidate: Candidate, served: ServedTrace, slos: tuple[Slo, ...]) -> Candidate:
    """Return a candidate whose figures are those of one of its servers under the trace."""
    return replace(
        candidate,
        servers=served.servers,
        prediction=predicted(candidate.prediction, served),
        misses=missed(slos, served),
        why=f"on {served.servers * candidate.config.gpu_count} GPUs, {served.hit_rate:.0%} of the prompts hit",
    )


def predicted(closed: Prediction, served: ServedTrace) -> Prediction:
    """Return a closed load's prediction with what one server sees under the trace; the bands keep their width."""
    fresh = {"tpot_mean_ms": (closed.tpot_ms["mean"], served.tpot_ms["mean"]),
             "ttft_mean_ms": (closed.ttft_ms["mean"], served.ttft_ms["mean"]),
             "output_tok_s": (closed.output_tok_s, served.output_tok_s / served.servers)}  # fmt: skip
    band = {
        name: (low * fresh[name][1] / fresh[name][0], high * fresh[name][1] / fresh[name][0])
        for name, (low, high) in closed.band.items()
        if name in fresh and fresh[name][0] > 0
    }
    replay = served.replay
    elapsed_s = max(float(replay.end_s.max()), 1e-9)
    per_server = 1.0 / served.servers
    return replace(
        closed,
        output_tok_s=served.output_tok_s * per_server,
        total_tok_s=float((replay.osl + replay.isl).sum()) / elapsed_s * per_server,
        user_tok_s=1e3 / (served.tpot_ms["mean"] or served.e2e_ms["mean"]),
        user_tok_s_with_wait=1.0 / float((replay.e2e_s / replay.osl).mean()),
        request_rate=len(replay.isl) / elapsed_s * per_server,
        running_requests=served.mean_running * per_server,
        ttft_ms=served.ttft_ms,
        tpot_ms=served.tpot_ms,
        e2e_ms=served.e2e_ms,
        retractions=served.retractions,
        band=band,
        in_flight=None,
    )


def _plan(
    question: PlanQuestion,
    context: Context,
    trace_question: TrafficQuestion,
    result: Found,
    best: dict[int, ServedTrace],
) -> TrafficPlan:
    """Return the plan with what the cache and the router are worth on its best servers."""
    served = best.get(0)
    leader = result.candidates[0] if result.candidates else None
    without, fewer, routings = None, None, dict[Routing, ServedTrace]()
    if leader is not None and served is not None:
        servers = servers_of(context, leader.config, len(trace_question.trace))
        config, trace, count = leader.config, trace_question.trace, served.servers
        without = serve(context, config, trace, on(servers, count, cache=False), trace_question.slos)
        if not leader.misses:
            alone = fewest(context, leader, trace_question, on(servers, 1, cache=False), MOST_SERVERS)
            fewer = alone.servers if alone.excess(trace_question.slos) <= 0.0 else None
        if count > 1:
            routings = {
                way: serve(context, config, trace, on(servers, count, routing=way), trace_question.slos)
                for way in Routing
            }
    replicas = 1 if served is None else served.servers
    in_flight = 1 if served is None else max(1, math.ceil(served.in_flight_p99 / replicas))
    nodes, node_answer = _nodes(context, leader, replicas), None
    if leader is None:
        nodes, node_answer = more_nodes(question, context, max(CROWDS))
    plan = Plan(
        question=replace(question, concurrency=in_flight),
        context=context,
        fits=leader is not None,
        meets_target=leader is not None and not leader.misses,
        nodes=nodes,
        replicas=replicas,
        concurrency=in_flight,
        found=result,
        node_answer=node_answer,
        load=question.workload(in_flight),
        published=None,
        warnings=_warnings(question, context, trace_question, leader),
    )
    return TrafficPlan(
        plan=plan,
        asked=trace_question,
        served=served,
        without_cache=without,
        servers_without_cache=fewer,
        routings=routings,
    )


def _nodes(context: Context, leader: Candidate | None, servers: int) -> int:
    """Return the nodes that so many servers stand on."""
    if leader is None:
        return context.machine.nodes
    per_node = context.machine.gpu_count // context.machine.nodes
    return max(context.machine.nodes, -(-servers * leader.config.gpu_count // per_node))


def _warnings(
    question: PlanQuestion, context: Context, trace_question: TrafficQuestion, leader: Candidate | None
) -> tuple[str, ...]:
    warnings = [*question.hardware.warnings, *context.engine.warnings, *trace_question.trace.notes]
    if not trace_question.whole:
        warnings.append(
            f"replayed: the busiest {len(trace_question.trace):,} of {trace_question.requests_in_all:,} requests in "
            f"a row, from second {trace_question.window_s[0]:,.0f} to {trace_question.window_s[1]:,.0f}; "
            "caches are empty at its start"
        )
    if trace_question.slos == (TAKEN_SLO,):
        warnings.append(f"kept: {TAKEN_SLO} (taken where no --slo is given)")
    if leader is not None:
        warnings.extend(leader.prediction.warnings)
        if leader.config.speculative is not None:
            warnings.append("speculation keys the radix cache by pairs of tokens: a hit may be one token shorter")
        if float(table_of([leader.config]).attn_dp[0]) > 1:
            warnings.append("attention DP: every rank has a cache of its own, and requests are dealt to ranks in turn")
    warnings.append("not modelled under a trace: prefill and decode apart, HiCache, in-batch prefix waiting")
    return tuple(warnings)
