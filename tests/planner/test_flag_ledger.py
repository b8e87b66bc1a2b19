"""Every flag of every known release is classed; what no equation has is named with what it may change."""

from __future__ import annotations

import ast
import json
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.machine import machine_of
from models.workload import Workload
from planner.check.answer import CheckAnswer, CheckQuestion, answer_check
from planner.check.document import check_document
from planner.launch_lines.read import launch_of_words
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values
from planner.sglang.flag_ledger import FlagClass, flag_ledger, unpriced_flags

R1 = deepseek_r1()
RULES = Path(__file__).parent.parent.parent / "planner" / "rules"


def answered(words: str, hardware: str = "h200x8", version: str = "0.5.23") -> CheckAnswer:
    question = CheckQuestion(
        launch=launch_of_words(["--model-path", "r1", "--tp-size", "8", *words.split()]),
        hardware=hardware_from_catalogue(hardware),
        arch=R1,
        version=Version(version),
        workload=Workload.checked(1000, 1000, 64, 1.0),
    )
    return answer_check(question)


def unpriced(words: str, hardware: str = "h200x8", version: str = "0.5.23") -> list[str]:
    values = read_arguments(["--tp-size", "8", *words.split()], Version(version)).values
    machine = machine_of(hardware_from_catalogue(hardware))
    typed = from_values(values, Version(version))
    return [flag.flag for flag in unpriced_flags(values, typed, R1, machine, Version(version))]


def test_every_flag_of_every_known_release_has_one_class() -> None:
    """A release with a new flag fails here until somebody says what the flag does."""
    table = json.loads(files("planner").joinpath("sglang/flags.json").read_text(encoding="utf-8"))
    known = {flag["dest"] for flag in table["flags"]}
    assert known - set(flag_ledger()) == set(), "class them in planner/sglang/flag_ledger.toml"
    assert set(flag_ledger()) - known == set(), "no release has these"


def test_a_judged_flag_is_read_by_a_rule() -> None:
    words = {
        node.value if isinstance(node, ast.Constant) else node.attr
        for file in RULES.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant | ast.Attribute)
    }
    nowhere = {"cuda_graph_max_bs_prefill", "cuda_graph_bs_prefill"}  # resolved, and compared by the oracle
    judged = {name for name, entry in flag_ledger().items() if entry.kind is FlagClass.JUDGED}
    assert judged - nowhere - words == set()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--enable-two-batch-overlap", ["--enable-two-batch-overlap"]),
        ("--dcp-size 2", ["--dcp-size"]),
        ("--dcp-size 1", []),
        ("--enable-hierarchical-cache --hicache-ratio 2", ["--enable-hierarchical-cache", "--hicache-ratio"]),
        ("--prefill-decode-interval 4", ["--prefill-decode-interval"]),
        ("--trust-remote-code --host 0.0.0.0 --enable-metrics", []),
        ("--speculative-algorithm EAGLE", []),
        ("--speculative-algorithm NGRAM", ["--speculative-algorithm"]),
        ("--stream-interval 1", []),
        ("--stream-interval 10", ["--stream-interval"]),
        ("--dp-size 2", ["--dp-size"]),
        ("--dp-size 8 --enable-dp-attention", []),
        ("--moe-a2a-backend deepep", []),
        ("--moe-a2a-backend mooncake", ["--moe-a2a-backend"]),
    ],
)
def test_only_what_no_equation_has_is_named(words: str, named: list[str]) -> None:
    assert unpriced(words) == named


@pytest.mark.parametrize(
    ("words", "hardware", "named"),
    [
        ("--attention-backend fa3", "h200x8", []),
        ("--attention-backend flashmla", "h200x8", ["--attention-backend"]),
        ("--attention-backend trtllm_mla", "b200x8", []),
        ("--moe-runner-backend triton", "h200x8", []),
        ("--moe-runner-backend deep_gemm", "h200x8", ["--moe-runner-backend"]),
        ("--moe-runner-backend deep_gemm --moe-a2a-backend deepep", "h200x8", []),
    ],
)
def test_typing_what_sglang_would_choose_changes_nothing(words: str, hardware: str, named: list[str]) -> None:
    assert unpriced(words, hardware) == named


def test_check_says_what_is_unpriced_and_that_the_verdict_hangs_on_it() -> None:
    document = check_document(answered("--cpu-offload-gb 20 --enable-torch-compile"))
    first = document["unpriced"][0]
    assert (first["flag"], first["value"]) == ("--cpu-offload-gb", 20)
    assert "host memory" in first["effect"]
    assert document["hangs_on"] == ["--cpu-offload-gb", "--enable-torch-compile"]


def test_a_verdict_on_memory_does_not_hang_on_a_flag_of_speed() -> None:
    found = answered("--num-continuous-decode-steps 4")
    assert [flag.flag for flag in found.unpriced] == ["--num-continuous-decode-steps"]
    assert found.hangs_on == ()


def test_max_total_tokens_caps_the_pool_and_leaves_the_rest_free() -> None:
    capped, free = answered("--max-total-tokens 131072"), answered("")
    assert capped.weighed is not None
    assert free.weighed is not None
    assert capped.weighed.ledger.kv_tokens_per_rank == 131072
    assert capped.weighed.most_requests == 65
    assert capped.weighed.ledger.free_gib > free.weighed.ledger.free_gib + 20
    assert sum(capped.weighed.ledger.per_gpu_gib.values()) == pytest.approx(capped.weighed.ledger.card_gib)
    assert capped.unpriced == ()


def test_fewer_tokens_than_the_clients_need_slow_the_server_down() -> None:
    capped, free = answered("--max-total-tokens 20000"), answered("")
    assert capped.prediction is not None
    assert free.prediction is not None
    assert capped.prediction.output_tok_s < 0.5 * free.prediction.output_tok_s


def test_max_total_tokens_above_what_fits_is_a_note() -> None:
    found = answered("--mem-fraction-static 0.9 --max-total-tokens 65000", "h20x8", "0.4.5")
    note = next(v for v in found.violations if v.rule == "max-total-tokens-above-pool")
    assert "65,000" in note.message
    assert note.severity == "note"
