"""The numbers SGLang derives from the GPU's memory: chunk, graph sizes, memory fraction."""

from __future__ import annotations

from packaging.version import Version

from models.config import ServerConfig
from models.machine import Machine
from models.phases import decode_graphs, prefill_graphs
from models.version import at_least

# SGLang up to 0.4.7: the static fraction by ranks.
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
# Cards of the table's second row (RTX 4090 and 5090) had smaller chunks and graphs before 0.5.20.
SMALL_UP_TO_MIB = (20 * 1024, 35 * 1024)
RESERVE_FLOOR_MIB = 10240
FLOOR_ABOVE_MIB = 60 * 1024
SMALLEST_ACTIVE_TOKENS = 2048
DEFAULT_PREFILL_TOKENS = 16384
FIXED_RESERVE_MIB = 13 * 1024
# Up to this card memory (MiB) the table by ranks held until 0.4.7; above it 0.88, of which large cards take more.
TABLE_UP_TO_MIB = 81920
FRACTION_LARGE = 0.88
FRACTION_BLACKWELL_047 = 0.79
SMALL_MIB = 25_000
LISTED_BEFORE = 160  # the largest batch the graph runner lists by itself before 0.5.3
LARGEST_PREFILL_GRAPH = 8192
LARGEST_LISTED = 2**20  # a typed size beyond this is listed no further
# Flags beside which 0.5.10-0.5.13 capture no piecewise prefill graphs.
NO_PIECEWISE_GRAPHS = (
    "disable_piecewise_cuda_graph", "enable_torch_compile", "lora_paths", "enable_lora", "cpu_offload_gb",
    "enable_hierarchical_cache", "enable_deterministic_inference", "enable_symm_mem", "enable_eplb",
    "expert_distribution_recorder_mode", "debug_cuda_graph",
)  # fmt: skip
PREFILL_SIZES = (
    *range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), *range(1280, 4097, 256),
)  # fmt: skip


def memory_defaults(config: ServerConfig, machine: Machine, version: Version) -> tuple[int, int]:
    """Return (chunked_prefill_size, cuda_graph_max_bs) by GPU memory, as the wheel's own code computes them.

    0.5.3 brought the table of memory_hook.py:89; before it server_args.py chose the chunk and the graph runner the
    sizes (cuda_graph_runner.py).
    """
    mib = machine.memory_gib * 1024
    if at_least(version, "0.5.3"):
        row = next(row for row in MEMORY_TABLE if mib < row[0])
        if SMALL_UP_TO_MIB[0] <= mib < SMALL_UP_TO_MIB[1] and not at_least(version, "0.5.20"):
            return 2048, 80 if config.tp_size >= 4 else 24 if at_least(version, "0.5.5") else 16
        return int(row[1]), int(row[2] if config.tp_size < 4 else row[3])
    return _chunk_before_table(config, mib, version), _graph_before_table(config, mib, version)


def _chunk_before_table(config: ServerConfig, mib: float, version: Version) -> int:
    if at_least(version, "0.4.7.post1"):
        return 2048 if mib < 35 * 1024 else 8192 if mib < 160 * 1024 else 16384
    if mib < SMALL_MIB:
        return 2048
    disaggregated = config.flag("disaggregation_mode", "null") != "null" and at_least(version, "0.4.6.post2")
    return 16384 if disaggregated or (mib > 180_000 and at_least(version, "0.4.7")) else 8192


def _graph_before_table(config: ServerConfig, mib: float, version: Version) -> int:
    """The largest decode graph the graph runner lists by itself before 0.5.3."""
    if mib < (35 * 1024 if at_least(version, "0.4.7.post1") else SMALL_MIB):
        return 8 if config.tp_size < 4 else 80
    listed = LISTED_BEFORE
    if speculates(config) and not at_least(version, "0.4.7"):  # a list of its own, in longer steps
        listed = 152 if at_least(version, "0.4.4.post4") else 32
    if not at_least(version, "0.4.5.post3"):
        return listed
    if not at_least(version, "0.4.6.post2"):
        one_replica = config.attn_dp_size == 1 and int(config.flag("dp_size", 1)) == 1
        return 256 if mib > TABLE_UP_TO_MIB and (one_replica or not at_least(version, "0.4.6")) else listed
    if not at_least(version, "0.4.7.post1"):
        huge = mib > 180_000 and at_least(version, "0.4.7")
        return 512 if huge else 256 if mib > 96 * 1024 else listed
    return 512 if mib > 160_000 else 256 if mib > 90 * 1024 else listed


def decode_graph_sizes(largest: int, *, speculative: bool, padding: bool) -> list[int]:
    """Return the batch sizes SGLang 0.5.13-0.5.23 captures for decode (cuda_graph_hook.py:500)."""
    if not padding:
        return list(range(1, largest + 1))
    if speculative:
        sizes = [*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8), *range(272, largest + 1, 16)]
    else:
        sizes = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, largest + 1, 32)]
    captured = [size for size in sizes if size <= largest]
    return captured if largest in captured else [*captured, largest]


def prefill_graph_sizes(largest: int) -> list[int]:
    """Return the token counts captured for prefill (cuda_graph_hook.py:480)."""
    listed = (*PREFILL_SIZES, *range(4608, min(largest, LARGEST_LISTED) + 1, 512))
    return [size for size in listed if size <= largest]


def default_fraction(config: ServerConfig, machine: Machine, version: Version) -> tuple[float, str]:
    """Return SGLang's mem_fraction_static when none is given, and the reason in words.

    Eight formulas from 0.4.3 to 0.5.23, each read from the wheels (server_args.py, from 0.5.17 memory_hook.py) and
    compared with them by the oracle.
    """
    mib = machine.memory_gib * 1024
    if not at_least(version, "0.4.7.post1"):
        return _fraction_before_reserves(config, machine, version)
    if at_least(version, "0.5.16"):
        parts = reserve_mib(config, mib)
    elif at_least(version, "0.5.3"):
        parts = _reserve_mib_by_size(config, machine, version)
    else:
        parts = {"by card and ranks": _reserve_mib_by_card(config, mib)}
    reserve = sum(parts.values())
    largest = ", ".join(f"{name} {part:,.0f}" for name, part in parts.items() if part)
    reason = f"{mib:.0f} MiB less a reserve of {reserve:.0f} MiB for chunks, graphs and ranks ({largest})"
    return round((mib - reserve) / mib, 3), reason


def _fraction_before_reserves(config: ServerConfig, machine: Machine, version: Version) -> tuple[float, str]:
    """SGLang 0.4.3 to 0.4.7: a table by ranks, then the card's memory less a fixed sum for large cards."""
    mib = machine.memory_gib * 1024
    ranks = config.tp_size * (config.pp_size if at_least(version, "0.4.6.post2") else 1)
    by_ranks = next((value for least, value in FRACTION_04 if ranks >= least), FRACTION_04[-1][1])
    table = f"SGLang {version} takes it from a table by ranks"
    if not at_least(version, "0.4.5.post3"):
        return by_ranks, table
    if not at_least(version, "0.4.6.post2"):
        fixed = f"{mib:.0f} MiB less {FIXED_RESERVE_MIB} MiB"
        return (by_ranks, table) if mib <= TABLE_UP_TO_MIB else ((mib - FIXED_RESERVE_MIB) / mib, fixed)
    fraction = by_ranks if mib <= TABLE_UP_TO_MIB else FRACTION_LARGE
    drafts = at_least(version, "0.4.7") and speculates(config)
    if at_least(version, "0.4.7") and mib > 180_000 and not machine.is_amd:
        return FRACTION_BLACKWELL_047, f"SGLang {version}'s figure for GPUs above 180,000 MiB"
    if mib > 96 * 1024:
        reserve = (20 if drafts else 18) * 1024
        fraction = min(fraction + 48 * 1024 * (1 - fraction) / mib, (mib - reserve) / mib)
        return fraction, f"{FRACTION_LARGE:g} and more on a card above 96 GiB, at most {mib:.0f} less {reserve} MiB"
    why = table if mib <= TABLE_UP_TO_MIB else f"SGLang {version}'s figure for GPUs above 80 GiB"
    return (fraction * 0.95, f"{why}, x 0.95 for speculation") if drafts else (fraction, why)


def speculates(config: ServerConfig) -> bool:
    """Say whether the launch asks for speculative decoding, its numbers settled or not."""
    return config.speculative is not None or config.flag("speculative_algorithm") is not None


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


def _reserve_mib_by_size(config: ServerConfig, machine: Machine, version: Version) -> dict[str, float]:
    """SGLang 0.5.3-0.5.15: chunks and graphs, whether captured or not; drafts until 0.5.13."""
    mib = machine.memory_gib * 1024
    graph = config.cuda_graph_max_bs_decode or 0
    chunk = config.chunked_prefill_size or 0
    active = max(chunk if chunk > 0 else config.max_prefill_tokens or DEFAULT_PREFILL_TOKENS, SMALLEST_ACTIVE_TOKENS)
    prefill = at_least(version, "0.5.10") and _piecewise_graphs(config, machine, version)
    if at_least(version, "0.5.14"):
        prefill = prefill_graphs(config) is not None
    parts = {
        "constant": 512.0,
        "activations": 1.5 * active,
        "ranks": 1024 * config.tp_size * config.pp_size / 8,
        "decode graphs": 2.0 * graph,
        "attention-DP padding": graph * config.attn_dp_size * (4.5 if graph > 300 else 3.0)
        if _dp_attention(config)
        else 0.0,
        "prefill graphs": 1536.0 if prefill else 0.0,
    }
    if mib > FLOOR_ABOVE_MIB:
        parts["floor"] = max(0.0, RESERVE_FLOOR_MIB - sum(parts.values()))
    if not at_least(version, "0.5.14"):
        parts["drafts"] = _draft_mib(config, 4096.0 if at_least(version, "0.5.10") else 2048.0)
    return parts


def _dp_attention(config: ServerConfig) -> bool:
    """Say whether attention DP was asked for: the memory step comes before a degree of 1 turns it off."""
    return config.attn_dp_size > 1 or bool(config.flag("enable_dp_attention"))


def _piecewise_graphs(config: ServerConfig, machine: Machine, version: Version) -> bool:
    """Say whether 0.5.10-0.5.13 keep room for prefill graphs (server_args.py: _handle_piecewise_cuda_graph).

    The memory step asks for them even where graphs are off.
    """
    if config.flag("enforce_piecewise_cuda_graph"):
        return True
    spoilt = _dp_attention(config) or config.pp_size > 1 or config.moe_a2a_backend != "none" or machine.is_amd
    drafts = speculates(config) and not at_least(version, "0.5.12")
    split = int(config.flag("attn_cp_size", 1)) > 1 or config.flag("disaggregation_mode", "null") != "null"
    switches = any(config.flag(name) for name in NO_PIECEWISE_GRAPHS)
    return not (spoilt or drafts or split or switches)


def _draft_mib(config: ServerConfig, eagle_mib: float) -> float:
    algorithm = "EAGLE" if config.speculative else config.flag("speculative_algorithm")
    if algorithm in (None, "NGRAM"):
        return 0.0
    return 6144.0 if algorithm == "STANDALONE" else eagle_mib


def _reserve_mib_by_card(config: ServerConfig, mib: float) -> float:
    """SGLang 0.4.7.post1-0.5.2: by GPU memory and ranks, more for speculation and attention DP."""
    ranks = config.tp_size * config.pp_size
    gib = 2.8 + ranks / 10
    if mib >= 160 * 1024:
        gib = 32.0
    elif mib >= 35 * 1024:
        gib = (9.5 if mib < 90 * 1024 else 12.0) + ranks / 2
    gib += 2.0 if speculates(config) else 0.0
    gib += 4.0 if _dp_attention(config) else 0.0
    return gib * 1024
