"""Each rule has a configuration that breaks it and a neighbour that does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.config import ServerConfig, Speculative
from models.machine import machine_of
from planner.resolver import resolve
from planner.rules import RULES, Question, Severity, violations

R1 = deepseek_r1()


def broken_rules(config: ServerConfig, hardware: str = "h200x8", version: str = "0.5.23") -> set[str]:
    machine, parsed = machine_of(hardware_from_catalogue(hardware)), Version(version)
    filled = resolve(config, R1, machine, parsed).config
    return {v.rule for v in violations(Question(config=filled, arch=R1, machine=machine, version=parsed))}


GOOD = ServerConfig(tp_size=8)
CASES = {
    "gpu-count": (ServerConfig(tp_size=16), ServerConfig(tp_size=16, nnodes=2)),
    "nodes-divide": (ServerConfig(tp_size=8, nnodes=3), ServerConfig(tp_size=8, nnodes=2)),
    "attn-dp-divides-tp": (ServerConfig(tp_size=8, attn_dp_size=3), ServerConfig(tp_size=8, attn_dp_size=4)),
    "heads-divide": (ServerConfig(tp_size=6), GOOD),
    "expert-width": (ServerConfig(tp_size=32, nnodes=4), ServerConfig(tp_size=32, ep_size=32, nnodes=4)),
    "experts-divide-ep": (ServerConfig(tp_size=6, ep_size=6), ServerConfig(tp_size=8, ep_size=8)),
    "ep-within-tp": (ServerConfig(tp_size=8, ep_size=16), ServerConfig(tp_size=8, ep_size=8)),
    "pp-with-mtp": (
        ServerConfig(tp_size=4, pp_size=2, speculative=Speculative.chain(1)),
        ServerConfig(tp_size=4, pp_size=2),
    ),
    "chunk-covers-page": (
        ServerConfig(tp_size=8, attn_dp_size=8, attention_backend="flashmla", chunked_prefill_size=800),
        ServerConfig(tp_size=8, attn_dp_size=8, attention_backend="flashmla", chunked_prefill_size=8192),
    ),
    "chunk-left-per-rank": (
        ServerConfig(tp_size=8, attn_dp_size=8, chunked_prefill_size=4),
        ServerConfig(tp_size=8, attn_dp_size=8, chunked_prefill_size=8),
    ),
    "requests-per-rank": (
        ServerConfig(tp_size=8, attn_dp_size=8, max_running_requests=7),
        ServerConfig(tp_size=8, attn_dp_size=8, max_running_requests=8),
    ),
    "fraction-range": (replace(GOOD, mem_fraction_static=1.2), replace(GOOD, mem_fraction_static=0.9)),
    "fp8-kv-backend": (
        replace(GOOD, kv_cache_dtype="fp8_e4m3"),
        replace(GOOD, kv_cache_dtype="fp8_e4m3", attention_backend="flashmla"),
    ),
    "deepep-buffer": (
        ServerConfig(tp_size=8, attn_dp_size=8, moe_a2a_backend="deepep", max_running_requests=2048),
        ServerConfig(tp_size=8, attn_dp_size=8, moe_a2a_backend="deepep", max_running_requests=1024),
    ),
}


@pytest.mark.parametrize("rule", CASES)
def test_rule_is_broken_by_its_case_and_not_by_the_neighbour(rule: str) -> None:
    bad, good = CASES[rule]
    assert rule in broken_rules(bad)
    assert rule not in broken_rules(good)


def test_fp8_needs_the_hardware() -> None:
    assert "fp8-hardware" in broken_rules(GOOD, "a100x8")
    assert "fp8-hardware" not in broken_rules(GOOD, "h100x8")


def test_every_rule_has_a_case_and_plain_words() -> None:
    assert {rule.id for rule in RULES} == {*CASES, "fp8-hardware"}
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.source
        assert rule.fix


def test_messages_are_filled_in_and_errors_come_first() -> None:
    machine, version = machine_of(hardware_from_catalogue("h200x8")), Version("0.5.23")
    config = ServerConfig(
        tp_size=8, attn_dp_size=8, moe_a2a_backend="deepep", max_running_requests=4096, mem_fraction_static=1.5
    )
    filled = resolve(config, R1, machine, version).config
    found = violations(Question(config=filled, arch=R1, machine=machine, version=version))
    assert [v.severity for v in found] == [Severity.ERROR, Severity.WARNING]
    assert "1.5" in found[0].message
    assert "512" in found[1].message
    assert all("{" not in v.message + v.fix for v in found)


def test_rules_hold_for_their_versions_only() -> None:
    config = ServerConfig(tp_size=8, page_size=64, attn_dp_size=8, chunked_prefill_size=800)
    assert "chunk-covers-page" in broken_rules(config, version="0.5.12")
    assert "chunk-covers-page" not in broken_rules(config, version="0.4.3")
