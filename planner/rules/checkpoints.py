"""What a checkpoint needs: GPU capability, release, kernels and flags by the format of its weights and its model."""

from __future__ import annotations

from collections.abc import Callable

from models.quantization.formats import Kind
from planner.rules.core import Question, Rule, RuleOutcome

REFUSED, FAILS, CHANGED, WORSE = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.CHANGED, RuleOutcome.WORSE
FP8_CAPABILITY = 8.9
# From here on NVFP4 runs on GPUs without FP4 units, by Marlin (modelopt_quant.py, get_min_capability 100 in 0.5.12).
FP4_BY_MARLIN = "0.5.14"
# What else each method needs of an NVIDIA GPU (get_min_capability of layers/quantization/*.py).
LEAST_CAPABILITY = {
    "w8a8_int8": 7.5, "blockwise_int8": 8.0, "awq": 7.5, "awq_marlin": 8.0, "moe_wna16": 7.5, "gptq": 8.0,
    "gptq_marlin": 8.0, "auto-round": 8.0, "compressed-tensors": 8.0, "w4afp8": 9.0,
}  # fmt: skip
# Methods that SGLang's check of the platform lets through on AMD (model_config.py, rocm_supported_quantization).
ON_AMD = (
    "awq", "gptq", "fp8", "compressed-tensors", "w8a8_fp8", "petit_nvfp4", "quark", "mxfp4", "auto-round",
    "quark_int4fp8_moe", "quark_mxfp4",
)  # fmt: skip


def _kind(q: Question) -> Kind:
    return q.arch.weight_formats.kind


def _expert_split(q: Question) -> int:
    return max(1, q.config.tp_size // max(1, q.config.ep_size))


def _off_blocks(q: Question) -> bool:
    """An expert's shard must end on a block in both directions: its width is outputs of up, inputs of down."""
    form = q.arch.weight_formats.routed
    step = max(form.scale_rows, form.scale_columns)
    return form.is_blocked and q.arch.moe_intermediate_size % (step * _expert_split(q)) != 0


def _off_groups(q: Question) -> bool:
    form = q.arch.weight_formats.routed
    return (
        not form.is_blocked and form.group > 1 and q.arch.moe_intermediate_size % (form.group * _expert_split(q)) != 0
    )


def _plain_awq(q: Question) -> bool:
    return _kind(q) is Kind.INT4 and q.method in ("awq", "awq_marlin", "gptq", "gptq_marlin", "auto-round")


def _no_dispatched_kernel(q: Question) -> bool:
    """DeepEP's tokens reach FP8 block weights by DeepGEMM, W4AFP8 by CUTLASS; others need a runner of their own."""
    if q.config.moe_a2a_backend != "deepep" or q.machine.is_amd:
        return False
    runner = {Kind.BF16: "deep_gemm", Kind.NVFP4: "flashinfer_cutedsl"}.get(_kind(q))
    return _kind(q) not in (Kind.FP8, Kind.INT4_FP8) and (runner is None or q.config.moe_runner_backend != runner)


def _mxfp4_without_units(q: Question) -> bool:
    """AMD's quark exports are multiplied by AITER alone."""
    return _kind(q) is Kind.MXFP4 and not (q.machine.has_fp4 and (q.machine.is_amd or q.method != "quark"))


def _fp4_without_units(q: Question) -> bool:
    return _kind(q) is Kind.NVFP4 and not q.machine.is_blackwell and not q.machine.is_amd


def _from(release: str, *, id: str, broken: Callable[[Question], bool], lack: str, source: str) -> Rule:
    """Return the rule that releases before this one do not know something: `lack` says what, after "SGLang 0.4.3"."""
    return Rule(
        id=id,
        outcome=FAILS,
        broken=broken,
        sentence="SGLang {version} " + lack,
        fix=f"use SGLang {release} or newer",
        source=source,
        before=release,
    )


RULES: tuple[Rule, ...] = (
    Rule(
        id="expert-width",
        outcome=FAILS,
        broken=lambda q: _kind(q) is Kind.FP8 and _off_blocks(q),
        sentence="an expert of width {arch.moe_intermediate_size} split {c.tp_size}/{c.ep_size} ways does not end on "
        "FP8's blocks of 128",
        fix="lower --tp-size or raise --ep-size",
        source="layers/moe/fused_moe_triton/layer.py:427",
    ),
    Rule(
        id="int8-expert-width",
        outcome=FAILS,
        broken=lambda q: _kind(q) is Kind.INT8 and _off_blocks(q),
        sentence="an expert of width {arch.moe_intermediate_size} split {c.tp_size}/{c.ep_size} ways does not end on "
        "the INT8 blocks of 128",
        fix="lower --tp-size, raise --ep-size, or take the channel-wise INT8 export",
        source="layers/quantization/blockwise_int8.py (create_weights)",
    ),
    Rule(
        id="expert-group",
        outcome=FAILS,
        broken=_off_groups,
        sentence="an expert of width {arch.moe_intermediate_size} split {c.tp_size}/{c.ep_size} ways does not end on "
        "the groups of {arch.weight_formats.routed.group} that share a scale",
        fix="lower --tp-size or raise --ep-size",
        source="create_weights of layers/quantization/ (w2's scales: width // group_size)",
    ),
    _from(
        "0.4.4",
        id="int8-release",
        broken=lambda q: _kind(q) is Kind.INT8,
        lack="loads no INT8 weights for this model",
        source="sglang PR 3888",
    ),
    Rule(
        id="fp8-hardware",
        outcome=FAILS,
        broken=lambda q: _kind(q) is Kind.FP8 and q.capability < FP8_CAPABILITY,
        sentence=(
            "FP8 block weights need compute capability 8.9 or newer; {machine.name} has {machine.compute_capability}"
        ),
        fix="use an AWQ, INT8 or BF16 export of the model (`sgtune plan` weighs them), or newer GPUs",
        source="layers/quantization/fp8.py",
    ),
    Rule(
        id="weights-hardware",
        outcome=FAILS,
        broken=lambda q: q.capability < LEAST_CAPABILITY.get(q.method or "", 0.0),
        sentence="{q.method} needs a newer GPU: {machine.name} has compute capability {machine.compute_capability}",
        fix="use another export of the model, or newer GPUs",
        source="get_min_capability of layers/quantization/",
    ),
    Rule(
        id="weights-on-amd",
        outcome=REFUSED,
        broken=lambda q: q.machine.is_amd and q.method is not None and q.method not in ON_AMD,
        sentence="{q.method} is not among what SGLang takes on AMD GPUs",
        fix="use the FP8 or the MXFP4 export",
        source="configs/model_config.py (_verify_quantization: rocm_supported_quantization)",
    ),
    Rule(
        id="fp4-hardware",
        outcome=FAILS,
        broken=_fp4_without_units,
        sentence="NVFP4 weights need compute capability 10.0 in this release; {machine.name} has "
        "{machine.compute_capability}",
        fix="use Blackwell GPUs, SGLang 0.5.14 or newer, or the FP8, AWQ or W4AFP8 export",
        source="layers/quantization/modelopt_quant.py, get_min_capability: 100 in 0.5.12, 80 in 0.5.14",
        before=FP4_BY_MARLIN,
    ),
    Rule(
        id="fp4-by-marlin",
        outcome=WORSE,
        broken=_fp4_without_units,
        sentence="{machine.name} has no FP4 units: Marlin multiplies the weights in BF16",
        fix="for speed use the FP8 or W4AFP8 export, where they fit",
        source="layers/quantization/modelopt_quant.py and marlin_utils_fp4.py of 0.5.14",
        since=FP4_BY_MARLIN,
    ),
    _from(
        "0.4.9",
        id="fp4-release",
        broken=lambda q: _kind(q) is Kind.NVFP4,
        lack="has no NVFP4 kernels for experts",
        source="ModelOptNvFp4FusedMoEMethod: in modelopt_quant.py of 0.4.9, not of 0.4.6",
    ),
    Rule(
        id="mxfp4-hardware",
        outcome=FAILS,
        broken=_mxfp4_without_units,
        sentence="{q.method}'s MXFP4 experts have no kernels for {machine.name}",
        fix="use MI350X or MI355X GPUs, or another export",
        source="layers/quantization/quark/schemes/quark_w4a4_mxfp4_moe.py (AITER alone)",
    ),
    _from(
        "0.5.1",
        id="mxfp4-release",
        broken=lambda q: _kind(q) is Kind.MXFP4,
        lack="reads no quark checkpoints",
        source="layers/quantization/quark/: in 0.5.1, not in 0.4.10",
    ),
    Rule(
        id="deepep-format",
        outcome=FAILS,
        broken=_no_dispatched_kernel,
        sentence="DeepEP sends tokens to experts in FP8 or W4AFP8; {arch.weights} experts have no kernel behind it",
        fix="leave --moe-a2a-backend out; BF16 also runs with --moe-runner-backend deep_gemm, NVFP4 with "
        "flashinfer_cutedsl",
        source="layers/moe/ep_moe/layer.py (DeepEPMoE.run_moe_core)",
    ),
    Rule(
        id="ep-format",
        outcome=FAILS,
        broken=lambda q: q.config.ep_size > 1 and _kind(q) not in (Kind.FP8, Kind.BF16, Kind.INT4_FP8, Kind.NVFP4),
        sentence="{arch.weights} experts are not split by number in this release",
        fix="leave --enable-ep-moe (--ep-size) out, or use SGLang 0.5.2 or newer",
        source="layers/moe/ep_moe/layer.py of 0.4.9.post6 (EPMoE: Unsupported quant_config), not of 0.5.2",
        before="0.5.2",
    ),
    _from(
        "0.4.9.post1",
        id="w4afp8-release",
        broken=lambda q: _kind(q) is Kind.INT4_FP8,
        lack="reads no W4AFP8 weights",
        source="layers/quantization/w4afp8.py: from 0.4.9.post1 (sglang PR 7762)",
    ),
    Rule(
        id="w4afp8-hardware",
        outcome=FAILS,
        broken=lambda q: _kind(q) is Kind.INT4_FP8 and q.machine.is_blackwell,
        sentence="W4AFP8's kernel is built for Hopper GPUs; {machine.name} has {machine.compute_capability}",
        fix="use the NVFP4 or FP8 export",
        source="sglang PR 7772 (CUTLASS W4A8 for Hopper); models of later GPUs: none in w4afp8.py of 0.5.23",
    ),
    Rule(
        id="w4afp8-needs-ep",
        outcome=FAILS,
        broken=lambda q: _kind(q) is Kind.INT4_FP8 and q.config.ep_size == 1,
        sentence="W4AFP8 experts are not split by width in this release",
        fix="add --enable-ep-moe (or --ep-size), or use SGLang 0.5.2 or newer",
        source="w4afp8.py, get_quant_method: EPMoE alone until 0.5.1, FusedMoE in 0.5.2 (sglang PR 8118)",
        since="0.4.9.post1",
        before="0.5.2",
    ),
    Rule(
        id="int4-experts-release",
        outcome=FAILS,
        broken=_plain_awq,
        sentence="SGLang {version} has no {q.method} kernels for experts",
        fix="add --quantization moe_wna16 (SGLang 0.4.4.post4 or newer), or use SGLang 0.4.9.post6 or newer",
        source="AWQMoEMethod, GPTQMarlinMoEMethod: in 0.4.9.post6, not in 0.4.9.post2; sglang issue 5766",
        before="0.4.9.post3",
    ),
    Rule(
        id="compressed-release",
        outcome=FAILS,
        broken=lambda q: _kind(q) is Kind.INT4 and q.method == "compressed-tensors",
        sentence="SGLang {version} has no kernels for experts that compressed-tensors packs to 4 bits",
        fix="use SGLang 0.4.5.post3 or newer",
        source="CompressedTensorsWNA16MoEMethod: in 0.4.5.post3",
        before="0.4.5.post1",
    ),
    _from(
        "0.5.3",
        id="sparse-release",
        broken=lambda q: q.arch.is_sparse,
        lack="does not know DeepSeek-V3.2 (sparse attention)",
        source="DeepseekV32ForCausalLM: in models/deepseek_v2.py of 0.5.3, not of 0.5.2",
    ),
    Rule(
        id="sparse-hardware",
        outcome=FAILS,
        broken=lambda q: q.arch.is_sparse and q.capability < 9.0,
        sentence="sparse attention's kernels need compute capability 9.0; {machine.name} has "
        "{machine.compute_capability}",
        fix="use Hopper or Blackwell GPUs, or DeepSeek-V3.1",
        source="layers/attention/nsa/ (FlashMLA sparse, DeepGEMM's paged logits)",
        since="0.5.3",
    ),
    Rule(
        id="sparse-kv",
        outcome=REFUSED,
        broken=lambda q: (
            q.arch.is_sparse and q.config.kv_cache_dtype not in (None, "auto", "bf16", "bfloat16", "fp8_e4m3")
        ),
        sentence="sparse attention takes a KV cache in BF16 or fp8_e4m3, not {c.kv_cache_dtype}",
        fix="leave --kv-cache-dtype out",
        source="server_args.py of 0.5.6 (assert: DeepSeek NSA only supports bf16/bfloat16 or fp8_e4m3)",
        since="0.5.4",
    ),
    Rule(
        id="sparse-attention-dp",
        outcome=CHANGED,
        broken=lambda q: q.arch.is_sparse and q.asked.attn_dp_size != q.config.attn_dp_size,
        sentence="with sparse attention this release sets attention DP to tp_size {c.tp_size}",
        fix="nothing to do; from 0.5.6 on the degree is yours",
        source="server_args.py of 0.5.3 to 0.5.5 (is_deepseek_nsa)",
        since="0.5.3",
        before="0.5.6",
    ),
    _from(
        "0.5.9",
        id="vision-release",
        broken=lambda q: q.arch.model_type == "kimi_k25",
        lack="does not know Kimi K2.5",
        source="models/kimi_k25.py: in 0.5.9, not in 0.5.8.post1",
    ),
)
