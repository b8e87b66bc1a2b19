"""Scheduling, graphs, memory, caches and disaggregation."""

from __future__ import annotations

from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome

REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED
PRIORITY_POLICIES = ("fcfs", "lof")


def _mode(q: Question) -> str:
    return str(q.flag("disaggregation_mode", "null"))


RULES: tuple[Rule, ...] = (
    Rule(
        "model-path", REFUSED, lambda q: q.typed is not None and q.flag("model_path") is None,
        "the launch line names no model", "add --model-path deepseek-ai/DeepSeek-R1", "server_args.py", "1.5",
    ),
    Rule(
        "fraction-range", FAILS, lambda q: not 0.0 < (q.config.mem_fraction_static or 0.0) < 1.0,
        "mem_fraction_static {c.mem_fraction_static} is outside 0 to 1; SGLang does not check it",
        "choose a fraction such as 0.88, or lower the chunk and graph sizes it is computed from",
        "unchecked by SGLang", "2.8",
    ),
    Rule(
        "requests-positive", FAILS,
        lambda q: q.config.max_running_requests is not None and q.config.max_running_requests < 1,
        "max_running_requests {c.max_running_requests} lets no request run", "give at least 1",
        "unchecked by SGLang", "2.8",
    ),
    Rule(
        "graph-size-positive", FAILS,
        lambda q: not q.config.disable_cuda_graph and q.config.cuda_graph_max_bs_decode is not None
        and q.config.cuda_graph_max_bs_decode < 1,
        "cuda_graph_max_bs_decode {c.cuda_graph_max_bs_decode} captures nothing", "give at least 1",
        "unchecked by SGLang", "2.7",
    ),
    Rule(
        "context-positive", FAILS,
        lambda q: q.config.context_length is not None and q.config.context_length < 1,
        "context_length {c.context_length} holds no token", "leave --context-length out", "unchecked by SGLang", "2.8",
    ),
    Rule(
        "context-beyond-model", REFUSED,
        lambda q: (q.config.context_length or 0) > q.arch.max_position_embeddings,
        "context_length {c.context_length} exceeds the model's {arch.max_position_embeddings}",
        "leave --context-length out, or set SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 knowingly",
        "configs/model_config.py", "1.5",
    ),
    Rule(
        "padding-with-compile", REFUSED,
        lambda q: bool(q.flag("disable_cuda_graph_padding")) and bool(q.flag("enable_torch_compile")),
        "--disable-cuda-graph-padding does not go with --enable-torch-compile", "leave one out",
        "validation_hook.py:188", "2.6/45", NEWEST_FAMILY,
    ),
    Rule(
        "priority-policy", REFUSED,
        lambda q: bool(q.flag("enable_priority_scheduling"))
        and (q.config.schedule_policy or "fcfs") not in PRIORITY_POLICIES,
        "priority scheduling needs the policy fcfs or lof, not {c.schedule_policy}",
        "leave --schedule-policy out", "validation_hook.py:281", "2.6/46", "0.5.3",
    ),
    Rule(
        "retraction-priority", REFUSED,
        lambda q: q.flag("retraction_policy") == "priority" and not q.flag("enable_priority_scheduling"),
        "--retraction-policy priority needs --enable-priority-scheduling", "add it", "validation_hook.py:300",
        "2.6/46", NEWEST_FAMILY,
    ),
    Rule(
        "conservativeness-negative", REFUSED, lambda q: (q.config.schedule_conservativeness or 0.0) < 0,
        "schedule_conservativeness {c.schedule_conservativeness} is negative", "give 0 or more",
        "validation_hook.py:314", "2.6/46",
    ),
    Rule(
        "prefill-interval", REFUSED, lambda q: int(q.flag("prefill_decode_interval", 0) or 0) < 0,
        "prefill_decode_interval {f.prefill_decode_interval} is negative", "give 0 or more",
        "validation_hook.py:630", "2.6/46", NEWEST_FAMILY,
    ),
    Rule(
        "tokenizer-workers", REFUSED,
        lambda q: int(q.flag("tokenizer_worker_num", 1)) < 1 or int(q.flag("detokenizer_worker_num", 1)) < 1,
        "tokenizer_worker_num and detokenizer_worker_num must be at least 1", "leave them out",
        "validation_hook.py:270", "2.6/46", "0.5.3",
    ),
    Rule(
        "graph-registration", CHANGED,
        lambda q: q.config.tp_size > 1 and not q.config.disable_cuda_graph,
        "SGLang sets NCCL_GRAPH_REGISTER=0 while graphs of several ranks are captured", "nothing to do",
        "parallel_hook.py:376", "2.6/44", NEWEST_FAMILY,
    ),
    Rule(
        "pd-prefill", CHANGED, lambda q: _mode(q) == "prefill",
        "a prefill server captures no decode graphs and balances by bootstrap room", "nothing to do",
        "pd_disaggregation_hook.py", "2.6/47", "0.5.0",
    ),
    Rule(
        "pd-decode", CHANGED, lambda q: _mode(q) == "decode",
        "a decode server keeps no radix cache (unless --disaggregation-decode-enable-radix-cache) and captures no "
        "prefill graphs",
        "nothing to do", "pd_disaggregation_hook.py", "2.6/47", "0.5.0",
    ),
    Rule(
        "pd-fake-prefill", REFUSED,
        lambda q: _mode(q) == "prefill" and q.flag("disaggregation_transfer_backend") == "fake",
        "a prefill server cannot use the transfer backend `fake`", "use mooncake or nixl",
        "pd_disaggregation_hook.py:150", "2.6/47", "0.5.3",
    ),
    Rule(
        "pd-decode-radix", REFUSED,
        lambda q: _mode(q) == "decode" and bool(q.flag("disaggregation_decode_enable_radix_cache"))
        and (q.flag("disaggregation_transfer_backend") == "fake"
             or q.algorithm not in (None, "DSPARK", "EAGLE", "EAGLE3")),
        "--disaggregation-decode-enable-radix-cache goes neither with the fake backend nor with this speculation",
        "leave it out", "pd_disaggregation_hook.py:105", "2.6/47", NEWEST_FAMILY,
    ),
    Rule(
        "hicache-needs-radix", REFUSED,
        lambda q: bool(q.flag("enable_hierarchical_cache"))
        and (q.config.disable_radix_cache
             or (_mode(q) == "decode" and not q.flag("disaggregation_decode_enable_radix_cache"))),
        "the hierarchical cache needs the radix cache", "leave --disable-radix-cache out", "kv_cache_hook.py:395",
        "2.6/47", "0.4.5",
    ),
    Rule(
        "lmcache", REFUSED,
        lambda q: bool(q.flag("enable_lmcache")) and (q.algorithm is not None or q.config.attn_dp_size > 1),
        "LMCache goes neither with speculative decoding nor with attention DP", "leave --enable-lmcache out",
        "kv_cache_hook.py", "2.6/47", NEWEST_FAMILY,
    ),
    Rule(
        "pdmux", REFUSED,
        lambda q: bool(q.flag("enable_pdmux"))
        and (q.config.pp_size != 1 or q.config.chunked_prefill_size != -1 or _mode(q) != "null"
             or not q.flag("disable_overlap_schedule")),
        "--enable-pdmux needs pp_size 1, --chunked-prefill-size -1 and --disable-overlap-schedule",
        "leave --enable-pdmux out", "validation_hook.py:248", "2.6/47", "0.5.3",
    ),
    Rule(
        "metrics-file", REFUSED,
        lambda q: bool(q.flag("export_metrics_to_file")) and q.flag("export_metrics_to_file_dir") is None,
        "--export-metrics-to-file needs --export-metrics-to-file-dir", "add the folder", "validation_hook.py:340",
        "2.6/46", "0.5.5",
    ),
    Rule(
        "quant-communications", REFUSED, lambda q: bool(q.flag("enable_quant_communications")),
        "quantised communications are for NPUs", "leave --enable-quant-communications out",
        "validation_hook.py:352", "2.6/46", NEWEST_FAMILY,
    ),
    Rule(
        "symm-mem-pool", WORSE, lambda q: bool(q.flag("enable_symm_mem")),
        "symmetric memory takes 4 GiB a rank at start", "leave --enable-symm-mem out where memory is short",
        "memory_hook.py:349", "1.5", NEWEST_FAMILY,
    ),
    Rule(
        "port-in-use", FAILS, lambda q: not 0 < int(q.flag("port", 30000)) < 65536,
        "port {f.port} does not exist", "choose a --port from 1 to 65535", "unchecked until the model is loaded",
        "2.8",
    ),
    Rule(
        "dp-equals-tp", CHANGED,
        lambda q: q.asked.attn_dp_size > 1 and q.config.attn_dp_size != q.asked.attn_dp_size,
        "in this release attention DP is always tp_size", "use SGLang 0.4.5 or newer for other degrees",
        "0.4.3 server_args.py:200", "2.10", "0.4.3", "0.4.5",
    ),
)  # fmt: skip
