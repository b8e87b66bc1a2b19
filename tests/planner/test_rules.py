"""Each rule has a launch line that breaks it and a neighbour that does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.architecture.shipped import base_model
from models.config import ServerConfig
from models.machine import machine_of
from planner.check.judge import check_arguments
from planner.plans.space import default_space
from planner.rules import RULES, Question, RuleOutcome, Severity, first_error, violations
from planner.sglang.resolver import resolve

R1 = deepseek_r1()
DP8 = "--attn-dp-size 8"
DP8_OLD = "--dp-size 8 --enable-dp-attention"
DEEPEP = "--attn-dp-size 8 --moe-a2a-backend deepep"
MTP = "--speculative-algorithm EAGLE"
RADIX_DECODE = "--disaggregation-mode decode --disaggregation-decode-enable-radix-cache"
THREE = "--speculative-num-steps {} --speculative-eagle-topk {} --speculative-num-draft-tokens {}"


def broken_rules(words: str, hardware: str = "h200x8", version: str = "0.5.23", model: str = "fp8") -> set[str]:
    line = f"--model-path r1 --tp-size 8 {words}".split()
    machine = machine_of(hardware_from_catalogue(hardware))
    arch = base_model(model) if model.startswith(("deepseek", "kimi")) else R1.quantised(model)
    return {violation.rule for violation in check_arguments(line, arch, machine, Version(version)).violations}


# rule: (a line that breaks it, a line that does not); both follow --model-path r1 --tp-size 8 on 8xH200, 0.5.23.
CASES = {
    "parallel-sizes-positive": ("--ep-size 0", "--ep-size 1"),
    "gpu-count": ("--tp-size 16", "--tp-size 16 --nnodes 2"),
    "replicas-gpu-count": ("--tp-size 8 --dp-size 2", "--tp-size 4 --dp-size 2"),
    "nodes-divide": ("--nnodes 3", "--nnodes 2"),
    "nodes-without-address": (
        "--tp-size 16 --nnodes 2 --node-rank 1",
        "--tp-size 16 --nnodes 2 --node-rank 1 --dist-init-addr n0:20000",
    ),
    "nodes-without-rank": (
        "--tp-size 16 --nnodes 2 --dist-init-addr n0:20000",
        "--tp-size 16 --nnodes 2 --dist-init-addr n0:20000 --node-rank 0",
    ),
    "attn-dp-positive": ("--attn-dp-size 0", "--attn-dp-size 1"),
    "replicas-with-attn-dp": ("--attn-dp-size 2 --dp-size 2", "--attn-dp-size 2"),
    "attn-dp-divides-tp": ("--attn-dp-size 3", "--attn-dp-size 4"),
    "replicas-on-one-node": ("--dp-size 2 --nnodes 2", "--dp-size 2"),
    "dp-attention-alone": ("--enable-dp-attention", "--dp-size 2 --enable-dp-attention"),
    "heads-divide": ("--tp-size 6", "--tp-size 8"),
    "expert-width": ("--tp-size 32 --nnodes 4", "--tp-size 32 --ep-size 32 --nnodes 4"),
    "experts-divide-ep": ("--tp-size 6 --ep-size 6", "--ep-size 8"),
    "ep-within-tp": ("--ep-size 16", "--ep-size 8"),
    "pp-without-overlap": ("--pp-size 2 --nnodes 2", "--nnodes 2"),
    "pp-with-mtp": (f"--pp-size 2 --nnodes 2 {MTP}", f"--pp-size 2 --nnodes 2 --disaggregation-mode prefill {MTP}"),
    "moe-dense-tp": ("--moe-dense-tp-size 2", "--moe-dense-tp-size 1"),
    "base-gpu-id": ("--base-gpu-id -1", "--base-gpu-id 0"),
    "gpu-id-step": ("--gpu-id-step 0", "--gpu-id-step 1"),
    "served-model-name": ("--served-model-name r1:a", "--served-model-name r1"),
    "eagle3-draft": (
        "--speculative-algorithm EAGLE3 --speculative-draft-model-path d " + THREE.format(3, 1, 4),
        f"{MTP} " + THREE.format(3, 1, 4),
    ),
    "hicache-mla": ("~0.4.4 --enable-hierarchical-cache", "~0.4.5 --enable-hierarchical-cache"),
    "several-gpu-moe-dp": ("--moe-dp-size 3", "--moe-dp-size 2"),
    "conservativeness-under-dp": (DP8, ""),
    "chunk-divided": (DP8, f"{DP8} --chunked-prefill-size -1"),
    "dp-lm-head-alone": ("--enable-dp-lm-head", f"{DP8} --enable-dp-lm-head"),
    "dp-lm-head-on-replicas": ("--enable-dp-lm-head --dp-size 2", f"{DP8} --enable-dp-lm-head"),
    "lm-head-all-to-all": ("--enable-tp-lm-head-all-to-all", f"{DP8} --enable-tp-lm-head-all-to-all"),
    "speculation-under-dp": (f"{DP8} --speculative-algorithm NGRAM", f"{DP8} {MTP}"),
    "requests-per-rank": (f"{DP8} --max-running-requests 7", f"{DP8} --max-running-requests 8"),
    "graphs-beyond-requests": (
        f"{DP8} --max-running-requests 256",
        f"{DP8} --max-running-requests 256 --cuda-graph-max-bs-decode 32",
    ),
    "allreduce-fusion-off": (DP8, ""),
    "page-forced": ("--attention-backend flashmla --page-size 16", "--attention-backend flashmla --page-size 64"),
    "trtllm-mla-hardware": ("--attention-backend trtllm_mla", "--attention-backend flashmla"),
    "trtllm-mla-kv": ("--kv-cache-dtype fp8_e5m2 @b200x8", "--kv-cache-dtype fp8_e4m3 @b200x8"),
    "cutedsl-mla-decode-only": ("--prefill-attention-backend cutedsl_mla", "--prefill-attention-backend fa3"),
    "cutedsl-mla-hardware": ("--attention-backend cutedsl_mla", "--attention-backend cutedsl_mla @b200x8"),
    "cutedsl-mla-kv": (
        "--attention-backend cutedsl_mla --kv-cache-dtype fp8_e5m2 @b200x8",
        "--attention-backend cutedsl_mla --kv-cache-dtype bfloat16 @b200x8",
    ),
    "mxfp8-kv-hardware": ("--kv-cache-dtype mxfp8", "--kv-cache-dtype mxfp8 @b200x8"),
    "fp4-kv-backend": ("--kv-cache-dtype nvfp4", "--kv-cache-dtype auto"),
    "chunk-covers-page": (
        f"{DP8} --attention-backend flashmla --chunked-prefill-size 800",
        f"{DP8} --attention-backend flashmla --chunked-prefill-size 8192",
    ),
    "chunk-left-per-rank": (f"{DP8} --chunked-prefill-size 4", f"{DP8} --chunked-prefill-size 8"),
    "fa3-e5m2": ("--kv-cache-dtype fp8_e5m2", "--kv-cache-dtype fp8_e4m3"),
    "fp8-kv-backend": ("--kv-cache-dtype fp8_e4m3", "--kv-cache-dtype fp8_e4m3 --attention-backend flashmla"),
    "fa4-on-hopper": ("--attention-backend fa4", "--attention-backend fa3"),
    "deterministic-backend": (
        "--enable-deterministic-inference --attention-backend flashinfer",
        "--enable-deterministic-inference",
    ),
    "cp-strategy": ("--enable-prefill-cp", "--enable-prefill-cp --cp-strategy zigzag"),
    "prefill-cp": ("--enable-prefill-cp --cp-strategy zigzag", "--cp-strategy zigzag"),
    "cp-divides-tp": ("--attn-cp-size 3", "--attn-cp-size 2"),
    "dcp-with-cp": (
        "--dcp-size 2 --enable-prefill-cp --cp-strategy zigzag",
        "--enable-prefill-cp --cp-strategy zigzag",
    ),
    "dcp-positive": ("--dcp-size 0", "--dcp-size 2"),
    "ep-follows-tp": ("--ep-size 4 --moe-a2a-backend deepep", "--ep-size 8 --moe-a2a-backend deepep"),
    "deepep-normal-graphs": (f"{DEEPEP} --deepep-mode normal", f"{DEEPEP} --deepep-mode auto"),
    "deepep-buffer": (f"{DEEPEP} --max-running-requests 2048", f"{DEEPEP} --max-running-requests 1024"),
    "flashinfer-a2a-dp": (
        "--moe-a2a-backend flashinfer --moe-runner-backend deep_gemm",
        f"{DP8} --moe-a2a-backend flashinfer --moe-runner-backend deep_gemm",
    ),
    "flashinfer-a2a-runner": (
        f"{DP8} --moe-a2a-backend flashinfer --moe-runner-backend triton",
        f"{DP8} --moe-a2a-backend flashinfer --moe-runner-backend deep_gemm",
    ),
    "pplx-needs-dp": ("--moe-a2a-backend pplx", f"{DP8} --moe-a2a-backend pplx"),
    "pplx-mode": (
        f"{DP8} --moe-a2a-backend pplx --deepep-mode normal",
        f"{DP8} --moe-a2a-backend pplx --deepep-mode auto",
    ),
    "pplx-runner": (
        f"{DP8} --moe-a2a-backend pplx --moe-runner-backend triton",
        f"{DP8} --moe-a2a-backend pplx --moe-runner-backend deep_gemm",
    ),
    "pplx-tokens": (
        f"{DP8} --moe-a2a-backend pplx",
        f"{DP8} --moe-a2a-backend pplx --chunked-prefill-size 1024",
    ),
    "mori-tokens": ("--moe-a2a-backend mori", "--moe-a2a-backend mori --chunked-prefill-size 4096"),
    "cutlass-ep": ("--moe-runner-backend cutlass --ep-size 8 @b200x8", "--moe-runner-backend cutlass --ep-size 8"),
    "runner-quantization": ("--moe-runner-backend flashinfer_cutedsl", "--moe-runner-backend triton"),
    "eplb-needs-ep": ("--enable-eplb", "--enable-eplb --ep-size 8"),
    "eplb-settings": ("--enable-eplb --ep-size 8", "--ep-size 8"),
    "dispatch-needs-a2a": ("--ep-dispatch-algorithm static", "--ep-dispatch-algorithm dynamic"),
    "tbo-needs-dp": ("--enable-two-batch-overlap", f"{DP8} --enable-two-batch-overlap"),
    "tbo-prefill-graphs": (f"{DP8} --enable-two-batch-overlap", DP8),
    "shared-expert-unfused": ("--moe-runner-backend flashinfer_trtllm", "--moe-runner-backend triton"),
    "shared-expert-replicated": (DEEPEP, DP8),
    "blackwell-moe": ("@b200x8", ""),
    "megamoe-model": (f"{DP8} --moe-a2a-backend flashinfer_megamoe", DEEPEP),
    "deepep-v2-runner": (
        f"{DP8} --moe-a2a-backend deepep_v2 --moe-runner-backend triton",
        f"{DP8} --moe-a2a-backend deepep_v2",
    ),
    "deepep-v2-overlap": (
        f"{DP8} --moe-a2a-backend deepep_v2 --enable-single-batch-overlap",
        f"{DP8} --moe-a2a-backend deepep_v2",
    ),
    "nextn-is-eagle": ("--speculative-algorithm NEXTN", MTP),
    "mtp-caps-requests": (MTP, f"{MTP} --max-running-requests 64"),
    "draft-path-not-needed": (f"{MTP} --speculative-draft-model-path r1", MTP),
    "speculative-numbers": (f"{MTP} --speculative-num-steps 3", MTP),
    "draft-tokens-follow-steps": (f"{MTP} {THREE.format(3, 1, 8)}", f"{MTP} {THREE.format(3, 1, 4)}"),
    "tree-on-pages": (
        f"{MTP} {THREE.format(3, 2, 4)} --attention-backend flashmla",
        f"{MTP} {THREE.format(3, 2, 4)}",
    ),
    "tree-without-overlap": (f"{MTP} {THREE.format(3, 2, 4)}", f"{MTP} {THREE.format(3, 1, 4)}"),
    "tree-too-small": (f"{MTP} {THREE.format(1, 2, 8)}", f"{MTP} {THREE.format(3, 2, 4)}"),
    "ngram-on-pages": ("--speculative-algorithm NGRAM --page-size 64", "--speculative-algorithm NGRAM"),
    "draft-model-missing": (
        "--speculative-algorithm DFLASH",
        "--speculative-algorithm DFLASH --speculative-draft-model-path d",
    ),
    "flex-attention-speculation": (f"--attention-backend flex_attention {MTP}", "--attention-backend flex_attention"),
    "rejection-sampling": (
        f"{MTP} {THREE.format(3, 2, 4)} --speculative-use-rejection-sampling",
        f"{MTP} {THREE.format(3, 1, 4)} --speculative-use-rejection-sampling",
    ),
    "eagle-costs": (f"{MTP} {THREE.format(3, 1, 4)} ~0.4.3", f"{MTP} {THREE.format(3, 1, 4)}"),
    "fraction-range": ("--mem-fraction-static 1.2", "--mem-fraction-static 0.9"),
    "requests-positive": ("--max-running-requests 0", "--max-running-requests 1"),
    "graph-size-positive": ("--cuda-graph-max-bs-decode 0", "--cuda-graph-max-bs-decode 1"),
    "dp-lm-head-without-dp": (
        "--enable-dp-lm-head ~0.4.9.post6",
        f"{DP8_OLD} --enable-dp-lm-head ~0.4.9.post6",
    ),
    "pp-with-mixed-chunk": (
        "--pp-size 2 --nnodes 2 --enable-mixed-chunk ~0.5.3",
        "--pp-size 2 --nnodes 2 --enable-mixed-chunk ~0.5.12",
    ),
    "speculative-topk-missing": (
        f"{MTP} --speculative-num-steps 3 ~0.4.9.post6",
        f"{MTP} --speculative-num-steps 3 --speculative-eagle-topk 1 ~0.4.9.post6",
    ),
    "trtllm-runner-quantization": (
        "--moe-runner-backend flashinfer_trtllm ~0.5.3",
        "--moe-runner-backend flashinfer_trtllm --quantization fp8 ~0.5.3",
    ),
    "graphs-none-left": (
        "--cuda-graph-bs 64 --cuda-graph-max-bs 32 ~0.4.9.post6",
        "--cuda-graph-bs 64 --cuda-graph-max-bs 64 ~0.4.9.post6",
    ),
    "deterministic-backend-typed": (
        "--enable-deterministic-inference ~0.5.3",
        "--enable-deterministic-inference --attention-backend fa3 ~0.5.3",
    ),
    "context-positive": ("--context-length 0", "--context-length 4096"),
    "context-beyond-model": ("--context-length 200000", "--context-length 163840"),
    "padding-with-compile": ("--disable-cuda-graph-padding --enable-torch-compile", "--enable-torch-compile"),
    "priority-policy": (
        "--enable-priority-scheduling --schedule-policy lpm",
        "--enable-priority-scheduling --schedule-policy lof",
    ),
    "retraction-priority": (
        "--retraction-policy priority",
        "--retraction-policy priority --enable-priority-scheduling",
    ),
    "conservativeness-negative": ("--schedule-conservativeness -1", "--schedule-conservativeness 0"),
    "prefill-interval": ("--prefill-decode-interval -1", "--prefill-decode-interval 1"),
    "tokenizer-workers": ("--tokenizer-worker-num 0", "--tokenizer-worker-num 1"),
    "graph-registration": ("", "--disable-cuda-graph"),
    "pd-prefill": ("--disaggregation-mode prefill", ""),
    "pd-decode": ("--disaggregation-mode decode", ""),
    "pd-fake-prefill": (
        "--disaggregation-mode prefill --disaggregation-transfer-backend fake",
        "--disaggregation-mode decode --disaggregation-transfer-backend fake",
    ),
    "pd-decode-radix": (
        f"{RADIX_DECODE} --disaggregation-transfer-backend fake",
        RADIX_DECODE,
    ),
    "hicache-needs-radix": ("--enable-hierarchical-cache --disable-radix-cache", "--enable-hierarchical-cache"),
    "lmcache": (f"--enable-lmcache {MTP}", "--enable-lmcache"),
    "pdmux": (
        "--enable-pdmux",
        "--enable-pdmux --chunked-prefill-size -1 --disable-overlap-schedule",
    ),
    "metrics-file": ("--export-metrics-to-file", "--export-metrics-to-file --export-metrics-to-file-dir d"),
    "quant-communications": ("--enable-quant-communications", ""),
    "symm-mem-pool": ("--enable-symm-mem", ""),
    "port-in-use": ("--port 70000", "--port 30000"),
    "eagle-without-overlap": (f"{MTP} ~0.4.6.post5", f"{MTP} ~0.5.23"),
    "draft-path-needed": (f"{MTP} ~0.4.6", f"{MTP} --speculative-draft-model-path d ~0.4.6"),
    "pd-decode-balance": (
        f"{DP8_OLD} --disaggregation-mode decode ~0.5.3",
        f"{DP8_OLD} --disaggregation-mode decode --prefill-round-robin-balance ~0.5.3",
    ),
    "not-for-mla": ("--attention-backend torch_native ~0.4.6.post5", "--attention-backend triton ~0.4.6.post5"),
    "eagle-under-attention-dp": (f"{DP8_OLD} {MTP} ~0.4.6.post3", f"{DP8_OLD} {MTP} ~0.4.8"),
    "deepep-auto-under-dp": (
        f"{DP8_OLD} --enable-deepep-moe ~0.4.6",
        f"{DP8_OLD} --enable-deepep-moe --deepep-mode low_latency ~0.4.6",
    ),
    "deepep-normal-capture": (
        "--enable-deepep-moe --deepep-mode normal ~0.4.6",
        "--enable-deepep-moe --deepep-mode normal ~0.4.6.post5",
    ),
    "deepep-normal-early": (
        f"{DP8_OLD} --enable-deepep-moe --deepep-mode normal ~0.4.6.post5",
        f"{DP8_OLD} --enable-deepep-moe --deepep-mode low_latency ~0.4.6.post5",
    ),
    "dp-attention-without-degree": ("--enable-dp-attention ~0.4.6", "--dp-size 8 --enable-dp-attention ~0.4.6"),
    "dp-equals-tp": ("--dp-size 2 --enable-dp-attention ~0.4.3", "--dp-size 2 --enable-dp-attention"),
    "fp8-hardware": ("@a100x8", "@h100x8"),
    "aiter-fraction": ("@mi300xx8", "@mi300xx8 --context-length 8192"),
    "int8-expert-width": (
        "#blockwise_int8 --tp-size 32 --nnodes 4 @4xa100x8",
        "#blockwise_int8 --tp-size 16 --nnodes 2 @2xa100x8",
    ),
    "expert-group": ("#awq --tp-size 64 --nnodes 8 @8xa100x8", "#awq --tp-size 16 --nnodes 2 @2xa100x8"),
    "int8-release": (
        "#w8a8_int8 --tp-size 16 --nnodes 2 @2xa800x8 ~0.4.3",
        "#w8a8_int8 --tp-size 16 --nnodes 2 @2xa800x8 ~0.4.4",
    ),
    "weights-hardware": ("#w4afp8 @a100x8", "#w4afp8 @h100x8"),
    "weights-on-amd": ("#w4afp8 @mi300x8", "#quark @mi355x8"),
    "fp4-hardware": ("#modelopt_fp4 ~0.5.12", "#modelopt_fp4 @b200x8 ~0.5.12"),
    "fp4-by-marlin": ("#modelopt_fp4 ~0.5.14", "#modelopt_fp4 @b200x8 ~0.5.14"),
    "fp4-release": ("#modelopt_fp4 @b200x8 ~0.4.8", "#modelopt_fp4 @b200x8 ~0.4.9"),
    "mxfp4-hardware": ("#quark @b200x8", "#quark @mi355x8"),
    "mxfp4-release": ("#quark @mi355x8 ~0.4.10", "#quark @mi355x8 ~0.5.1"),
    "deepep-format": ("#awq --moe-a2a-backend deepep", "#w4afp8 --moe-a2a-backend deepep"),
    "ep-format": ("#awq --enable-ep-moe ~0.4.9.post6", "#w4afp8 --enable-ep-moe ~0.4.9.post6"),
    "w4afp8-release": ("#w4afp8 ~0.4.8", "#w4afp8 --enable-ep-moe ~0.4.9.post1"),
    "w4afp8-hardware": ("#w4afp8 @b200x8", "#w4afp8 @h20x8"),
    "w4afp8-needs-ep": ("#w4afp8 ~0.5.1", "#w4afp8 ~0.5.2"),
    "int4-experts-release": ("#awq ~0.4.6", "#awq --quantization moe_wna16 ~0.4.6"),
    "compressed-release": ("#compressed-tensors ~0.4.5", "#compressed-tensors ~0.4.5.post3"),
    "sparse-release": ("#deepseek-v3.2 ~0.5.2", "#deepseek-v3.2 ~0.5.3"),
    "sparse-hardware": ("#deepseek-v3.2 @a100x8", "#deepseek-v3.2"),
    "sparse-kv": ("#deepseek-v3.2 --kv-cache-dtype fp8_e5m2", "#deepseek-v3.2 --kv-cache-dtype fp8_e4m3"),
    "sparse-attention-dp": ("#deepseek-v3.2 ~0.5.5", "#deepseek-v3.2 ~0.5.6"),
    "vision-release": ("#kimi-k2.5 ~0.5.8", "#kimi-k2.5 ~0.5.9"),
}
# Rules that no launch line of R1 can break on these machines, judged on a configuration instead.
NO_LINE = {"model-path", "mixed-chunk-speculation", "mtp-without-layer"}


def judged(words: str) -> set[str]:
    """Judge a case: `@machine`, `~version` and `#weights` or `#model` may stand among its words."""
    plain = [word for word in words.split() if word[0] not in "@~#"]
    machine = next((word[1:] for word in words.split() if word[0] == "@"), "h200x8")
    version = next((word[1:] for word in words.split() if word[0] == "~"), "0.5.23")
    model = next((word[1:] for word in words.split() if word[0] == "#"), "fp8")
    return broken_rules(" ".join(plain), machine, version, model)


@pytest.mark.parametrize("rule", CASES)
def test_rule_is_broken_by_its_case_and_not_by_the_neighbour(rule: str) -> None:
    bad, good = CASES[rule]
    assert rule in judged(bad)
    assert rule not in judged(good)


def test_every_rule_has_a_case_and_plain_words() -> None:
    assert {rule.id for rule in RULES} == {*CASES, *NO_LINE}
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.source
        assert rule.fix


def test_a_line_without_a_model_is_refused() -> None:
    machine = machine_of(hardware_from_catalogue("h200x8"))
    found = check_arguments(["--tp-size", "8"], R1, machine, Version("0.5.23"))
    assert not found.accepted
    assert "model-path" in {violation.rule for violation in found.violations}


def test_a_model_without_a_draft_layer_is_neither_launched_nor_planned_with_mtp() -> None:
    machine, version = machine_of(hardware_from_catalogue("h200x8")), Version("0.5.23")
    without = replace(R1, num_nextn_predict_layers=0)
    line = ["--model-path", "r1", "--tp-size", "8", *THREE.format(1, 1, 2).split(), "--speculative-algorithm", "EAGLE"]
    for arch, broken in ((R1, False), (without, True)):
        found = check_arguments(line, arch, machine, version)
        assert ("mtp-without-layer" in {violation.rule for violation in found.violations}) is broken
        assert (default_space(machine, version, arch=arch).mtp_steps == (0,)) is broken


def test_messages_are_filled_in_and_errors_come_first() -> None:
    machine, version = machine_of(hardware_from_catalogue("h200x8")), Version("0.5.23")
    config = ServerConfig(
        tp_size=8, attn_dp_size=8, moe_a2a_backend="deepep", max_running_requests=4096, mem_fraction_static=1.5
    )
    filled = resolve(config, R1, machine, version).config
    found = violations(Question(config=filled, arch=R1, machine=machine, version=version))
    assert [v.severity for v in found[:2]] == [Severity.ERROR, Severity.WARNING]
    assert all(v.severity is Severity.NOTE for v in found[2:])
    assert "1.5" in found[0].message
    assert "DISPATCH_TOKENS_PER_RANK=512" in found[1].fix
    assert all("{" not in v.message + v.fix for v in found)


def test_rules_hold_for_their_versions_only() -> None:
    words = "--dp-size 8 --enable-dp-attention --page-size 64 --chunked-prefill-size 800"
    assert "chunk-covers-page" in broken_rules(words, version="0.5.12")
    assert "chunk-covers-page" not in broken_rules(words, version="0.4.3")


def test_an_error_is_what_is_refused_or_fails() -> None:
    for rule in RULES:
        assert (rule.severity is Severity.ERROR) == (rule.outcome in (RuleOutcome.REFUSED, RuleOutcome.FAILS))


def test_the_first_error_is_none_for_a_sound_configuration() -> None:
    machine, version = machine_of(hardware_from_catalogue("h200x8")), Version("0.5.23")
    filled = resolve(ServerConfig(tp_size=8), R1, machine, version).config
    assert first_error(Question(config=filled, arch=R1, machine=machine, version=version)) is None


def test_what_a_version_lacks_is_a_violation() -> None:
    machine, version = machine_of(hardware_from_catalogue("h200x8")), Version("0.4.3")
    filled = resolve(ServerConfig(tp_size=8, moe_a2a_backend="deepep"), R1, machine, version).config
    found = violations(Question(config=filled, arch=R1, machine=machine, version=version))
    assert "version-ability" in {violation.rule for violation in found}


@pytest.mark.parametrize(
    ("words", "version", "settled"),
    [
        ("--attention-backend flashinfer", "0.4.3.post4", "triton"),
        ("--enable-flashinfer-mla", "0.4.3.post4", "flashinfer"),
        ("--attention-backend flashinfer", "0.4.5", "flashinfer"),
        ("--enable-hierarchical-cache", "0.4.9.post6", "triton"),
        ("--enable-hierarchical-cache", "0.4.9", "fa3"),
        ("--enable-hierarchical-cache", "0.5.3", "fa3"),
        ("mi300xx8 --tp-size 8", "0.4.7", "aiter"),
        ("mi300xx8 --tp-size 8", "0.4.6.post5", "triton"),
        (f"mi300xx8 --tp-size 8 {MTP}", "0.5.2", "triton"),
        (f"mi300xx8 --tp-size 8 {MTP}", "0.5.3", "aiter"),
        ("mi300xx8 --tp-size 4", "0.5.23", "triton"),
    ],
)
def test_the_attention_backend_is_what_the_release_settles_on(words: str, version: str, settled: str) -> None:
    """As the oracle reads it from each release's model runner."""
    amd = words.startswith("mi300x")
    hardware, line = words.split(" ", 1) if amd else ("h200x8", words)
    assert resolved(line, version, hardware)["attention_backend"] == settled


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("--speculative-num-steps 3 --speculative-eagle-topk 1", (3, 1, 8)),
        ("--speculative-num-draft-tokens 4", (5, 4, 4)),
    ],
)
def test_early_releases_fill_in_the_numbers_left_out(words: str, numbers: tuple[int, int, int]) -> None:
    fields = resolved(f"{MTP} --speculative-draft-model-path x {words}", "0.4.3.post4")
    names = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
    assert tuple(fields[name] for name in names) == numbers


def resolved(words: str, version: str, hardware: str = "h200x8") -> Mapping[str, Any]:
    line = f"--model-path r1 --tp-size 8 {words}".split()
    machine = machine_of(hardware_from_catalogue(hardware))
    return check_arguments(line, R1, machine, Version(version)).resolved.fields


@pytest.mark.parametrize(
    ("hardware", "words", "version", "chunk", "graphs"),
    [
        ("rtx4090x8", "", "0.5.3", 2048, 80),
        ("rtx4090x8", "--tp-size 2", "0.5.4", 2048, 16),
        ("rtx4090x8", "--tp-size 2", "0.5.12", 2048, 24),
        ("rtx4090x8", "", "0.5.20", 4096, 160),
        ("h200x8", DP8_OLD, "0.4.5.post3", 1024, 256),
        ("h200x8", DP8_OLD, "0.4.6", 1024, 160),
    ],
)
def test_chunk_and_graphs_follow_the_card_as_each_wheel_has_it(
    hardware: str, words: str, version: str, chunk: int, graphs: int
) -> None:
    fields = resolved(words, version, hardware)
    assert (fields["chunked_prefill_size"], fields["cuda_graph_max_bs_decode"]) == (chunk, graphs)
