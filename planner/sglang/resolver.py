"""What SGLang makes of the flags that were not given, with the reason for each value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig, Speculative
from models.machine import Machine
from models.version import at_least
from planner.sglang.backends import (
    PAGED_32_64,
    PAGED_64,
    SPANNING,
    a2a_backend,
    sparse_backend,
)
from planner.sglang.captured import (
    TABLE,
    captured_sizes,
)
from planner.sglang.defaults import (
    default_fraction,
    memory_defaults,
    speculates,
)
from planner.sglang.dialects import FREE_ATTENTION_DP
from planner.sglang.flags import flags_of
from planner.sglang.resolved_fields import MTP_NUMBERS, ResolverInput, listed_sizes, own_fields

SPECULATIVE_MAX_RUNNING = 48
SPECULATIVE_MAX_RUNNING_044 = 32  # until 0.4.4.post3
DEFAULT_REQUESTS_PER_RANK = 2048
DP_CONSERVATIVENESS = 0.3
TRTLLM_MLA_DEFAULT = "0.5.3.post2"  # on Blackwell; flashinfer before, from 0.4.7 on
KV_HEADS, AITER_HEADS = 128, (16, 128)  # R1's attention heads, and those a rank of aiter takes
CHOSEN_BY_MODEL = "0.4.4.post4"  # from here on the speculative flags have no defaults of their own
# With sparse attention SGLang forced attention DP over all ranks before 0.5.6, and 0.8 of the memory before 0.5.4.
SPARSE_FREE_DP, SPARSE_FREE_FRACTION = "0.5.6", "0.5.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The configuration with every default filled in, and the reason of each filled value.

    `fields` holds values under SGLang's own names as its resolver leaves them: the chunk is that of one
    attention-DP rank there, requests are None where SGLang settles them only after loading.
    """

    config: ServerConfig
    reasons: dict[str, str]
    read_fields: Callable[[], dict[str, Any]] = field(default=dict, compare=False, repr=False)

    @property
    def fields(self) -> dict[str, Any]:
        """SGLang's own fields, computed when they are read: a search resolves thousands and reads none."""
        return self.read_fields()


def resolve(config: ServerConfig, arch: ModelArchitecture, machine: Machine, version: Version) -> Resolved:
    """Fill the defaults of `version`. Order matters: the memory fraction sees chunk and graph sizes as given."""
    typed, reasons = config, dict[str, str]()

    def fill(name: str, value: Any, reason: str) -> None:
        nonlocal config
        if getattr(config, name) is None:
            config = replace(config, **{name: value})
            reasons[name] = reason

    config = _layout(config, version, reasons)
    if arch.is_sparse:
        config = _sparse_attention(config, machine, version, reasons)
    chunk, graph = memory_defaults(config, machine, version)
    fill("chunked_prefill_size", chunk, f"SGLang {version} chooses it by GPU memory ({machine.memory_gib:.0f} GiB)")
    sizes = listed_sizes(config)
    if sizes and not at_least(version, TABLE):
        sizes = captured_sizes(typed, machine, version) or sizes
    if sizes:
        config = replace(config, cuda_graph_max_bs_decode=max(sizes))
        reasons["cuda_graph_max_bs_decode"] = "the largest of the sizes listed"
    most_requests = config.max_running_requests
    if at_least(version, "0.5.14") and most_requests is not None and most_requests < graph:
        fill("cuda_graph_max_bs_decode", most_requests, "no larger than max_running_requests")
    fill("cuda_graph_max_bs_decode", graph, f"SGLang {version} chooses it by GPU memory and tp_size")
    fraction, why = default_fraction(config, machine, version)
    fill("mem_fraction_static", fraction, why)
    config = _speculation(config, version, reasons)
    if speculates(config) and at_least(version, "0.4.3.post3"):
        most = SPECULATIVE_MAX_RUNNING if at_least(version, "0.4.4.post4") else SPECULATIVE_MAX_RUNNING_044
        fill("max_running_requests", most, "SGLang's cap under speculative decoding")
    settled = config.max_running_requests
    dp = max(1, config.attn_dp_size)
    fill("max_running_requests", DEFAULT_REQUESTS_PER_RANK * dp, f"{DEFAULT_REQUESTS_PER_RANK} per rank")
    config = _attention(config, machine, version, reasons)
    fill("kv_cache_dtype", "auto", "the model's own: BF16")
    fill("schedule_policy", flags_of(version).by_dest["schedule_policy"].default, f"SGLang {version}'s default")
    fill("schedule_conservativeness", 1.0, "SGLang's default")
    fill("scheduler_recv_interval", 1, "SGLang's default")
    fill("stream_interval", 1, "SGLang's default")
    fill("context_length", arch.max_position_embeddings, "the model's longest context")
    config = _adjusted(config, version, reasons)
    source = ResolverInput(typed=typed, arch=arch, machine=machine, version=version)
    return Resolved(config=config, reasons=reasons, read_fields=partial(own_fields, source, config, settled))


def _sparse_attention(
    config: ServerConfig, machine: Machine, version: Version, reasons: dict[str, str]
) -> ServerConfig:
    """Apply what SGLang does for an indexer's model: its attention backend, pages of 64, an FP8 cache on Blackwell.

    Read from server_args.py (is_deepseek_nsa) of 0.5.3 to 0.5.9 and model_overrides/deepseek_v2.py of 0.5.23.
    """
    changed: dict[str, Any] = {"page_size": 1 if machine.is_amd else 64}
    if config.attention_backend is None and config.flag("decode_attention_backend") is None:
        changed["attention_backend"] = sparse_backend(version)
    if config.kv_cache_dtype in (None, "auto"):
        changed["kv_cache_dtype"] = "fp8_e4m3" if machine.is_blackwell else "bfloat16"
    if not at_least(version, SPARSE_FREE_DP):
        changed["attn_dp_size"] = config.tp_size
    if not at_least(version, SPARSE_FREE_FRACTION):
        changed["mem_fraction_static"] = 0.8
    changed = {name: value for name, value in changed.items() if getattr(config, name) != value}
    reasons |= dict.fromkeys(changed, f"SGLang {version}'s choice for sparse attention on this GPU")
    return replace(config, **changed)


def _layout(config: ServerConfig, version: Version, reasons: dict[str, str]) -> ServerConfig:
    """Apply what fixes the layout itself: until 0.4.4 attention DP is tp_size."""
    if not at_least(version, FREE_ATTENTION_DP) and config.attn_dp_size not in (1, config.tp_size):
        config = replace(config, attn_dp_size=config.tp_size)
        reasons["attn_dp_size"] = f"SGLang {version} sets attention DP to tp_size"
    return config


def _speculation(config: ServerConfig, version: Version, reasons: dict[str, str]) -> ServerConfig:
    """Settle the speculative numbers: SGLang's own by default, drafts = steps + 1 with topk 1."""
    named = str(config.flag("speculative_algorithm") or "").upper()
    spec = config.speculative
    if spec is None and named in ("EAGLE", "NEXTN"):
        steps, topk, drafts = (config.flag(name) for name in MTP_NUMBERS)
        if not at_least(version, CHOSEN_BY_MODEL):
            own = _own_numbers(version)
            spec = Speculative(
                num_steps=own.num_steps if steps is None else steps,
                eagle_topk=own.eagle_topk if topk is None else topk,
                num_draft_tokens=own.num_draft_tokens if drafts is None else drafts,
            )
            reasons["speculative"] = f"the flags' defaults in SGLang {version} where no number is given"
        elif steps is None and topk is None and drafts is None:
            spec = _own_numbers(version)
            reasons["speculative"] = f"SGLang {version}'s choice for this model when no number is given"
        elif isinstance(steps, int) and isinstance(topk, int) and topk == 1 and drafts is None:
            spec = Speculative.chain(steps)
    if spec is not None and (config.page_size or 1) > 1 and _flattens_trees(version):
        spec = replace(spec, eagle_topk=1)
        reasons["speculative"] = f"SGLang {version} sets topk to 1 on pages"
    if spec is not None and spec.eagle_topk == 1 and at_least(version, "0.4.5.post3"):
        forced = Speculative.chain(spec.num_steps)
        if forced != spec:
            reasons["speculative"] = "with topk 1 SGLang sets the draft tokens to steps + 1"
        spec = forced
    return config if spec == config.speculative else replace(config, speculative=spec)


def _flattens_trees(version: Version) -> bool:
    """Say whether topk becomes 1 where the page size is above 1: 0.4.5.post3 to 0.4.8."""
    return at_least(version, "0.4.5.post3") and not at_least(version, "0.4.9")


def _own_numbers(version: Version) -> Speculative:
    """SGLang's own numbers: the flags' defaults at first, then a choice by model."""
    if at_least(version, "0.4.7"):
        return Speculative(num_steps=3, eagle_topk=1, num_draft_tokens=4)
    flags = flags_of(version).by_dest
    steps, topk, drafts = (flags[name].default or own for name, own in zip(MTP_NUMBERS, (5, 4, 8), strict=True))
    return Speculative(num_steps=steps, eagle_topk=topk, num_draft_tokens=drafts)


def _attention(config: ServerConfig, machine: Machine, version: Version, reasons: dict[str, str]) -> ServerConfig:
    """Choose the attention backend and the page size it forces."""
    backend, prefill = config.attention_backend, config.flag("prefill_attention_backend")
    decode = config.flag("decode_attention_backend")
    if prefill is not None and prefill == decode:
        backend = prefill
    if backend is None:
        backend = _default_attention(config, machine, version, split=prefill is not None or decode is not None)
        reasons["attention_backend"] = "SGLang's choice for MLA on this GPU"
    if backend == "fa3" and config.kv_cache_dtype == "fp8_e5m2" and at_least(version, "0.4.6"):
        backend = "triton"
        reasons["attention_backend"] = "fa3 reads no fp8_e5m2 cache"
    page = config.page_size
    paging = {backend, decode}
    if paging & set(PAGED_64):
        page = 64
    if (paging | ({prefill} & {"cutedsl_mla"})) & set(PAGED_32_64) and page not in (32, 64):
        page = 64
    page = 1 if page is None else page
    if page != config.page_size:
        reasons["page_size"] = f"what {backend} needs"
    return replace(config, attention_backend=backend, page_size=page)


def _default_attention(config: ServerConfig, machine: Machine, version: Version, *, split: bool) -> str:
    deterministic = bool(config.flag("enable_deterministic_inference"))
    if machine.is_blackwell and at_least(version, TRTLLM_MLA_DEFAULT):
        if not split:
            return "trtllm_mla"  # the model's own override comes before the deterministic one
        return "triton" if deterministic else "flashinfer"
    if machine.is_blackwell and at_least(version, "0.4.7"):
        return "flashinfer"
    if machine.is_amd and at_least(version, "0.4.7"):
        heads = max(1, KV_HEADS // config.tp_size)
        drafts = speculates(config) and not at_least(version, "0.5.3")
        return "aiter" if heads in AITER_HEADS and not drafts else "triton"
    if config.flag("enable_hierarchical_cache") and at_least(version, "0.4.9.post4") and not at_least(version, "0.5.1"):
        return "triton"  # in these releases fa3 is not chosen beside the hierarchical cache
    return "fa3" if machine.is_hopper and at_least(version, "0.4.5.post1") else "triton"


def halves_chunk(version: Version) -> bool:
    """Until 0.4.4 each attention-DP rank gets half the chunk; later versions divide it by the ranks."""
    return not at_least(version, FREE_ATTENTION_DP)


def effective_chunk(typed: int, attn_dp_size: int, version: Version) -> int:
    """Return the prefill tokens of one pass over all ranks for a typed --chunked-prefill-size."""
    return typed // 2 * attn_dp_size if attn_dp_size > 1 and halves_chunk(version) else typed


def typed_chunk(effective: int, attn_dp_size: int, version: Version) -> int:
    """Return the value to type so that one pass over all ranks takes `effective` tokens."""
    return 2 * (effective // attn_dp_size) if attn_dp_size > 1 and halves_chunk(version) else effective


def _adjusted(config: ServerConfig, version: Version, reasons: dict[str, str]) -> ServerConfig:
    """Apply SGLang's changes to typed values: attention DP and all-to-all backends."""
    if config.attn_dp_size > 1:
        conservative = (config.schedule_conservativeness or 1.0) * DP_CONSERVATIVENESS
        config = replace(config, schedule_conservativeness=conservative)
        reasons["schedule_conservativeness"] = "SGLang multiplies it by 0.3 under attention DP"
        if config.chunked_prefill_size and halves_chunk(version):
            whole = effective_chunk(config.chunked_prefill_size, config.attn_dp_size, version)
            config = replace(config, chunked_prefill_size=whole)
            reasons["chunked_prefill_size"] = f"SGLang {version} halves it per rank under attention DP"
    a2a = "deepep" if config.flag("enable_prefill_cp") else a2a_backend(config)
    if a2a != config.moe_a2a_backend:
        config = replace(config, moe_a2a_backend=a2a)
        reasons["moe_a2a_backend"] = "prefill context parallelism and waterfill need it"
    if a2a in SPANNING and config.ep_size != config.tp_size:
        config = replace(config, ep_size=config.tp_size)
        reasons["ep_size"] = f"{a2a} spans all ranks: SGLang sets ep_size to tp_size"
    return config
