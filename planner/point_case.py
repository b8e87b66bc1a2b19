"""From a point record to a case the model can answer: which machine, which configuration, which run."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.errors import InputError
from models.architecture import ModelArchitecture, deepseek_r1
from models.config import ServerConfig, Speculative
from models.costs.memory import memory
from models.engine.profile import EngineProfile, shipped_profiles
from models.engine.versions import profile_for
from models.layout import table_of
from models.machine import Machine, machine_of
from models.records.case import MOST_REQUESTS, REQUESTS_PER_CLIENT, STEADY_REQUESTS_PER_CLIENT, Case, Run
from models.records.points import KINDS, Point
from models.records.slice_fit import DUMMY_INDEPENDENCE
from models.serving.acceptance import MEASURED_SPREAD, chain_acceptance, expected_acceptance
from models.serving.estimate import DEFAULT_ACCEPTANCE, Context
from models.unpriced import Unpriced
from models.version import OLDEST, parse_version
from models.workload import ChatLengths, Lengths
from planner.launch_lines.checkpoint import served_model
from planner.sglang.arguments import read_arguments
from planner.sglang.flag_ledger import unpriced_flags
from planner.sglang.launch_args import flags_given, flags_of_model
from planner.sglang.resolver import resolve

GUESSED_LENGTH = 1000
GUESSED_STEPS = 3
# A mean that is no whole number is one of lengths that vary.
LEAST_FRACTION = 1e-6
# Hosts as published: GPUs of one server.
GPUS_PER_SERVER = 8


@dataclass(frozen=True, slots=True)
class _Guesses:
    """Collects what a record did not say and was assumed."""

    said: list[str]

    def take(self, value: float | None, otherwise: float, field_name: str) -> float:
        if value is None:
            self.said.append(f"{field_name} not given: {otherwise:,.0f} assumed")
            return otherwise
        return value


def case_of(
    point: Point,
    engine: EngineProfile | None = None,
    arch: ModelArchitecture | None = None,
    machine: Machine | None = None,
) -> Case:
    """Return the case of a point, under `engine` or the shipped profile of its version, on `machine` or the
    one the record names.

    Raises InputError for what the model cannot answer, naming the field.
    """
    _refuse(point)
    guesses = _Guesses([])
    version = _version(point, guesses)
    arch = _slice(point, _served(point, arch, version, guesses))
    machine = machine or _machine(point)
    engine = engine or profile_for(version, machine.family)
    typed = _config(point, machine, version, guesses)
    config, ledger_tokens = _settled(typed, arch, machine, version)
    acceptance, spread = _acceptance(point, config, engine.mtp_acceptance, guesses)
    context = Context(
        arch=arch,
        machine=machine,
        engine=engine,
        version=version,
        acceptance=acceptance,
        acceptance_spread=spread,
        independence=_independence(point, engine),
        mtp_overlap=_overlap(point),
    )
    if ledger_tokens < 1 and point.max_total_num_tokens is None:
        raise InputError(f"{config.label} does not fit: no memory is left for the KV cache")
    tokens_per_rank = point.max_total_num_tokens
    return Case(
        id=point.id,
        context=context,
        config=config,
        run=_run(point, guesses),
        kv_tokens=ledger_tokens if tokens_per_rank is None else float(tokens_per_rank * config.attn_dp_size),
        kv_known=tokens_per_rank is not None,
        acceptance_known=config.speculative is None or point.accept_length is not None,
        measured=point.measured,
        warnings=(*engine.warnings, *guesses.said),
        unpriced=_unpriced(point, typed, arch, machine, version),
    )


@cache
def _settled(
    typed: ServerConfig, arch: ModelArchitecture, machine: Machine, version: Version
) -> tuple[ServerConfig, float]:
    """Return the configuration with its defaults, and the KV tokens its ledger leaves. Sweeps share theirs."""
    config = resolve(typed, arch, machine, version).config
    return config, float(memory(arch, machine, table_of([config]), version).kv_tokens[0])


def _served(
    point: Point, own_model: ModelArchitecture | None, version: Version, guesses: _Guesses
) -> ModelArchitecture:
    """Return the model a record's run served: that of --model, else as its flags and its `model` say.

    Raises UnsupportedModel for a checkpoint that is not modelled.
    """
    named = {"model_path": _said(point, "model", "model_path"), "quantization": _said(point, "quantization")}
    flags = flags_of_model(point.launch_args or "", version)
    served = served_model({name: text for name, text in named.items() if text} | flags, own_model)
    if served.assumed is not None and (named["model_path"] or "model_path" in flags):
        guesses.said.append(f"unknown model name: {served.assumed} assumed")
    # Names of the same shapes and weights are one model to the equations, and share what was computed.
    plain = deepseek_r1()
    same = replace(served.arch, name=plain.name) == plain
    return plain if own_model is None and same else served.arch


def _said(point: Point, *names: str) -> str:
    return next((text for name in names if isinstance(text := point.extra.get(name), str)), "")


def _slice(point: Point, whole: ModelArchitecture) -> ModelArchitecture:
    """Return the part of the model that the run served: the whole of it where the record names no layers."""
    if point.num_hidden_layers is None:
        if point.first_k_dense_replace is not None:
            raise InputError("first_k_dense_replace without num_hidden_layers: a slice needs both, or the latter")
        return whole
    return whole.sliced(point.num_hidden_layers, point.first_k_dense_replace)


def _refuse(point: Point) -> None:
    if point.engine.lower() != "sglang":
        raise InputError(f"engine is '{point.engine}'; only sglang is modelled")
    if point.metric_kind not in KINDS:
        raise InputError(f"metric_kind is '{point.metric_kind}'; known: {', '.join(KINDS)}")
    if point.disaggregated:
        raise InputError("disaggregated prefill and decode servers are not modelled")
    if point.concurrency is None and point.num_prompts is None:
        raise InputError("neither concurrency nor num_prompts is given: nothing says how much was asked")
    if point.metric_kind == "decode_step" and not point.concurrency:
        raise InputError("concurrency is missing: a decode_step needs its running requests")


def _version(point: Point, guesses: _Guesses) -> Version:
    if point.engine_version is None:
        newest = shipped_profiles()[-1].sglang_version
        guesses.said.append(f"engine_version not given: {newest} assumed")
        return Version(newest)
    version = parse_version(point.engine_version) if _known(point.engine_version) else Version(OLDEST)
    if str(version) != point.engine_version.removeprefix("v"):
        guesses.said.append(f"engine_version {point.engine_version} is older than sgtune models: {OLDEST} assumed")
    return version


def _known(text: str) -> bool:
    """Whether a version is at least the oldest modelled; texts that are not versions are left to parse_version."""
    release = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    return release is None or tuple(map(int, release.groups())) >= Version(OLDEST).release


def _machine(point: Point) -> Machine:
    """Return the machine a record names: catalogue GPUs, as servers of at most eight."""
    if not point.gpu or point.n_gpus < 1:
        raise InputError("the record names no machine (gpu, n_gpus): say which with --hardware")
    nodes = point.n_nodes or max(1, -(-point.n_gpus // GPUS_PER_SERVER))
    described = re.match(r"(\d+(?:\.\d+)?)\s*GB-(\d+(?:\.\d+)?)\s*TBs", point.gpu)
    if described and described[1] == "141":  # the published table that names no GPU
        return _known_machine("nf5688g7")
    name = f"{_gpu_name(point.gpu)}x{max(1, point.n_gpus // nodes)}"
    return _known_machine(f"{nodes}x{name}" if nodes > 1 else name)


@cache
def _known_machine(name: str) -> Machine:
    return machine_of(hardware_from_catalogue(name))


def _gpu_name(text: str) -> str:
    """Return the catalogue's spelling: 'H200 SXM' and 'NVIDIA H200' are h200."""
    words = [word for word in re.split(r"[\s_]+", text.lower()) if word not in ("nvidia", "amd", "sxm", "sxm5", "gpu")]
    return "-".join(words)


def _config(point: Point, machine: Machine, version: Version, guesses: _Guesses) -> ServerConfig:
    """Return the configuration as far as the record gives it."""
    pp = point.pp or 1
    tp = int(guesses.take(point.tp, machine.gpu_count / pp, "tp"))
    if tp * pp > machine.gpu_count:
        raise InputError(f"tp {tp} x pp {pp} needs more GPUs than n_gpus {machine.gpu_count}")
    ep = point.ep or 1
    config = ServerConfig(
        tp_size=tp,
        pp_size=pp,
        attn_dp_size=point.attn_dp or 1,
        ep_size=ep,
        nnodes=max(1, -(-tp * pp // machine.gpus_per_node)),
        moe_a2a_backend=_a2a_backend(point, ep, guesses),
        mem_fraction_static=point.mem_fraction_static,
        kv_cache_dtype=_kv_dtype(point.kv_dtype),
        attention_backend=_first_word(point.attention_backend),
        speculative=_speculative(point, guesses),
    )
    if config.tp_size % config.attn_dp_size or config.tp_size % ep:
        raise InputError(f"attn_dp {config.attn_dp_size} and ep {ep} must divide tp {tp}")
    return _with_flags(config, point.launch_args or "", version, guesses)


def _a2a_backend(point: Point, ep: int, guesses: _Guesses) -> str:
    """Return how experts exchange tokens: who publishes a pure decode under EP runs DeepEP for it."""
    if ep == 1 or point.metric_kind != "decode_step" or point.launch_args:  # flags say it
        return "none"
    guesses.said.append("moe_a2a_backend not given: deepep assumed for a decode step under EP")
    return "deepep"


def _speculative(point: Point, guesses: _Guesses) -> Speculative | None:
    if not point.mtp:
        return None
    steps = int(guesses.take(point.mtp_steps, GUESSED_STEPS, "mtp_steps"))
    drafts = point.mtp_draft_tokens or steps + 1
    return Speculative(num_steps=steps, eagle_topk=point.mtp_topk or 1, num_draft_tokens=drafts) if steps else None


def _acceptance(point: Point, config: ServerConfig, of_profile: float | None, guesses: _Guesses) -> tuple[float, float]:
    """Return the acceptance per drafted token that yields the accept length of the record, and the yield's spread.

    Without one it is the engine profile's measured acceptance, else the prior.
    """
    if config.speculative is None:
        return DEFAULT_ACCEPTANCE, 0.0
    steps = config.speculative.num_steps
    if point.accept_length is not None:
        return chain_acceptance(point.accept_length, steps), MEASURED_SPREAD
    if of_profile is not None:
        return of_profile, MEASURED_SPREAD
    expected = expected_acceptance(
        steps, point.isl or GUESSED_LENGTH, point.osl or GUESSED_LENGTH, random_tokens=_random_tokens(point)
    )
    guesses.said.append(f"accept_length not given: {expected.tokens:.2f} tokens a step assumed for {steps} draft steps")
    return chain_acceptance(expected.tokens, steps), expected.spread


def _run(point: Point, guesses: _Guesses) -> Run:
    single = point.metric_kind == "single_stream"
    concurrency = 1 if single else max(1, int(point.concurrency or point.num_prompts or 1))
    decode_only = point.metric_kind == "decode_step"
    given_context = point.context_tokens
    isl, osl = point.isl, point.osl
    if not (decode_only and given_context):
        isl = guesses.take(isl, GUESSED_LENGTH, "isl")
        osl = guesses.take(osl, GUESSED_LENGTH, "osl")
    if decode_only and isl and osl and (given_context is None or given_context > isl + osl):
        given_context = isl + osl / 2
        guesses.said.append(f"context_tokens taken as isl + osl / 2 = {given_context:,.0f}")
    if point.metric_kind in ("one_batch", "single_stream"):
        requests = concurrency
    else:
        each = STEADY_REQUESTS_PER_CLIENT if point.metric_kind == "steady" else REQUESTS_PER_CLIENT
        requests = point.num_prompts or each * concurrency
    return Run(
        kind=point.metric_kind,
        isl=_lengths(point, isl or GUESSED_LENGTH, guesses),
        osl=_lengths(point, osl or GUESSED_LENGTH, guesses),
        concurrency=min(concurrency, max(1, requests)),
        requests=min(max(1, requests), max(MOST_REQUESTS, concurrency)),
        request_rate=point.request_rate if point.metric_kind == "serving" and point.request_rate else None,
        context_tokens=given_context if decode_only else None,
    )


def _lengths(point: Point, tokens: float, guesses: _Guesses) -> Lengths:
    """Return the lengths of a record's prompts or answers, of which it gives the longest, or the mean alone."""
    if point.range_ratio is not None:
        return Lengths(nominal=max(1, round(tokens)), range_ratio=min(1.0, point.range_ratio))
    if _dataset(point) == "sharegpt":
        return ChatLengths(nominal=max(1, round(tokens)))
    if abs(tokens - round(tokens)) < LEAST_FRACTION:
        return Lengths(nominal=max(1, round(tokens)))
    guesses.said.append(
        f"a mean of {tokens:,.1f} tokens: lengths up to twice that assumed, as SGLang's benchmark draws"
    )
    return Lengths(nominal=max(1, round(2.0 * tokens)), range_ratio=0.0)


def _overlap(point: Point) -> bool | None:
    """Return whether speculation overlapped, where the run's environment says so."""
    setting = re.search(r"\bSGLANG_ENABLE_SPEC_V2=(\w+)", point.launch_args or "")
    return None if setting is None else setting[1].lower() in ("1", "true", "yes")


def _independence(point: Point, engine: EngineProfile) -> float:
    """Return the share of tokens that choose their experts on their own."""
    if point.load_format == "dummy":
        return DUMMY_INDEPENDENCE
    return engine.random_independence if _random_tokens(point) else 1.0


def _random_tokens(point: Point) -> bool:
    """Whether prompts were random tokens: a record may say so; a client that drew the lengths drew the tokens too."""
    dataset = _dataset(point)
    if dataset:
        return "random" in dataset
    return point.metric_kind == "serving" and point.range_ratio is not None and 0.0 < point.range_ratio < 1.0


def _dataset(point: Point) -> str:
    return str(point.extra.get("dataset") or "").lower()


def _kv_dtype(text: str | None) -> str | None:
    if text is None:
        return None
    return "fp8_e4m3" if "fp8" in text.lower() else "auto"


def _first_word(text: str | None) -> str | None:
    """Return the backend of a remark such as 'fa3 (default since 0.4.5.post1)'."""
    match = re.match(r"[a-z0-9_]+", text.lower()) if text else None
    return match[0] if match else None


def _with_flags(config: ServerConfig, launch_args: str, version: Version, guesses: _Guesses) -> ServerConfig:
    """Apply the other flags of the run, read as SGLang reads them; a flag it would refuse is reported and ignored."""
    if not launch_args.strip():
        return config
    settings, faults = flags_given(launch_args, version)
    guesses.said.extend(faults)
    return replace(config, **settings)


def _unpriced(
    point: Point, typed: ServerConfig, arch: ModelArchitecture, machine: Machine, version: Version
) -> tuple[Unpriced, ...]:
    """Return the flags of the run that no equation has; `attention_backend` has a field of its own in a record."""
    values = dict(read_arguments((point.launch_args or "").split(), version).values)
    if typed.attention_backend is not None:
        values.setdefault("attention_backend", typed.attention_backend)
    return unpriced_flags(values, typed, arch, machine, version)
