"""Expert parallelism: all-to-all backends, runners, dispatch, overlap."""

from __future__ import annotations

from models.quantization.formats import Kind
from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome
from planner.sglang.backends import SPANNING, TRTLLM_METHODS, TRTLLM_RUNNER, a2a_backend, moe_runner

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
    own = q.machine.is_blackwell and q.arch.weight_formats.method in TRTLLM_METHODS
    return moe_runner(q.config, q.version, blackwell=own)


def _typed_ep_ignored(q: Question) -> bool:
    return _a2a(q) in SPANNING and q.asked.ep_size not in (1, q.config.tp_size)


def _chunk_beyond(q: Question, tokens: int) -> bool:
    return q.rank_chunk > tokens and q.flag("disaggregation_mode", "null") != "decode"


def _normal_beside_decode(q: Question) -> bool:
    normal = _a2a(q) == "deepep" and q.flag("deepep_mode") == "normal"
    return normal and q.flag("disaggregation_mode", "null") != "prefill"


RULES: tuple[Rule, ...] = (
    Rule(
        id="ep-follows-tp",
        outcome=CHANGED,
        broken=_typed_ep_ignored,
        sentence="{c.moe_a2a_backend} spans all ranks: ep_size becomes tp_size {c.tp_size}, not {a.ep_size}",
        fix="leave --ep-size out; less EP than TP needs --moe-a2a-backend none",
        source="overrides.py:1578",
        since="0.5.0",
    ),
    Rule(
        id="deepep-normal-graphs",
        outcome=WORSE,
        broken=_normal_beside_decode,
        sentence="deepep_mode normal turns all CUDA graphs off",
        fix="use --deepep-mode auto; normal is for prefill-only servers",
        source="moe_hook.py:383",
        since="0.4.9",
    ),
    Rule(
        id="deepep-normal-early",
        outcome=WORSE,
        broken=_normal_beside_decode,
        sentence="deepep_mode normal turns all CUDA graphs off",
        fix="use --deepep-mode low_latency for decode; with attention DP `auto` came with 0.4.9",
        source="server_args.py of 0.4.6.post3 to 0.4.8.post1",
        since="0.4.6.post3",
        before="0.4.9",
    ),
    Rule(
        id="deepep-auto-under-dp",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "deepep" and q.config.attn_dp_size > 1 and q.flag("deepep_mode", "auto") == "auto",
        sentence="DeepEP's mode auto does not go with attention DP in this release: it stops with an assertion",
        fix="add --deepep-mode normal for prefill or low_latency for decode, or use SGLang 0.4.9 or newer",
        source="server_args.py of 0.4.4.post4 to 0.4.8.post1 (assert)",
        since="0.4.4.post4",
        before="0.4.9",
    ),
    Rule(
        id="deepep-buffer",
        outcome=WORSE,
        broken=lambda q: (
            q.config.moe_a2a_backend == "deepep"
            and q.flag("deepep_mode") != "normal"
            and q.flag("disaggregation_mode", "null") != "prefill"
            and q.rank_tokens > int(q.flag("env_deepep_tokens", DEEPEP_TOKENS_PER_RANK))
        ),
        sentence="DeepEP's low-latency buffer takes 128 tokens per rank; this configuration may send {q.rank_tokens}",
        fix="set SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK={q.rank_tokens} (costs memory)",
        source="environ.py:1439",
        since="0.4.5",
    ),
    Rule(
        id="flashinfer-a2a-dp",
        outcome=REFUSED,
        broken=lambda q: (
            _a2a(q) in ("flashinfer", "flashinfer_megamoe")
            and (q.config.attn_dp_size == 1 or q.config.attn_dp_size != q.config.tp_size)
        ),
        sentence="the {c.moe_a2a_backend} all-to-all backend needs attention DP equal to tp_size",
        fix="set --attn-dp-size {c.tp_size}",
        source="moe_hook.py:471",
        since="0.5.3",
    ),
    Rule(
        id="flashinfer-a2a-runner",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "flashinfer" and _runner(q) not in FLASHINFER_RUNNERS,
        sentence="the flashinfer all-to-all backend does not work with the MoE runner {c.moe_runner_backend}",
        fix="use --moe-runner-backend deep_gemm or flashinfer_trtllm",
        source="moe_hook.py:530",
        since="0.5.3",
    ),
    Rule(
        id="pplx-needs-dp",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "pplx" and q.config.attn_dp_size < 2,
        sentence="pplx needs attention DP of at least 2",
        fix="set --attn-dp-size {c.tp_size}, or use deepep",
        source="moe_hook.py:585",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="pplx-mode",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "pplx" and q.flag("deepep_mode") == "normal",
        sentence="pplx has no normal mode",
        fix="use --deepep-mode auto",
        source="moe_hook.py:570",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="pplx-runner",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "pplx" and _runner(q) not in ("deep_gemm", "auto"),
        sentence="pplx works with the deep_gemm runner only",
        fix="leave --moe-runner-backend out",
        source="moe_hook.py:593",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="pplx-tokens",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "pplx" and _chunk_beyond(q, PPLX_TOKENS_PER_RANK),
        sentence="pplx dispatches at most 128 tokens per rank; the chunk of one rank is {q.rank_chunk}",
        fix="set SGLANG_PPLX_NUM_MAX_DISPATCH_TOKENS_PER_RANK, or use it on decode servers",
        source="moe_hook.py:612",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="mori-tokens",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "mori" and _chunk_beyond(q, MORI_TOKENS_PER_RANK),
        sentence="mori dispatches at most 4096 tokens per rank; the chunk of one rank is {q.rank_chunk}",
        fix="lower --chunked-prefill-size, or raise SGLANG_MORI_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
        source="moe_hook.py:560",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="cutlass-ep",
        outcome=REFUSED,
        broken=lambda q: _runner(q) == "cutlass" and q.quantization in ("fp8", "mxfp8") and q.asked.ep_size > 1,
        sentence="the cutlass MoE runner takes FP8 with ep_size 1 only",
        fix="leave --moe-runner-backend out",
        source="moe_hook.py:155",
        since="0.5.0",
    ),
    Rule(
        id="runner-quantization",
        outcome=REFUSED,
        broken=lambda q: (
            (_runner(q) == "flashinfer_cutlass" and q.quantization in ("fp8", "mxfp8"))
            or (_runner(q) == "flashinfer_cutedsl" and q.arch.weight_formats.kind is not Kind.NVFP4)
        ),
        sentence="the MoE runner {c.moe_runner_backend} does not take this model's {arch.weights} weights",
        fix="leave --moe-runner-backend out",
        source="moe_hook.py:66",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="trtllm-runner-quantization",
        outcome=REFUSED,
        broken=lambda q: q.asked.moe_runner_backend == "flashinfer_trtllm" and q.quantization not in TRTLLM_METHODS,
        sentence="the MoE runner flashinfer_trtllm wants its quantization named in this release",
        fix="add --quantization fp8, or leave --moe-runner-backend out",
        source="server_args.py of 0.5.3 to 0.5.6 (assert)",
        since="0.5.3",
        before="0.5.7",
    ),
    Rule(
        id="eplb-needs-ep",
        outcome=REFUSED,
        broken=lambda q: bool(q.flag("enable_eplb")) and q.config.ep_size <= 1,
        sentence="--enable-eplb needs ep_size above 1",
        fix="set --ep-size or an all-to-all backend",
        source="parallel_hook.py:791 (bare assert); server_args.py of 0.4.9.post6, not of 0.4.9",
        since="0.4.9.post6",
    ),
    Rule(
        id="eplb-settings",
        outcome=CHANGED,
        broken=lambda q: bool(q.flag("enable_eplb")) and q.config.ep_size > 1,
        sentence="EPLB sets the expert recorder to `stat` and a dispatch algorithm where none is given",
        fix="nothing to do",
        source="parallel_hook.py:760",
        since="0.4.6",
    ),
    Rule(
        id="dispatch-needs-a2a",
        outcome=REFUSED,
        broken=lambda q: q.flag("ep_dispatch_algorithm") in ("static", "lp") and _a2a(q) == "none",
        sentence="--ep-dispatch-algorithm {f.ep_dispatch_algorithm} needs an all-to-all backend",
        fix="use --ep-dispatch-algorithm dynamic",
        source="parallel_hook.py:779",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="tbo-needs-dp",
        outcome=REFUSED,
        broken=lambda q: bool(q.flag("enable_two_batch_overlap")) and _a2a(q) == "none" and q.config.attn_dp_size == 1,
        sentence="two-batch overlap without an all-to-all backend needs attention DP",
        fix="set --attn-dp-size, or leave it out",
        source="validation_hook.py:756; server_args.py of 0.5.7, not of 0.5.6",
        since="0.5.7",
    ),
    Rule(
        id="tbo-prefill-graphs",
        outcome=CHANGED,
        broken=lambda q: bool(q.flag("enable_two_batch_overlap")) and not q.config.disable_cuda_graph,
        sentence="two-batch overlap turns the prefill graphs off",
        fix="nothing to do",
        source="cuda_graph_hook.py:217",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="shared-expert-unfused",
        outcome=CHANGED,
        broken=lambda q: (
            _runner(q) in ("flashinfer_trtllm", "flashinfer_trtllm_routed", "flashinfer_cutedsl")
            or _a2a(q) in ("flashinfer", "flashinfer_megamoe", "deepep_v2")
        ),
        sentence="the shared expert is not fused with the routed ones",
        fix="nothing to do",
        source="overrides.py:1528",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="shared-expert-replicated",
        outcome=CHANGED,
        broken=lambda q: _a2a(q) in SPANNING,
        sentence="every rank holds the whole shared expert: all-to-all backends replicate it",
        fix="nothing to do",
        source="models/deepseek_v2.py:874",
        since="0.4.5",
    ),
    Rule(
        id="blackwell-moe",
        outcome=CHANGED,
        broken=lambda q: (
            q.machine.is_blackwell
            and q.arch.is_fp8
            and (q.asked.moe_runner_backend or "auto") == "auto"
            and q.config.moe_a2a_backend == "none"
        ),
        sentence="on Blackwell SGLang takes quantization fp8 and the MoE runner flashinfer_trtllm for this model",
        fix="nothing to do",
        source="overrides.py:764",
        since=TRTLLM_RUNNER,
    ),
    Rule(
        id="megamoe-model",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "flashinfer_megamoe",
        sentence="flashinfer_megamoe does not take this model's FP8 blocks",
        fix="use deepep",
        source="moe_hook.py:250",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="deepep-v2-runner",
        outcome=REFUSED,
        broken=lambda q: _a2a(q) == "deepep_v2" and _runner(q) not in ("auto", "deep_gemm"),
        sentence="deepep_v2 works with the deep_gemm runner only",
        fix="leave --moe-runner-backend out",
        source="moe_hook.py:425",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="deepep-v2-overlap",
        outcome=REFUSED,
        broken=lambda q: (
            _a2a(q) == "deepep_v2" and bool(q.flag("enable_two_batch_overlap") or q.flag("enable_single_batch_overlap"))
        ),
        sentence="deepep_v2 has no batch overlap",
        fix="leave the overlap flags out",
        source="moe_hook.py:434",
        since=NEWEST_FAMILY,
    ),
)
