"""Attention DP, attention backends, pages, KV types and context parallelism."""

from __future__ import annotations

from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome

REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED
DETERMINISTIC = ("fa3", "fa4", "triton")
DETERMINISTIC_053 = ("flashinfer", "fa3", "triton")
# Backends that releases know and whose model runner refuses them for MLA.
NOT_FOR_MLA = ("torch_native", "flex_attention", "intel_amx", "intel_xpu", "trtllm_mha", "dual_chunk_flash_attn",
               "hybrid_linear_attn", "wave")  # fmt: skip
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
        id="conservativeness-under-dp",
        outcome=CHANGED,
        broken=lambda q: q.config.attn_dp_size > 1,
        sentence="attention DP multiplies the schedule conservativeness by 0.3, your own value too",
        fix="divide your --schedule-conservativeness by 0.3 if you meant it as it stands",
        source="parallel_hook.py:314",
    ),
    Rule(
        id="chunk-divided",
        outcome=CHANGED,
        broken=lambda q: q.config.attn_dp_size > 1 and (q.config.chunked_prefill_size or 0) > 0,
        sentence="attention DP divides the prefill chunk: {q.rank_chunk} tokens for each of {c.attn_dp_size} ranks",
        fix="multiply --chunked-prefill-size by the attention-DP degree for the chunk you want",
        source="parallel_hook.py:326",
    ),
    Rule(
        id="dp-lm-head-alone",
        outcome=CHANGED,
        broken=lambda q: q.config.enable_dp_lm_head and q.config.attn_dp_size == 1 and q.flag("dp_size") is None,
        sentence="--enable-dp-lm-head is dropped: there is one attention-DP rank",
        fix="leave it out",
        source="overrides.py:1367",
        since="0.5.2",
    ),
    Rule(
        id="dp-lm-head-on-replicas",
        outcome=REFUSED,
        broken=lambda q: q.config.enable_dp_lm_head and q.config.attn_dp_size == 1 and q.flag("dp_size") is not None,
        sentence="--enable-dp-lm-head needs attention DP; --dp-size {f.dp_size} asks for replicas",
        fix="use --attn-dp-size, or leave --enable-dp-lm-head out",
        source="overrides.py:1425",
        since="0.5.2",
    ),
    Rule(
        id="dp-lm-head-without-dp",
        outcome=REFUSED,
        broken=lambda q: q.config.enable_dp_lm_head and q.config.attn_dp_size == 1,
        sentence="--enable-dp-lm-head needs attention DP in this release: it stops with an assertion",
        fix="leave it out, or add --enable-dp-attention and its --dp-size",
        source="server_args.py of 0.4.6.post4 to 0.5.1.post3 (assert)",
        since="0.4.6.post4",
        before="0.5.2",
    ),
    Rule(
        id="lm-head-all-to-all",
        outcome=REFUSED,
        broken=_lm_head_conflict,
        sentence="--enable-tp-lm-head-all-to-all needs attention DP equal to tp_size and no --enable-dp-lm-head",
        fix="leave one of the two out",
        source="overrides.py:1400",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="speculation-under-dp",
        outcome=REFUSED,
        broken=lambda q: q.algorithm in ("STANDALONE", "NGRAM") and q.config.attn_dp_size > 1,
        sentence="{q.algorithm} speculation does not run under attention DP",
        fix="use EAGLE (the model's own MTP layer)",
        source="speculative_hook.py:1076, 1370",
        since="0.5.0",
    ),
    Rule(
        id="requests-per-rank",
        outcome=FAILS,
        broken=lambda q: (q.config.max_running_requests or 1) < q.config.attn_dp_size,
        sentence="max_running_requests {c.max_running_requests} is less than one per attention-DP rank",
        fix="raise --max-running-requests to at least {c.attn_dp_size}",
        source="kv_cache_configurator.py:3132",
    ),
    Rule(
        id="graphs-beyond-requests",
        outcome=WORSE,
        broken=_graphs_beyond_requests,
        sentence="graphs up to batch {c.cuda_graph_max_bs_decode} are reserved on each rank, which never runs more "
        "than {q.rank_requests} requests",
        fix="set --cuda-graph-max-bs-decode {q.rank_requests}",
        source="memory_hook.py:182",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="allreduce-fusion-off",
        outcome=CHANGED,
        broken=lambda q: (
            q.config.tp_size > 1
            and (
                q.config.attn_dp_size > 1
                or q.config.moe_a2a_backend != "none"
                or (q.config.nnodes > 1 and not q.machine.is_blackwell)
            )
        ),
        sentence="the fused all-reduce is off with this layout (attention DP, all-to-all, or several Hopper nodes)",
        fix="nothing to do",
        source="overrides.py:955",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="not-for-mla",
        outcome=REFUSED,
        broken=lambda q: q.config.attention_backend in NOT_FOR_MLA,
        sentence="the attention backend {c.attention_backend} serves no MLA model in {version}",
        fix="leave --attention-backend out",
        source="model_runner.py: Invalid attention backend for MLA (MLA_ATTENTION_BACKENDS)",
        since="0.4.4.post4",
        before="0.5.5",
    ),
    Rule(
        id="page-forced",
        outcome=CHANGED,
        broken=lambda q: q.asked.page_size not in (None, q.config.page_size),
        sentence="{c.attention_backend} changes page_size from {a.page_size} to {c.page_size}",
        fix="give --page-size {c.page_size}, or another attention backend",
        source="overrides.py:1144",
        since="0.4.6",
    ),
    Rule(
        id="trtllm-mla-hardware",
        outcome=REFUSED,
        broken=lambda q: _uses(q, "trtllm_mla") and not q.machine.is_blackwell,
        sentence=(
            "trtllm_mla runs on Blackwell only; {machine.name} has compute capability {machine.compute_capability}"
        ),
        fix="use fa3 or flashmla on Hopper",
        source="overrides.py:1205",
        since="0.5.0",
    ),
    Rule(
        id="trtllm-mla-kv",
        outcome=REFUSED,
        broken=lambda q: _uses(q, "trtllm_mla") and (q.config.kv_cache_dtype or "auto") not in TRTLLM_KV,
        sentence="trtllm_mla does not take kv_cache_dtype {c.kv_cache_dtype}",
        fix="use auto, bf16 or fp8_e4m3",
        source="overrides.py:1211",
        since="0.5.0",
    ),
    Rule(
        id="cutedsl-mla-decode-only",
        outcome=REFUSED,
        broken=lambda q: q.flag("prefill_attention_backend") == "cutedsl_mla",
        sentence="cutedsl_mla decodes only",
        fix="choose another --prefill-attention-backend",
        source="overrides.py:1240",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="cutedsl-mla-hardware",
        outcome=REFUSED,
        broken=lambda q: _uses(q, "cutedsl_mla") and not q.machine.is_blackwell,
        sentence="cutedsl_mla runs on Blackwell (SM100) only",
        fix="use fa3 or flashmla on Hopper",
        source="overrides.py:1243",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="cutedsl-mla-kv",
        outcome=REFUSED,
        broken=lambda q: (
            _uses(q, "cutedsl_mla") and (q.config.kv_cache_dtype or "auto") not in (*TRTLLM_KV, "bfloat16")
        ),
        sentence="cutedsl_mla does not take kv_cache_dtype {c.kv_cache_dtype}",
        fix="use auto, bf16 or fp8_e4m3",
        source="overrides.py:1247",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="mxfp8-kv-hardware",
        outcome=REFUSED,
        broken=lambda q: q.config.kv_cache_dtype == "mxfp8" and not q.machine.is_blackwell,
        sentence="an mxfp8 KV cache needs a Blackwell GPU",
        fix="use fp8_e4m3 or leave it in BF16",
        source="kv_cache_hook.py:100",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="fp4-kv-backend",
        outcome=REFUSED,
        broken=lambda q: q.config.kv_cache_dtype in ("nvfp4", "fp4_mx_block16"),
        sentence="a 4-bit KV cache ({c.kv_cache_dtype}) is not served for this model on {machine.name}",
        fix="use fp8_e4m3 or leave it in BF16",
        source="kv_cache_hook.py:112",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="chunk-covers-page",
        outcome=REFUSED,
        broken=lambda q: (
            q.rank_chunk > 0
            and q.rank_chunk % max(1, q.config.page_size or 1) != 0
            and q.flag("disaggregation_mode", "null") != "decode"
        ),
        sentence="the chunk of one rank, {q.rank_chunk}, is not a multiple of the page size {c.page_size}",
        fix="choose --chunked-prefill-size as a multiple of page size x attention DP",
        source="validation_hook.py:243",
        since="0.4.5",
    ),
    Rule(
        id="chunk-left-per-rank",
        outcome=FAILS,
        broken=lambda q: (q.config.chunked_prefill_size or 0) > 0 and q.rank_chunk < 1,
        sentence="chunked_prefill_size {c.chunked_prefill_size} leaves nothing per rank after division by attention "
        "DP {c.attn_dp_size}",
        fix="raise --chunked-prefill-size",
        source="parallel_hook.py:326",
    ),
    Rule(
        id="fa3-e5m2",
        outcome=CHANGED,
        broken=lambda q: (
            q.asked.attention_backend in (None, "fa3")
            and q.config.attention_backend == "triton"
            and q.config.kv_cache_dtype == "fp8_e5m2"
            and q.machine.is_hopper
        ),
        sentence="fa3 reads no fp8_e5m2 cache: SGLang falls back to triton",
        fix="use fp8_e4m3 with flashmla",
        source="overrides.py:1263",
        since="0.4.6",
    ),
    Rule(
        id="fp8-kv-backend",
        outcome=WORSE,
        broken=lambda q: (
            (q.config.kv_cache_dtype or "auto").startswith("fp8") and bool({"fa3", "flashinfer"} & set(q.backends))
        ),
        sentence="{c.attention_backend} converts a layer's whole FP8 KV cache to BF16 on every call with MLA: it "
        "serves, slower than with BF16, by how much no equation says",
        fix="use --attention-backend flashmla (Hopper) or trtllm_mla (Blackwell), or leave the KV cache in BF16",
        source="flashattention_backend.py:1944",
    ),
    Rule(
        id="fa4-on-hopper",
        outcome=WORSE,
        broken=lambda q: _uses(q, "fa4") and q.machine.is_hopper,
        sentence="fa4 decodes slower than fa3 on Hopper, the more so the longer the context",
        fix="use fa3 or flashmla",
        source="SGLang's attention_backend guide",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="deterministic-backend",
        outcome=REFUSED,
        broken=lambda q: (
            bool(q.flag("enable_deterministic_inference")) and q.config.attention_backend not in DETERMINISTIC
        ),
        sentence="deterministic inference does not run on {c.attention_backend}",
        fix="set --attention-backend fa3 or triton",
        source="overrides.py:1090",
        since="0.5.4",
    ),
    Rule(
        id="deterministic-backend-typed",
        outcome=REFUSED,
        broken=lambda q: (
            bool(q.flag("enable_deterministic_inference")) and q.asked.attention_backend not in DETERMINISTIC_053
        ),
        sentence="deterministic inference wants its attention backend named in this release",
        fix="set --attention-backend fa3 or triton",
        source="server_args.py of 0.5.3 to 0.5.3.post3: it looks before the default is chosen",
        since="0.5.3",
        before="0.5.4",
    ),
    Rule(
        id="cp-strategy",
        outcome=REFUSED,
        broken=lambda q: bool(q.flag("enable_prefill_cp")) and q.flag("cp_strategy") is None,
        sentence="--enable-prefill-cp needs --cp-strategy",
        fix="add --cp-strategy zigzag",
        source="parallel_hook.py:150",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="prefill-cp",
        outcome=CHANGED,
        broken=lambda q: bool(q.flag("enable_prefill_cp")),
        sentence="prefill context parallelism sets attn_cp_size = tp/attention DP, deepep, ep_size = tp_size and "
        "moe_dense_tp_size 1",
        fix="nothing to do",
        source="model_overrides/deepseek_v2.py:190",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="cp-divides-tp",
        outcome=REFUSED,
        broken=lambda q: (
            int(q.flag("attn_cp_size", 1)) > 1
            and not q.flag("enable_prefill_cp")
            and q.config.tp_size % (max(1, q.config.attn_dp_size) * int(q.flag("attn_cp_size"))) != 0
        ),
        sentence="attn_cp_size {f.attn_cp_size} x attention DP does not divide tp_size {c.tp_size}",
        fix="leave --attn-cp-size out",
        source="parallel_hook.py:158",
        since="0.5.9",
    ),
    Rule(
        id="dcp-with-cp",
        outcome=REFUSED,
        broken=lambda q: int(q.flag("dcp_size", 1)) > 1 and bool(q.flag("enable_prefill_cp")),
        sentence="--dcp-size does not go with --enable-prefill-cp",
        fix="leave one out",
        source="parallel_hook.py:243",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="dcp-positive",
        outcome=REFUSED,
        broken=lambda q: int(q.flag("dcp_size", 1)) < 1,
        sentence="dcp_size {f.dcp_size} must be at least 1",
        fix="leave --dcp-size out",
        source="parallel_hook.py:237",
        since=NEWEST_FAMILY,
    ),
)
