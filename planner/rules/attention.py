"""Attention DP, attention backends, pages, KV types and context parallelism."""

from __future__ import annotations

from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome

REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED
DETERMINISTIC = ("fa3", "fa4", "triton")
TRTLLM_KV = ("fp8_e4m3", "bf16", "auto")


def _uses(q: Question, *names: str) -> bool:
    """Say whether the overall or the decode attention backend is one of these."""
    return q.config.attention_backend in names or q.flag("decode_attention_backend") in names


def _graphs_beyond_requests(q: Question) -> bool:
    graph, typed = q.config.cuda_graph_max_bs_decode or 0, q.asked.max_running_requests
    return typed is not None and q.config.attn_dp_size > 1 and graph > -(-typed // q.config.attn_dp_size) * 2


def _lm_head_conflict(q: Question) -> bool:
    both = q.config.enable_dp_lm_head and q.config.attn_dp_size > 1
    if not q.flag("enable_tp_lm_head_all_to_all"):
        return False
    return both or q.config.attn_dp_size == 1 or q.config.attn_dp_size != q.config.tp_size


RULES: tuple[Rule, ...] = (
    Rule(
        "conservativeness-under-dp", CHANGED, lambda q: q.config.attn_dp_size > 1,
        "attention DP multiplies the schedule conservativeness by 0.3, your own value too",
        "divide your --schedule-conservativeness by 0.3 if you meant it as it stands", "parallel_hook.py:314", "2.3/22",
    ),
    Rule(
        "chunk-divided", CHANGED, lambda q: q.config.attn_dp_size > 1 and (q.config.chunked_prefill_size or 0) > 0,
        "attention DP divides the prefill chunk: {q.rank_chunk} tokens for each of {c.attn_dp_size} ranks",
        "multiply --chunked-prefill-size by the attention-DP degree for the chunk you want", "parallel_hook.py:326",
        "2.3/23",
    ),
    Rule(
        "dp-lm-head-alone", CHANGED,
        lambda q: q.config.enable_dp_lm_head and q.config.attn_dp_size == 1 and q.flag("dp_size") is None,
        "--enable-dp-lm-head is dropped: there is one attention-DP rank", "leave it out", "overrides.py:1367",
        "2.3/24", "0.4.6",
    ),
    Rule(
        "dp-lm-head-on-replicas", REFUSED,
        lambda q: q.config.enable_dp_lm_head and q.config.attn_dp_size == 1 and q.flag("dp_size") is not None,
        "--enable-dp-lm-head needs attention DP; --dp-size {f.dp_size} asks for replicas",
        "use --attn-dp-size, or leave --enable-dp-lm-head out", "overrides.py:1425", "2.3/24", NEWEST_FAMILY,
    ),
    Rule(
        "lm-head-all-to-all", REFUSED, _lm_head_conflict,
        "--enable-tp-lm-head-all-to-all needs attention DP equal to tp_size and no --enable-dp-lm-head",
        "leave one of the two out", "overrides.py:1400", "2.3/24", NEWEST_FAMILY,
    ),
    Rule(
        "speculation-under-dp", REFUSED,
        lambda q: q.algorithm in ("STANDALONE", "NGRAM") and q.config.attn_dp_size > 1,
        "{q.algorithm} speculation does not run under attention DP", "use EAGLE (the model's own MTP layer)",
        "speculative_hook.py:1076, 1370", "2.3/25", "0.5.0",
    ),
    Rule(
        "requests-per-rank", FAILS, lambda q: (q.config.max_running_requests or 1) < q.config.attn_dp_size,
        "max_running_requests {c.max_running_requests} is less than one per attention-DP rank",
        "raise --max-running-requests to at least {c.attn_dp_size}", "kv_cache_configurator.py:3132", "2.3/26, 2.8",
    ),
    Rule(
        "graphs-beyond-requests", WORSE, _graphs_beyond_requests,
        "graphs up to batch {c.cuda_graph_max_bs_decode} are reserved on each rank, which never runs more than "
        "{q.rank_requests} requests",
        "set --cuda-graph-max-bs-decode {q.rank_requests}", "memory_hook.py:182", "2.3/26", NEWEST_FAMILY,
    ),
    Rule(
        "allreduce-fusion-off", CHANGED,
        lambda q: q.config.tp_size > 1 and (q.config.attn_dp_size > 1 or q.config.moe_a2a_backend != "none"
                                            or (q.config.nnodes > 1 and not q.machine.is_blackwell)),
        "the fused all-reduce is off with this layout (attention DP, all-to-all, or several Hopper nodes)",
        "nothing to do", "overrides.py:955", "2.3/27, 2.6/42", NEWEST_FAMILY,
    ),
    Rule(
        "page-forced", CHANGED, lambda q: q.asked.page_size not in (None, q.config.page_size),
        "{c.attention_backend} changes page_size from {a.page_size} to {c.page_size}",
        "give --page-size {c.page_size}, or another attention backend", "overrides.py:1144", "2.4/29", "0.4.6",
    ),
    Rule(
        "trtllm-mla-hardware", REFUSED, lambda q: _uses(q, "trtllm_mla") and not q.machine.is_blackwell,
        "trtllm_mla runs on Blackwell only; {machine.name} has compute capability {machine.compute_capability}",
        "use fa3 or flashmla on Hopper", "overrides.py:1205", "2.4/29", "0.5.0",
    ),
    Rule(
        "trtllm-mla-kv", REFUSED,
        lambda q: _uses(q, "trtllm_mla") and (q.config.kv_cache_dtype or "auto") not in TRTLLM_KV,
        "trtllm_mla does not take kv_cache_dtype {c.kv_cache_dtype}", "use auto, bf16 or fp8_e4m3",
        "overrides.py:1211", "2.4/29", "0.5.0",
    ),
    Rule(
        "cutedsl-mla-decode-only", REFUSED, lambda q: q.flag("prefill_attention_backend") == "cutedsl_mla",
        "cutedsl_mla decodes only", "choose another --prefill-attention-backend", "overrides.py:1240", "2.4/33",
        NEWEST_FAMILY,
    ),
    Rule(
        "cutedsl-mla-hardware", REFUSED, lambda q: _uses(q, "cutedsl_mla") and not q.machine.is_blackwell,
        "cutedsl_mla runs on Blackwell (SM100) only", "use fa3 or flashmla on Hopper", "overrides.py:1243", "2.4/29",
        NEWEST_FAMILY,
    ),
    Rule(
        "cutedsl-mla-kv", REFUSED,
        lambda q: _uses(q, "cutedsl_mla") and (q.config.kv_cache_dtype or "auto") not in (*TRTLLM_KV, "bfloat16"),
        "cutedsl_mla does not take kv_cache_dtype {c.kv_cache_dtype}", "use auto, bf16 or fp8_e4m3",
        "overrides.py:1247", "2.4/29", NEWEST_FAMILY,
    ),
    Rule(
        "mxfp8-kv-hardware", REFUSED,
        lambda q: q.config.kv_cache_dtype == "mxfp8" and not q.machine.is_blackwell,
        "an mxfp8 KV cache needs a Blackwell GPU", "use fp8_e4m3 or leave it in BF16", "kv_cache_hook.py:100",
        "2.4/29", NEWEST_FAMILY,
    ),
    Rule(
        "fp4-kv-backend", REFUSED,
        lambda q: q.config.kv_cache_dtype in ("nvfp4", "fp4_mx_block16"),
        "a 4-bit KV cache ({c.kv_cache_dtype}) is not served for this model on {machine.name}",
        "use fp8_e4m3 or leave it in BF16", "kv_cache_hook.py:112", "2.4/29", NEWEST_FAMILY,
    ),
    Rule(
        "chunk-covers-page", REFUSED,
        lambda q: q.rank_chunk > 0 and q.rank_chunk % max(1, q.config.page_size or 1) != 0
        and q.flag("disaggregation_mode", "null") != "decode",
        "the chunk of one rank, {q.rank_chunk}, is not a multiple of the page size {c.page_size}",
        "choose --chunked-prefill-size as a multiple of page size x attention DP", "validation_hook.py:243", "2.4/30",
        "0.4.5",
    ),
    Rule(
        "chunk-left-per-rank", FAILS,
        lambda q: (q.config.chunked_prefill_size or 0) > 0 and q.rank_chunk < 1,
        "chunked_prefill_size {c.chunked_prefill_size} leaves nothing per rank after division by attention "
        "DP {c.attn_dp_size}",
        "raise --chunked-prefill-size", "parallel_hook.py:326", "2.3/23, 2.8",
    ),
    Rule(
        "fa3-e5m2", CHANGED,
        lambda q: q.asked.attention_backend in (None, "fa3") and q.config.attention_backend == "triton"
        and q.config.kv_cache_dtype == "fp8_e5m2" and q.machine.is_hopper,
        "fa3 reads no fp8_e5m2 cache: SGLang falls back to triton", "use fp8_e4m3 with flashmla", "overrides.py:1263",
        "2.4/31", "0.4.6",
    ),
    Rule(
        "fp8-kv-backend", FAILS,
        lambda q: (q.config.kv_cache_dtype or "auto").startswith("fp8")
        and bool({"fa3", "flashinfer"} & set(q.backends)),
        "{c.attention_backend} converts an FP8 KV cache to BF16 on every call with MLA",
        "use --attention-backend flashmla (Hopper) or trtllm_mla (Blackwell), or leave the KV cache in BF16",
        "flashattention_backend.py:1944", "2.4/32",
    ),
    Rule(
        "fa4-on-hopper", WORSE, lambda q: _uses(q, "fa4") and q.machine.is_hopper,
        "fa4 decodes slower than fa3 on Hopper, the more so the longer the context", "use fa3 or flashmla",
        "SGLang's attention_backend guide", "2.4/33", NEWEST_FAMILY,
    ),
    Rule(
        "deterministic-backend", REFUSED,
        lambda q: bool(q.flag("enable_deterministic_inference")) and q.config.attention_backend not in DETERMINISTIC,
        "deterministic inference does not run on {c.attention_backend}", "set --attention-backend fa3 or triton",
        "overrides.py:1090", "2.4/28", "0.5.3",
    ),
    Rule(
        "cp-strategy", REFUSED, lambda q: bool(q.flag("enable_prefill_cp")) and q.flag("cp_strategy") is None,
        "--enable-prefill-cp needs --cp-strategy", "add --cp-strategy zigzag", "parallel_hook.py:150", "2.2/21",
        NEWEST_FAMILY,
    ),
    Rule(
        "prefill-cp", CHANGED, lambda q: bool(q.flag("enable_prefill_cp")),
        "prefill context parallelism sets attn_cp_size = tp/attention DP, deepep, ep_size = tp_size and "
        "moe_dense_tp_size 1",
        "nothing to do", "model_overrides/deepseek_v2.py:190", "2.2/21", NEWEST_FAMILY,
    ),
    Rule(
        "cp-divides-tp", REFUSED,
        lambda q: int(q.flag("attn_cp_size", 1)) > 1 and not q.flag("enable_prefill_cp")
        and q.config.tp_size % (max(1, q.config.attn_dp_size) * int(q.flag("attn_cp_size"))) != 0,
        "attn_cp_size {f.attn_cp_size} x attention DP does not divide tp_size {c.tp_size}",
        "leave --attn-cp-size out", "parallel_hook.py:158", "2.2/21", NEWEST_FAMILY,
    ),
    Rule(
        "dcp-with-cp", REFUSED, lambda q: int(q.flag("dcp_size", 1)) > 1 and bool(q.flag("enable_prefill_cp")),
        "--dcp-size does not go with --enable-prefill-cp", "leave one out", "parallel_hook.py:243", "2.2/21",
        NEWEST_FAMILY,
    ),
    Rule(
        "dcp-positive", REFUSED, lambda q: int(q.flag("dcp_size", 1)) < 1,
        "dcp_size {f.dcp_size} must be at least 1", "leave --dcp-size out", "parallel_hook.py:237", "2.2/21",
        NEWEST_FAMILY,
    ),
)  # fmt: skip
