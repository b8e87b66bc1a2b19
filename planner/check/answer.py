"""CheckAnswer: everything `sgtune check` has to say about one launch line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from packaging.version import Version

from hwprobe.errors import InputError
from hwprobe.profile import HardwareProfile
from models.architecture import ModelArchitecture
from models.engine.profile import EngineProfile
from models.engine.transfer import profile_on
from models.machine import Machine, machine_of
from models.serving.estimate import DEFAULT_ACCEPTANCE, Context, Prediction
from models.unpriced import Unpriced
from models.workload import Slo, Workload, missed
from planner.assumption import Assumption, UnknownValue
from planner.check.advice import Advice, advise
from planner.check.changes import Conditions
from planner.check.host_memory import host_violations
from planner.check.judge import Checked, Weighed, judge, predicted, read_launch, weigh, why_unpredicted
from planner.check.memory_fit import memory_violations
from planner.check.visible_gpus import visibility_violations
from planner.launch_lines.checkpoint import ServedModel, served_model
from planner.launch_lines.launch_line import LaunchLine, how_to_give
from planner.sglang.arguments import knows_flags, read_arguments
from planner.sglang.dialects import from_values
from planner.sglang.flag_ledger import unpriced_flags
from planner.sglang.flags import flags_of, listed_releases
from planner.violation import Severity, Violation, sorted_violations

UNKNOWN_MODEL = "the value of --model-path is unknown here: give it with --set, or the model's config.json with --model"
ASSUMED_MODEL = "the path names no known model: give its config.json with --model if it is another"
DEEPEP_TOKENS = "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckQuestion:
    """A launch line and its machine.

    `arch` is the model of --model, None to read it from the line; `free_before_load_gib` is the figure of a log;
    `hardware_assumed` that no --hardware was given.
    """

    launch: LaunchLine
    hardware: HardwareProfile
    version: Version
    workload: Workload
    slos: tuple[Slo, ...] = ()
    arch: ModelArchitecture | None = None
    free_before_load_gib: float | None = None
    engine: EngineProfile | None = None
    acceptance: float = DEFAULT_ACCEPTANCE
    hardware_assumed: bool = False
    notes: tuple[str, ...] = ()


class UnknownValues(InputError):
    """A launch line holds values that decide the answer and are not known here; `values` are to be asked for."""

    def __init__(self, values: Sequence[UnknownValue], doubted: Sequence[str] = ()) -> None:
        self.values = tuple(values)
        unknowns = [f"{value.flag or 'a word of the line'} is {value.text[:80]}" for value in values]
        super().__init__(f"{', '.join(unknowns)}: unknown here, so there is no verdict; {how_to_give(values, doubted)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckAnswer:
    """Violations worst first, resolved values, memory, prediction (None: see `unpredicted`) and advice.

    `unpriced` are the flags that no equation has, `misses` the limits that the prediction misses.
    """

    question: dict[str, Any]
    checked: Checked
    violations: tuple[Violation, ...]
    weighed: Weighed | None
    prediction: Prediction | None
    unpredicted: str | None
    advice: tuple[Advice, ...]
    served: ServedModel
    assumed: tuple[Assumption, ...]
    notes: tuple[str, ...]
    unpriced: tuple[Unpriced, ...] = ()
    misses: tuple[str, ...] = ()

    @property
    def hangs_on(self) -> tuple[Unpriced, ...]:
        """Unpriced flags that the verdict hangs on: those that move memory, where memory was weighed."""
        return tuple(flag for flag in self.unpriced if flag.moves_memory) if self.weighed is not None else ()

    @property
    def accepted(self) -> bool:
        """SGLang's parser, resolver and checks let the launch start."""
        return self.checked.accepted

    @property
    def verdict(self) -> str:
        """`refused` at start, `fails` later, `does not fit` the memory, or `runs`."""
        if not self.accepted:
            return "refused"
        if not self.checked.sound:
            return "fails"
        errors = [violation for violation in self.violations if violation.severity is Severity.ERROR]
        return "does not fit" if errors else "runs"


def answer_check(question: CheckQuestion) -> CheckAnswer:
    """Read, resolve, judge, weigh and predict one launch line.

    Raises UnsupportedModel for a checkpoint that is not modelled, UnknownValues for values that decide and are not
    known: no verdict may hang on others in their place.
    """
    undecided = [v for v in question.launch.unknown if v.flag != "--nnodes" or question.hardware_assumed]
    if undecided:
        raise UnknownValues(undecided, question.launch.doubted)
    machine = machine_of(question.hardware)
    words, assumed = _completed(question, machine)
    arguments = read_launch(words, question.version)
    served = served_model(arguments.values, question.arch)
    context = Context(
        arch=served.arch,
        machine=machine,
        engine=question.engine or profile_on(question.hardware, question.version),
        version=question.version,
        acceptance=question.acceptance,
    )
    typed = from_values(arguments.values, question.version)
    checked = _settled(judge(typed, served.arch, machine, question.version).typed_as(arguments), question, served)
    weighed = weigh(checked, context, question.workload, question.free_before_load_gib)
    violations = list(checked.violations)
    conditions = Conditions(
        context=context,
        workload=question.workload,
        slos=question.slos,
        free_before_load_gib=question.free_before_load_gib,
    )
    prediction = predicted(checked, weighed, context, question.workload, question.free_before_load_gib)
    advice: list[Advice] = []
    if weighed is not None:
        violations += memory_violations(checked, weighed, question.workload.longest_request)
        violations += host_violations(checked, weighed)
        advice = advise(checked, weighed, prediction, conditions)
    if served.assumed is not None:
        why = UNKNOWN_MODEL if "--model-path" in question.launch.left_out else ASSUMED_MODEL
        assumed.append(Assumption(name="model", value=served.assumed, why=why))
    return CheckAnswer(
        question=_asked(question, served),
        checked=checked,
        violations=tuple(sorted_violations(violations)),
        weighed=weighed,
        prediction=prediction,
        unpredicted=why_unpredicted(checked, weighed, context, question.workload),
        advice=tuple(advice),
        served=served,
        assumed=tuple(assumed),
        notes=(*question.notes, *_notes(question, context, prediction)),
        misses=() if prediction is None else missed(question.slos, prediction),
        unpriced=unpriced_flags(checked.arguments.values, checked.typed, served.arch, machine, question.version),
    )


def _completed(question: CheckQuestion, machine: Machine) -> tuple[list[str], list[Assumption]]:
    """Return the line's words, the number of nodes added where it is a variable, and the assumptions so far."""
    words, assumed = list(question.launch.words), list(question.launch.assumed)
    if any(value.flag == "--nnodes" for value in question.launch.unknown):
        words += ["--nnodes", str(machine.nodes)]
        assumed.append(Assumption(name="--nnodes", value=str(machine.nodes), why="the nodes of --hardware"))
    return words, assumed


def _settled(checked: Checked, question: CheckQuestion, served: ServedModel) -> Checked:
    """Add the model's violations, and drop those that the launch's environment or its unknown values explain."""
    explained = _explained(question.launch)
    unexplained = [violation for violation in checked.violations if violation.rule not in explained]
    hidden = visibility_violations(question.launch.environment, checked.resolved.config)
    settled = replace(checked, violations=tuple(sorted_violations([*unexplained, *served.violations, *hidden])))
    return _with_environment(settled, question)


def _explained(launch: LaunchLine) -> set[str]:
    """Return the rules that ask for flags which are there but unknown, or which the file's platform adds itself."""
    named_flags = {*launch.left_out, *(value.name for value in launch.assumed)}
    rules = {
        "model-path": ("--model-path",),
        "nodes-without-address": ("--dist-init-addr", "--nccl-init-addr", "--nnodes"),
        "nodes-without-rank": ("--node-rank", "--nnodes"),
    }
    return {rule for rule, flags in rules.items() if named_flags.intersection(flags)}


def guessed_version(words: tuple[str, ...], newest: Version) -> tuple[Version, str] | None:
    """Return the newest release that knows every flag of a line which `newest` does not, and why; None if no need."""
    strange = {"unknown-flag", "flag-of-other-release", "ambiguous-flag"}
    faults = [fault for fault in read_arguments(words, newest).faults if fault.rule in strange]
    if not faults:
        return None
    for release in reversed(listed_releases()):
        version = Version(release)
        if version < newest and knows_flags(words, version):
            return version, faults[0].message
    return None


def _with_environment(checked: Checked, question: CheckQuestion) -> Checked:
    """Drop the warning about DeepEP's buffer when the launch raises it far enough by its environment."""
    raised = question.launch.environment.get(DEEPEP_TOKENS, "")
    if not raised.isdecimal():
        return checked
    enough = [v for v in checked.violations if v.rule != "deepep-buffer" or int(raised[:12]) < _wanted(v)]
    return replace(checked, violations=tuple(enough))


def _wanted(violation: Violation) -> int:
    digits = violation.fix.partition("=")[2].partition(" ")[0]
    return int(digits) if digits.isdecimal() else 0


def _asked(question: CheckQuestion, served: ServedModel) -> dict[str, Any]:
    workload = question.workload
    return {
        "hardware": question.hardware.name,
        "model": served.arch.name,
        "sglang_version": str(question.version),
        "argv": list(question.launch.words),
        "environment": question.launch.environment,
        "isl": workload.isl.nominal,
        "osl": workload.osl.nominal,
        "concurrency": workload.concurrency,
        "slo": [str(slo) for slo in question.slos],
        "free_before_load_gib": question.free_before_load_gib,
    }


def _notes(question: CheckQuestion, context: Context, prediction: Prediction | None) -> list[str]:
    notes = [*question.launch.notes, *question.hardware.warnings]
    read = flags_of(question.version).release
    if Version(read) != question.version:
        notes.append(f"SGLang {question.version} is not among the releases read: judged by the flags of {read}")
    if prediction is not None:
        notes += [*context.engine.warnings, *prediction.warnings]
    if question.launch.environment.get("SGLANG_SYMM_MEM_PREALLOC_GB_SIZE"):
        notes.append("SGLANG_SYMM_MEM_PREALLOC_GB_SIZE is set: the ledger counts 4 GiB where symmetric memory is on")
    return notes
