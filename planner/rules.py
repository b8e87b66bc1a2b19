"""SGLang's validity rules as data: one place for plan, tune and everything that judges a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.machine import Machine
from models.version import at_least
from planner.dialects import missing_abilities

DEEPEP_TOKENS_PER_RANK = 128
FP8_CAPABILITY = 8.9


class Severity(StrEnum):
    """`error`: SGLang refuses or fails; `warning`: it runs, but not as asked."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A resolved configuration together with what it is to run on."""

    config: ServerConfig
    arch: ModelArchitecture
    machine: Machine
    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`broken` says whether the rule is violated; `sentence` and `fix` are formatted with the config's fields."""

    id: str
    severity: Severity
    broken: Callable[[Question], bool]
    sentence: str
    fix: str
    source: str
    since: str = "0.4.3"
    before: str | None = None

    def holds_for(self, version: Version) -> bool:
        return at_least(version, self.since) and not (self.before and at_least(version, self.before))


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    rule: str
    severity: Severity
    message: str
    fix: str


def violations(question: Question, rules: tuple[Rule, ...] | None = None) -> list[Violation]:
    """Return every violated rule of the version, errors first."""
    found = [
        _violation(rule, question)
        for rule in (RULES if rules is None else rules)
        if rule.holds_for(question.version) and rule.broken(question)
    ]
    found += [
        Violation(
            rule="version-ability",
            severity=Severity.ERROR,
            message=f"SGLang {question.version} cannot do {ability.name} ({ability.flag})",
            fix=f"use SGLang {ability.since} or newer",
        )
        for ability in missing_abilities(question.config, question.version)
    ]
    return sorted(found, key=lambda violation: violation.severity != Severity.ERROR)


def first_error(question: Question) -> Violation | None:
    """Return the first violated rule that SGLang would refuse or fail on, or None."""
    found = violations(question)
    return found[0] if found and found[0].severity == Severity.ERROR else None


def _violation(rule: Rule, question: Question) -> Violation:
    config, arch, machine = question.config, question.arch, question.machine
    words = {
        "c": config,
        "arch": arch,
        "machine": machine,
        "version": question.version,
        "rank_tokens": _deepep_tokens(config),
        "rank_chunk": _rank_chunk(config),
    }
    return Violation(
        rule=rule.id,
        severity=rule.severity,
        message=rule.sentence.format(**words),
        fix=rule.fix.format(**words),
    )


def _rank_chunk(config: ServerConfig) -> int:
    return (config.chunked_prefill_size or 0) // config.attn_dp_size


def _deepep_tokens(config: ServerConfig) -> int:
    """Decode tokens one rank dispatches: its requests times the tokens each verifies."""
    requests = (config.max_running_requests or 0) // config.attn_dp_size
    per_request = config.speculative.num_draft_tokens if config.speculative else 1
    return min(requests, config.cuda_graph_max_bs_decode or requests) * per_request


def _capability(machine: Machine) -> float:
    return float(machine.compute_capability or 99)


RULES: tuple[Rule, ...] = (
    Rule(
        id="gpu-count",
        severity=Severity.ERROR,
        broken=lambda q: q.config.gpu_count > q.machine.gpus_per_node * q.config.nnodes,
        sentence="tp_size {c.tp_size} x pp_size {c.pp_size} needs more GPUs than {c.nnodes} node(s) have",
        fix="lower --tp-size or --pp-size, or raise --nnodes",
        source="unchecked by SGLang until CUDA fails",
    ),
    Rule(
        id="nodes-divide",
        severity=Severity.ERROR,
        broken=lambda q: q.config.gpu_count % q.config.nnodes != 0,
        sentence="tp_size x pp_size = {c.gpu_count} is not divisible by nnodes {c.nnodes}",
        fix="choose --tp-size as a multiple of --nnodes",
        source="validation_hook.py:178",
    ),
    Rule(
        id="attn-dp-divides-tp",
        severity=Severity.ERROR,
        broken=lambda q: q.config.tp_size % q.config.attn_dp_size != 0,
        sentence="attention DP {c.attn_dp_size} does not divide tp_size {c.tp_size}",
        fix="choose a divisor of --tp-size",
        source="parallel_hook.py:326 (bare assert)",
    ),
    Rule(
        id="heads-divide",
        severity=Severity.ERROR,
        broken=lambda q: q.arch.num_attention_heads % max(1, q.config.tp_size // q.config.attn_dp_size) != 0,
        sentence="{arch.num_attention_heads} attention heads cannot be split over tp_size {c.tp_size} "
        "with attention DP {c.attn_dp_size}",
        fix="use a power of two for --tp-size",
        source="models/deepseek_v2.py:2057",
    ),
    Rule(
        id="expert-width",
        severity=Severity.ERROR,
        broken=lambda q: (
            q.arch.is_fp8 and q.arch.moe_intermediate_size % (128 * max(1, q.config.tp_size // q.config.ep_size)) != 0
        ),
        sentence="an expert of width {arch.moe_intermediate_size} split {c.tp_size}/{c.ep_size} ways does not end on "
        "FP8's blocks of 128",
        fix="lower --tp-size or raise --ep-size",
        source="layers/moe/fused_moe_triton/layer.py:427",
    ),
    Rule(
        id="experts-divide-ep",
        severity=Severity.ERROR,
        broken=lambda q: q.arch.n_routed_experts % q.config.ep_size != 0,
        sentence="{arch.n_routed_experts} experts cannot be split over ep_size {c.ep_size}",
        fix="choose a divisor of {arch.n_routed_experts} for --ep-size",
        source="layers/moe/fused_moe_triton/layer.py:414",
    ),
    Rule(
        id="ep-within-tp",
        severity=Severity.ERROR,
        broken=lambda q: q.config.tp_size % q.config.ep_size != 0,
        sentence="ep_size {c.ep_size} does not divide tp_size {c.tp_size}",
        fix="choose 1 or --tp-size for --ep-size",
        source="parallel_hook.py",
    ),
    Rule(
        id="pp-with-mtp",
        severity=Severity.ERROR,
        broken=lambda q: q.config.pp_size > 1 and q.config.speculative is not None,
        sentence="pipeline parallelism and MTP do not go together outside prefill-only servers",
        fix="set --pp-size 1 or leave MTP out",
        source="validation_hook.py:119",
    ),
    Rule(
        id="fp8-hardware",
        severity=Severity.ERROR,
        broken=lambda q: q.arch.is_fp8 and _capability(q.machine) < FP8_CAPABILITY,
        sentence="FP8 block weights need compute capability 8.9 or newer; {machine.name} has "
        "{machine.compute_capability}",
        fix="use a BF16 or INT8 export of the model, or newer GPUs",
        source="layers/quantization/fp8.py",
    ),
    Rule(
        id="chunk-covers-page",
        severity=Severity.ERROR,
        broken=lambda q: (
            (q.config.chunked_prefill_size or 0) > 0 and _rank_chunk(q.config) % (q.config.page_size or 1) != 0
        ),
        sentence="the chunk of one rank, {rank_chunk}, is not a multiple of the page size {c.page_size}",
        fix="choose --chunked-prefill-size as a multiple of page size x attention DP",
        source="validation_hook.py:243",
        since="0.4.5",
    ),
    Rule(
        id="chunk-left-per-rank",
        severity=Severity.ERROR,
        broken=lambda q: (q.config.chunked_prefill_size or 0) > 0 and _rank_chunk(q.config) < 1,
        sentence="chunked_prefill_size {c.chunked_prefill_size} leaves nothing per rank after division by attention "
        "DP {c.attn_dp_size}",
        fix="raise --chunked-prefill-size",
        source="parallel_hook.py:326",
    ),
    Rule(
        id="requests-per-rank",
        severity=Severity.ERROR,
        broken=lambda q: (q.config.max_running_requests or 1) < q.config.attn_dp_size,
        sentence="max_running_requests {c.max_running_requests} is less than one per attention-DP rank",
        fix="raise --max-running-requests to at least {c.attn_dp_size}",
        source="kv_cache_configurator.py:3132",
    ),
    Rule(
        id="fraction-range",
        severity=Severity.ERROR,
        broken=lambda q: not 0.0 < (q.config.mem_fraction_static or 0.0) < 1.0,
        sentence="mem_fraction_static {c.mem_fraction_static} is outside 0 to 1",
        fix="choose a fraction such as 0.88",
        source="unchecked by SGLang",
    ),
    Rule(
        id="fp8-kv-backend",
        severity=Severity.ERROR,
        broken=lambda q: (
            (q.config.kv_cache_dtype or "auto").startswith("fp8")
            and q.config.attention_backend in ("fa3", "flashinfer")
        ),
        sentence="{c.attention_backend} converts an FP8 KV cache to BF16 on every call with MLA",
        fix="use --attention-backend flashmla (Hopper) or trtllm_mla (Blackwell), or leave the KV cache in BF16",
        source="flashattention_backend.py:1944",
    ),
    Rule(
        id="deepep-buffer",
        severity=Severity.WARNING,
        broken=lambda q: q.config.moe_a2a_backend == "deepep" and _deepep_tokens(q.config) > DEEPEP_TOKENS_PER_RANK,
        sentence="DeepEP's low-latency buffer takes 128 tokens per rank; this configuration may send {rank_tokens}",
        fix="set SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK={rank_tokens} (costs memory)",
        source="environ.py:1439",
    ),
)
