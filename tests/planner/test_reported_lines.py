"""Launch lines of public reports and manifests: what their releases make of them, and what they hold."""

from __future__ import annotations

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.machine import machine_of
from models.workload import Workload
from planner.check.answer import CheckAnswer, CheckQuestion, answer_check
from planner.launch_lines.read import launch_of_words
from planner.plans.space import default_space, shapes
from planner.rules import Question, first_error
from planner.sglang.flags import flags_of, listed_releases
from planner.sglang.resolver import resolve

R1 = deepseek_r1()
NODES_4 = "--nnodes 4 --node-rank 0 --dist-init-addr n0:5757 --tp-size 32 --dp-size 32 --enable-dp-attention"
WIDE = "--ep-num-redundant-experts 32 --moe-dense-tp-size 1"
PREFILL = (
    f"--disaggregation-mode prefill {NODES_4} --deepep-mode normal --chunked-prefill-size 524288 --disable-radix-cache "
    f"--max-running-requests 8192 --max-total-tokens 131072 --context-length 8192 {WIDE}"
)


def answered(
    hardware: str, version: str, words: str, isl: int = 1000, osl: int = 1000, clients: int = 64
) -> CheckAnswer:
    question = CheckQuestion(
        launch=launch_of_words(["--model-path", "deepseek-ai/DeepSeek-R1", "--trust-remote-code", *words.split()]),
        hardware=hardware_from_catalogue(hardware),
        arch=R1,
        version=Version(version),
        workload=Workload.checked(isl, osl, clients, 1.0),
    )
    return answer_check(question)


DECODE = (
    "--disaggregation-mode decode --nnodes 2 --node-rank 0 --dist-init-addr n0:1 --tp-size 16 --dp-size 16 "
    "--enable-dp-attention --moe-a2a-backend deepep --chunked-prefill-size 262144 --mem-fraction-static 0.849 "
    f"--cuda-graph-max-bs 64 --max-running-requests 2048 {WIDE}"
)


def rules(answer: CheckAnswer, severity: str = "error") -> set[str]:
    return {violation.rule for violation in answer.violations if violation.severity == severity}


@pytest.mark.parametrize(
    ("hardware", "version", "words"),
    [
        ("4xh100x8", "0.4.8", f"{PREFILL} --enable-deepep-moe --mem-fraction-static 0.85"),
        ("4xh800x8", "0.5.1", f"{PREFILL} --moe-a2a-backend deepep --ep 32 --mem-fraction-static 0.835"),
        ("2xh20x8", "0.5.5", f"{DECODE} --prefill-round-robin-balance"),
        (
            "b200x8",
            "0.5.8",
            "--disaggregation-mode decode --tp 8 --dp 8 --ep 8 --enable-dp-attention --chunked-prefill-size 32768 "
            "--mem-fraction-static 0.85 --cuda-graph-max-bs 512 --attention-backend trtllm_mla",
        ),
        ("h20x8", "0.5.6", "--tp 8 --mem-fraction-static 0.9"),
    ],
)
def test_published_lines_fit(hardware: str, version: str, words: str) -> None:
    found = answered(hardware, version, words)
    assert found.verdict == "runs", [v.message for v in found.violations if v.severity == "error"]


def test_a_published_line_cut_short_of_a_flag_fits_and_is_refused_for_that_alone() -> None:
    """0.5.2 to 0.5.7 stop a decode server under DP that was not told how its prefill servers balance."""
    found = answered("2xh20x8", "0.5.5", DECODE)
    assert rules(found) == {"pd-decode-balance"}


DP8 = "--tp 8 --dp 8 --enable-dp-attention"


@pytest.mark.parametrize("version", ["0.4.5", "0.4.6", "0.4.6.post5", "0.4.7", "0.4.8"])
def test_deepep_auto_under_attention_dp_is_refused_until_0_4_9(version: str) -> None:
    refused = answered("h200x8", version, f"{DP8} --enable-deepep-moe")
    assert (refused.verdict, refused.accepted) == ("refused", False)
    assert "deepep-auto-under-dp" in rules(refused)
    advised = " ".join(
        v.fix for v in answered("h200x8", version, f"{DP8} --enable-deepep-moe --deepep-mode normal").violations
    )
    assert "--deepep-mode auto;" not in advised


@pytest.mark.parametrize(("version", "captured"), [("0.4.5", True), ("0.4.6", True), ("0.4.6.post5", False)])
def test_deepep_normal_leaves_graphs_on_before_0_4_6_post3(version: str, captured: bool) -> None:
    found = answered("h200x8", version, f"{DP8} --enable-deepep-moe --deepep-mode normal")
    assert ("deepep-normal-capture" in rules(found)) is captured


@pytest.mark.parametrize(("version", "refused"), [("0.4.4", False), ("0.4.6", True), ("0.4.9", True), ("0.5.2", False)])
def test_attention_dp_needs_its_degree_in_some_releases(version: str, refused: bool) -> None:
    found = answered("h200x8", version, "--tp 8 --enable-dp-attention")
    assert ("dp-attention-without-degree" in rules(found)) is refused
    if refused:
        assert "--dp-size 8" in next(v.fix for v in found.violations if v.rule == "dp-attention-without-degree")


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        ("mi300xx8", "--attention-backend aiter"),
        (
            "h200x8",
            "--enable-deepep-moe --deepep-mode normal --ep-num-redundant-experts 32 --init-expert-location /m/x.json "
            "--enable-eplb",
        ),
    ],
)
def test_a_post_release_has_its_own_flags(hardware: str, words: str) -> None:
    assert answered(hardware, "0.4.6.post5", f"--tp 8 {words}").accepted


def test_the_releases_people_ran_are_listed() -> None:
    for release in ("0.4.3.post4", "0.4.4.post1", "0.4.5.post3", "0.4.6.post5", "0.4.9.post6", "0.5.12.post1"):
        assert release in listed_releases()
        assert flags_of(Version(release)).release == release


EAGLE = (
    "--speculative-algorithm EAGLE --speculative-num-steps 3 --speculative-eagle-topk 1 "
    "--speculative-num-draft-tokens 4"
)


@pytest.mark.parametrize(
    ("version", "hardware", "words", "fraction"),
    [
        ("0.4.7", "h20x8", "--tp 8", 0.88),
        ("0.4.7", "b200x8", "--tp 8", 0.79),
        ("0.4.7", "h200x8", "--tp 8", 0.8718),
        ("0.4.7", "h200x8", f"--tp 8 {EAGLE}", 0.8576),
        ("0.4.7", "mi300xx8", "--tp 8", 0.9062),
        ("0.4.7", "2xh100x8", f"--tp 16 --nnodes 2 {EAGLE}", 0.7505),
        ("0.4.6.post5", "h200x8", f"--tp 8 {EAGLE}", 0.8718),
        ("0.4.6", "h200x8", "--tp 8", 0.9074),
        ("0.4.5.post2", "h200x8", "--tp 8", 0.81),
    ],
)
def test_the_default_fraction_is_that_of_the_wheel(version: str, hardware: str, words: str, fraction: float) -> None:
    found = answered(hardware, version, words)
    assert found.checked.resolved.fields["mem_fraction_static"] == pytest.approx(fraction, abs=5e-5)


NEXTN = (
    "--tp 8 --speculative-algo NEXTN --speculative-draft SGLang/DeepSeek-R1-NextN --speculative-num-steps 2 "
    "--speculative-eagle-topk 4 --speculative-num-draft-tokens 4"
)


def test_mtp_on_0_4_3_post4_has_an_answer() -> None:
    found = answered("h200x8", "0.4.3.post4", NEXTN)
    assert found.verdict == "runs"
    assert found.prediction is not None


@pytest.mark.parametrize("version", ["0.4.3.post4", "0.4.4", "0.4.6.post3", "0.4.7"])
def test_eagle_under_attention_dp_fails_before_0_4_8(version: str) -> None:
    found = answered("h200x8", version, f"{DP8} {EAGLE} --speculative-draft-model-path lmsys/DeepSeek-R1-NextN")
    fault = next(v for v in found.violations if v.rule == "eagle-under-attention-dp")
    assert "0.4.8" in fault.message
    assert found.verdict == "fails"


@pytest.mark.parametrize("version", ["0.4.3.post4", "0.4.5", "0.4.6", "0.4.6.post5", "0.4.7", "0.4.8"])
def test_no_layout_of_a_plan_is_one_its_release_refuses_or_hangs_on(version: str) -> None:
    parsed, machine = Version(version), machine_of(hardware_from_catalogue("h200x8"))
    kept = []
    for shape in shapes(default_space(machine, parsed, arch=R1)):
        config = resolve(shape, R1, machine, parsed).config
        if first_error(Question(config=config, arch=R1, machine=machine, version=parsed)) is None:
            kept.append(config)
    assert kept
    for config in kept:
        assert not (config.speculative and config.attn_dp_size > 1 and parsed < Version("0.4.8"))
        assert not (config.moe_a2a_backend == "deepep" and config.attn_dp_size > 1 and parsed < Version("0.4.9"))


def test_an_fp8_cache_on_fa3_serves_with_a_warning_and_figures() -> None:
    words = "--tp 8 --context-length 131072 --kv-cache-dtype fp8_e4m3 --chunked-prefill-size 4096"
    found = answered("h200x8", "0.5.5", words, isl=120_000, osl=4000, clients=4)
    assert found.verdict == "runs"
    assert "fp8-kv-backend" in rules(found, "warning")
    assert found.prediction is not None


def test_the_first_capture_on_hopper_is_in_the_ledger() -> None:
    found = answered("h200x8", "0.5.6", "--tp 8")
    assert found.weighed is not None
    assert 5.0 <= found.weighed.ledger.per_gpu_gib["CUDA graphs"] <= 6.5


def test_the_head_of_0_4_4_is_whole_on_every_rank() -> None:
    found = answered("h200x8", "0.4.4", DP8)
    assert found.weighed is not None
    assert found.weighed.ledger.per_gpu_gib["weights: lm_head"] == pytest.approx(1.73, abs=0.01)


def test_a_release_nobody_has_read_is_judged_by_the_one_before_and_says_so() -> None:
    found = answered("h200x8", "0.5.12.post7", "--tp 8")
    assert any("judged by the flags of 0.5.12.post1" in note for note in found.notes)
    assert not any("judged by the flags" in note for note in answered("h200x8", "0.5.12.post1", "--tp 8").notes)
