"""Rules, the question they judge, and their application."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.machine import Machine
from models.version import at_least
from planner.sglang.backends import TRTLLM_METHODS, TRTLLM_RUNNER, attention_pair
from planner.violation import Severity, Violation

# SGLang 0.5.13 moved to --attn-dp-size and the per-phase graph flags; its checks are those read from 0.5.23.
NEWEST_FAMILY = "0.5.13"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A resolved configuration with its model, machine and release; `typed` is the configuration as typed, if any."""

    config: ServerConfig
    arch: ModelArchitecture
    machine: Machine
    version: Version
    typed: ServerConfig | None = None

    @property
    def asked(self) -> ServerConfig:
        return self.config if self.typed is None else self.typed

    @property
    def asked_line(self) -> bool:
        """The configuration was read from a launch line, which names its model."""
        return self.typed is not None and self.flag("model_path") is not None

    def flag(self, name: str, default: Any = None) -> Any:
        """Return a flag beyond ServerConfig's fields, or `default`."""
        return self.config.flag(name, default)

    @property
    def rank_chunk(self) -> int:
        """Prefill tokens one attention-DP rank takes per pass."""
        return (self.config.chunked_prefill_size or 0) // max(1, self.config.attn_dp_size)

    @property
    def rank_requests(self) -> int:
        return max(1, (self.config.max_running_requests or 0) // max(1, self.config.attn_dp_size))

    @property
    def rank_tokens(self) -> int:
        """Decode tokens one rank dispatches: its requests times the tokens each verifies."""
        requests = (self.config.max_running_requests or 0) // max(1, self.config.attn_dp_size)
        per_request = self.config.speculative.num_draft_tokens if self.config.speculative else 1
        return min(requests, self.config.cuda_graph_max_bs_decode or requests) * per_request

    @property
    def algorithm(self) -> str | None:
        """Speculative algorithm by SGLang's name, with NEXTN as EAGLE."""
        if self.config.speculative is not None:
            return "EAGLE"
        named = self.flag("speculative_algorithm")
        return None if named is None else {"NEXTN": "EAGLE"}.get(str(named).upper(), str(named).upper())

    @property
    def backends(self) -> tuple[str, str]:
        """Attention backends of prefill and decode."""
        return attention_pair(self.config)

    @property
    def quantization(self) -> str | None:
        """The `quantization` argument as resolved: on Blackwell SGLang takes it from the checkpoint."""
        typed = self.flag("quantization")
        method = self.arch.weight_formats.method
        if (
            typed is None
            and self.machine.is_blackwell
            and method in TRTLLM_METHODS
            and _from(self.version, TRTLLM_RUNNER)
        ):
            return method
        return None if typed == "unquant" else typed

    @property
    def capability(self) -> float:
        """The GPU's compute capability; 99 where there is none (AMD) or it is unknown."""
        return float(self.machine.compute_capability or 99)

    @property
    def method(self) -> str | None:
        """The quant_method of the checkpoint, or the one --quantization reads it by."""
        typed = self.flag("quantization")
        return self.arch.weight_formats.method if typed in (None, "unquant") else str(typed)


class _Words:
    """Lets a sentence name any flag of the launch: {f.node_rank}."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return self._config.flag(name)


class RuleOutcome(StrEnum):
    """The effect of breaking a rule."""

    REFUSED = "refused"  # SGLang stops at start by itself
    FAILS = "fails"  # SGLang does not check: the server fails later, or is of no use
    WORSE = "worse"  # it runs, but worse than it could
    CHANGED = "changed"  # SGLang changes the setting by itself


_SEVERITY = {
    RuleOutcome.REFUSED: Severity.ERROR,
    RuleOutcome.FAILS: Severity.ERROR,
    RuleOutcome.WORSE: Severity.WARNING,
    RuleOutcome.CHANGED: Severity.NOTE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`broken` says whether the rule is violated; `sentence` and `fix` are formatted with the configuration.

    They may name {c} the resolved configuration, {a} the typed one, {q} the question, {f} any other flag. `source` is
    the place in SGLang's code.
    """

    id: str
    outcome: RuleOutcome
    broken: Callable[[Question], bool]
    sentence: str
    fix: str
    source: str
    since: str = "0.4.3"
    before: str | None = None

    @property
    def severity(self) -> Severity:
        return _SEVERITY[self.outcome]

    def holds_for(self, version: Version) -> bool:
        return _from(version, self.since) and not (self.before and _from(version, self.before))


_from = cache(at_least)


def apply(rules: Iterable[Rule], question: Question) -> list[Violation]:
    """Return the violations of these rules, in their order."""
    of_release = _known(tuple(rules), question.version)
    return [_violation(rule, question) for rule in of_release if rule.broken(question)]


@cache
def _known(rules: tuple[Rule, ...], version: Version) -> tuple[Rule, ...]:
    """Return the rules that the release has; a search applies the same ones thousands of times."""
    return tuple(rule for rule in rules if rule.holds_for(version))


def _violation(rule: Rule, question: Question) -> Violation:
    words = {
        "c": question.config,
        "a": question.asked,
        "q": question,
        "f": _Words(question.config),
        "arch": question.arch,
        "machine": question.machine,
        "version": question.version,
    }
    return Violation(
        rule=rule.id,
        severity=rule.severity,
        message=rule.sentence.format(**words),
        fix=rule.fix.format(**words),
        refused=rule.outcome is RuleOutcome.REFUSED,
    )
