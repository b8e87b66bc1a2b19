"""Compares sgtune's reading of command lines with SGLang's own, and prints every disagreement by rule."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import ModelArchitecture
from models.machine import machine_of
from planner.check.judge import Checked, check_arguments

EARLIER_NAMES = {"flashinfer_mla": "flashinfer"}  # what 0.4.3 and 0.4.4 call it with --enable-flashinfer-mla
# Field of sgtune's resolver -> where SGLang's resolved arguments hold it.
FIELDS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "mem_fraction_static": lambda r: r.get("mem_fraction_static"),
    "chunked_prefill_size": lambda r: r.get("chunked_prefill_size"),
    "cuda_graph_max_bs_decode": lambda r: _largest_graph(r),
    "cuda_graph_bs_decode": lambda r: _graph(r, "decode", "bs", "cuda_graph_bs"),
    "decode_cuda_graph": lambda r: _graph(r, "decode", "backend", None) != "disabled",
    "prefill_cuda_graph": lambda r: _graph(r, "prefill", "backend", None) != "disabled",
    "max_running_requests": lambda r: r.get("max_running_requests"),
    "page_size": lambda r: r.get("page_size"),
    "attention_backend": lambda r: EARLIER_NAMES.get(r.get("attention_backend"), r.get("attention_backend")),
    "ep_size": lambda r: r.get("ep_size"),
    "attn_dp_size": lambda r: r.get("attn_dp_size", r["dp_size"] if r.get("enable_dp_attention") else 1),
    "moe_runner_backend": lambda r: r.get("moe_runner_backend"),
    "speculative_num_draft_tokens": lambda r: (
        r.get("speculative_num_draft_tokens") if r.get("speculative_algorithm") else None
    ),
}
SKIPPED_BEFORE_PHASES = ("decode_cuda_graph", "prefill_cuda_graph", "cuda_graph_bs_decode")
# Releases before 0.5.x settle these after their arguments and leave them None there; the graphs where they are off.
SETTLED_LATER = ("attention_backend", "moe_runner_backend", "page_size", "cuda_graph_max_bs_decode")


def _graph(resolved: Mapping[str, Any], phase: str, key: str, before: str | None) -> Any:
    config = resolved.get("cuda_graph_config")
    if config is None:
        return resolved.get(before) if before else None
    return config[phase].get(key)


def _largest_graph(resolved: Mapping[str, Any]) -> Any:
    """The largest decode graph: of the phases' settings, of the sizes an old release lists, or of its argument."""
    captured = resolved.get("captured_bs")
    return max(captured) if captured else _graph(resolved, "decode", "max_bs", "cuda_graph_max_bs")


@dataclass
class Tally:
    """What agreed, and every line that did not."""

    asked: int = 0
    accepted_by_both: int = 0
    refused_by_both: int = 0
    verdicts: list[str] = field(default_factory=list)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    compared: Counter[str] = field(default_factory=Counter)

    @property
    def verdict_share(self) -> float:
        return 1.0 - len(self.verdicts) / max(1, self.asked)

    def share(self, name: str) -> float:
        return 1.0 - len(self.wrong.get(name, ())) / max(1, self.compared[name])

    def add(self, other: Tally) -> None:
        self.asked += other.asked
        self.accepted_by_both += other.accepted_by_both
        self.refused_by_both += other.refused_by_both
        self.verdicts += other.verdicts
        self.compared += other.compared
        for name, lines in other.wrong.items():
            self.wrong.setdefault(name, []).extend(lines)


def compare(
    gpu: str, lines: Iterable[list[str]], answers: Iterable[dict[str, Any]], arch: ModelArchitecture, version: Version
) -> Tally:
    """Judge every line with sgtune and set it against SGLang's answer."""
    machine = machine_of(hardware_from_catalogue(f"{gpu}x8"))
    tally = Tally()
    for argv, answer in zip(lines, answers, strict=True):
        tally.asked += 1
        checked = check_arguments(argv, arch, machine, version)
        shown = f"{gpu}: {' '.join(argv[2:])}"
        if checked.accepted != answer["accepted"]:
            tally.verdicts.append(_verdict(checked, answer, shown))
        elif not checked.accepted:
            tally.refused_by_both += 1
        else:
            tally.accepted_by_both += 1
            _fields(tally, checked, answer["resolved"], shown)
    return tally


def _verdict(checked: Checked, answer: Mapping[str, Any], shown: str) -> str:
    if checked.accepted:
        refusal = f"{answer.get('where', answer['stage'])}: {answer['error'][:120]}"
        return f"SGLang refuses ({refusal}), sgtune accepts\n    {shown}"
    rules = ", ".join(violation.rule for violation in checked.violations if violation.refused)
    return f"SGLang accepts, sgtune refuses by {rules}\n    {shown}"


def _fields(tally: Tally, checked: Checked, resolved: Mapping[str, Any], shown: str) -> None:
    by_phase = resolved.get("cuda_graph_config") is not None
    for name, read in FIELDS.items():
        theirs, ours = read(resolved), checked.resolved.fields[name]
        if not by_phase and (name in SKIPPED_BEFORE_PHASES or (theirs is None and name in SETTLED_LATER)):
            continue
        if name == "cuda_graph_bs_decode" and not checked.resolved.fields["decode_cuda_graph"]:
            continue  # nothing is captured: the list is of no consequence
        tally.compared[name] += 1
        if not _same(theirs, ours):
            tally.wrong.setdefault(name, []).append(f"SGLang {_short(theirs)}, sgtune {_short(ours)}\n    {shown}")


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, float) and isinstance(ours, float):
        return math.isclose(theirs, ours, rel_tol=1e-9)
    return bool(theirs == ours)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def report(tally: Tally, *, every: bool = True) -> str:
    """Return the agreement as text: shares first, then every disagreement."""
    words = [
        f"{tally.asked} launches: accepted by both {tally.accepted_by_both}, refused by both {tally.refused_by_both}, "
        f"verdicts agree {100 * tally.verdict_share:.2f} %"
    ]
    words += [
        f"  {name:<30} {tally.compared[name] - len(tally.wrong.get(name, ()))} of {tally.compared[name]} "
        f"({100 * tally.share(name):.2f} %)"
        for name in FIELDS
        if tally.compared[name]
    ]
    if every:
        words += [f"- verdict: {line}" for line in tally.verdicts]
        words += [f"- {name}: {line}" for name, lines in tally.wrong.items() for line in lines]
    return "\n".join(words)


def table(tallies: Mapping[str, Tally]) -> str:
    """Return releases x fields x agreement in percent; a dash where a release settles the field elsewhere."""
    rows = ["verdicts", *FIELDS]
    width = max(len(name) for name in rows)
    lines = ["agreement in %".ljust(width) + "".join(f"{release:>13}" for release in tallies)]
    for name in rows:
        cells = [
            tally.verdict_share if name == "verdicts" else tally.share(name) if tally.compared[name] else None
            for tally in tallies.values()
        ]
        lines.append(name.ljust(width) + "".join("-".rjust(13) if c is None else f"{100 * c:13.2f}" for c in cells))
    launches = sum(tally.asked for tally in tallies.values())
    verdicts = sum(len(tally.verdicts) for tally in tallies.values())
    lines.append(f"{launches} launches in all, {100 * (1 - verdicts / max(1, launches)):.2f} % of verdicts agree")
    return "\n".join(lines)
