"""The numbers SGLang derives from the GPU's memory: chunk, graph sizes, memory fraction."""

from __future__ import annotations

from packaging.version import Version

from models.config import ServerConfig
from models.machine import Machine
from models.version import at_least
from planner.sglang.backends import decode_graphs, prefill_graphs

# SGLang up to 0.4.7: the static fraction by TP size.
FRACTION_04 = ((16, 0.79), (8, 0.81), (4, 0.85), (2, 0.87), (1, 0.88))
# GPU memory (MiB) below which a row holds: prefill chunk, decode graphs for tp < 4, for tp >= 4 (from 0.5.3).
MEMORY_TABLE = (
    (20 * 1024, 2048, 8, 8),
    (35 * 1024, 4096, 48, 160),
    (60 * 1024, 4096, 32, 160),
    (90 * 1024, 8192, 256, 512),
    (160 * 1024, 8192, 256, 512),
    (float("inf"), 16384, 512, 512),
)
RESERVE_FLOOR_MIB = 10240
FLOOR_ABOVE_MIB = 60 * 1024
SMALLEST_ACTIVE_TOKENS = 2048
DEFAULT_PREFILL_TOKENS = 16384
FIXED_RESERVE_MIB = 13 * 1024
LARGEST_PREFILL_GRAPH = 8192
LARGEST_LISTED = 2**20  # a typed size beyond this is listed no further
PREFILL_SIZES = (
    *range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), *range(1280, 4097, 256),
)  # fmt: skip


def memory_defaults(config: ServerConfig, machine: Machine, version: Version) -> tuple[int, int]:
    """Return (chunked_prefill_size, cuda_graph_max_bs) by GPU memory.

    0.5.3 brought the table of memory_hook.py:89; before it the graph runner decided (cuda_graph_runner.py).
    """
    mib = machine.memory_gib * 1024
    if at_least(version, "0.5.3"):
        row = next(row for row in MEMORY_TABLE if mib < row[0])
        return int(row[1]), int(row[2] if config.tp_size < 4 else row[3])
    small = mib < (35 * 1024 if at_least(version, "0.4.8") else 25_000)
    large_chunk = mib >= 160 * 1024 and at_least(version, "0.4.8")
    chunk = 2048 if small else 16384 if large_chunk else 8192
    if small:
        return chunk, 8 if config.tp_size < 4 else 80
    if not at_least(version, "0.4.5"):
        return chunk, 160
    if mib > 180 * 1024 and at_least(version, "0.4.8"):
        return chunk, 512
    return chunk, 256 if mib > 96 * 1024 else 160


def decode_graph_sizes(largest: int, *, speculative: bool, padding: bool) -> list[int]:
    """Return the batch sizes SGLang 0.5.13-0.5.23 captures for decode (cuda_graph_hook.py:500)."""
    if not padding:
        return list(range(1, largest + 1))
    if speculative:
        sizes = [*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8), *range(272, largest + 1, 16)]
    else:
        sizes = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, largest + 1, 32)]
    kept = [size for size in sizes if size <= largest]
    return kept if largest in kept else [*kept, largest]


def prefill_graph_sizes(largest: int) -> list[int]:
    """Return the token counts captured for prefill (cuda_graph_hook.py:480)."""
    listed = (*PREFILL_SIZES, *range(4608, min(largest, LARGEST_LISTED) + 1, 512))
    return [size for size in listed if size <= largest]


def default_fraction(config: ServerConfig, machine: Machine, version: Version) -> tuple[float, str]:
    """Return SGLang's mem_fraction_static when none is given, and the reason in words.

    Six formulas from 0.4.3 to 0.5.23, each read from the wheels (server_args.py, from 0.5.17 memory_hook.py).
    """
    mib = machine.memory_gib * 1024
    by_table = not at_least(version, "0.4.5.post3") or (not at_least(version, "0.4.8") and mib <= 81920)
    if by_table:
        fraction = next((value for tp, value in FRACTION_04 if config.tp_size >= tp), FRACTION_04[-1][1])
        return fraction, f"SGLang {version} takes it from a table by tp_size"
    if not at_least(version, "0.4.8"):
        return (mib - FIXED_RESERVE_MIB) / mib, f"{mib:.0f} MiB less {FIXED_RESERVE_MIB} MiB"
    if at_least(version, "0.5.16"):
        parts = reserve_mib(config, mib)
    elif at_least(version, "0.5.3"):
        parts = _reserve_mib_by_size(config, mib, version)
    else:
        parts = {"by card and ranks": _reserve_mib_by_card(config, mib)}
    reserve = sum(parts.values())
    largest = ", ".join(f"{name} {part:,.0f}" for name, part in parts.items() if part)
    reason = f"{mib:.0f} MiB less a reserve of {reserve:.0f} MiB for chunks, graphs and ranks ({largest})"
    return round((mib - reserve) / mib, 3), reason


def reserve_mib(config: ServerConfig, mib: float) -> dict[str, float]:
    """Return what SGLang 0.5.16-0.5.23 holds back of `mib`, by owner in MiB (memory_hook.py:275).

    Order matters: this happens before the chunk is divided over attention-DP ranks, before speculation caps the
    requests, and before later steps turn graphs off. Checked by the oracle against SGLang's own resolver.
    """
    graph = config.cuda_graph_max_bs_decode or 0
    mode = config.flag("disaggregation_mode", "null")
    decode, prefill, a2a = decode_graphs(config), prefill_graphs(config), config.moe_a2a_backend
    dp_mib = 0.0
    if config.attn_dp_size > 1 and mode != "prefill":
        dp_mib = graph * config.attn_dp_size * (4.5 if graph > 300 else 3.0)
    parts = {
        "constant": 512.0,
        "activations": 1.5 * _active_tokens(config, mode),
        "ranks": 1024 * config.tp_size * config.pp_size / 8,
        "decode graphs": 2.0 * graph if decode and mode != "prefill" else 0.0,
        "attention-DP padding": dp_mib,
        "prefill graphs": 1536.0 if prefill and mode != "decode" else 0.0,
        "deepep prefill": 1024.0 if prefill == "breakable" and mode != "decode" and a2a == "deepep" else 0.0,
    }
    if mib > FLOOR_ABOVE_MIB:
        parts["floor"] = max(0.0, RESERVE_FLOOR_MIB - sum(parts.values()))
    parts["deepep decode"] = 2048.0 if decode and mode != "prefill" and a2a == "deepep" else 0.0
    return parts


def _active_tokens(config: ServerConfig, mode: str) -> int:
    if mode == "decode":
        requests = config.max_running_requests or config.cuda_graph_max_bs_decode or 1
        spec = config.speculative
        drafts = spec.num_draft_tokens if spec else config.flag("speculative_num_draft_tokens") or 1
        return max(requests * int(drafts), SMALLEST_ACTIVE_TOKENS)
    chunk = config.chunked_prefill_size or 0
    return max(chunk if chunk > 0 else config.max_prefill_tokens or DEFAULT_PREFILL_TOKENS, SMALLEST_ACTIVE_TOKENS)


def _reserve_mib_by_size(config: ServerConfig, mib: float, version: Version) -> dict[str, float]:
    """SGLang 0.5.3-0.5.15: chunks and graphs, whether captured or not; drafts until 0.5.13."""
    graph = config.cuda_graph_max_bs_decode or 0
    chunk = config.chunked_prefill_size or 0
    active = max(chunk if chunk > 0 else config.max_prefill_tokens or DEFAULT_PREFILL_TOKENS, SMALLEST_ACTIVE_TOKENS)
    prefill = at_least(version, "0.5.10") and not config.flag("disable_piecewise_cuda_graph")
    if at_least(version, "0.5.14"):
        prefill = prefill_graphs(config) is not None
    parts = {
        "constant": 512.0,
        "activations": 1.5 * active,
        "ranks": 1024 * config.tp_size * config.pp_size / 8,
        "decode graphs": 2.0 * graph,
        "attention-DP padding": graph * config.attn_dp_size * (4.5 if graph > 300 else 3.0)
        if config.attn_dp_size > 1
        else 0.0,
        "prefill graphs": 1536.0 if prefill else 0.0,
    }
    if mib > FLOOR_ABOVE_MIB:
        parts["floor"] = max(0.0, RESERVE_FLOOR_MIB - sum(parts.values()))
    if not at_least(version, "0.5.14"):
        parts["drafts"] = _draft_mib(config, 4096.0 if at_least(version, "0.5.10") else 2048.0)
    return parts


def _draft_mib(config: ServerConfig, eagle_mib: float) -> float:
    algorithm = "EAGLE" if config.speculative else config.flag("speculative_algorithm")
    if algorithm in (None, "NGRAM"):
        return 0.0
    return 6144.0 if algorithm == "STANDALONE" else eagle_mib


def _reserve_mib_by_card(config: ServerConfig, mib: float) -> float:
    """SGLang 0.4.8-0.5.2: by GPU memory and ranks, more for speculation and attention DP."""
    ranks = config.tp_size * config.pp_size
    gib = 2.8 + ranks / 10
    if mib >= 160 * 1024:
        gib = 32.0
    elif mib >= 35 * 1024:
        gib = (9.5 if mib < 90 * 1024 else 12.0) + ranks / 2
    gib += 2.0 if config.speculative else 0.0
    gib += 4.0 if config.attn_dp_size > 1 else 0.0
    return gib * 1024
