"""Plan: from a question about a machine and a workload to a ranked, explained answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from packaging.version import Version

from hwprobe.bounds import REQUESTS, within
from hwprobe.errors import InputError
from hwprobe.profile import HardwareProfile
from models.architecture import ModelArchitecture
from models.engine.profile import EngineProfile
from models.engine.transfer import profile_on
from models.machine import machine_of
from models.serving.estimate import DEFAULT_ACCEPTANCE, Context
from models.workload import Metric, Slo, Statistic, Workload
from planner.plans.candidates import Candidate, Found, with_reasons
from planner.plans.capacity import MOST_CLIENTS, NEAR_ENOUGH, carries, concurrency_for_rate, one_fewer, users_per_server
from planner.plans.frontier import pareto_front
from planner.plans.offers import Offer, offers, unreadable
from planner.plans.published import Comparison, compare_with_published
from planner.plans.search import REPLAYED, Effort, redrawn, search
from planner.plans.space import Space, as_launched, default_space
from planner.sglang.dialects import to_argv

NODE_STEPS = (2, 4, 8)
LARGEST_SKEW = 3.0
# A normal variable is below its mean and so many standard deviations in 99 of 100 cases.
P99_SIGMAS = 2.326
# Searches of an open loop: for the scatter of arrivals alone, then for what the replay showed.
SIZINGS = 2
# The second one provides for so many times that p99: other arrivals at random would show another.
RESIZED = 1.15
# Families replayed event by event under arrivals: each takes several times as long as a closed loop.
OPEN_LOOP_FAMILIES = 6
# Of the memory fractions every so many are tried while clients are bisected, of the chunks every second.
COARSE = 3
# Families replayed per step while the number of clients is bisected: the leaders decide.
FAMILIES_WHILE_BISECTING = 3
# A closed form so many times slower per token than what is asked carries nobody at that speed: it is 13 % too slow at
# most where a replay says otherwise.
HOPELESS = 1.5
# So many numbers of clients a server, each with a server more than the one before, are tried in the whole space.
MORE_SERVERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuestion:
    """What the user asks. Exactly one of concurrency, request_rate and users is given."""

    hardware: HardwareProfile
    arch: ModelArchitecture
    version: Version
    isl: int
    osl: int
    range_ratio: float = 1.0
    concurrency: int | None = None
    request_rate: float | None = None
    users: int | None = None
    min_user_tok_s: float | None = None
    slos: tuple[Slo, ...] = ()
    mtp: bool = True
    acceptance: float = DEFAULT_ACCEPTANCE
    sigma: float | None = None
    engine: EngineProfile | None = None
    model_path: str | None = None

    @property
    def served_path(self) -> str:
        """What launch commands serve: `model_path`, else the model's name."""
        return self.arch.name if self.model_path is None else self.model_path

    def checked(self) -> PlanQuestion:
        """Raise InputError for a question that has no meaning; return the question otherwise."""
        loads = [self.concurrency is not None, self.request_rate is not None, self.users is not None]
        if sum(loads) != 1:
            raise InputError(
                "specify the load with one of --concurrency N, --request-rate R, or --users N with --min-user-tok-s X"
            )
        if (self.users is None) != (self.min_user_tok_s is None):
            raise InputError("--users and --min-user-tok-s go together: N users at X tok/s each")
        for name, value in (
            ("request_rate", self.request_rate), ("min_user_tok_s", self.min_user_tok_s), ("users", self.users),
        ):  # fmt: skip
            if value is not None:
                within(value, f"--{name.replace('_', '-')}", REQUESTS[name])
        if self.sigma is not None and not 0.0 <= self.sigma <= LARGEST_SKEW:
            raise InputError(f"--expert-skew is {self.sigma:g}; it must be from 0 (uniform) to {LARGEST_SKEW:g}")
        if not 0.0 <= self.acceptance < 1.0:
            raise InputError(f"--mtp-acceptance is {self.acceptance:g}; it must be from 0 to below 1")
        longest = self.workload(1 if self.concurrency is None else self.concurrency).longest_request
        if longest > self.arch.max_position_embeddings:
            raise InputError(
                f"--isl {self.isl:,} and --osl {self.osl:,} together exceed the model's context of "
                f"{self.arch.max_position_embeddings:,} tokens"
            )
        return self

    @property
    def all_slos(self) -> tuple[Slo, ...]:
        """The SLOs, and the speed per user written as one."""
        if self.min_user_tok_s is None:
            return self.slos
        return (*self.slos, Slo(metric=Metric.TPOT, statistic=Statistic.MEAN, limit_ms=1e3 / self.min_user_tok_s))

    def workload(self, concurrency: int) -> Workload:
        return Workload.checked(self.isl, self.osl, concurrency, self.range_ratio)

    def context(self) -> Context:
        """Return the inputs of predictions, with the engine profile of the requested version."""
        engine = self.engine or profile_on(self.hardware, self.version)
        return Context(
            arch=self.arch,
            machine=machine_of(self.hardware),
            engine=engine,
            version=self.version,
            acceptance=self.acceptance,
            sigma=self.sigma,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer: candidates best first, the rejected ones with reasons, and warnings.

    `load` is one server's load; `replicas` servers carry the whole, on `nodes` nodes. `offers` are other exports of the
    model, where this hardware cannot run the one asked for.
    """

    question: PlanQuestion
    context: Context
    fits: bool
    meets_target: bool
    nodes: int
    replicas: int
    concurrency: int
    found: Found
    node_answer: str | None
    load: Workload
    published: Comparison | None
    warnings: tuple[str, ...]
    offers: tuple[Offer, ...] = ()

    @property
    def best(self) -> Candidate | None:
        return self.found.candidates[0] if self.found.candidates else None

    @property
    def shortage_gib(self) -> float | None:
        """GiB per GPU that the nearest configuration lacks, when none fits."""
        short = [item.shortage_gib for item in self.found.rejected if item.shortage_gib > 0]
        return min(short) if short and not self.found.candidates else None

    def argv(self, candidate: Candidate) -> list[str]:
        """Return the SGLang flags of a candidate, in the words of the version asked for."""
        return to_argv(as_launched(candidate.config, self.context.version), self.context.version)

    def pareto(self) -> list[int]:
        """Return the candidates on the front of tok/s per GPU against tok/s per user."""
        return pareto_front([(c.output_tok_s / c.gpus, c.prediction.user_tok_s) for c in self.found.candidates])


def make_plan(question: PlanQuestion, families: int = REPLAYED) -> Plan:
    """Answer the question. Raises InputError for bad input; an infeasible target is an answer.

    Of a given number of clients the best `families` are replayed and returned.
    """
    question.checked()
    context = question.context()
    result, concurrency, replicas, target_met = _solve(question, context, families)
    best = result.candidates[0] if result.candidates else None
    nodes_needed, node_answer = context.machine.nodes * replicas, None
    if best is None and not unreadable(result):
        nodes_needed, node_answer = more_nodes(question, context, concurrency)
    published = None
    if question.concurrency is not None:
        published = compare_with_published(context, question.hardware.name, question.workload(concurrency))
    return Plan(
        question=question,
        context=context,
        fits=best is not None,
        meets_target=best is not None and target_met and not best.misses,
        nodes=nodes_needed,
        replicas=replicas,
        concurrency=concurrency,
        found=result,
        node_answer=node_answer,
        load=replace(question.workload(concurrency), request_rate=question.request_rate),
        published=published,
        warnings=_warnings(question, context, best),
        offers=() if best is not None else offers(context, question.workload(concurrency), result),
    )


def _solve(question: PlanQuestion, context: Context, families: int) -> tuple[Found, int, int, bool]:
    """Return the search result, its clients per server, the servers needed, and success."""
    space = default_space(context.machine, context.version, arch=context.arch, mtp=question.mtp)

    slos = question.all_slos

    def at(concurrency: int) -> Found:
        effort = Effort(replayed=families, all_at_once=question.users is not None)
        return search(context, space, question.workload(concurrency), slos, effort)

    def glance(concurrency: int) -> Found:
        effort = Effort(replayed=FAMILIES_WHILE_BISECTING)
        return search(context, coarse, question.workload(concurrency), slos, effort)

    def carried(clients: int) -> bool:
        effort = Effort(
            replayed=FAMILIES_WHILE_BISECTING,
            enough=lambda candidate: carries(candidate, clients),
            hopeless_tpot_ms=HOPELESS * 1e3 / (question.min_user_tok_s or 1.0),
            all_at_once=True,
        )
        result = search(context, coarse, question.workload(clients), slos, effort)
        return any(carries(candidate, clients) for candidate in result.candidates)

    coarse = replace(space, fractions=space.fractions[::COARSE], chunks=space.chunks[::2])
    if question.request_rate is not None:
        return _solve_rate(question, context, space, glance)
    if question.users is not None:
        each = users_per_server(carried, question.users)
        if each == 0:
            return at(1), 1, 1, False
        return servers_for(question.users, each, at)
    assert question.concurrency is not None  # checked: exactly one is given
    return at(question.concurrency), question.concurrency, 1, True


def servers_for(users: int, each: int, at: Callable[[int], Found]) -> tuple[Found, int, int, bool]:
    """Return the fewest servers that carry the users, by the whole space: `each` was found among a part of it.

    One server fewer is tried where the part's answer is near that; more of them where its answer does not hold.
    """
    servers = -(-users // each)
    fewer = -(-users // one_fewer(users, each))
    if servers > 1 and fewer <= NEAR_ENOUGH * each:
        result = _carrying_first(at(fewer), fewer)
        if _carried(result, fewer):
            return result, fewer, servers - 1, True
    for _ in range(MORE_SERVERS):
        clients = -(-users // servers)
        result = _carrying_first(at(clients), clients)
        if _carried(result, clients) or clients == 1:
            break
        servers = -(-users // (clients - 1))
    return result, clients, -(-users // clients), True


def _carrying_first(result: Found, clients: int) -> Found:
    """Put what serves all clients at once before what gives more tokens while some wait in line."""
    ordered = sorted(result.candidates, key=lambda candidate: not carries(candidate, clients))
    return replace(result, candidates=tuple(with_reasons(ordered)))


def _carried(result: Found, clients: int) -> bool:
    return bool(result.candidates) and carries(result.candidates[0], clients)


def _solve_rate(
    question: PlanQuestion, context: Context, space: Space, glance: Callable[[int], Found]
) -> tuple[Found, int, int, bool]:
    """Plan arrivals at a rate: caps, graphs and memory for the p99 in flight, latencies by replay of the open loop.

    The mean in flight comes from the closed loop that gives the rate (Little's law). Arrivals scatter around it, by the
    square root of it at least; a second search provides for the excess that the replay of the best shows.
    """
    rate = float(question.request_rate or 0.0)
    mean, met = concurrency_for_rate(glance, rate)
    in_flight = math.ceil(mean + P99_SIGMAS * math.sqrt(mean))
    result, workload = Found(candidates=(), rejected=(), evaluated=0), question.workload(1)
    for _ in range(SIZINGS):
        workload = replace(question.workload(min(in_flight, MOST_CLIENTS)), request_rate=rate)
        result = search(context, space, workload, question.all_slos, Effort(replayed=OPEN_LOOP_FAMILIES))
        in_flight_seen = result.candidates[0].prediction.in_flight if result.candidates else None
        if in_flight_seen is None or in_flight_seen.p99 <= in_flight or in_flight >= MOST_CLIENTS or not met:
            break
        in_flight = 2 * in_flight if in_flight_seen.grows else math.ceil(RESIZED * in_flight_seen.p99)
    if result.candidates:
        best = redrawn(context, result.candidates[0], workload, question.all_slos)
        result = replace(result, candidates=tuple(with_reasons([best, *result.candidates[1:]])))
    return result, min(in_flight, MOST_CLIENTS), 1, met


def more_nodes(question: PlanQuestion, context: Context, concurrency: int) -> tuple[int, str | None]:
    """Return the smallest cluster of these nodes that holds the model, and a sentence about it."""
    for factor in NODE_STEPS:
        nodes = context.machine.nodes * factor
        wider = replace(context, machine=context.machine.with_nodes(nodes))
        space = default_space(wider.machine, context.version, arch=context.arch, mtp=False)
        result = search(wider, space, question.workload(concurrency), question.slos)
        if result.candidates:
            best = result.candidates[0]
            clients = "1 client" if concurrency == 1 else f"{concurrency:,} clients"
            return nodes, (
                f"It fits on {nodes} nodes: {best.config.label}, {best.prediction.output_tok_s:,.0f} tok/s for "
                f"{clients}, {best.ledger.kv_tokens:,} KV tokens"
            )
    return context.machine.nodes, None


def _warnings(question: PlanQuestion, context: Context, best: Candidate | None) -> tuple[str, ...]:
    warnings = [*question.hardware.warnings, *context.engine.warnings]
    if context.engine.status == "indicative":
        warnings.append(
            f"SGLang {context.version}: the engine profile rests on {context.engine.points} indicative points; "
            "calibrate on your machine before relying on it"
        )
    family = "Hopper" if context.engine.gpu_family == "hopper" else context.engine.gpu_family
    if context.engine.gpu_family != context.machine.family:
        warnings.append(
            f"the engine profile was fitted on {family} GPUs; on {context.machine.name} expect 20-30 % error"
        )
    if best is not None:
        warnings.extend(best.prediction.warnings)
        low, high = best.prediction.band["tpot_mean_ms"]
        warnings.append(f"90 % band of the mean TPOT of the best configuration: {low:.1f} to {high:.1f} ms")
    return tuple(warnings)
