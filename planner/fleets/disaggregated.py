"""Prefill/decode fleets: every ratio of servers and every layout of a role, by rates first, then by replay.

In closed form the rate X of requests per second follows from X x (prefill + transfer + decode) = clients, with a decode
step that grows with the batch it holds, and X no more than the prefill servers give. The best few are replayed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from models.config import ServerConfig
from models.layout import Array
from models.serving.estimate import Context
from models.workload import Metric, Slo, Workload
from planner.fleets.pool_rates import PoolRates, Upstream, solve_rates
from planner.fleets.role_servers import (
    DecodeTable,
    PrefillRoleServer,
    decode_server,
    decode_table,
    is_allowed,
    prefill_rate,
    prefill_servers,
)
from planner.fleets.split_replay import RoleSplit, Sides, replayed, transfer_between
from planner.plans.candidates import Candidate
from planner.plans.search import final_key
from planner.plans.space import MTP_STEPS, checkpoint_flags, layouts
from planner.sglang.flags import flags_of

ROLE_FLAG = "disaggregation_mode"
# Ratios of one number of servers that are tried: every one up to so many servers.
MOST_RATIOS = 32
# Machines that one decode server spans.
DECODE_WIDTHS = (1, 2, 4)
# Deployments replayed event by event.
REPLAYED = 3


def role_sizes(context: Context, servers: int) -> list[Sides]:
    """Return how `servers` machines, each the smallest server of `context`, may be shared between the roles.

    Decode servers span one, two or four of them (wide EP); of many machines every so many ratios are tried.
    """
    options = []
    for width in DECODE_WIDTHS:
        most = (servers - 1) // width
        step = max(1, most // MOST_RATIOS)
        ratios = tuple((servers - width * decode, decode) for decode in range(step, most + 1, step))
        machine = context.machine if width == 1 else context.machine.with_nodes(context.machine.nodes * width)
        options.append(Sides(prefill=context, decode=replace(context, machine=machine), ratios=ratios))
    return options


def can_disaggregate(context: Context) -> bool:
    """Say whether the release has prefill and decode servers."""
    return ROLE_FLAG in flags_of(context.version).by_dest


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetQuestion:
    """What is asked of a fleet: its whole load, its limits, and whether MTP may be used.

    The prefill servers of a machine are the same for every number of them, and kept.
    """

    workload: Workload
    slos: tuple[Slo, ...]
    mtp: bool
    kept: dict[int, tuple[Context, dict[int, PrefillRoleServer]]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def prefill_servers(self, context: Context) -> dict[int, PrefillRoleServer]:
        """Return the best prefill server of a machine for each MTP depth that is planned."""
        if id(context) not in self.kept:
            depths = MTP_STEPS if self.mtp and context.arch.has_mtp else (0,)
            self.kept[id(context)] = context, prefill_servers(context, _layouts(context), self.workload, depths)
        return self.kept[id(context)][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalists:
    """Which deployments are replayed: `most` of them, each with another number of servers, or with MTP or without.

    `by_layout`: with another layout of the decode servers, too.
    """

    most: int = REPLAYED
    by_layout: bool = False


def disaggregated(
    options: Sequence[Sides], question: FleetQuestion, finalists: Finalists = Finalists()
) -> list[Candidate]:
    """Return the best prefill/decode deployments among the options, best first."""
    return best_first([leader.replayed() for leader in leaders(options, question, finalists)], question)


def leaders(options: Sequence[Sides], question: FleetQuestion, finalists: Finalists = Finalists()) -> list[FleetLeader]:
    """Return the deployments to replay: the best in closed form, best first."""
    usable = [sides for sides in options if sides.ratios and can_disaggregate(sides.decode)]
    rated = [rows for rows in (_rated(sides, question) for sides in usable) if rows is not None]
    return list(itertools.islice(_leading(rated, question, by_layout=finalists.by_layout), finalists.most))


def best_first(candidates: Sequence[Candidate], question: FleetQuestion) -> list[Candidate]:
    """Order deployments: those that miss least first, of equals those that give most."""
    return sorted(candidates, key=lambda c: (fleet_key(c, question.workload, question.slos), -c.output_tok_s))


def fleet_key(candidate: Candidate, workload: Workload, slos: tuple[Slo, ...]) -> float:
    """Return by how much (log) the fleet misses its worst limit; 0 when it keeps all."""
    each = replace(workload, concurrency=max(1, -(-workload.concurrency // candidate.servers)))
    return final_key(candidate.prediction, each, slos)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rated:
    """Every decode layout at every ratio of two sides, with the prefill server of its MTP depth, in closed form.

    `excess` is the worst excess over the limits (log, of the means), 0 where all are kept; `before_decode` how long a
    request waits for its first token, by the time that its decode takes.
    """

    sides: Sides
    prefill: dict[int, PrefillRoleServer]
    table: DecodeTable
    excess: Array
    requests_s: Array
    before_decode: Array

    def kind(self, row: int, *, by_layout: bool) -> tuple[int, int, bool, str]:
        """What a reader would call another deployment: GPUs of a decode server, how many of them, MTP or none."""
        config = self.table.configs[row]
        layout = config.label if by_layout else ""
        return config.gpu_count, int(self.table.servers[row]), bool(self.table.depth[row]), layout

    def is_allowed(self, row: int) -> bool:
        return is_allowed(self.sides.decode, self.table.configs[row])

    def split(self, row: int) -> RoleSplit:
        """Return one row as a deployment."""
        decode_servers = int(self.table.servers[row])
        batch = int(self.table.table.most_running[row])
        return RoleSplit(
            prefill=self.prefill[int(self.table.depth[row])],
            prefill_servers=self.sides.prefill_count[decode_servers],
            decode=decode_server(self.sides.decode, self.table.configs[row], batch=batch),
            decode_servers=decode_servers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLeader:
    """A deployment that is among the best in closed form."""

    question: FleetQuestion
    rows: _Rated
    row: int

    @property
    def before_decode(self) -> float:
        """Return how long a request waits for its first token in closed form, by the time that its decode takes."""
        return float(self.rows.before_decode[self.row])

    def replayed(self) -> Candidate:
        """Replay the deployment and return it as a candidate."""
        return replayed(self.rows.sides, self.rows.split(self.row), self.question.workload, self.question.slos)


def _layouts(context: Context) -> list[ServerConfig]:
    return list(layouts(context.machine, context.version, checkpoint_flags(context.arch, context.version)))


def _rated(sides: Sides, question: FleetQuestion) -> _Rated | None:
    """Rate every ratio and layout of the two sides; None where no decode server fits."""
    context, workload = sides.decode, question.workload
    prefill = question.prefill_servers(sides.prefill)
    shapes = _layouts(context)
    table = decode_table(context, shapes, workload, depths=tuple(prefill), counts=tuple(sides.prefill_count))
    if table is None:
        return None
    isl = workload.isl.mean
    rates = {depth: prefill_rate(server.model, isl) for depth, server in prefill.items()}
    one = np.array([rates[int(depth)] for depth in table.depth])
    upstream = Upstream(
        most_requests_s=one * np.array([sides.prefill_count[int(count)] for count in table.servers]),
        before_s=1.0 / one + transfer_between(sides).seconds(round(isl)),
    )
    solved = solve_rates(context, table, upstream, workload)
    return _Rated(
        sides=sides,
        prefill=prefill,
        table=table,
        excess=_excess(solved, question.slos),
        requests_s=solved.requests_s,
        before_decode=solved.ttft_s / (solved.e2e_s - solved.ttft_s),
    )


def _leading(rated: Sequence[_Rated], question: FleetQuestion, *, by_layout: bool) -> Iterator[FleetLeader]:
    """Yield the best layout of each deployment, best first in closed form: ten layouts of one would tell less."""
    if not rated:
        return
    places = [(rows, row) for rows in rated for row in range(len(rows.excess))]
    excess, requests_s = (np.concatenate([getattr(rows, name) for rows in rated]) for name in ("excess", "requests_s"))
    yielded = set()
    for place in np.lexsort((-requests_s, excess)).tolist():
        rows, row = places[place]
        kind = rows.kind(row, by_layout=by_layout)
        if kind not in yielded and rows.is_allowed(row):
            yielded.add(kind)
            yield FleetLeader(question=question, rows=rows, row=row)


def _excess(rates: PoolRates, slos: tuple[Slo, ...]) -> Array:
    seconds: dict[Metric, Array] = {Metric.TTFT: rates.ttft_s, Metric.TPOT: rates.tpot_s, Metric.E2E: rates.e2e_s}
    worst = np.zeros_like(rates.requests_s)
    for slo in slos:
        worst = np.maximum(worst, np.log(seconds[slo.metric] * 1e3 / slo.limit_ms))
    return worst
