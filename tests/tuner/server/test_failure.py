"""Each rule recognises the log it was written for, and no log is taken for something it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.seam import FailureKind
from tuner.server.failure import RULES, Policy, classify, policy_of

LOGS = Path(__file__).parents[2] / "data" / "logs"
RECORDED = {
    "unknown_flag": FailureKind.BAD_FLAG,
    "kv_pool_too_small": FailureKind.OOM_KV,
    "weights_missing": FailureKind.WEIGHTS_MISSING,
    "model_path_missing": FailureKind.WEIGHTS_MISSING,
    "port_taken": FailureKind.PORT,
    "package_missing": FailureKind.UNSUPPORTED,
    "attention_backend_unsupported": FailureKind.UNSUPPORTED,
    "assertion_in_scheduler": FailureKind.UNSUPPORTED,
    "scheduler_killed": FailureKind.KILLED,
    "rank_scheduler_killed": FailureKind.KILLED,
    "rank_lost": FailureKind.NCCL,
    "serving_and_sigterm": FailureKind.UNKNOWN,
}


def recorded(name: str) -> str:
    return (LOGS / f"cpu_0.5.23_{name}.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "kind"), RECORDED.items())
def test_a_recorded_log_has_its_class(name: str, kind: FailureKind) -> None:
    assert classify(recorded(name)).kind is kind


def test_every_rule_with_a_log_is_the_one_that_decides_it() -> None:
    assert {rule.log: rule.kind for rule in RULES if rule.log} == {
        name: kind for name, kind in RECORDED.items() if name in {rule.log for rule in RULES}
    }


def test_sglangs_own_figure_is_read_from_its_advice() -> None:
    failure = classify(recorded("kv_pool_too_small"))
    assert (failure.remedies[0].knob, failure.remedies[0].direction, failure.remedies[0].beyond) == (
        "mem_fraction_static",
        "raise",
        0.003,
    )


@pytest.mark.parametrize(
    ("reached", "kind"),
    [
        ("Load weight begin. avail mem=139.0 GB", FailureKind.OOM_WEIGHTS),
        ("Load weight end. elapsed=1 s", FailureKind.OOM_KV),
        ("Load weight end.\nMemory pool end. avail mem=3 GB", FailureKind.OOM_GRAPHS),
        ("Memory pool end.\nThe server is fired up and ready to roll!", FailureKind.OOM_LOAD),
    ],
)
def test_a_bare_out_of_memory_error_belongs_to_its_phase(reached: str, kind: FailureKind) -> None:
    assert classify(f"{reached}\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB").kind is kind


def test_a_killed_worker_is_a_host_oom_only_where_the_kernel_says_so() -> None:
    log = recorded("scheduler_killed")
    assert classify(log).kind is FailureKind.KILLED
    assert classify(log, host_oom="oom_kill 1 in the cgroup").kind is FailureKind.HOST_OOM


def test_the_unknown_stays_unknown_and_shows_the_last_lines() -> None:
    failure = classify("\n".join(f"line {n}" for n in range(100)))
    assert failure.kind is FailureKind.UNKNOWN
    assert failure.evidence == tuple(f"line {n}" for n in range(60, 100))


def test_out_of_memory_is_the_configurations_fault_and_a_wrong_flag_the_operators() -> None:
    assert policy_of(FailureKind.OOM_GRAPHS) is Policy.CONFIGURATION
    assert policy_of(FailureKind.BAD_FLAG) is Policy.STOP
    assert policy_of(FailureKind.KILLED) is Policy.RETRY
