"""Scheduling, graphs, memory, caches and disaggregation."""

from __future__ import annotations

from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome
from planner.sglang.captured import (
    SETTLED_WITH_ARGUMENTS,
    captured_sizes,
    graphs_captured,
)

REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED
PRIORITY_POLICIES = ("fcfs", "lof")
AITER_CONTEXT = 8192
# Releases whose decode servers insist on --prefill-round-robin-balance under DP.
BALANCE_ASKED, BALANCE_SETTLED = "0.5.2", "0.5.8"


def _mode(q: Question) -> str:
    return str(q.flag("disaggregation_mode", "null"))


RULES: tuple[Rule, ...] = (
    Rule(
        id="model-path",
        outcome=REFUSED,
        broken=lambda q: q.typed is not None and q.flag("model_path") is None,
        sentence="the launch line names no model",
        fix="add --model-path deepseek-ai/DeepSeek-R1",
        source="server_args.py",
    ),
    Rule(
        id="fraction-range",
        outcome=FAILS,
        broken=lambda q: not 0.0 < (q.config.mem_fraction_static or 0.0) < 1.0,
        sentence="mem_fraction_static {c.mem_fraction_static} is outside 0 to 1; SGLang does not check it",
        fix="choose a fraction such as 0.88, or lower the chunk and graph sizes it is computed from",
        source="unchecked by SGLang",
    ),
    Rule(
        id="requests-positive",
        outcome=FAILS,
        broken=lambda q: q.config.max_running_requests is not None and q.config.max_running_requests < 1,
        sentence="max_running_requests {c.max_running_requests} lets no request run",
        fix="give at least 1",
        source="unchecked by SGLang",
    ),
    Rule(
        id="graph-size-positive",
        outcome=FAILS,
        broken=lambda q: (
            not q.config.disable_cuda_graph
            and q.config.cuda_graph_max_bs_decode is not None
            and q.config.cuda_graph_max_bs_decode < 1
        ),
        sentence="cuda_graph_max_bs_decode {c.cuda_graph_max_bs_decode} captures nothing",
        fix="give at least 1",
        source="unchecked by SGLang",
    ),
    Rule(
        id="graphs-none-left",
        outcome=REFUSED,
        broken=lambda q: graphs_captured(q.config) and not captured_sizes(q.asked, q.machine, q.version),
        sentence="no decode graph size is left to capture: {version} drops those above --cuda-graph-max-bs and, "
        "from 0.4.9.post6 on, those attention TP does not divide",
        fix="leave --cuda-graph-bs out, or list sizes that remain",
        source="cuda_graph_runner.py: get_batch_sizes_to_capture takes the largest of an empty list",
        before=SETTLED_WITH_ARGUMENTS,
    ),
    Rule(
        id="context-positive",
        outcome=FAILS,
        broken=lambda q: q.config.context_length is not None and q.config.context_length < 1,
        sentence="context_length {c.context_length} holds no token",
        fix="leave --context-length out",
        source="unchecked by SGLang",
    ),
    Rule(
        id="context-beyond-model",
        outcome=REFUSED,
        broken=lambda q: (q.config.context_length or 0) > q.arch.max_position_embeddings,
        sentence="context_length {c.context_length} exceeds the model's {arch.max_position_embeddings}",
        fix="leave --context-length out, or set SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 knowingly",
        source="configs/model_config.py",
    ),
    Rule(
        id="padding-with-compile",
        outcome=REFUSED,
        broken=lambda q: bool(q.flag("disable_cuda_graph_padding")) and bool(q.flag("enable_torch_compile")),
        sentence="--disable-cuda-graph-padding does not go with --enable-torch-compile",
        fix="leave one out",
        source="validation_hook.py:188",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="priority-policy",
        outcome=REFUSED,
        broken=lambda q: (
            bool(q.flag("enable_priority_scheduling")) and (q.config.schedule_policy or "fcfs") not in PRIORITY_POLICIES
        ),
        sentence="priority scheduling needs the policy fcfs or lof, not {c.schedule_policy}",
        fix="leave --schedule-policy out",
        source="validation_hook.py:281",
        since="0.5.3",
    ),
    Rule(
        id="retraction-priority",
        outcome=REFUSED,
        broken=lambda q: q.flag("retraction_policy") == "priority" and not q.flag("enable_priority_scheduling"),
        sentence="--retraction-policy priority needs --enable-priority-scheduling",
        fix="add it",
        source="validation_hook.py:300",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="conservativeness-negative",
        outcome=REFUSED,
        broken=lambda q: (q.config.schedule_conservativeness or 0.0) < 0,
        sentence="schedule_conservativeness {c.schedule_conservativeness} is negative",
        fix="give 0 or more",
        source="validation_hook.py:314",
    ),
    Rule(
        id="prefill-interval",
        outcome=REFUSED,
        broken=lambda q: int(q.flag("prefill_decode_interval", 0) or 0) < 0,
        sentence="prefill_decode_interval {f.prefill_decode_interval} is negative",
        fix="give 0 or more",
        source="validation_hook.py:630",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="tokenizer-workers",
        outcome=REFUSED,
        broken=lambda q: int(q.flag("tokenizer_worker_num", 1)) < 1 or int(q.flag("detokenizer_worker_num", 1)) < 1,
        sentence="tokenizer_worker_num and detokenizer_worker_num must be at least 1",
        fix="leave them out",
        source="validation_hook.py:270",
        since="0.5.3",
    ),
    Rule(
        id="graph-registration",
        outcome=CHANGED,
        broken=lambda q: q.config.tp_size > 1 and not q.config.disable_cuda_graph,
        sentence="SGLang sets NCCL_GRAPH_REGISTER=0 while graphs of several ranks are captured",
        fix="nothing to do",
        source="parallel_hook.py:376",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="pd-prefill",
        outcome=CHANGED,
        broken=lambda q: _mode(q) == "prefill",
        sentence="a prefill server captures no decode graphs and balances by bootstrap room",
        fix="nothing to do",
        source="pd_disaggregation_hook.py",
        since="0.5.0",
    ),
    Rule(
        id="pd-decode",
        outcome=CHANGED,
        broken=lambda q: _mode(q) == "decode",
        sentence="a decode server keeps no radix cache (unless --disaggregation-decode-enable-radix-cache) and "
        "captures no prefill graphs",
        fix="nothing to do",
        source="pd_disaggregation_hook.py",
        since="0.5.0",
    ),
    Rule(
        id="pd-decode-balance",
        outcome=REFUSED,
        broken=lambda q: (
            _mode(q) == "decode"
            and max(q.config.attn_dp_size, int(q.flag("dp_size", 1))) > 1
            and not q.flag("prefill_round_robin_balance")
        ),
        sentence="a decode server of several DP ranks must know that its prefill servers take turns",
        fix="add --prefill-round-robin-balance (prefill servers: --load-balance-method round_robin, their default)",
        source="server_args.py of 0.5.2 to 0.5.7, _handle_disaggregation",
        since=BALANCE_ASKED,
        before=BALANCE_SETTLED,
    ),
    Rule(
        id="pd-fake-prefill",
        outcome=REFUSED,
        broken=lambda q: _mode(q) == "prefill" and q.flag("disaggregation_transfer_backend") == "fake",
        sentence="a prefill server cannot use the transfer backend `fake`",
        fix="use mooncake or nixl",
        source="pd_disaggregation_hook.py:150",
        since="0.5.3",
    ),
    Rule(
        id="pd-decode-radix",
        outcome=REFUSED,
        broken=lambda q: (
            _mode(q) == "decode"
            and bool(q.flag("disaggregation_decode_enable_radix_cache"))
            and (
                q.flag("disaggregation_transfer_backend") == "fake"
                or q.algorithm not in (None, "DSPARK", "EAGLE", "EAGLE3")
            )
        ),
        sentence=(
            "--disaggregation-decode-enable-radix-cache goes neither with the fake backend nor with this speculation"
        ),
        fix="leave it out",
        source="pd_disaggregation_hook.py:105",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="hicache-mla",
        outcome=FAILS,
        broken=lambda q: bool(q.flag("enable_hierarchical_cache")),
        sentence="hierarchical caching knows no MLA cache in {version}: the scheduler crashes at start",
        fix="leave --enable-hierarchical-cache out, or use SGLang 0.4.5 or newer",
        source="mem_cache/hiradix_cache.py of 0.4.3.post4 and 0.4.4; sglang PR 2693 (comment), PR 4009",
        before="0.4.5",
    ),
    Rule(
        id="hicache-needs-radix",
        outcome=REFUSED,
        broken=lambda q: (
            bool(q.flag("enable_hierarchical_cache"))
            and (
                q.config.disable_radix_cache
                or (_mode(q) == "decode" and not q.flag("disaggregation_decode_enable_radix_cache"))
            )
        ),
        sentence="the hierarchical cache needs the radix cache",
        fix="leave --disable-radix-cache out",
        source="kv_cache_hook.py:395",
        since="0.4.5",
    ),
    Rule(
        id="lmcache",
        outcome=REFUSED,
        broken=lambda q: bool(q.flag("enable_lmcache")) and (q.algorithm is not None or q.config.attn_dp_size > 1),
        sentence="LMCache goes neither with speculative decoding nor with attention DP",
        fix="leave --enable-lmcache out",
        source="kv_cache_hook.py",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="pdmux",
        outcome=REFUSED,
        broken=lambda q: (
            bool(q.flag("enable_pdmux"))
            and (
                q.config.pp_size != 1
                or q.config.chunked_prefill_size != -1
                or _mode(q) != "null"
                or not q.flag("disable_overlap_schedule")
            )
        ),
        sentence="--enable-pdmux needs pp_size 1, --chunked-prefill-size -1 and --disable-overlap-schedule",
        fix="leave --enable-pdmux out",
        source="validation_hook.py:248",
        since="0.5.3",
    ),
    Rule(
        id="metrics-file",
        outcome=REFUSED,
        broken=lambda q: bool(q.flag("export_metrics_to_file")) and q.flag("export_metrics_to_file_dir") is None,
        sentence="--export-metrics-to-file needs --export-metrics-to-file-dir",
        fix="add the folder",
        source="validation_hook.py:340",
        since="0.5.5",
    ),
    Rule(
        id="quant-communications",
        outcome=REFUSED,
        broken=lambda q: bool(q.flag("enable_quant_communications")),
        sentence="quantised communications are for NPUs",
        fix="leave --enable-quant-communications out",
        source="validation_hook.py:352",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="aiter-fraction",
        outcome=WORSE,
        broken=lambda q: (
            q.machine.is_amd
            and q.config.attention_backend == "aiter"
            and (q.config.context_length or q.arch.max_position_embeddings) > AITER_CONTEXT
        ),
        sentence="with aiter SGLang takes 15 % off the memory fraction where the context exceeds 8,192 tokens: "
        "0.85 x {c.mem_fraction_static:.3f}; the KV pool here is counted without that and is larger than the server's",
        fix="trust max_total_num_tokens of the server's log, or serve with --context-length 8192",
        source="model_runner.py to 0.5.4, server_args.py, attention_hook.py:244 of 0.5.23",
        since="0.4.7",
    ),
    Rule(
        id="symm-mem-pool",
        outcome=WORSE,
        broken=lambda q: bool(q.flag("enable_symm_mem")),
        sentence="symmetric memory takes 4 GiB a rank at start",
        fix="leave --enable-symm-mem out where memory is short",
        source="memory_hook.py:349",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="port-in-use",
        outcome=FAILS,
        broken=lambda q: not 0 < int(q.flag("port", 30000)) < 65536,
        sentence="port {f.port} does not exist",
        fix="choose a --port from 1 to 65535",
        source="unchecked until the model is loaded",
    ),
    Rule(
        id="dp-equals-tp",
        outcome=CHANGED,
        broken=lambda q: q.asked.attn_dp_size > 1 and q.config.attn_dp_size != q.asked.attn_dp_size,
        sentence="in this release attention DP is always tp_size",
        fix="use SGLang 0.4.5 or newer for other degrees",
        source="0.4.3 server_args.py:200",
        since="0.4.3",
        before="0.4.5",
    ),
)
