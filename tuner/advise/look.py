"""Advise: what servers are seen to do, what the model expects of exactly that, and what to change, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hwprobe.errors import InputError
from hwprobe.profile import HardwareProfile
from models.engine.profile import EngineProfile
from models.workload import Slo
from tuner.advise.capacity import Capacity, capacity_findings, capacity_of
from tuner.advise.expected import Model, expected_document, model_of, traffic_of
from tuner.advise.finding import Finding, FindingKind, Weight
from tuner.advise.launched import Launched, launched
from tuner.advise.machine import machine_findings, named, unlike
from tuner.advise.settings import FINDERS
from tuner.advise.slo_watch import SloWatch, slo_findings, watch_slos
from tuner.scrape.observed import Observed, observe
from tuner.scrape.samples import ScrapeWindow
from tuner.scrape.source import METRICS_OFF, Facts

# A fuller KV cache and a lower cap are two names for one remedy where both are found.
ONE_CAUSE = {FindingKind.KV_FULL: (FindingKind.CHUNK_TOO_LARGE, FindingKind.GRAPHS_TOO_SMALL)}
ORDER = {Weight.HIGH: 0, Weight.MEDIUM: 0, Weight.LOW: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviseQuestion:
    """What is known from outside; None where a server's own word is taken."""

    hardware: HardwareProfile | None = None
    engine: EngineProfile | None = None
    slos: tuple[Slo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """One server: what it is, was seen to do and should do. `unexpected` says why there is no expectation."""

    facts: Facts
    seen: Observed | None
    launched: Launched | None
    model: Model | None
    unexpected: str | None
    window: ScrapeWindow | None = None
    slos: tuple[SloWatch, ...] = ()
    capacity: Capacity | None = None

    @property
    def simulated(self) -> bool:
        """Whether it is sgtune's own server, playing a world."""
        return self.facts.info.get("simulated") is True


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviseAnswer:
    """All servers, and the findings of all, best first."""

    servers: tuple[ServerAnswer, ...]
    findings: tuple[Finding, ...]


def look(read: Sequence[tuple[Facts, ScrapeWindow | None]], question: AdviseQuestion) -> AdviseAnswer:
    """Look at servers as read. Pure but for the engine profiles' files."""
    servers = tuple(_server(facts, window, question) for facts, window in read)
    findings: list[Finding] = []
    for server in servers:
        findings += [named(each, server.facts.name) for each in _of_server(server)]
    models = {s.facts.name: (s.model, s.seen) for s in servers if s.model is not None and s.seen is not None}
    findings += unlike(models)
    return AdviseAnswer(servers=servers, findings=tuple(ranked(findings)))


def _server(facts: Facts, window: ScrapeWindow | None, question: AdviseQuestion) -> ServerAnswer:
    engine = (window.after.engine if window is not None else "") or facts.engine
    facts = replace(facts, engine=engine)
    if window is None and facts.engine in ("SGLang", ""):
        facts = replace(facts, notes=(*facts.notes, METRICS_OFF))
    observed = observe(window) if window is not None and engine == "SGLang" else None
    unexpected, server, model = None, None, None
    if engine not in ("SGLang", ""):
        unexpected = f"it is {engine}, not SGLang: sgtune models SGLang"
    elif engine == "":
        unexpected = "nothing tells that it is SGLang"
    else:
        try:
            server = launched(facts, question.hardware, question.engine)
        except InputError as error:
            unexpected = str(error)
    if server is not None and observed is not None:
        traffic = traffic_of(observed)
        if traffic is None:
            unexpected = "too little traffic was seen to compare with"
        elif not server.checked.sound:
            unexpected = "its launch breaks a rule that SGLang enforces, as sgtune reads it: " + "; ".join(
                violation.message for violation in server.checked.violations[:2]
            )
        else:
            model = model_of(server, observed, traffic)
    elif server is not None:
        unexpected = METRICS_OFF
    return ServerAnswer(
        facts=facts,
        seen=observed,
        launched=server,
        model=model,
        unexpected=unexpected,
        window=window,
        slos=tuple(watch_slos(question.slos, observed, window)) if observed and window else (),
        capacity=capacity_of(model, observed, window) if model is not None and observed and window else None,
    )


def _of_server(server: ServerAnswer) -> list[Finding]:
    """Return the findings of one server, its limits and its capacity among them."""
    model, observed = server.model, server.seen
    if model is None or observed is None:
        return []
    findings = findings_of(model, observed)
    if server.capacity is not None:
        findings += capacity_findings(model, observed, server.capacity, findings)
    return [*findings, *slo_findings(model, list(server.slos), findings)]


def findings_of(model: Model, observed: Observed) -> list[Finding]:
    """Return what is worth changing on one server, best first."""
    findings = [each for finder in FINDERS if (each := finder(model, observed)) is not None]
    return ranked([*_causes(findings), *machine_findings(model, observed)])


def _causes(findings: list[Finding]) -> list[Finding]:
    """Leave out a full cache where what fills it is found, and gives as much."""
    causes_left = []
    for each in findings:
        causes = ONE_CAUSE.get(each.kind, ())
        if not any(other.kind in causes and other.gain_percent >= 0.8 * each.gain_percent for other in findings):
            causes_left.append(each)
    return causes_left


def ranked(findings: list[Finding]) -> list[Finding]:
    """Return findings by predicted gain; those that hang on an assumption come last."""
    return sorted(findings, key=lambda each: (ORDER[each.severity], -each.gain_percent, -(each.ttft_percent or 0.0)))


def expected_of(server: ServerAnswer) -> dict[str, Any] | None:
    """Return the expectation of one server as JSON-ready values."""
    return None if server.model is None or server.seen is None else expected_document(server.model, server.seen)
