"""ServerConfig to SGLang's command line, in the words of the version asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from packaging.version import Version

from hwprobe.errors import InputError
from models.config import ServerConfig
from models.version import NEWEST, at_least

# First release of each way of speaking.
RENAMED_CORE = "0.5.13"  # --attn-dp-size, --cuda-graph-max-bs-decode
EP_SIZE_CORE = "0.5.0"  # --ep-size and --moe-a2a-backend instead of --enable-ep-moe, --enable-deepep-moe
CONFIG_FILE = "0.5.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """Something a configuration may want that only some versions can do."""

    name: str
    flag: str
    since: str
    wanted: Callable[[ServerConfig], bool]


ABILITIES: tuple[Ability, ...] = (
    Ability(name="pipeline parallelism", flag="--pp-size", since="0.4.6", wanted=lambda c: c.pp_size > 1),
    Ability(
        name="MTP with the model's own draft layer",
        flag="--speculative-algorithm",
        since="0.4.5",
        wanted=lambda c: c.speculative is not None,
    ),
    Ability(name="DeepEP", flag="--moe-a2a-backend", since="0.4.5", wanted=lambda c: c.moe_a2a_backend != "none"),
    Ability(
        name="an attention-DP degree other than tp_size",
        flag="--dp-size",
        since="0.4.5",
        wanted=lambda c: c.attn_dp_size not in (1, c.tp_size),
    ),
    Ability(
        name="the MoE runner choice",
        flag="--moe-runner-backend",
        since="0.5.0",
        wanted=lambda c: c.moe_runner_backend is not None,
    ),
    Ability(name="page size", flag="--page-size", since="0.4.5", wanted=lambda c: c.page_size not in (None, 1)),
    Ability(name="the DP LM head", flag="--enable-dp-lm-head", since="0.4.6", wanted=lambda c: c.enable_dp_lm_head),
    Ability(
        name="the scheduler's receive interval",
        flag="--scheduler-recv-interval",
        since="0.5.0",
        wanted=lambda c: c.scheduler_recv_interval not in (None, 1),
    ),
)


def missing_abilities(config: ServerConfig, version: Version) -> list[Ability]:
    """Return what the configuration wants and the version cannot do."""
    return [ability for ability in ABILITIES if ability.wanted(config) and not at_least(version, ability.since)]


def to_flags(config: ServerConfig, version: Version) -> list[tuple[str, str | None]]:
    """Return (flag, value) pairs in a stable order; None marks a switch.

    Raises InputError naming the flag and the version that has it.
    """
    for ability in missing_abilities(config, version):
        raise InputError(
            f"SGLang {version} has no {ability.flag}: {ability.name} came with {ability.since}; "
            f"ask for --sglang-version {ability.since} or newer (newest known: {NEWEST})"
        )
    return [
        *_parallel(config, version),
        *_speculative(config),
        *_memory(config, version),
        *_scheduling(config),
        *_kernels(config),
    ]


def to_argv(config: ServerConfig, version: Version) -> list[str]:
    """Return the flags as an argument list."""
    argv: list[str] = []
    for flag, value in to_flags(config, version):
        argv.append(flag)
        if value is not None:
            argv.append(value)
    return argv


_Pairs = list[tuple[str, str | None]]


def _given(flag: str, value: object | None) -> _Pairs:
    return [] if value is None else [(flag, f"{value:g}" if isinstance(value, float) else str(value))]


def _switch(flag: str, on: bool) -> _Pairs:
    return [(flag, None)] if on else []


def _parallel(config: ServerConfig, version: Version) -> _Pairs:
    pairs: _Pairs = [("--tp-size", str(config.tp_size))]
    if config.pp_size > 1:
        pairs += _given("--pp-size", config.pp_size)
    if config.nnodes > 1:
        pairs += _given("--nnodes", config.nnodes)
    if config.attn_dp_size > 1:
        if at_least(version, RENAMED_CORE):
            pairs += _given("--attn-dp-size", config.attn_dp_size)
        else:
            pairs += [*_given("--dp-size", config.attn_dp_size), ("--enable-dp-attention", None)]
    pairs += _switch("--enable-dp-lm-head", config.enable_dp_lm_head)
    if config.ep_size > 1:
        pairs += _expert_parallel(config, version)
    return pairs


def _expert_parallel(config: ServerConfig, version: Version) -> _Pairs:
    if at_least(version, EP_SIZE_CORE):
        backend = None if config.moe_a2a_backend == "none" else config.moe_a2a_backend
        return [*_given("--ep-size", config.ep_size), *_given("--moe-a2a-backend", backend)]
    if config.moe_a2a_backend == "deepep":
        return [("--enable-deepep-moe", None)]
    return [("--enable-ep-moe", None)]


def _speculative(config: ServerConfig) -> _Pairs:
    spec = config.speculative
    if spec is None:
        return []
    return [
        ("--speculative-algorithm", "EAGLE"),
        ("--speculative-num-steps", str(spec.num_steps)),
        ("--speculative-eagle-topk", str(spec.eagle_topk)),
        ("--speculative-num-draft-tokens", str(spec.num_draft_tokens)),
    ]


def _memory(config: ServerConfig, version: Version) -> _Pairs:
    renamed = at_least(version, RENAMED_CORE)
    graph_flag = "--cuda-graph-max-bs-decode" if renamed else "--cuda-graph-max-bs"
    no_graph = ["--disable-decode-cuda-graph", "--disable-prefill-cuda-graph"] if renamed else ["--disable-cuda-graph"]
    return [
        *_given("--mem-fraction-static", config.mem_fraction_static),
        *_given("--max-running-requests", config.max_running_requests),
        *_given("--chunked-prefill-size", config.chunked_prefill_size),
        *_given("--max-prefill-tokens", config.max_prefill_tokens),
        *([] if config.disable_cuda_graph else _given(graph_flag, config.cuda_graph_max_bs_decode)),
        *(pair for flag in no_graph for pair in _switch(flag, config.disable_cuda_graph)),
        *_given("--context-length", config.context_length),
    ]


def _scheduling(config: ServerConfig) -> _Pairs:
    return [
        *_given("--schedule-policy", config.schedule_policy),
        *_given("--schedule-conservativeness", config.schedule_conservativeness),
        *_switch("--disable-radix-cache", config.disable_radix_cache),
        *_switch("--enable-mixed-chunk", config.enable_mixed_chunk),
        *_given("--stream-interval", config.stream_interval),
        *_given("--scheduler-recv-interval", config.scheduler_recv_interval),
    ]


def _kernels(config: ServerConfig) -> _Pairs:
    return [
        *_given("--attention-backend", config.attention_backend),
        *_given("--kv-cache-dtype", config.kv_cache_dtype),
        *_given("--page-size", config.page_size),
        *_given("--moe-runner-backend", config.moe_runner_backend),
    ]
