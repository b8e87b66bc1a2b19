"""Parallelism: TP, PP, replicas, attention DP, nodes, expert widths."""

from __future__ import annotations

from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome

FP8_CAPABILITY = 8.9
REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED


def _attn_tp(q: Question) -> int:
    return max(1, q.config.tp_size // max(1, q.config.attn_dp_size))


def _expert_split(q: Question) -> int:
    return max(1, q.config.tp_size // max(1, q.config.ep_size))


def _pp_with_speculation(q: Question) -> bool:
    if q.config.pp_size == 1 or q.algorithm is None:
        return False
    return q.flag("disaggregation_mode", "null") != "prefill" or q.algorithm not in ("EAGLE", "DSPARK")


RULES: tuple[Rule, ...] = (
    Rule(
        "parallel-sizes-positive", REFUSED,
        lambda q: min(q.config.tp_size, q.config.pp_size, q.config.ep_size, q.config.nnodes) < 1,
        "tp_size {c.tp_size}, pp_size {c.pp_size}, ep_size {c.ep_size} and nnodes {c.nnodes} must all be at least 1",
        "give each at least 1", "ZeroDivisionError or a bare assert in the resolver", "2.1/1",
    ),
    Rule(
        "gpu-count", FAILS,
        lambda q: q.config.gpu_count * int(q.flag("dp_size", 1)) > q.machine.gpus_per_node * q.config.nnodes,
        "tp_size {c.tp_size} x pp_size {c.pp_size} needs more GPUs than {c.nnodes} node(s) have",
        "lower --tp-size or --pp-size, or raise --nnodes", "unchecked by SGLang until CUDA fails", "2.8",
    ),
    Rule(
        "nodes-divide", REFUSED,
        lambda q: q.config.nnodes > 0 and q.config.gpu_count % q.config.nnodes != 0,
        "tp_size x pp_size = {c.gpu_count} is not divisible by nnodes {c.nnodes}",
        "choose --tp-size as a multiple of --nnodes", "validation_hook.py:178", "2.1/1",
    ),
    Rule(
        "attn-dp-positive", REFUSED, lambda q: q.config.attn_dp_size < 1,
        "attn_dp_size {c.attn_dp_size} must be at least 1", "give --attn-dp-size a divisor of --tp-size",
        "parallel_hook.py:285", "2.1/2",
    ),
    Rule(
        "replicas-with-attn-dp", REFUSED, lambda q: q.config.attn_dp_size > 1 and int(q.flag("dp_size", 1)) > 1,
        "--dp-size {f.dp_size} (whole replicas) does not go with --attn-dp-size {c.attn_dp_size}",
        "leave --dp-size out: --attn-dp-size alone is attention DP", "parallel_hook.py:287", "2.1/2", NEWEST_FAMILY,
    ),
    Rule(
        "attn-dp-divides-tp", REFUSED,
        lambda q: q.config.attn_dp_size > 1 and q.config.tp_size % q.config.attn_dp_size != 0,
        "attention DP {c.attn_dp_size} does not divide tp_size {c.tp_size}",
        "choose a divisor of --tp-size", "parallel_hook.py:326 (bare assert, no text)", "2.1/3",
    ),
    Rule(
        "replicas-on-one-node", REFUSED, lambda q: int(q.flag("dp_size", 1)) > 1 and q.config.nnodes != 1,
        "--dp-size {f.dp_size} asks for replicas, which SGLang keeps on one node; nnodes is {c.nnodes}",
        "use attention DP (--attn-dp-size), or one server per node behind a router", "validation_hook.py:199", "2.1/4",
    ),
    Rule(
        "dp-attention-alone", WORSE, lambda q: bool(q.flag("enable_dp_attention")),
        "--enable-dp-attention does nothing here: attention DP is 1", "give its degree with --dp-size",
        "parallel_hook.py:39", "2.1/5",
    ),
    Rule(
        "heads-divide", FAILS, lambda q: q.arch.num_attention_heads % _attn_tp(q) != 0,
        "{arch.num_attention_heads} attention heads cannot be split over tp_size {c.tp_size} "
        "with attention DP {c.attn_dp_size}",
        "use a power of two for --tp-size", "models/deepseek_v2.py:2057", "2.1/6",
    ),
    Rule(
        "expert-width", FAILS,
        lambda q: q.arch.is_fp8 and q.arch.moe_intermediate_size % (128 * _expert_split(q)) != 0,
        "an expert of width {arch.moe_intermediate_size} split {c.tp_size}/{c.ep_size} ways does not end on "
        "FP8's blocks of 128",
        "lower --tp-size or raise --ep-size", "layers/moe/fused_moe_triton/layer.py:427", "2.1/7",
    ),
    Rule(
        "experts-divide-ep", FAILS,
        lambda q: (q.arch.n_routed_experts + q.flag("ep_num_redundant_experts", 0)) % max(1, q.config.ep_size) != 0,
        "{arch.n_routed_experts} experts cannot be split over ep_size {c.ep_size}",
        "choose a divisor of {arch.n_routed_experts} for --ep-size", "layers/moe/fused_moe_triton/layer.py:414",
        "2.1/7",
    ),
    Rule(
        "ep-within-tp", FAILS, lambda q: q.config.tp_size % max(1, q.config.ep_size) != 0,
        "ep_size {c.ep_size} does not divide tp_size {c.tp_size}", "choose 1 or --tp-size for --ep-size",
        "parallel_hook.py", "2.1/7",
    ),
    Rule(
        "pp-without-overlap", CHANGED, lambda q: q.config.pp_size > 1,
        "pipeline parallelism turns the overlap scheduler and the prefill graphs off",
        "prefer attention DP or more TP where the model fits", "cuda_graph_hook.py:147, overrides.py", "2.1/9",
        "0.4.6",
    ),
    Rule(
        "pp-with-mtp", REFUSED, _pp_with_speculation,
        "pipeline parallelism and MTP do not go together outside prefill-only servers, and there with EAGLE only",
        "set --pp-size 1 or leave MTP out", "validation_hook.py:119", "2.1/9",
    ),
    Rule(
        "moe-dense-tp", REFUSED, lambda q: q.flag("moe_dense_tp_size") not in (None, 1, q.config.tp_size)
        and not q.flag("enable_prefill_cp"),
        "moe_dense_tp_size {f.moe_dense_tp_size} must be 1 or tp_size {c.tp_size}",
        "give --moe-dense-tp-size 1, or leave it out", "validation_hook.py:207", "2.1/10", "0.4.6",
    ),
    Rule(
        "base-gpu-id", REFUSED, lambda q: int(q.flag("base_gpu_id", 0)) < 0,
        "base_gpu_id {f.base_gpu_id} is negative", "give --base-gpu-id 0 or more", "validation_hook.py:204", "2.1/10",
    ),
    Rule(
        "gpu-id-step", REFUSED, lambda q: int(q.flag("gpu_id_step", 1)) < 1,
        "gpu_id_step {f.gpu_id_step} must be at least 1", "leave --gpu-id-step out", "validation_hook.py:205",
        "2.1/10", "0.4.4",
    ),
    Rule(
        "served-model-name", REFUSED,
        lambda q: ":" in str(q.flag("served_model_name") or q.flag("model_path") or "")
        and "://" not in str(q.flag("served_model_name") or q.flag("model_path") or ""),
        "the served model name may not hold ':' (SGLang keeps it for LoRA adapters)",
        "give --served-model-name without a colon", "validation_hook.py:213", "2.1/11", "0.5.0",
    ),
    Rule(
        "fp8-hardware", FAILS,
        lambda q: q.arch.is_fp8 and float(q.machine.compute_capability or 99) < FP8_CAPABILITY,
        "FP8 block weights need compute capability 8.9 or newer; {machine.name} has {machine.compute_capability}",
        "use a BF16 or INT8 export of the model, or newer GPUs", "layers/quantization/fp8.py", "2.8",
    ),
    Rule(
        "several-gpu-moe-dp", REFUSED,
        lambda q: int(q.flag("moe_dp_size", 1)) > 1
        and (q.config.tp_size % int(q.flag("moe_dp_size")) != 0
             or q.config.ep_size * int(q.flag("moe_dp_size")) > q.config.tp_size or q.config.pp_size > 1
             or (q.config.ep_size > 1 and q.config.ep_size * int(q.flag("moe_dp_size")) != q.config.tp_size)),
        "moe_dp_size {f.moe_dp_size} must divide tp_size {c.tp_size}, and ep_size x moe_dp_size must be tp_size",
        "leave --moe-dp-size out", "parallel_hook.py:175", "2.1/10", NEWEST_FAMILY,
    ),
)  # fmt: skip
