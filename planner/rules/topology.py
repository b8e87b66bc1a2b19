"""Parallelism: TP, PP, replicas, attention DP, nodes, expert widths."""

from __future__ import annotations

from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome
from planner.sglang.dialects import FREE_ATTENTION_DP

REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED


def _attn_tp(q: Question) -> int:
    return max(1, q.config.tp_size // max(1, q.config.attn_dp_size))


def _pp_with_speculation(q: Question) -> bool:
    if q.config.pp_size == 1 or q.algorithm is None:
        return False
    return q.flag("disaggregation_mode", "null") != "prefill" or q.algorithm not in ("EAGLE", "DSPARK")


RULES: tuple[Rule, ...] = (
    Rule(
        id="parallel-sizes-positive",
        outcome=REFUSED,
        broken=lambda q: min(q.config.tp_size, q.config.pp_size, q.config.ep_size, q.config.nnodes) < 1,
        sentence=(
            "tp_size {c.tp_size}, pp_size {c.pp_size}, ep_size {c.ep_size} and nnodes {c.nnodes} must all be at least 1"
        ),
        fix="give each at least 1",
        source="ZeroDivisionError or a bare assert in the resolver",
    ),
    Rule(
        id="gpu-count",
        outcome=FAILS,
        broken=lambda q: q.config.gpu_count > q.machine.gpus_per_node * q.config.nnodes,
        sentence="tp_size {c.tp_size} x pp_size {c.pp_size} needs more GPUs than {c.nnodes} node(s) have",
        fix="lower --tp-size or --pp-size, or raise --nnodes",
        source="unchecked by SGLang until CUDA fails",
    ),
    Rule(
        id="replicas-gpu-count",
        outcome=FAILS,
        broken=lambda q: (
            q.config.gpu_count
            <= q.machine.gpus_per_node * q.config.nnodes
            < q.config.gpu_count * int(q.flag("dp_size", 1))
        ),
        sentence="--dp-size {f.dp_size} without attention DP starts {f.dp_size} whole replicas of {c.gpu_count} GPUs: "
        "more than {c.nnodes} node(s) have",
        fix="leave --dp-size out, or add --enable-dp-attention",
        source="unchecked by SGLang until CUDA fails",
    ),
    Rule(
        id="nodes-divide",
        outcome=REFUSED,
        broken=lambda q: q.config.nnodes > 0 and q.config.gpu_count % q.config.nnodes != 0,
        sentence="tp_size x pp_size = {c.gpu_count} is not divisible by nnodes {c.nnodes}",
        fix="choose --tp-size as a multiple of --nnodes",
        source="validation_hook.py:178",
    ),
    Rule(
        id="nodes-without-address",
        outcome=WORSE,
        broken=lambda q: q.asked_line and q.config.nnodes > 1 and not q.flag("dist_init_addr"),
        sentence=("{c.nnodes} nodes need --dist-init-addr: without it each waits for the others at its own 127.0.0.1"),
        fix="give every node --dist-init-addr FIRST_NODE:20000 and its own --node-rank, from 0",
        source="entrypoints/engine.py and model_runner.py (init_distributed_environment); a default of 127.0.0.1",
    ),
    Rule(
        id="nodes-without-rank",
        outcome=WORSE,
        broken=lambda q: (
            q.asked_line
            and q.config.nnodes > 1
            and bool(q.flag("dist_init_addr"))
            and "node_rank" not in dict(q.asked.extra)
        ),
        sentence="{c.nnodes} nodes need --node-rank: without it every one takes itself for the first",
        fix="give every node its own --node-rank, from 0",
        source="server_args.py: node_rank defaults to 0",
    ),
    Rule(
        id="attn-dp-positive",
        outcome=REFUSED,
        broken=lambda q: q.config.attn_dp_size < 1,
        sentence="attn_dp_size {c.attn_dp_size} must be at least 1",
        fix="give --attn-dp-size a divisor of --tp-size",
        source="parallel_hook.py:285",
    ),
    Rule(
        id="replicas-with-attn-dp",
        outcome=REFUSED,
        broken=lambda q: q.config.attn_dp_size > 1 and int(q.flag("dp_size", 1)) > 1,
        sentence="--dp-size {f.dp_size} (whole replicas) does not go with --attn-dp-size {c.attn_dp_size}",
        fix="leave --dp-size out: --attn-dp-size alone is attention DP",
        source="parallel_hook.py:287",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="attn-dp-divides-tp",
        outcome=REFUSED,
        broken=lambda q: q.config.attn_dp_size > 1 and q.config.tp_size % q.config.attn_dp_size != 0,
        sentence="attention DP {c.attn_dp_size} does not divide tp_size {c.tp_size}",
        fix="choose a divisor of --tp-size",
        source="parallel_hook.py:326 (bare assert, no text)",
    ),
    Rule(
        id="replicas-on-one-node",
        outcome=REFUSED,
        broken=lambda q: int(q.flag("dp_size", 1)) > 1 and q.config.nnodes != 1,
        sentence="--dp-size {f.dp_size} asks for replicas, which SGLang keeps on one node; nnodes is {c.nnodes}",
        fix="use attention DP (--attn-dp-size), or one server per node behind a router",
        source="validation_hook.py:199",
    ),
    Rule(
        id="dp-attention-alone",
        outcome=WORSE,
        broken=lambda q: bool(q.flag("enable_dp_attention")),
        sentence="--enable-dp-attention does nothing here: attention DP is 1",
        fix="give its degree with --dp-size",
        source="parallel_hook.py:39",
        since="0.5.2",
    ),
    Rule(
        id="dp-attention-without-degree",
        outcome=REFUSED,
        broken=lambda q: bool(q.flag("enable_dp_attention")),
        sentence="--enable-dp-attention needs its degree in this release: it stops with 'Please set a dp-size > 1'",
        fix="add --dp-size {c.tp_size}",
        source="server_args.py of 0.4.4.post1 to 0.5.1.post3 (assert)",
        since=FREE_ATTENTION_DP,
        before="0.5.2",
    ),
    Rule(
        id="heads-divide",
        outcome=FAILS,
        broken=lambda q: q.arch.num_attention_heads % _attn_tp(q) != 0,
        sentence="{arch.num_attention_heads} attention heads cannot be split over tp_size {c.tp_size} "
        "with attention DP {c.attn_dp_size}",
        fix="use a power of two for --tp-size",
        source="models/deepseek_v2.py:2057",
    ),
    Rule(
        id="experts-divide-ep",
        outcome=FAILS,
        broken=lambda q: (
            (q.arch.n_routed_experts + q.flag("ep_num_redundant_experts", 0)) % max(1, q.config.ep_size) != 0
        ),
        sentence="{arch.n_routed_experts} experts cannot be split over ep_size {c.ep_size}",
        fix="choose a divisor of {arch.n_routed_experts} for --ep-size",
        source="layers/moe/fused_moe_triton/layer.py:414",
    ),
    Rule(
        id="ep-within-tp",
        outcome=FAILS,
        broken=lambda q: q.config.tp_size % max(1, q.config.ep_size) != 0,
        sentence="ep_size {c.ep_size} does not divide tp_size {c.tp_size}",
        fix="choose 1 or --tp-size for --ep-size",
        source="parallel_hook.py",
    ),
    Rule(
        id="pp-without-overlap",
        outcome=CHANGED,
        broken=lambda q: q.config.pp_size > 1,
        sentence="pipeline parallelism turns the overlap scheduler and the prefill graphs off",
        fix="prefer attention DP or more TP where the model fits",
        source="cuda_graph_hook.py:147, overrides.py",
        since="0.4.6",
    ),
    Rule(
        id="pp-with-mtp",
        outcome=REFUSED,
        broken=_pp_with_speculation,
        sentence=(
            "pipeline parallelism and MTP do not go together outside prefill-only servers, and there with EAGLE only"
        ),
        fix="set --pp-size 1 or leave MTP out",
        source="validation_hook.py:119",
    ),
    Rule(
        id="pp-with-mixed-chunk",
        outcome=REFUSED,
        broken=lambda q: q.config.pp_size > 1 and q.config.enable_mixed_chunk,
        sentence="pipeline parallelism does not go with --enable-mixed-chunk in this release",
        fix="leave --enable-mixed-chunk out",
        source="server_args.py of 0.4.6.post2 to 0.5.10 (assert)",
        since="0.4.6.post2",
        before="0.5.11",
    ),
    Rule(
        id="moe-dense-tp",
        outcome=REFUSED,
        broken=lambda q: (
            q.flag("moe_dense_tp_size") not in (None, 1, q.config.tp_size) and not q.flag("enable_prefill_cp")
        ),
        sentence="moe_dense_tp_size {f.moe_dense_tp_size} must be 1 or tp_size {c.tp_size}",
        fix="give --moe-dense-tp-size 1, or leave it out",
        source="validation_hook.py:207",
        since="0.4.6",
    ),
    Rule(
        id="base-gpu-id",
        outcome=REFUSED,
        broken=lambda q: int(q.flag("base_gpu_id", 0)) < 0,
        sentence="base_gpu_id {f.base_gpu_id} is negative",
        fix="give --base-gpu-id 0 or more",
        source="validation_hook.py:204",
    ),
    Rule(
        id="gpu-id-step",
        outcome=REFUSED,
        broken=lambda q: int(q.flag("gpu_id_step", 1)) < 1,
        sentence="gpu_id_step {f.gpu_id_step} must be at least 1",
        fix="leave --gpu-id-step out",
        source="validation_hook.py:205",
    ),
    Rule(
        id="served-model-name",
        outcome=REFUSED,
        broken=lambda q: (
            ":" in str(q.flag("served_model_name") or q.flag("model_path") or "")
            and "://" not in str(q.flag("served_model_name") or q.flag("model_path") or "")
        ),
        sentence="the served model name may not hold ':' (SGLang keeps it for LoRA adapters)",
        fix="give --served-model-name without a colon",
        source="validation_hook.py:213",
        since="0.5.4",
    ),
    Rule(
        id="several-gpu-moe-dp",
        outcome=REFUSED,
        broken=lambda q: (
            int(q.flag("moe_dp_size", 1)) > 1
            and (
                q.config.tp_size % int(q.flag("moe_dp_size")) != 0
                or q.config.ep_size * int(q.flag("moe_dp_size")) > q.config.tp_size
                or q.config.pp_size > 1
                or (q.config.ep_size > 1 and q.config.ep_size * int(q.flag("moe_dp_size")) != q.config.tp_size)
            )
        ),
        sentence=(
            "moe_dp_size {f.moe_dp_size} must divide tp_size {c.tp_size}, and ep_size x moe_dp_size must be tp_size"
        ),
        fix="leave --moe-dp-size out",
        source="parallel_hook.py:175",
        since=NEWEST_FAMILY,
    ),
)
