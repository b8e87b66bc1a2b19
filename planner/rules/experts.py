"""Expert parallelism: all-to-all backends, runners, dispatch, overlap."""

from __future__ import annotations

from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome
from planner.sglang.backends import SPANNING, a2a_backend

REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED
DEEPEP_TOKENS_PER_RANK = 128
PPLX_TOKENS_PER_RANK = 128
MORI_TOKENS_PER_RANK = 4096
FLASHINFER_RUNNERS = (
    "flashinfer_cutlass", "flashinfer_cutedsl", "flashinfer_trtllm", "flashinfer_trtllm_routed", "deep_gemm",
)  # fmt: skip


def _a2a(q: Question) -> str:
    return a2a_backend(q.config)


def _runner(q: Question) -> str:
    """The MoE runner as resolved: on Blackwell `auto` becomes flashinfer_trtllm without an all-to-all backend."""
    given = q.config.moe_runner_backend or "auto"
    if given == "auto" and q.machine.is_blackwell and q.config.moe_a2a_backend == "none":
        return "flashinfer_trtllm"
    return given


def _typed_ep_ignored(q: Question) -> bool:
    return _a2a(q) in SPANNING and q.asked.ep_size not in (1, q.config.tp_size)


def _chunk_beyond(q: Question, tokens: int) -> bool:
    return q.rank_chunk > tokens and q.flag("disaggregation_mode", "null") != "decode"


RULES: tuple[Rule, ...] = (
    Rule(
        "ep-follows-tp", CHANGED, _typed_ep_ignored,
        "{c.moe_a2a_backend} spans all ranks: ep_size becomes tp_size {c.tp_size}, not {a.ep_size}",
        "leave --ep-size out; less EP than TP needs --moe-a2a-backend none", "overrides.py:1578", "2.1/8, 2.2/12",
        "0.5.0",
    ),
    Rule(
        "deepep-normal-graphs", WORSE,
        lambda q: _a2a(q) == "deepep" and q.flag("deepep_mode") == "normal"
        and q.flag("disaggregation_mode", "null") != "prefill",
        "deepep_mode normal turns all CUDA graphs off", "use --deepep-mode auto; normal is for prefill-only servers",
        "moe_hook.py:383", "2.2/13", "0.4.5",
    ),
    Rule(
        "deepep-buffer", WORSE,
        lambda q: q.config.moe_a2a_backend == "deepep" and q.flag("deepep_mode") != "normal"
        and q.flag("disaggregation_mode", "null") != "prefill"
        and q.rank_tokens > int(q.flag("env_deepep_tokens", DEEPEP_TOKENS_PER_RANK)),
        "DeepEP's low-latency buffer takes 128 tokens per rank; this configuration may send {q.rank_tokens}",
        "set SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK={q.rank_tokens} (costs memory)", "environ.py:1439",
        "2.2/14, 2.8", "0.4.5",
    ),
    Rule(
        "flashinfer-a2a-dp", REFUSED,
        lambda q: _a2a(q) in ("flashinfer", "flashinfer_megamoe")
        and (q.config.attn_dp_size == 1 or q.config.attn_dp_size != q.config.tp_size),
        "the {c.moe_a2a_backend} all-to-all backend needs attention DP equal to tp_size",
        "set --attn-dp-size {c.tp_size}", "moe_hook.py:471", "2.2/15", "0.5.3",
    ),
    Rule(
        "flashinfer-a2a-runner", REFUSED,
        lambda q: _a2a(q) == "flashinfer" and _runner(q) not in FLASHINFER_RUNNERS,
        "the flashinfer all-to-all backend does not work with the MoE runner {c.moe_runner_backend}",
        "use --moe-runner-backend deep_gemm or flashinfer_trtllm", "moe_hook.py:530", "2.2/15", "0.5.3",
    ),
    Rule(
        "pplx-needs-dp", REFUSED, lambda q: _a2a(q) == "pplx" and q.config.attn_dp_size < 2,
        "pplx needs attention DP of at least 2", "set --attn-dp-size {c.tp_size}, or use deepep", "moe_hook.py:585",
        "2.2/16", NEWEST_FAMILY,
    ),
    Rule(
        "pplx-mode", REFUSED, lambda q: _a2a(q) == "pplx" and q.flag("deepep_mode") == "normal",
        "pplx has no normal mode", "use --deepep-mode auto", "moe_hook.py:570", "2.2/16", NEWEST_FAMILY,
    ),
    Rule(
        "pplx-runner", REFUSED, lambda q: _a2a(q) == "pplx" and _runner(q) not in ("deep_gemm", "auto"),
        "pplx works with the deep_gemm runner only", "leave --moe-runner-backend out", "moe_hook.py:593", "2.2/16",
        NEWEST_FAMILY,
    ),
    Rule(
        "pplx-tokens", REFUSED, lambda q: _a2a(q) == "pplx" and _chunk_beyond(q, PPLX_TOKENS_PER_RANK),
        "pplx dispatches at most 128 tokens per rank; the chunk of one rank is {q.rank_chunk}",
        "set SGLANG_PPLX_NUM_MAX_DISPATCH_TOKENS_PER_RANK, or use it on decode servers", "moe_hook.py:612", "2.2/16",
        NEWEST_FAMILY,
    ),
    Rule(
        "mori-tokens", REFUSED, lambda q: _a2a(q) == "mori" and _chunk_beyond(q, MORI_TOKENS_PER_RANK),
        "mori dispatches at most 4096 tokens per rank; the chunk of one rank is {q.rank_chunk}",
        "lower --chunked-prefill-size, or raise SGLANG_MORI_NUM_MAX_DISPATCH_TOKENS_PER_RANK", "moe_hook.py:560",
        "2.2/16", NEWEST_FAMILY,
    ),
    Rule(
        "cutlass-ep", REFUSED,
        lambda q: _runner(q) == "cutlass" and q.quantization in ("fp8", "mxfp8") and q.asked.ep_size > 1,
        "the cutlass MoE runner takes FP8 with ep_size 1 only", "leave --moe-runner-backend out", "moe_hook.py:155",
        "2.2/16", "0.5.0",
    ),
    Rule(
        "runner-quantization", REFUSED,
        lambda q: (_runner(q) == "flashinfer_cutlass" and q.quantization in ("fp8", "mxfp8"))
        or _runner(q) == "flashinfer_cutedsl",
        "the MoE runner {c.moe_runner_backend} does not take this model's FP8 blocks",
        "leave --moe-runner-backend out", "moe_hook.py:66", "2.2/16", NEWEST_FAMILY,
    ),
    Rule(
        "eplb-needs-ep", REFUSED, lambda q: bool(q.flag("enable_eplb")) and q.config.ep_size <= 1,
        "--enable-eplb needs ep_size above 1", "set --ep-size or an all-to-all backend",
        "parallel_hook.py:791 (bare assert)", "2.2/17", "0.4.6",
    ),
    Rule(
        "eplb-settings", CHANGED, lambda q: bool(q.flag("enable_eplb")) and q.config.ep_size > 1,
        "EPLB sets the expert recorder to `stat` and a dispatch algorithm where none is given", "nothing to do",
        "parallel_hook.py:760", "2.2/17", "0.4.6",
    ),
    Rule(
        "dispatch-needs-a2a", REFUSED,
        lambda q: q.flag("ep_dispatch_algorithm") in ("static", "lp") and _a2a(q) == "none",
        "--ep-dispatch-algorithm {f.ep_dispatch_algorithm} needs an all-to-all backend",
        "use --ep-dispatch-algorithm dynamic", "parallel_hook.py:779", "2.2/17", NEWEST_FAMILY,
    ),
    Rule(
        "tbo-needs-dp", REFUSED,
        lambda q: bool(q.flag("enable_two_batch_overlap")) and _a2a(q) == "none" and q.config.attn_dp_size == 1,
        "two-batch overlap without an all-to-all backend needs attention DP", "set --attn-dp-size, or leave it out",
        "validation_hook.py:756", "2.2/18", "0.4.7",
    ),
    Rule(
        "tbo-prefill-graphs", CHANGED,
        lambda q: bool(q.flag("enable_two_batch_overlap")) and not q.config.disable_cuda_graph,
        "two-batch overlap turns the prefill graphs off", "nothing to do", "cuda_graph_hook.py:217", "2.2/18, 2.7",
        NEWEST_FAMILY,
    ),
    Rule(
        "shared-expert-unfused", CHANGED,
        lambda q: _runner(q) in ("flashinfer_trtllm", "flashinfer_trtllm_routed", "flashinfer_cutedsl")
        or _a2a(q) in ("flashinfer", "flashinfer_megamoe", "deepep_v2"),
        "the shared expert is not fused with the routed ones", "nothing to do", "overrides.py:1528", "2.2/19",
        NEWEST_FAMILY,
    ),
    Rule(
        "shared-expert-replicated", CHANGED, lambda q: _a2a(q) in SPANNING,
        "every rank holds the whole shared expert: all-to-all backends replicate it", "nothing to do",
        "models/deepseek_v2.py:874", "2.2/20", "0.4.5",
    ),
    Rule(
        "blackwell-moe", CHANGED,
        lambda q: q.machine.is_blackwell and q.arch.is_fp8 and (q.asked.moe_runner_backend or "auto") == "auto"
        and q.config.moe_a2a_backend == "none",
        "on Blackwell SGLang takes quantization fp8 and the MoE runner flashinfer_trtllm for this model",
        "nothing to do", "overrides.py:764", "2.6/43", "0.5.0",
    ),
    Rule(
        "megamoe-model", REFUSED, lambda q: _a2a(q) == "flashinfer_megamoe",
        "flashinfer_megamoe does not take this model's FP8 blocks", "use deepep", "moe_hook.py:250", "2.2/16",
        NEWEST_FAMILY,
    ),
    Rule(
        "deepep-v2-runner", REFUSED,
        lambda q: _a2a(q) == "deepep_v2" and _runner(q) not in ("auto", "deep_gemm"),
        "deepep_v2 works with the deep_gemm runner only", "leave --moe-runner-backend out", "moe_hook.py:425",
        "2.2/16", NEWEST_FAMILY,
    ),
    Rule(
        "deepep-v2-overlap", REFUSED,
        lambda q: _a2a(q) == "deepep_v2" and bool(q.flag("enable_two_batch_overlap")
                                                   or q.flag("enable_single_batch_overlap")),
        "deepep_v2 has no batch overlap", "leave the overlap flags out", "moe_hook.py:434", "2.2/16", NEWEST_FAMILY,
    ),
)  # fmt: skip
