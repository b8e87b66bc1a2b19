"""What SGLang makes of the flags that were not given, with the reason for each value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.machine import Machine
from models.version import at_least

# SGLang 0.4: the static fraction by TP size.
FRACTION_04 = ((16, 0.79), (8, 0.81), (4, 0.85), (2, 0.87), (1, 0.88))
# GPU memory (MiB) below which a row holds: prefill chunk, decode graphs for tp < 4, for tp >= 4 (0.5).
MEMORY_TABLE = (
    (20_000, 2048, 8, 8),
    (35_000, 4096, 48, 160),
    (60_000, 4096, 32, 160),
    (160_000, 8192, 256, 512),
    (float("inf"), 16384, 512, 512),
)
SPECULATIVE_MAX_RUNNING = 48
DEFAULT_REQUESTS_PER_RANK = 2048
DP_CONSERVATIVENESS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The configuration with every default filled in, and why each filled value is what it is."""

    config: ServerConfig
    reasons: dict[str, str]


def resolve(config: ServerConfig, arch: ModelArchitecture, machine: Machine, version: Version) -> Resolved:
    """Fill the defaults of `version`. Order matters: the memory fraction sees chunk and graph sizes as given."""
    reasons: dict[str, str] = {}

    def fill(name: str, value: Any, reason: str) -> None:
        nonlocal config
        if getattr(config, name) is None:
            config = replace(config, **{name: value})
            reasons[name] = reason

    modern = at_least(version, "0.5.0")
    chunk, graph = _memory_defaults(config, machine, modern)
    fill("chunked_prefill_size", chunk, f"SGLang {version} chooses it by GPU memory ({machine.memory_gib:.0f} GiB)")
    fill("cuda_graph_max_bs_decode", graph, f"SGLang {version} chooses it by GPU memory and tp_size")
    fraction, why = default_fraction(config, machine, version)
    fill("mem_fraction_static", fraction, why)
    dp = config.attn_dp_size
    if config.speculative is not None:
        fill("max_running_requests", SPECULATIVE_MAX_RUNNING, "SGLang's cap under speculative decoding")
    fill("max_running_requests", DEFAULT_REQUESTS_PER_RANK * dp, f"{DEFAULT_REQUESTS_PER_RANK} per rank")
    backend, page = _attention(config, machine, version)
    fill("attention_backend", backend, "SGLang's choice for MLA on this GPU")
    fill("page_size", page, f"what {config.attention_backend} needs")
    fill("kv_cache_dtype", "auto", "the model's own: BF16")
    fill("schedule_policy", "fcfs" if modern else "lpm", f"SGLang {version}'s default")
    fill("schedule_conservativeness", 1.0, "SGLang's default")
    fill("scheduler_recv_interval", 1, "SGLang's default")
    fill("stream_interval", 1, "SGLang's default")
    fill("context_length", arch.max_position_embeddings, "the model's longest context")
    return Resolved(config=_adjusted(config, version, reasons), reasons=reasons)


def default_fraction(config: ServerConfig, machine: Machine, version: Version) -> tuple[float, str]:
    """Return SGLang's mem_fraction_static when none is given, and the reason in words."""
    if not at_least(version, "0.5.0"):
        fraction = next(value for tp, value in FRACTION_04 if config.tp_size >= tp)
        return fraction, f"SGLang {version} takes it from a table by tp_size"
    mib = machine.memory_gib * 1024
    reserve = _reserve_mib(config, mib) if at_least(version, "0.5.13") else _reserve_mib_early(config, mib)
    fraction = round((mib - reserve) / mib, 3)
    return fraction, f"{mib:.0f} MiB less a reserve of {reserve:.0f} MiB for chunks, graphs and ranks"


def _reserve_mib(config: ServerConfig, mib: float) -> float:
    """SGLang 0.5.13-0.5.23 (memory_hook.py): matches its own resolver in 253 of 253 checked cases."""
    chunk = config.chunked_prefill_size or 0
    graph = config.cuda_graph_max_bs_decode or 0
    active = max(chunk if chunk > 0 else (config.max_prefill_tokens or 16384), 2048)
    reserve = 512 + 1.5 * active + 1024 * config.tp_size * config.pp_size / 8
    graphs_on = not config.disable_cuda_graph
    if graphs_on:
        reserve += 2 * graph + (1536 if config.pp_size == 1 else 0)
    if config.attn_dp_size > 1:
        reserve += 3 * graph * config.attn_dp_size * (1.5 if graph > 300 else 1.0)
    if graphs_on and config.pp_size == 1 and config.moe_a2a_backend == "deepep":
        reserve += 1024
    if mib > 61440:
        reserve = max(reserve, 10240)
    if graphs_on and config.moe_a2a_backend == "deepep":
        reserve += 2048
    return reserve


def _reserve_mib_early(config: ServerConfig, mib: float) -> float:
    """SGLang 0.5.0-0.5.12: by GPU memory and TP, more for speculation and attention DP."""
    gib = (9.5 if mib < 90_000 else 12.0) + config.tp_size / 2 if mib < 160_000 else 32.0
    gib += 2.0 if config.speculative else 0.0
    gib += 4.0 if config.attn_dp_size > 1 else 0.0
    return gib * 1024


def _memory_defaults(config: ServerConfig, machine: Machine, modern: bool) -> tuple[int, int]:
    """Return (chunked_prefill_size, cuda_graph_max_bs) by GPU memory."""
    mib = machine.memory_gib * 1024
    row = next(row for row in MEMORY_TABLE if mib < row[0])
    if modern:
        return int(row[1]), int(row[2] if config.tp_size < 4 else row[3])
    return 8192, (256 if mib > 96 * 1024 else 160)


def _attention(config: ServerConfig, machine: Machine, version: Version) -> tuple[str, int]:
    backend = config.attention_backend
    if backend is None:
        if machine.is_blackwell and at_least(version, "0.5.0"):
            backend = "trtllm_mla"
        else:
            backend = "fa3" if machine.is_hopper and at_least(version, "0.4.6") else "triton"
    return backend, 64 if backend in ("flashmla", "trtllm_mla", "cutedsl_mla") else 1


def halves_chunk(version: Version) -> bool:
    """0.4.3 gives each attention-DP rank half the chunk; later versions divide it by the ranks."""
    return not at_least(version, "0.4.5")


def effective_chunk(typed: int, attn_dp_size: int, version: Version) -> int:
    """Return the prefill tokens of one pass over all ranks for a typed --chunked-prefill-size."""
    return typed // 2 * attn_dp_size if attn_dp_size > 1 and halves_chunk(version) else typed


def typed_chunk(effective: int, attn_dp_size: int, version: Version) -> int:
    """Return what to type so that one pass over all ranks takes `effective` tokens."""
    return 2 * (effective // attn_dp_size) if attn_dp_size > 1 and halves_chunk(version) else effective


def _adjusted(config: ServerConfig, version: Version, reasons: dict[str, str]) -> ServerConfig:
    """Apply what SGLang changes even when it was given: attention DP and all-to-all backends."""
    if config.attn_dp_size > 1:
        conservative = (config.schedule_conservativeness or 1.0) * DP_CONSERVATIVENESS
        config = replace(config, schedule_conservativeness=conservative)
        reasons["schedule_conservativeness"] = "SGLang multiplies it by 0.3 under attention DP"
        if config.chunked_prefill_size and halves_chunk(version):
            whole = effective_chunk(config.chunked_prefill_size, config.attn_dp_size, version)
            config = replace(config, chunked_prefill_size=whole)
            reasons["chunked_prefill_size"] = f"SGLang {version} halves it per rank under attention DP"
    if config.moe_a2a_backend != "none" and config.ep_size != config.tp_size:
        config = replace(config, ep_size=config.tp_size)
        reasons["ep_size"] = f"{config.moe_a2a_backend} spans all ranks: SGLang sets ep_size to tp_size"
    return config
