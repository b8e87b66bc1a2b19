"""Known faults: launches that SGLang takes and that hang or crash, with the reports and the release that mended each.

Read from public reports, and from the wheels for what mended them; none was reproduced on a GPU here.
"""

from __future__ import annotations

from planner.rules.core import Question, Rule, RuleOutcome

FAILS = RuleOutcome.FAILS


def _normal_captures(q: Question) -> bool:
    normal = q.config.moe_a2a_backend == "deepep" and q.flag("deepep_mode") == "normal"
    return normal and not q.config.disable_cuda_graph and q.flag("disaggregation_mode", "null") != "prefill"


RULES: tuple[Rule, ...] = (
    Rule(
        id="eagle-under-attention-dp",
        outcome=FAILS,
        broken=lambda q: q.algorithm in ("EAGLE", "EAGLE3") and q.config.attn_dp_size > 1,
        sentence="EAGLE under attention DP hangs or crashes in this release: a rank without requests has no draft to "
        "join its peers with; mended in 0.4.8",
        fix="leave MTP or attention DP out, or use SGLang 0.4.8 or newer",
        source="sglang issues 3943, 4276 and 6296; mended by PR 6081 (eagle_worker.py of 0.4.8)",
        before="0.4.8",
    ),
    Rule(
        id="deepep-normal-capture",
        outcome=FAILS,
        broken=_normal_captures,
        sentence="deepep_mode normal leaves CUDA graphs on in this release, and capture fails; mended in 0.4.6.post3",
        fix="add --disable-cuda-graph, or use SGLang 0.4.6.post3 or newer",
        source="sglang issue 6218; server_args.py of 0.4.6.post3 turns the graphs off",
        since="0.4.4.post4",
        before="0.4.6.post3",
    ),
)
