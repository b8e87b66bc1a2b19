"""A launch line is judged, weighed, predicted and advised on as its user would want."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.workload import Slo, Workload
from planner.check.answer import CheckAnswer, CheckQuestion, answer_check
from planner.check.document import check_document
from planner.launch_lines.read import launch_of_file, launch_of_words

DP8 = "--model-path deepseek-ai/DeepSeek-R1 --tp 8 --dp 8 --enable-dp-attention"


def answered(
    words: str, hardware: str = "h200x8", version: str = "0.5.23", *, concurrency: int = 64, **changes: Any
) -> CheckAnswer:
    question = CheckQuestion(
        launch=launch_of_words(words.split()),
        hardware=hardware_from_catalogue(hardware),
        arch=deepseek_r1(),
        version=Version(version),
        workload=Workload.checked(1000, 1000, concurrency, 1.0),
        **changes,
    )
    return answer_check(question)


def test_attention_dp_on_h200_explains_its_low_fraction_and_the_way_back() -> None:
    found = answered(DP8)
    assert (found.accepted, found.verdict) == (True, "runs")
    assert found.checked.resolved.fields["mem_fraction_static"] == 0.758
    reason = found.checked.resolved.reasons["mem_fraction_static"]
    assert "attention-DP padding 18,432" in reason
    graphs = next(a for a in found.advice if a.flags == "--cuda-graph-max-bs-decode 64")
    assert "0.758 -> 0.882" in graphs.text
    assert graphs.kv_after > 2 * graphs.kv_before
    again = answered(f"{DP8} {graphs.flags}")
    assert again.weighed is not None
    assert again.weighed.ledger.kv_tokens_per_rank == graphs.kv_after


def test_attention_dp_on_h20_can_never_fit_and_says_why() -> None:
    found = answered(DP8, "h20x8")
    assert (found.accepted, found.verdict, found.prediction) == (True, "does not fit", None)
    never = next(v for v in found.violations if v.rule == "never-fits")
    assert "whatever --mem-fraction-static is" in never.message
    assert all(a.makes_it_fit for a in found.advice)
    assert any("without --dp-size" in a.flags or "--attn-dp-size" in a.flags for a in found.advice)


def test_more_nodes_are_advised_only_where_nothing_helps_on_those_there_are() -> None:
    """Eight H20 of 96 GB are the field's standard machine for R1; eight H100 cannot hold it."""
    one, two = answered("--model-path r1 --tp 8", "h20x8", "0.4.6.post5"), answered("--model-path r1 --tp 8", "h100x8")
    assert one.advice
    assert not any("--nnodes" in advice.flags for advice in one.advice)
    assert any("--nnodes 2" in advice.flags for advice in two.advice)


@pytest.mark.parametrize("flags", ["--dp 8 --enable-dp-attention", "--enable-dp-attention --mem-fraction-static 0.99"])
def test_an_alternative_that_the_release_cannot_write_does_not_lose_the_answer(flags: str) -> None:
    found = answered(f"--model-path r1 --tp 8 {flags} --context-length 8192", "h20x8", "0.4.4")
    assert found.verdict == "does not fit"
    assert not any("--dp-size 4" in advice.flags for advice in found.advice)


def test_advice_never_says_that_something_fits_where_it_would_fail_for_another_reason() -> None:
    found = answered("--model-path r1 --tp 8", "a800x8")
    assert {"fp8-hardware", "never-fits"} <= {violation.rule for violation in found.violations}
    assert found.advice == ()


@pytest.mark.parametrize("version", ["0.4.6.post5", "0.4.9.post2", "0.5.5", "0.5.23"])
@pytest.mark.parametrize("hardware", ["h20x8", "h200x8"])
@pytest.mark.parametrize("graphs", [64, 256])
def test_an_advised_interval_runs_from_its_lower_end_to_its_upper(hardware: str, graphs: int, version: str) -> None:
    flag = "--cuda-graph-max-bs" + ("-decode" if version == "0.5.23" else "")
    line = f"--model-path r1 --tp 8 {flag} {graphs} --max-running-requests 256 --mem-fraction-static"
    for found in (answered(f"{line} {fraction}", hardware, version) for fraction in (0.5, 0.8)):
        for violation in found.violations:
            interval = re.search(r"between (\d\.\d+) and (\d\.\d+)", violation.fix)
            if interval is not None:
                assert float(interval[1]) < float(interval[2])
                assert answered(f"{line} {interval[2]}", hardware, version).verdict == "runs"


def test_a_fraction_too_low_for_the_weights_is_not_never() -> None:
    found = answered("--model-path r1 --tp 8", "h20x8")
    rules = {v.rule for v in found.violations}
    assert "no-kv-cache" in rules
    assert "never-fits" not in rules
    assert any(a.flags.startswith("--mem-fraction-static") for a in found.advice)


def test_a_refused_line_still_shows_its_memory() -> None:
    found = answered("--model-path r1 --tp 8 --attn-dp-sise 8")
    assert (found.accepted, found.verdict, found.prediction) == (False, "refused", None)
    assert found.weighed is not None


@pytest.mark.parametrize(
    ("version", "graphs"), [("0.5.12", "--cuda-graph-max-bs"), ("0.5.23", "--cuda-graph-max-bs-decode")]
)
def test_advice_speaks_the_words_of_the_release(version: str, graphs: str) -> None:
    found = answered(DP8, version=version)
    assert any(a.flags.split()[0] == graphs for a in found.advice)


@pytest.mark.parametrize(
    ("fraction", "version", "tokens"), [(0.9074, "0.4.5.post3", 654_280), (0.81, "0.4.5.post2", 448_804)]
)
def test_logged_kv_tokens_given_the_logged_free_memory(fraction: float, version: str, tokens: int) -> None:
    words = f"--model-path r1 --tp 8 --mem-fraction-static {fraction}"
    found = answered(words, version=version, free_before_load_gib=137.24)
    assert found.weighed is not None
    assert found.weighed.ledger.kv_tokens_per_rank == pytest.approx(tokens, rel=0.01)
    assert found.weighed.ledger.weights_gib == pytest.approx(81.64, rel=0.01)


def test_the_memory_that_a_log_printed_is_what_the_prediction_runs_in() -> None:
    plenty, little = (answered("--model-path r1 --tp 8", free_before_load_gib=gib) for gib in (137.24, 97.0))
    assert plenty.prediction is not None
    assert little.prediction is not None
    assert little.weighed is not None
    assert little.weighed.most_requests < 64
    assert little.prediction.ttft_ms["p99"] > 1.5 * plenty.prediction.ttft_ms["p99"]


def test_the_logged_default_fraction_of_045post3() -> None:
    found = answered("--model-path r1 --tp 8", version="0.4.5.post3")
    assert found.checked.resolved.config.mem_fraction_static == pytest.approx(0.9074, abs=5e-5)


def test_running_requests_are_counted_per_rank() -> None:
    found = answered(DP8).weighed
    assert found is not None
    assert found.most_requests == 8 * (found.ledger.kv_tokens_per_rank // 2000)
    assert found.ledger.per_node_gib()["KV pool"] == pytest.approx(8 * found.ledger.per_gpu_gib["KV pool"])


def test_dense_layers_and_redundant_experts_weigh() -> None:
    plain = answered(f"{DP8} --moe-a2a-backend deepep").weighed
    more = answered(f"{DP8} --moe-a2a-backend deepep --moe-dense-tp-size 1 --ep-num-redundant-experts 32").weighed
    assert plain is not None
    assert more is not None
    extra = more.ledger.weights_gib - plain.ledger.weights_gib
    assert extra == pytest.approx(1.108 * 7 / 8 + 76.14 / 8, rel=0.01)


def test_the_environment_of_the_launch_silences_the_deepep_warning() -> None:
    words = "python -m sglang.launch_server --model-path r1 --tp 8 --attn-dp-size 8 --moe-a2a-backend deepep"
    loud = answered(f"{words} --max-running-requests 2048")
    quiet = answered(f"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=256 {words} --max-running-requests 2048")
    assert "deepep-buffer" in {v.rule for v in loud.violations}
    assert "deepep-buffer" not in {v.rule for v in quiet.violations}


def test_the_document_has_the_contracts_fields() -> None:
    document = check_document(answered(DP8))
    assert {"accepted", "violations", "resolved", "ledger", "kv_tokens_per_rank", "kv_tokens", "prediction"} <= set(
        document
    )
    assert {"per_gpu_gib", "card_gib", "headroom_gib"} <= set(document["ledger"])
    assert sum(document["ledger"]["per_gpu_gib"].values()) == pytest.approx(document["ledger"]["card_gib"])
    assert document["kv_tokens"] == 8 * document["kv_tokens_per_rank"]
    for violation in document["violations"]:
        assert {"rule", "severity", "message", "fix"} <= set(violation)
    json.dumps(document)


# mem_fraction_static by release, worked out from each wheel's server_args.py for tp 8 on 143,771 MiB.
@pytest.mark.parametrize(
    ("version", "words", "fraction"),
    [
        ("0.4.3", "--tp 8", 0.81),
        ("0.4.6", "--tp 8", (143771 - 13312) / 143771),
        ("0.5.1", "--tp 8", round((143771 - 16 * 1024) / 143771, 3)),
        ("0.5.5", "--tp 8", round((143771 - 512 - 12288 - 1024 - 1024) / 143771, 3)),
        ("0.5.12", "--tp 8", round((143771 - 512 - 12288 - 1024 - 1024 - 1536) / 143771, 3)),
        ("0.5.15", "--tp 8", round((143771 - 512 - 12288 - 1024 - 1024 - 1536) / 143771, 3)),
    ],
)
def test_the_default_fraction_of_each_era(version: str, words: str, fraction: float) -> None:
    found = answered(f"--model-path r1 {words}", version=version)
    assert found.checked.resolved.config.mem_fraction_static == pytest.approx(fraction, abs=1e-9)


def test_an_unreadable_config_file_is_refused(tmp_path: Path) -> None:
    found = answered(f"--model-path r1 --tp 8 --config {tmp_path / 'none.yaml'}")
    assert "config-file" in {v.rule for v in found.violations if v.refused}


def test_a_number_of_nodes_left_to_the_cluster_is_that_of_the_hardware() -> None:
    found = answered("python -m sglang.launch_server --model-path r1 --tp 16 --nnodes $(LWS_GROUP_SIZE)", "2xh20x8")
    assert found.checked.typed.nnodes == 2
    assert found.verdict == "runs"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("python -m sglang.launch_server --model-path r1 --tp 16 --nnodes 2", {"nodes-without-address"}),
        (
            "python -m sglang.launch_server --model-path r1 --tp 16 --nnodes 2 --dist-init-addr n0:1",
            {"nodes-without-rank"},
        ),
        (
            "python -m sglang.launch_server --model-path r1 --tp 16 --nnodes 2 --node-rank $R --dist-init-addr $A:1",
            set(),
        ),
        ("python -m sglang.launch_server --model-path r1 --tp 8", set()),
    ],
)
def test_nodes_that_cannot_find_each_other_are_named(line: str, named: set[str]) -> None:
    found = answered(line, "2xh200x8")
    assert {v.rule for v in found.violations if v.rule.startswith("nodes-without")} == named
    assert found.verdict == "runs"


def test_a_platform_that_starts_the_nodes_gives_them_rank_and_address(tmp_path: Path) -> None:
    dynamo = """
kind: DynamoGraphDeployment
spec:
  services:
    worker:
      multinode: {nodeCount: 2}
      extraPodSpec:
        mainContainer:
          command: [python3, -m, dynamo.sglang]
          args: [--model-path, deepseek-ai/DeepSeek-R1, --tp, "16"]
"""
    (tmp_path / "dynamo.yaml").write_text(dynamo)
    asked = CheckQuestion(
        launch=launch_of_file(tmp_path / "dynamo.yaml"),
        hardware=hardware_from_catalogue("2xh200x8"),
        version=Version("0.5.23"),
        workload=Workload.checked(1000, 1000, 64),
    )
    found = answer_check(asked)
    assert found.checked.typed.nnodes == 2
    assert not [v for v in found.violations if v.rule.startswith("nodes-without")]


def test_advice_is_ranked_by_tok_s_and_each_gives_what_it_says() -> None:
    """Plain TP for many clients lacks attention DP, EP and MTP: worth far more than any KV cache."""
    found = answered("--model-path r1 --tp 8", concurrency=256)
    gains = [advice.gain_percent for advice in found.advice if advice.gain_percent is not None]
    assert gains[0] > 50.0
    faster = [gain for gain in gains if gain > 3.0]
    assert faster == sorted(faster, reverse=True)
    assert f"{gains[0]:+.0f} %" in found.advice[0].text
    again = answered(f"--model-path r1 --tp 8 {found.advice[0].flags}", concurrency=256)
    assert again.prediction is not None
    assert again.prediction.output_tok_s == pytest.approx(found.advice[0].output_tok_s, rel=1e-6)


def test_advice_that_keeps_the_limits_comes_before_advice_that_is_faster() -> None:
    limit = Slo.parse("tpot:mean<30ms")
    free, limited = (answered("--model-path r1 --tp 8", concurrency=256, slos=slos) for slos in ((), (limit,)))
    assert limited.misses
    assert limited.advice[0].misses == ()
    misses = [bool(advice.misses) for advice in limited.advice]
    assert misses == sorted(misses)
    assert free.advice[0].output_tok_s is not None
    assert limited.advice[0].output_tok_s is not None
    assert free.advice[0].output_tok_s >= 0.97 * limited.advice[0].output_tok_s


def test_a_line_that_is_best_already_gets_no_advice_on_speed() -> None:
    best = answered("--model-path r1 --tp 8", concurrency=256).advice[0].flags
    again = answered(f"--model-path r1 --tp 8 {best}", concurrency=256)
    assert all((advice.gain_percent or 0.0) < 5.0 for advice in again.advice)
