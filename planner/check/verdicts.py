"""The servers of one launch file, each with its answer, or why it has no answer; the worst decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hwprobe.errors import InputError
from planner.assumption import UnknownValue
from planner.check.answer import CheckAnswer, CheckQuestion, UnknownValues, answer_check
from planner.check.document import assumed_document, check_document, unknown_document
from planner.launch_lines.launch_line import LaunchLine
from planner.violation import Violation

# From best to worst; servers without a verdict come last.
VERDICTS = ("runs", "does not fit", "fails", "refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerVerdict:
    """One server: its launch line, the file it stands in, and its answer, or the error instead of one."""

    launch: LaunchLine
    file: str | None
    answer: CheckAnswer | None
    error: InputError | None = None

    @property
    def rank(self) -> int:
        """How bad it is: 0 runs; no verdict is worst."""
        return len(VERDICTS) if self.answer is None else VERDICTS.index(self.answer.verdict)

    @property
    def unknown(self) -> tuple[UnknownValue, ...]:
        return self.error.values if isinstance(self.error, UnknownValues) else ()


def judge_servers(
    launches: Sequence[LaunchLine], file: str | None, question_of: Callable[[LaunchLine], CheckQuestion]
) -> list[ServerVerdict]:
    """Answer for every server; one that is not modelled or not known leaves the others their answers."""
    verdicts = []
    for launch in launches:
        answer, error = None, None
        try:
            answer = answer_check(question_of(launch))
        except InputError as raised:
            error = raised
        verdicts.append(ServerVerdict(launch=launch, file=file, answer=answer, error=error))
    return verdicts


def worst_of(verdicts: Sequence[ServerVerdict]) -> ServerVerdict:
    """Return the server that decides: the first of the worst."""
    return max(verdicts, key=lambda verdict: verdict.rank)


def servers_document(verdicts: Sequence[ServerVerdict], together: Sequence[Violation] = ()) -> dict[str, Any]:
    """Return the worst server's document; with several servers, all of them under `servers`.

    `together` are the violations between them.
    """
    document = _document(worst_of(verdicts))
    if len(verdicts) > 1:
        document["servers"] = [_document(verdict) for verdict in verdicts]
        document["fleet"] = {
            "violations": [
                {"rule": v.rule, "severity": str(v.severity), "message": v.message, "fix": v.fix} for v in together
            ]
        }
    return document


def _document(verdict: ServerVerdict) -> dict[str, Any]:
    place = {"role": verdict.launch.role, "where": {"file": verdict.file, "line": verdict.launch.line}}
    if verdict.answer is not None:
        return check_document(verdict.answer) | place
    return {
        "error": str(verdict.error),
        "unknown": unknown_document(verdict.unknown),
        "assumed": assumed_document(verdict.launch.assumed),
        **place,
    }
