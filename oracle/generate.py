"""Command lines to compare sgtune with SGLang on: drawn from a seed over everything a launch of R1 may say.

The draw knows nothing of sgtune's rules: values good and bad come up as they fall.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

# Option -> values it may take, odd ones included; None marks a switch.
PARALLEL: dict[str, list[Any]] = {
    "--tp-size": [1, 2, 4, 6, 8, 8, 8, 8, 8, 16, 16, 32],
    "--pp-size": [1, 2, 2, 4],
    "--nnodes": [1, 2, 2, 2, 3, 4],
    "--attn-dp-size": [0, 1, 2, 3, 4, 8, 8, 8, 16],
    "--dp-size": [1, 2, 8],
    "--ep-size": [1, 2, 3, 4, 8, 8, 16],
    "--moe-dense-tp-size": [1, 1, 2, 8],
    "--moe-a2a-backend": ["none", "deepep", "deepep", "deepep", "mooncake", "nixl", "mori", "flashinfer", "pplx"],
    "--moe-runner-backend": ["auto", "deep_gemm", "triton", "cutlass", "flashinfer_trtllm", "flashinfer_cutlass"],
    "--deepep-mode": ["auto", "normal", "low_latency"],
    "--ep-num-redundant-experts": [0, 32],
    "--ep-dispatch-algorithm": ["static", "dynamic", "fake"],
    "--attn-cp-size": [1, 2],
    "--cp-strategy": ["zigzag"],
}
MEMORY: dict[str, list[Any]] = {
    "--mem-fraction-static": [0.7, 0.82, 0.88, 0.9, 0.95, 1.2, -0.1],
    "--max-running-requests": [1, 7, 16, 48, 64, 128, 256, 512, 1024, 2048, 4096],
    "--chunked-prefill-size": [-1, 0, 100, 800, 1000, 2048, 4096, 8192, 16384, 32768, 131072, 524288],
    "--max-prefill-tokens": [1024, 16384, "32k", "16Ki"],
    "--cuda-graph-max-bs-decode": [1, 8, 32, 64, 100, 128, 160, 256, 300, 301, 512, 600, 1024],
    "--cuda-graph-max-bs-prefill": [512, 2048, 8192],
    "--cuda-graph-bs-decode": [[1, 2, 4, 8], [1, 16, 32], [64]],
    "--cuda-graph-backend-decode": ["full", "disabled"],
    "--cuda-graph-backend-prefill": ["breakable", "disabled", "full"],
    "--max-total-tokens": [1000, 100000, "1M", "1m"],
    "--context-length": [4096, 32768, "64k", 163840, 200000],
    "--page-size": [1, 16, 32, 64, 128],
    "--kv-cache-dtype": ["auto", "bf16", "fp8_e4m3", "fp8_e5m2", "mxfp8"],
}
BEHAVIOUR: dict[str, list[Any]] = {
    "--attention-backend": ["fa3", "flashinfer", "flashmla", "triton", "trtllm_mla", "cutedsl_mla", "fa4"],
    "--prefill-attention-backend": ["fa3", "triton", "cutedsl_mla"],
    "--decode-attention-backend": ["fa3", "flashmla", "trtllm_mla"],
    "--schedule-policy": ["lpm", "fcfs", "lof", "random", "shortest"],
    "--schedule-conservativeness": [-0.5, 0.3, 1.0, 1.3],
    "--disaggregation-mode": ["null", "prefill", "decode"],
    "--disaggregation-transfer-backend": ["mooncake", "nixl", "fake"],
    "--base-gpu-id": [0, -1],
    "--gpu-id-step": [1, 0],
    "--served-model-name": ["r1", "r1:latest"],
    "--stream-interval": [1, 10],
    "--tokenizer-worker-num": [1, 0, 4],
    "--quantization": ["fp8"],
}
# The same of releases that spell them otherwise.
EARLIER: dict[str, list[Any]] = {
    "--cuda-graph-max-bs": [1, 8, 32, 64, 128, 160, 256, 300, 512],
    "--cuda-graph-bs": [[1, 2, 4, 8], [1, 16, 32], [64]],
}
SWITCHES = (
    "--enable-ep-moe", "--enable-deepep-moe", "--enable-deepep-moe", "--enable-flashinfer-mla", "--enable-flashmla",
    "--enable-dp-attention", "--enable-dp-lm-head", "--enable-tp-lm-head-all-to-all", "--enable-eplb",
    "--enable-two-batch-overlap", "--enable-single-batch-overlap", "--enable-prefill-cp", "--disable-cuda-graph",
    "--disable-decode-cuda-graph", "--disable-prefill-cuda-graph", "--disable-cuda-graph-padding",
    "--enable-torch-compile", "--disable-radix-cache", "--enable-mixed-chunk", "--enable-hierarchical-cache",
    "--enable-priority-scheduling", "--enable-deterministic-inference", "--disable-overlap-schedule",
    "--disable-shared-experts-fusion", "--enable-metrics", "--trust-remote-code", "--enable-waterfill",
)  # fmt: skip
# Switches that only earlier releases have; without a release to ask for, the newest is meant.
EARLIER_SWITCHES = ("--enable-ep-moe", "--enable-deepep-moe", "--enable-flashinfer-mla", "--enable-flashmla")
NEWEST_SWITCHES = frozenset(SWITCHES) - frozenset(EARLIER_SWITCHES)
SPECULATIVE = ("EAGLE", "EAGLE", "EAGLE", "NEXTN", "NEXTN", "NGRAM", "STANDALONE")


def command_lines(count: int, seed: int, model: str, flags: Collection[str] = ()) -> list[list[str]]:
    """Return `count` argument lists for `sglang.launch_server`, the same for the same seed.

    `flags` are those of the release they are for; all there are where it is empty.
    """
    rng = random.Random(seed)
    return [["--model-path", model, *_one(rng, flags)] for _ in range(count)]


def default_lines(model: str, flags: Collection[str]) -> list[list[str]]:
    """Return plain launches of the layouts a default depends on, as far as the release has their flags."""
    dp = ["--attn-dp-size"] if "--attn-dp-size" in flags else ["--enable-dp-attention", "--dp-size"]
    eagle = ["--speculative-algorithm", "EAGLE", "--speculative-num-steps", "3", "--speculative-eagle-topk", "1",
             "--speculative-num-draft-tokens", "4"]  # fmt: skip
    layouts = [
        ["--tp-size", "1"], ["--tp-size", "4"], ["--tp-size", "8"], ["--tp-size", "16", "--nnodes", "2"],
        ["--tp-size", "8", *eagle], ["--tp-size", "16", "--nnodes", "2", *eagle],
        ["--tp-size", "8", *dp, "8"], ["--tp-size", "16", "--nnodes", "2", *dp, "16"],
        ["--tp-size", "8", "--pp-size", "2", "--nnodes", "2"],
        ["--tp-size", "8", "--disaggregation-mode", "prefill"], ["--tp-size", "8", "--disaggregation-mode", "decode"],
        ["--tp-size", "8", "--max-running-requests", "64"], ["--tp-size", "8", "--chunked-prefill-size", "16384"],
    ]  # fmt: skip
    return [["--model-path", model, *words] for words in layouts if _all_known(words, flags)]


def _all_known(words: list[str], flags: Collection[str]) -> bool:
    return not flags or all(word in flags for word in words if word.startswith("--"))


def _one(rng: random.Random, flags: Collection[str]) -> list[str]:
    words = ["--tp-size", str(rng.choice(PARALLEL["--tp-size"]))]
    crowd = rng.choice((0.04, 0.08, 0.15))  # plain launches and crowded ones
    for table in (PARALLEL, MEMORY, BEHAVIOUR, EARLIER if flags else {}):
        for flag, values in table.items():
            likely = crowd * (2 if table in (MEMORY, EARLIER) else 1)
            if flag != "--tp-size" and rng.random() < likely and _all_known([flag], flags):
                words += [flag, *_text(rng.choice(values))]
    for flag in SWITCHES:
        if rng.random() < crowd / 2 and _all_known([flag], flags or NEWEST_SWITCHES):
            words.append(flag)
    if rng.random() < 0.3:
        words += _layout(rng, flags)
    if rng.random() < 0.25:
        words += _speculation(rng)
    return rng.choice(SPELLINGS)(rng, words) if rng.random() < 0.2 else words


def _text(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _layout(rng: random.Random, flags: Collection[str]) -> list[str]:
    """One of the layouts people launch R1 with; a later flag overrides an earlier one."""
    layouts = (
        ["--tp", "8", "--dp", "8", "--enable-dp-attention"],
        ["--tp", "8", "--attn-dp-size", "8", "--moe-a2a-backend", "deepep"],
        ["--tp", "8", "--dp", "8", "--enable-dp-attention", "--moe-a2a-backend", "deepep"],
        ["--tp", "8", "--dp", "8", "--enable-dp-attention", "--enable-deepep-moe"],
        ["--tp", "8", "--dp", "8", "--enable-dp-attention", "--enable-deepep-moe", "--deepep-mode", "low_latency"],
        ["--tp", "16", "--nnodes", "2", "--dp", "16", "--enable-dp-attention", "--enable-dp-lm-head"],
        ["--tp", "16", "--nnodes", "2", "--node-rank", "0"],
        ["--tp", "8", "--pp-size", "2", "--nnodes", "2"],
        ["--tp", "8", "--ep", "8"],
        ["--tp", "8", "--enable-ep-moe"],
    )
    short = {"--tp", "--dp", "--ep"}
    usable = [words for words in layouts if not flags or all(w in flags or w in short for w in words if w[0] == "-")]
    return rng.choice(usable)


def _speculation(rng: random.Random) -> list[str]:
    words = ["--speculative-algorithm", rng.choice(SPECULATIVE)]
    numbers = [("num-steps", (1, 2, 3, 5)), ("eagle-topk", (1, 1, 2, 4)), ("num-draft-tokens", (2, 3, 4, 8))]
    chosen_bits = rng.choice((0, 0, 7, 7, 7, rng.randrange(8)))
    for index, (name, values) in enumerate(numbers):
        if chosen_bits >> index & 1:
            words += [f"--speculative-{name}", str(rng.choice(values))]
    return words


def _glued(rng: random.Random, words: list[str]) -> list[str]:
    glued_words: list[str] = []
    for word in words:
        if glued_words and not word.startswith("-") and glued_words[-1].startswith("--") and "=" not in glued_words[-1]:
            glued_words[-1] += "=" + word
        else:
            glued_words.append(word)
    return glued_words


def _shortened(rng: random.Random, words: list[str]) -> list[str]:
    flags = [index for index, word in enumerate(words) if word.startswith("--") and len(word) > 8]
    if not flags:
        return words
    index = rng.choice(flags)
    return [*words[:index], words[index][: rng.randrange(5, len(words[index]))], *words[index + 1 :]]


def _wrong(rng: random.Random, words: list[str]) -> list[str]:
    return words + rng.choice((
        ["--cuda-graph-max-bs", "64"], ["--enable-ep-moe"], ["--tp-sizes", "8"], ["--tp-size", "eight"],
        ["--kv-cache-dtype", "fp16"], ["--attention-backend", "cutlass_mla"], ["stray"], ["--port"],
        ["--torchao-config", "int8"], ["--mem-fraction-static", "88%"], ["--trust-remote-code=true"], ["-tp", "8"],
        ["--chunked-prefill-size", "8k"], ["--nccl-init-addr", "h:1"], ["--pp", "1"], ["--config", "missing.yaml"],
    ))  # fmt: skip


def _twice(rng: random.Random, words: list[str]) -> list[str]:
    return [*words, "--tp-size", str(rng.choice((4, 8, 16)))]


SPELLINGS: tuple[Callable[[random.Random, list[str]], list[str]], ...] = (_glued, _shortened, _wrong, _wrong, _twice)
