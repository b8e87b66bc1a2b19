"""Recalibrate: what was seen of steady servers becomes points, and points an engine profile."""

from __future__ import annotations

from collections.abc import Sequence

from hwprobe.errors import InputError
from models.records.calibration import Calibration
from models.records.case import STEADY_REQUESTS_PER_CLIENT, Case, Run
from tuner.advise.finding import Finding, FindingKind
from tuner.advise.look import ServerAnswer
from tuner.calibrate.learned import learn
from tuner.scrape.observed import Observed

# Steady: so many requests ended, and queue and batch moved by no more than this share from end to end.
LEAST_REQUESTS, MOST_DRIFT = 20, 0.2
# Findings that say this machine is not as it should be: what is learned from it would hide that.
ILL = (FindingKind.SLOW_RANK, FindingKind.SLOWER_THAN_ITS_LIKE)


def why_not(server: ServerAnswer, findings: Sequence[Finding]) -> str | None:
    """Return why a server teaches nothing, None where it does."""
    observed, window = server.seen, server.window
    if server.model is None or observed is None or window is None:
        return server.unexpected or "nothing is expected of it"
    if window.before is None or observed.basis != "window":
        return "a single scrape, or too few requests in the window: give a longer --watch"
    if observed.requests < LEAST_REQUESTS:
        return f"only {observed.requests:.0f} requests ended in the window; {LEAST_REQUESTS} are needed"
    levels = [s.total("num_running_reqs") or 0.0 for s in (window.before, *window.between, window.after)]
    if max(levels) - min(levels) > MOST_DRIFT * max(1.0, max(levels)) + 2.0:
        return f"not steady: {min(levels):.0f} to {max(levels):.0f} requests ran"
    ill = [each for each in findings if each.server == server.facts.name and each.kind in ILL]
    return f"its machine is not as it should be ({ill[0].kind})" if ill else None


def case_of(server: ServerAnswer) -> Case:
    """Return one server's window as a measured case. The server must teach something (see `why_not`)."""
    model, observed = server.model, server.seen
    assert model is not None
    assert observed is not None
    traffic, config = model.traffic, model.server.config
    return Case(
        id=server.facts.name,
        context=model.context,
        config=config,
        run=Run(
            kind="steady",
            isl=traffic.isl,
            osl=traffic.osl,
            concurrency=traffic.in_flight,
            requests=STEADY_REQUESTS_PER_CLIENT * traffic.in_flight,
        ),
        kv_tokens=model.server.kv_tokens,
        kv_known=model.server.spoken,
        measured=_measured(observed),
    )


def _measured(observed: Observed) -> dict[str, float]:
    figures = {
        "ttft_mean_ms": observed.ttft_ms.get("mean"),
        "tpot_mean_ms": observed.tpot_ms.get("mean"),
        "output_tok_s": observed.output_tok_s,
    }
    return {name: value for name, value in figures.items() if value}


def recalibrated(servers: Sequence[ServerAnswer], findings: Sequence[Finding]) -> tuple[Calibration, list[str]]:
    """Return the profile that steady servers teach, and why others were left out.

    Raises InputError where none of them teaches anything, or where they run several releases.
    """
    left_out, teach = [], []
    for server in servers:
        why = why_not(server, findings)
        if why is None:
            teach.append(server)
        else:
            left_out.append(f"{server.facts.name}: {why}")
    if not teach:
        raise InputError(f"--calibrate: nothing to learn from: {'; '.join(left_out)}")
    cases = [case_of(server) for server in teach]
    if len({str(case.context.version) for case in cases}) > 1:
        raise InputError("--calibrate: the servers run several releases, and a profile belongs to one; ask them apart")
    simulated = any(server.simulated for server in teach)
    return learn(cases, cases[0].context.engine, simulated=simulated), left_out
