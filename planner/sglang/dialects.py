"""ServerConfig to SGLang's command line and back, in the words of the version asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from packaging.version import Version

from hwprobe.errors import InputError
from models.config import ServerConfig, Speculative
from models.version import NEWEST, at_least
from planner.sglang.flags import FlagSet, first_release_of, flags_of

CONFIG_FILE = "0.5.0"
SPECULATIVE = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
# Fields that releases before 0.5.13 parse by a longer name than the one they keep.
LONG_NAMES = {"attention_context_parallel_size": "attn_cp_size", "moe_data_parallel_size": "moe_dp_size"}
OWN_DRAFT = ("EAGLE", "NEXTN")
# From here on --dp-size is the degree of attention DP; before, SGLang set it to tp_size by itself.
FREE_ATTENTION_DP = "0.4.4.post1"
# Before it MLA takes its attention backend from --enable-flashinfer-mla and --enable-flashmla alone (fa3 aside).
MLA_READS_BACKEND = "0.4.4.post4"
# Before this release the draft layer was read from an export of its own, which the launch line had to name.
DRAFT_IN_CHECKPOINT = "0.4.6.post2"
DRAFT_EXPORT = "lmsys/DeepSeek-R1-NextN"


@dataclass(frozen=True, slots=True)
class TypedFlag:
    """One flag as it is typed: `TypedFlag("--tp-size", ("8",))`; no value is a switch, several follow one another."""

    name: str
    values: tuple[str, ...] = ()

    @property
    def argv(self) -> list[str]:
        """Return the flag and its values as arguments."""
        return [self.name, *self.values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """Something a configuration may want that only some versions can do."""

    name: str
    flag: str
    since: str
    wanted: Callable[[ServerConfig], bool]


# What needs more than a flag of that name. Flags as such are looked up in the release's own list.
ABILITIES: tuple[Ability, ...] = (
    Ability(name="pipeline parallelism", flag="--pp-size", since="0.4.6.post2", wanted=lambda c: c.pp_size > 1),
    Ability(
        name="MTP with the model's own draft layer",
        flag="--speculative-algorithm",
        since="0.4.3.post2",
        wanted=lambda c: c.speculative is not None,
    ),
    Ability(name="DeepEP", flag="--moe-a2a-backend", since="0.4.4.post2", wanted=lambda c: c.moe_a2a_backend != "none"),
    Ability(
        name="an attention-DP degree other than tp_size",
        flag="--dp-size",
        since=FREE_ATTENTION_DP,
        wanted=lambda c: c.attn_dp_size not in (1, c.tp_size),
    ),
    Ability(
        name="the MoE runner choice",
        flag="--moe-runner-backend",
        since="0.5.0",
        wanted=lambda c: c.moe_runner_backend is not None,
    ),
    Ability(name="page size", flag="--page-size", since="0.4.4", wanted=lambda c: c.page_size not in (None, 1)),
    Ability(
        name="the DP LM head", flag="--enable-dp-lm-head", since="0.4.6.post4", wanted=lambda c: c.enable_dp_lm_head
    ),
    Ability(
        name="the scheduler's receive interval",
        flag="--scheduler-recv-interval",
        since="0.5.0",
        wanted=lambda c: c.scheduler_recv_interval not in (None, 1),
    ),
)
# Fields of ServerConfig that are typed by their own name in every version that has them.
PLAIN = (
    "mem_fraction_static", "max_running_requests", "chunked_prefill_size", "max_prefill_tokens", "context_length",
    "schedule_policy", "schedule_conservativeness", "stream_interval", "scheduler_recv_interval",
    "attention_backend", "kv_cache_dtype", "page_size", "moe_runner_backend",
)  # fmt: skip
SWITCHES = ("disable_radix_cache", "enable_mixed_chunk", "enable_dp_lm_head")


def missing_abilities(config: ServerConfig, version: Version) -> list[Ability]:
    """Return what the configuration wants and the version cannot do."""
    return [ability for ability in ABILITIES if ability.wanted(config) and not at_least(version, ability.since)]


def to_flags(config: ServerConfig, version: Version) -> list[TypedFlag]:
    """Return the flags of a configuration in a stable order.

    Raises InputError naming the flag and the version that has it.
    """
    for ability in missing_abilities(config, version):
        raise InputError(
            f"SGLang {version} has no {ability.flag}: {ability.name} came with {ability.since}; "
            f"ask for --sglang-version {ability.since} or newer (newest known: {NEWEST})"
        )
    release_flags = flags_of(version)
    return [
        *_parallel(config, release_flags),
        *_speculative(config, version),
        *_memory(config, release_flags),
        *_scheduling(config, release_flags),
        *_kernels(config, release_flags),
        *_extra(config, release_flags),
    ]


def to_argv(config: ServerConfig, version: Version) -> list[str]:
    """Return the flags as an argument list; a flag of several values is followed by all of them."""
    return [word for flag in to_flags(config, version) for word in flag.argv]


def _values(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(_word(item) for item in value)
    return (_word(value),)


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _given(release_flags: FlagSet, dest: str, value: object | None) -> list[TypedFlag]:
    """Return the flag of a field, none where it is off. Raises InputError when the release has no flag for it."""
    if value is None or value is False:
        return []
    flag = release_flags.by_dest.get(dest)
    if flag is None:
        raise _missing(release_flags, dest)
    name = next((name for name in flag.names if name == "--" + dest.replace("_", "-")), flag.name)
    return [TypedFlag(name, () if flag.is_switch else _values(value))]


def _missing(release_flags: FlagSet, dest: str) -> InputError:
    life = first_release_of(dest)
    if life is None:
        return InputError(f"no release of SGLang known here has a flag for '{dest}'")
    name, first, last = life
    return InputError(f"SGLang {release_flags.release} has no {name}: releases {first} to {last} have it")


def _parallel(config: ServerConfig, release_flags: FlagSet) -> list[TypedFlag]:
    flags: list[TypedFlag] = [TypedFlag("--tp-size", (str(config.tp_size),))]
    if config.pp_size > 1:
        flags += _given(release_flags, "pp_size", config.pp_size)
    if config.nnodes > 1:
        flags += _given(release_flags, "nnodes", config.nnodes)
    if config.attn_dp_size > 1:
        if "attn_dp_size" in release_flags.by_dest:
            flags += _given(release_flags, "attn_dp_size", config.attn_dp_size)
        else:
            flags += [TypedFlag("--dp-size", (str(config.attn_dp_size),)), TypedFlag("--enable-dp-attention")]
    flags += _given(release_flags, "enable_dp_lm_head", config.enable_dp_lm_head)
    if config.ep_size > 1 or config.moe_a2a_backend != "none":
        flags += _expert_parallel(config, release_flags)
    return flags


def _expert_parallel(config: ServerConfig, release_flags: FlagSet) -> list[TypedFlag]:
    if "moe_a2a_backend" in release_flags.by_dest:
        backend = None if config.moe_a2a_backend == "none" else config.moe_a2a_backend
        size = config.ep_size if config.ep_size > 1 else None
        return [*_given(release_flags, "ep_size", size), *_given(release_flags, "moe_a2a_backend", backend)]
    if config.moe_a2a_backend == "deepep":
        return [TypedFlag("--enable-deepep-moe")]
    return [TypedFlag("--enable-ep-moe")]


def _speculative(config: ServerConfig, version: Version) -> list[TypedFlag]:
    spec = config.speculative
    if spec is None:
        return []
    apart = not at_least(version, DRAFT_IN_CHECKPOINT) and config.flag("speculative_draft_model_path") is None
    return [
        TypedFlag("--speculative-algorithm", ("EAGLE",)),
        *([TypedFlag("--speculative-draft-model-path", (DRAFT_EXPORT,))] if apart else []),
        TypedFlag("--speculative-num-steps", (str(spec.num_steps),)),
        TypedFlag("--speculative-eagle-topk", (str(spec.eagle_topk),)),
        TypedFlag("--speculative-num-draft-tokens", (str(spec.num_draft_tokens),)),
    ]


def _memory(config: ServerConfig, release_flags: FlagSet) -> list[TypedFlag]:
    by_phase = "cuda_graph_max_bs_decode" in release_flags.by_dest
    graph = "cuda_graph_max_bs_decode" if by_phase else "cuda_graph_max_bs"
    off = ["disable_decode_cuda_graph", "disable_prefill_cuda_graph"] if by_phase else ["disable_cuda_graph"]
    return [
        *_given(release_flags, "mem_fraction_static", config.mem_fraction_static),
        *_given(release_flags, "max_running_requests", config.max_running_requests),
        *_given(release_flags, "chunked_prefill_size", config.chunked_prefill_size),
        *_given(release_flags, "max_prefill_tokens", config.max_prefill_tokens),
        *([] if config.disable_cuda_graph else _given(release_flags, graph, config.cuda_graph_max_bs_decode)),
        *(flag for dest in off for flag in _given(release_flags, dest, config.disable_cuda_graph)),
        *_given(release_flags, "context_length", config.context_length),
    ]


def _scheduling(config: ServerConfig, release_flags: FlagSet) -> list[TypedFlag]:
    return [
        *_given(release_flags, "schedule_policy", config.schedule_policy),
        *_given(release_flags, "schedule_conservativeness", config.schedule_conservativeness),
        *_given(release_flags, "disable_radix_cache", config.disable_radix_cache),
        *_given(release_flags, "enable_mixed_chunk", config.enable_mixed_chunk),
        *_given(release_flags, "stream_interval", config.stream_interval),
        *_given(release_flags, "scheduler_recv_interval", config.scheduler_recv_interval),
    ]


def _kernels(config: ServerConfig, release_flags: FlagSet) -> list[TypedFlag]:
    backend: list[TypedFlag]
    switch = release_flags.by_dest.get(f"enable_{_mla(config)}")
    if config.attention_backend in ("flashinfer", "flashmla") and switch is not None and not switch.refused:
        backend = [TypedFlag(f"--enable-{_mla(config).replace('_', '-')}")]
    else:
        backend = _given(release_flags, "attention_backend", config.attention_backend)
    return [
        *backend,
        *_given(release_flags, "kv_cache_dtype", config.kv_cache_dtype),
        *_given(release_flags, "page_size", config.page_size),
        *_given(release_flags, "moe_runner_backend", config.moe_runner_backend),
    ]


def _mla(config: ServerConfig) -> str:
    return "flashinfer_mla" if config.attention_backend == "flashinfer" else "flashmla"


def _extra(config: ServerConfig, release_flags: FlagSet) -> list[TypedFlag]:
    earlier = {name: old for old, name in LONG_NAMES.items() if old in release_flags.by_dest}
    return [flag for dest, value in config.extra for flag in _given(release_flags, earlier.get(dest, dest), value)]


def from_values(values: Mapping[str, Any], version: Version) -> ServerConfig:
    """Build the configuration of typed values, by SGLang's field names of `version`, in today's terms."""
    rest = dict(values)
    settings: dict[str, Any] = {name: rest.pop(name) for name in (*PLAIN, *SWITCHES) if name in rest}
    for name, default in (("tp_size", 1), ("pp_size", 1), ("nnodes", 1), ("moe_a2a_backend", "none")):
        settings[name] = rest.pop(name, default)
    settings["attn_dp_size"] = _attention_dp(rest, settings["tp_size"], version)
    settings["ep_size"] = rest.pop("ep_size", 1)
    if rest.pop("enable_ep_moe", False):
        settings["ep_size"] = settings["tp_size"]
    if rest.pop("enable_deepep_moe", False):
        settings |= {"ep_size": settings["tp_size"], "moe_a2a_backend": "deepep"}
    graphless = _attention_backend(settings, rest, version)
    for old, name in LONG_NAMES.items():
        if old in rest:
            rest.setdefault(name, rest.pop(old))
    settings["cuda_graph_max_bs_decode"] = rest.pop("cuda_graph_max_bs_decode", rest.pop("cuda_graph_max_bs", None))
    settings["disable_cuda_graph"] = _graphs_off(rest) or graphless
    settings["speculative"] = _speculation(rest)
    if settings.get("moe_runner_backend") == "auto":
        settings["moe_runner_backend"] = None
    settled = {field.name for field in fields(ServerConfig)} - {"extra"}
    if rest.get("speculative_draft_model_path") == DRAFT_EXPORT and settings["speculative"] is not None:
        del rest["speculative_draft_model_path"]  # what is typed anyway where the release needs it
    extra = {name: _frozen(value) for name, value in rest.items() if value is not None and name not in settled}
    return ServerConfig(**settings).with_flags(**extra)


def _attention_backend(settings: dict[str, Any], rest: dict[str, Any], version: Version) -> bool:
    """Settle the attention backend of MLA in `settings`; return whether its name alone switches CUDA graphs off."""
    graphless = False
    if not at_least(version, MLA_READS_BACKEND) and settings.get("attention_backend") not in (None, "fa3"):
        graphless = settings.pop("attention_backend") == "torch_native"  # it has no other effect on MLA
    for old, backend in (("enable_flashinfer_mla", "flashinfer"), ("enable_flashmla", "flashmla")):
        if rest.pop(old, False):
            settings["attention_backend"] = backend
    return graphless


def _attention_dp(rest: dict[str, Any], tp_size: int, version: Version) -> int:
    """Return the attention-DP degree; `dp_size` stays in `rest` where it means whole replicas."""
    degree = rest.pop("attn_dp_size", 1)
    if rest.pop("enable_dp_attention", False) and degree == 1:
        degree = rest.pop("dp_size", 1)
        if degree == 1 and not at_least(version, FREE_ATTENTION_DP):
            degree = tp_size  # 0.4.3 and 0.4.4 set it so by themselves
        if degree == 1:
            rest["enable_dp_attention"] = True
    if rest.get("dp_size") == 1:
        del rest["dp_size"]
    return int(degree)


def _graphs_off(rest: dict[str, Any]) -> bool:
    both = rest.get("disable_decode_cuda_graph") and rest.get("disable_prefill_cuda_graph")
    if both:
        del rest["disable_decode_cuda_graph"], rest["disable_prefill_cuda_graph"]
    return bool(rest.pop("disable_cuda_graph", False) or both)


def _speculation(rest: dict[str, Any]) -> Speculative | None:
    """Take a complete set of speculative numbers out of `rest`; anything incomplete stays for the rules."""
    if str(rest.get("speculative_algorithm", "")).upper() not in OWN_DRAFT or rest.get("speculative_adaptive"):
        return None
    numbers = [rest[name] for name in SPECULATIVE if isinstance(rest.get(name), int)]
    if len(numbers) < len(SPECULATIVE):
        return None
    for name in SPECULATIVE:
        del rest[name]
    if str(rest["speculative_algorithm"]).upper() == "EAGLE":
        del rest["speculative_algorithm"]
    steps, topk, drafts = numbers
    return Speculative(num_steps=steps, eagle_topk=topk, num_draft_tokens=drafts)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
