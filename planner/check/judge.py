"""Check: SGLang's reading of a launch line on a machine: violations, resolved values, memory, performance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.costs.memory import Memory, MemoryLedger, ledger_of, memory
from models.layout import KV_BYTES, ConfigTable, table_of
from models.machine import Machine
from models.phases import decode_graphs, prefill_graphs
from models.serving.estimate import Context, Prediction, predict, prediction_of, replay_workload
from models.workload import Workload
from planner.launch_lines.settings import with_config_file
from planner.rules import RULES, Question, Rule, violations
from planner.sglang.arguments import Arguments, read_arguments
from planner.sglang.dialects import from_values
from planner.sglang.resolver import Resolved, resolve
from planner.violation import Severity, Violation, sorted_violations

# Element bytes of KV types the ledger's table does not list: block scales of 8 bits per 32 and per 16 values.
OTHER_KV = {"mxfp8": "fp8_e4m3", "nvfp4": "fp8_e4m3", "fp4_mx_block16": "fp8_e4m3"}
LEAST_FREE_GIB = 1.0
SMALL_CHUNK = 1024
NOTHING_TYPED = Arguments(values={}, faults=())
# Rules whose breach leaves no meaningful layout to weigh.
NO_LAYOUT = frozenset({
    "parallel-sizes-positive", "attn-dp-positive", "attn-dp-divides-tp", "context-positive", "fraction-range",
    "graph-size-positive", "requests-positive",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One launch line, read, resolved and judged. `accepted`: SGLang's own parser and checks let it start."""

    arguments: Arguments
    typed: ServerConfig
    resolved: Resolved
    violations: tuple[Violation, ...]

    @property
    def accepted(self) -> bool:
        return not any(violation.refused for violation in self.violations)

    def typed_as(self, arguments: Arguments) -> Checked:
        """Return it with its typed words and their faults."""
        ordered = sorted_violations([*arguments.faults, *self.violations])
        return replace(self, arguments=arguments, violations=tuple(ordered))

    @property
    def sound(self) -> bool:
        """No rule says that SGLang refuses or fails."""
        return not any(violation.severity is Severity.ERROR for violation in self.violations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """The memory of a resolved configuration: the ledger, and its shortage at any memory fraction.

    `least_shortage_gib` is the shortage of the same layout without graphs, with small chunks and one request a rank.
    """

    ledger: MemoryLedger
    shortage_gib: float
    least_shortage_gib: float
    most_requests: int
    before_load_gib: float

    @property
    def fits(self) -> bool:
        """The KV pool is not empty, and graphs and activations fit beside it."""
        return self.ledger.kv_tokens > 0 and self.ledger.free_gib >= 0.0

    def fraction_leaving(self, free_gib: float) -> float:
        """Return the memory fraction at which `free_gib` stay free after everything else."""
        counted_gib = self.ledger.weights_gib + self.ledger.per_gpu_gib["KV pool"] + self.ledger.free_gib
        beside = self.before_load_gib - counted_gib  # request table, graphs, activations
        return 1.0 - (beside + free_gib) / self.before_load_gib


def check_arguments(words: Sequence[str], arch: ModelArchitecture, machine: Machine, version: Version) -> Checked:
    """Check the words that follow `python -m sglang.launch_server`, a --config file among them."""
    arguments = read_launch(words, version)
    return judge(from_values(arguments.values, version), arch, machine, version).typed_as(arguments)


def read_launch(words: Sequence[str], version: Version) -> Arguments:
    """Read the words that follow `python -m sglang.launch_server`, a --config file among them."""
    merged, wrong = with_config_file(words) if "--config" in words else (words, [])
    arguments = read_arguments(merged, version)
    return replace(arguments, faults=(*arguments.faults, *(_config_fault(text) for text in wrong)))


def _config_fault(text: str) -> Violation:
    fix = "name one readable YAML file of flag: value lines"
    return Violation(rule="config-file", severity=Severity.ERROR, message=text, fix=fix, refused=True)


def judge(
    typed: ServerConfig,
    arch: ModelArchitecture,
    machine: Machine,
    version: Version,
    rules: tuple[Rule, ...] = RULES,
) -> Checked:
    """Resolve a typed configuration and apply the rules to it, all of them unless told otherwise."""
    resolved = resolve(typed, arch, machine, version)
    question = Question(config=resolved.config, arch=arch, machine=machine, version=version, typed=typed)
    ordered = sorted_violations(violations(question, rules))
    return Checked(arguments=NOTHING_TYPED, typed=typed, resolved=resolved, violations=tuple(ordered))


def weigh(checked: Checked, context: Context, workload: Workload, free_before_load_gib: float | None) -> Weighed | None:
    """Return the memory of the checked configuration, or None for an impossible layout."""
    if any(violation.rule in NO_LAYOUT for violation in checked.violations):
        return None
    config = modelled(checked.resolved.config)
    table = table_of([config])
    filled = _memory(context, table, free_before_load_gib)
    ledger = ledger_of(filled, table, 0)
    return Weighed(
        ledger=ledger,
        shortage_gib=float(filled.shortage(workload.longest_request, LEAST_FREE_GIB)[0]),
        least_shortage_gib=_least_shortage(context, config, workload, free_before_load_gib),
        most_requests=ledger.requests(workload.isl.mean + workload.osl.mean, int(table.most_running[0])),
        before_load_gib=float(filled.card[0] - filled.context[0]),
    )


def _least_shortage(context: Context, config: ServerConfig, workload: Workload, free_gib: float | None) -> float:
    smallest = replace(
        config,
        disable_cuda_graph=True,
        chunked_prefill_size=SMALL_CHUNK * config.attn_dp_size,
        max_running_requests=config.attn_dp_size,
    )
    table = table_of([smallest])
    return float(_memory(context, table, free_gib).shortage(workload.longest_request, LEAST_FREE_GIB)[0])


def _memory(context: Context, table: ConfigTable, free_before_load_gib: float | None) -> Memory:
    return memory(context.arch, context.machine, table, context.version, free_before_load_gib)


def modelled(config: ServerConfig) -> ServerConfig:
    """Return the configuration with unmodelled settings replaced by the nearest modelled ones."""
    chunk = config.chunked_prefill_size or 0
    if chunk < max(1, config.attn_dp_size):
        chunk = max(config.max_prefill_tokens or 16384, config.attn_dp_size)
    kv = OTHER_KV.get(config.kv_cache_dtype or "auto", config.kv_cache_dtype)
    return replace(
        config,
        chunked_prefill_size=chunk,
        kv_cache_dtype=kv if kv in KV_BYTES else "auto",
        disable_cuda_graph=not decode_graphs(config) and prefill_graphs(config) is None,
        max_running_requests=max(config.attn_dp_size, config.max_running_requests or 1),
    )


def predicted(
    checked: Checked,
    weighed: Weighed | None,
    context: Context,
    workload: Workload,
    free_before_load_gib: float | None = None,
) -> Prediction | None:
    """Return the prediction, or None for a line that has none (see `why_unpredicted`).

    The requests that run at once are those of the weighed memory: with a log's free memory, if given.
    """
    if why_unpredicted(checked, weighed, context, workload) is not None:
        return None
    placed = replace(context, machine=context.machine.with_nodes(max(1, checked.resolved.config.nnodes)))
    config = modelled(checked.resolved.config)
    if free_before_load_gib is None:
        return predict(placed, config, workload)
    filled = _memory(placed, table_of([config]), free_before_load_gib)
    played = replay_workload(placed, config, workload, filled)
    return prediction_of(placed, config, workload, filled=filled, played=played)


def why_unpredicted(checked: Checked, weighed: Weighed | None, context: Context, workload: Workload) -> str | None:
    """Return why a launch has no prediction, or None where it has one."""
    if weighed is None or not checked.sound or not weighed.fits:
        return "it would not serve this workload as it stands"
    if weighed.ledger.kv_tokens_per_rank < workload.longest_request:
        return "its KV cache does not hold one request of this workload"
    if checked.typed.flag("disaggregation_mode", "null") != "null":
        return "a prefill or decode server serves only together with its other half"
    return None
