"""SGLang's validity rules as data: one place for plan, check, tune and everything that judges a configuration."""

from __future__ import annotations

from planner.rules import attention, checkpoints, experts, faults, serving, speculation, topology
from planner.rules.core import Question, Rule, RuleOutcome, apply
from planner.rules.experts import DEEPEP_TOKENS_PER_RANK
from planner.sglang.dialects import missing_abilities
from planner.violation import Severity, Violation, sorted_violations

__all__ = [
    "CHECKPOINT_RULES", "DEEPEP_TOKENS_PER_RANK",
    "RULES", "UNCONNECTED_NODES", "RuleOutcome", "Question", "Rule", "Severity", "Violation",
    "first_error", "violations",
]  # fmt: skip

RULES: tuple[Rule, ...] = (
    *topology.RULES,
    *checkpoints.RULES,
    *attention.RULES,
    *experts.RULES,
    *speculation.RULES,
    *serving.RULES,
    *faults.RULES,
)

# Breaking one of these means that this GPU or release cannot read the weights, whatever the layout.
CHECKPOINT_RULES = frozenset({
    "fp8-hardware", "weights-hardware", "weights-on-amd", "fp4-hardware", "fp4-release", "mxfp4-hardware",
    "mxfp4-release", "int8-release", "w4afp8-release", "sparse-hardware", "compressed-release",
})  # fmt: skip
# A line that breaks one of these is whole for its own node alone.
UNCONNECTED_NODES = ("nodes-without-address", "nodes-without-rank")
ERRORS = tuple(rule for rule in RULES if rule.severity is Severity.ERROR)


def violations(question: Question, rules: tuple[Rule, ...] | None = None) -> list[Violation]:
    """Return every violated rule of the version, what SGLang refuses first."""
    violated = apply(RULES if rules is None else rules, question)
    violated += [
        Violation(
            rule="version-ability",
            severity=Severity.ERROR,
            message=f"SGLang {question.version} cannot do {ability.name} ({ability.flag})",
            fix=f"use SGLang {ability.since} or newer",
        )
        for ability in missing_abilities(question.config, question.version)
    ]
    return sorted_violations(violated)


def first_error(question: Question) -> Violation | None:
    """Return the first violated rule that SGLang would refuse or fail on, or None."""
    errors = violations(question, ERRORS)
    return errors[0] if errors else None
