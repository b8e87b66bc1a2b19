"""Decode graph sizes of releases whose graph runner settles them; the figures are those of each wheel's own code."""

from __future__ import annotations

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.machine import machine_of
from planner.check.judge import Checked, check_arguments
from planner.sglang.captured import captured_sizes
from planner.sglang.dialects import from_values, to_argv

MACHINES = {name: machine_of(hardware_from_catalogue(name)) for name in ("h100x8", "h200x8", "b200x8")}


def checked(words: str, version: str, hardware: str = "h200x8") -> Checked:
    line = f"--model-path r1 --tp-size 8 {words}".split()
    return check_arguments(line, deepseek_r1(), MACHINES[hardware], Version(version))


@pytest.mark.parametrize(
    ("version", "words", "hardware", "largest"),
    [
        ("0.4.3.post4", "--cuda-graph-bs 64", "h200x8", 64),
        ("0.4.3.post4", "--cuda-graph-max-bs 300", "h200x8", 160),  # nothing beyond its list
        ("0.4.6.post5", "--cuda-graph-bs 1 2 4 8", "b200x8", 8),
        ("0.4.9.post6", "--cuda-graph-max-bs 300", "h200x8", 288),  # the list and steps of 16
        ("0.4.9.post6", "--cuda-graph-bs 1 16 32", "h100x8", 32),
        ("0.5.3", "--cuda-graph-max-bs 64 --cuda-graph-bs 1 2 4 8", "b200x8", 8),
        ("0.5.12", "", "h200x8", 512),
        ("0.5.3", "--cuda-graph-max-bs 1", "h200x8", 1),
        ("0.4.6.post5", "--disable-cuda-graph-padding", "h100x8", 152),
    ],
)
def test_the_largest_graph_is_that_of_the_wheel(version: str, words: str, hardware: str, largest: int) -> None:
    assert checked(words, version, hardware).resolved.fields["cuda_graph_max_bs_decode"] == largest


def test_sizes_that_attention_tp_does_not_divide_are_dropped() -> None:
    values = {"model_path": "r1", "tp_size": 8, "enable_deepep_moe": True}
    sizes = captured_sizes(from_values(values, Version("0.4.9.post6")), MACHINES["h100x8"], Version("0.4.9.post6"))
    assert sizes == list(range(8, 161, 8))


@pytest.mark.parametrize(("version", "backend"), [("0.5.3", "flashinfer"), ("0.5.12", "trtllm_mla")])
def test_blackwell_has_trtllm_mla_from_0_5_3_post2(version: str, backend: str) -> None:
    assert checked("", version, "b200x8").resolved.fields["attention_backend"] == backend


@pytest.mark.parametrize(("version", "runner"), [("0.5.3", "auto"), ("0.5.12", "flashinfer_trtllm")])
def test_blackwell_has_its_moe_runner_from_0_5_5(version: str, runner: str) -> None:
    assert checked("", version, "b200x8").resolved.fields["moe_runner_backend"] == runner


def test_no_prefill_graphs_are_reserved_where_0_5_12_captures_none() -> None:
    plain = checked("", "0.5.12", "h100x8").resolved.fields["mem_fraction_static"]
    pipeline = checked("--pp-size 2 --nnodes 2", "0.5.12", "h100x8").resolved.fields["mem_fraction_static"]
    assert (plain, pipeline) == (0.799, 0.805)
    tree = checked("--tp-size 4 --enable-hierarchical-cache", "0.5.12", "h100x8")
    assert tree.resolved.fields["mem_fraction_static"] == 0.824


def test_retired_switches_stop_the_launch_and_are_never_written() -> None:
    assert not checked("--enable-flashmla", "0.4.6.post5").accepted
    assert checked("--enable-flashmla", "0.4.4.post2").accepted
    config = from_values({"tp_size": 8, "attention_backend": "flashmla"}, Version("0.4.6.post5"))
    assert to_argv(config, Version("0.4.6.post5")) == ["--tp-size", "8", "--attention-backend", "flashmla"]


def test_a_tree_on_pages_is_refused_from_0_5_3_and_flattened_before_0_4_9() -> None:
    tree = "--page-size 64 --speculative-algorithm EAGLE --speculative-num-steps 2 --speculative-eagle-topk 2 "
    tree += "--speculative-num-draft-tokens 4"
    assert "tree-on-pages" in {violation.rule for violation in checked(tree, "0.5.3").violations}
    flat = checked(tree, "0.4.6.post5")
    assert flat.accepted
    assert flat.resolved.fields["speculative_num_draft_tokens"] == 3


def test_context_parallelism_is_read_by_the_name_its_release_keeps() -> None:
    refused = checked("--dp-size 8 --enable-dp-attention --attn-cp-size 2", "0.5.12")
    assert "cp-divides-tp" in {violation.rule for violation in refused.violations}
    config = from_values({"tp_size": 8, "attention_context_parallel_size": 2}, Version("0.5.12"))
    written = to_argv(config, Version("0.5.12"))
    assert written == ["--tp-size", "8", "--attention-context-parallel-size", "2"]
