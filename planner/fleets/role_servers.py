"""Servers of one role: the prefill server that prefills most, and every decode server worth trying, as one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from packaging.version import Version

from models.config import ServerConfig, Speculative
from models.costs.memory import GOOD_FREE_GIB, Memory
from models.layout import Array, ConfigTable, table_of
from models.serving.estimate import Context, limits_of
from models.serving.role_times import PrefillModel, ServerModel, decode_context, decode_role, prefill_role
from models.serving.step_times import StepTimes
from models.version import at_least
from models.workload import Workload
from planner.plans.space import FRACTIONS, graph_size
from planner.rules import Question, first_error
from planner.rules.serving import BALANCE_ASKED, BALANCE_SETTLED
from planner.sglang.resolver import resolve

# Chunks tried on prefill servers: each pass is one chunk, larger ones fill the GEMMs, smaller ones share a pass.
PREFILL_CHUNKS = (8192, 16384, 32768)
# Requests a prefill server holds per attention-DP rank.
PREFILL_PER_RANK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleServer:
    """One server of a role: configuration, ledger and step times."""

    config: ServerConfig
    filled: Memory
    model: ServerModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillRoleServer:
    """One prefill server: configuration, ledger and the times of its passes."""

    config: ServerConfig
    filled: Memory
    model: PrefillModel


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTable:
    """Decode servers as rows: each with `servers` of its kind, the largest memory fraction that keeps enough free."""

    configs: tuple[ServerConfig, ...]
    depth: Array
    servers: Array
    table: ConfigTable
    kv_tokens: Array


def is_allowed(context: Context, config: ServerConfig) -> bool:
    """Say whether SGLang would start the configuration."""
    question = Question(config=config, arch=context.arch, machine=context.machine, version=context.version)
    return first_error(question) is None


def prefill_servers(
    context: Context, shapes: Sequence[ServerConfig], workload: Workload, depths: Sequence[int]
) -> dict[int, PrefillRoleServer]:
    """Return for each MTP depth the prefill server that prefills most requests per second.

    The rate is that of the layout without the draft layer, which decides only what fits.
    """
    rated = []
    for shape in shapes:
        for chunk in PREFILL_CHUNKS if shape.pp_size == 1 else ():
            server = _prefill_server(context, shape, chunk, 0)
            if server is not None:
                rated.append((prefill_rate(server.model, workload.isl.mean), shape, chunk))
    rated.sort(key=lambda item: -item[0])
    by_depth = {}
    for depth in depths:
        servers = (_prefill_server(context, shape, chunk, depth) for _, shape, chunk in rated)
        best = next((server for server in servers if server is not None), None)
        if best is not None:
            by_depth[depth] = best
    return by_depth


def _prefill_server(context: Context, shape: ServerConfig, chunk: int, depth: int) -> PrefillRoleServer | None:
    typed = with_depth(shape, depth).with_flags(disaggregation_mode="prefill")
    resolved = resolve(typed, context.arch, context.machine, context.version).config
    most = shape.attn_dp_size * PREFILL_PER_RANK
    config = replace(
        resolved,
        chunked_prefill_size=chunk,
        max_running_requests=most,
        cuda_graph_max_bs_decode=PREFILL_PER_RANK,  # it never decodes: the smallest that no rule minds
    )
    if not is_allowed(context, config):
        return None
    table = table_of([config])
    best = _largest_fraction(context, table)
    if not np.isfinite(best[0]):
        return None
    server = role_server(context, replace(config, mem_fraction_static=float(best[0])), batch=1)
    return PrefillRoleServer(
        config=server.config, filled=server.filled, model=prefill_role(server.model, config, context)
    )


def with_depth(shape: ServerConfig, depth: int) -> ServerConfig:
    """Return the layout with a chain of `depth` drafted tokens, or without MTP."""
    return replace(shape, speculative=Speculative.chain(depth) if depth else None)


def _largest_fraction(context: Context, table: ConfigTable) -> Array:
    """Return each row's largest memory fraction that keeps enough free; NaN where none does."""
    best = np.full(len(table.tp), np.nan)
    for fraction in FRACTIONS:
        filled = context.memory(replace(table, mem_fraction=np.full_like(table.tp, fraction)))
        best = np.where((filled.free >= GOOD_FREE_GIB) & (filled.kv_tokens_per_rank > 0), fraction, best)
    return best


def decode_server(context: Context, config: ServerConfig, *, batch: int) -> RoleServer:
    """Return a decode server with step times up to `batch` running requests."""
    server = role_server(decode_context(context, config), config, batch=batch)
    return replace(server, model=decode_role(server.model, config, context))


def role_server(context: Context, config: ServerConfig, *, batch: int) -> RoleServer:
    """Return a server of this configuration with step times up to `batch` running requests."""
    table = table_of([config])
    filled = context.memory(table)
    limits = limits_of(config, table, float(filled.kv_tokens[0]))
    largest = int(max(1, min(batch, limits.max_running)))
    times = StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=largest)
    return RoleServer(config=config, filled=filled, model=ServerModel(times=times, limits=limits))


def decode_table(
    context: Context,
    shapes: Sequence[ServerConfig],
    workload: Workload,
    *,
    depths: Sequence[int],
    counts: Sequence[int],
) -> DecodeTable | None:
    """Return decode servers of every layout and depth, for each of `counts` of them; None where none fits."""
    rows = list(_decode_rows(context, shapes, workload, depths, counts))
    if not rows:
        return None
    configs = [config for _, _, config in rows]
    table = table_of(configs)
    best = _largest_fraction(context, table)
    fitting = np.flatnonzero(np.isfinite(best))
    if not len(fitting):
        return None
    table = replace(table.take(fitting), mem_fraction=best[fitting])
    return DecodeTable(
        configs=tuple(replace(configs[row], mem_fraction_static=float(best[row])) for row in fitting.tolist()),
        depth=np.array([float(rows[row][0]) for row in fitting.tolist()]),
        servers=np.array([float(rows[row][1]) for row in fitting.tolist()]),
        table=table,
        kv_tokens=context.memory(table).kv_tokens,
    )


def _decode_rows(
    context: Context, shapes: Sequence[ServerConfig], workload: Workload, depths: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[int, int, ServerConfig]]:
    """Yield depth, servers and configuration: caps and graphs hold each server's share of all clients."""
    for depth in depths:
        for shape in shapes:
            typed = with_depth(shape, depth).with_flags(
                disaggregation_mode="decode", **_balance(shape, context.version)
            )
            resolved = resolve(typed, context.arch, context.machine, context.version).config
            same = {field.name: getattr(resolved, field.name) for field in fields(resolved)}
            for servers in counts:
                per_rank = -(-workload.concurrency // (servers * shape.attn_dp_size))
                own = {
                    "max_running_requests": per_rank * shape.attn_dp_size,
                    "cuda_graph_max_bs_decode": graph_size(per_rank),
                }
                yield depth, servers, ServerConfig(**same | own)


def _balance(shape: ServerConfig, version: Version) -> dict[str, bool]:
    """Return the flag without which some releases start no decode server of several DP ranks."""
    needed = shape.attn_dp_size > 1 and at_least(version, BALANCE_ASKED) and not at_least(version, BALANCE_SETTLED)
    return {"prefill_round_robin_balance": True} if needed else {}


def prefill_rate(server: PrefillModel, isl: float) -> float:
    """Return the requests of `isl` tokens one prefill server completes per second with full passes."""
    chunk = float(server.limits.chunk)
    together = max(1, int(chunk // isl))
    if isl <= chunk:
        return together / server.times.prefill_s(together, together * isl, together * 0.5 * isl * isl)
    seconds, prefilled = 0.0, 0.0
    while prefilled < isl:
        take = min(chunk, isl - prefilled)
        seconds += server.times.prefill_s(1, take, take * (0.5 * take + prefilled))
        prefilled += take
    return 1.0 / seconds
