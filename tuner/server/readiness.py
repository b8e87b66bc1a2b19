"""Waiting for a server by its progress: phases read from the log, a limit for each, and proof that it is this one."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuner.seam import FailureKind, LaunchFailed
from tuner.server.ask import HttpRequest, ask, json_answer
from tuner.server.failure import LAST_LINES, PORT_LOST, classify, refusal
from tuner.server.process import ServerProcess

POLL_S = 0.25
# SGLang's /health may generate a token, a second's work; a server that dies breaks the connection off at once.
REQUEST_S = 5.0
INFO_S = 10.0
# How long a server whose answer broke off is given to die, so that its log can say why; SGLang takes 5 s.
DYING_S = 15.0
# Our own polling shows in the server's log: not progress. It writes a few hundred bytes a second at most, so what grows
# faster is the server's, though the line be the same.
OUR_LINES = "GET /health"
FLOOD_BYTES = 1 << 20
FIRST_TOKEN_S = 60.0
SMOKE_TOKENS = 4
SMOKE_ANSWER_TOKENS = 32
SMOKE_PROMPT = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a start: the log line that opens it, seconds without a new line before it counts as stalled, and
    the most it may take."""

    name: str
    marker: str
    stall_s: float
    cap_s: float


# Order and markers as SGLang prints them. Loading 671B from a network disk is silent for minutes; DeepGEMM compiles
# before capture.
PHASES = (
    Phase("import", "", 180.0, 300.0),
    Phase("distributed", "Init parallel begin", 120.0, 600.0),
    Phase("weights", "Load weight begin", 900.0, 3600.0),
    Phase("kv pool", "Load weight end", 120.0, 300.0),
    Phase("graphs", "Memory pool end", 900.0, 1800.0),
    Phase("warm-up", "Application startup complete", 300.0, 600.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A server that answered for itself: seconds to ready, and its own words."""

    boot_s: float
    server_info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Smoke:
    """A prompt and a text that a sound model's greedy answer contains."""

    prompt: str
    expected: str


def unheard(phase: str) -> None:
    """Ignore the phase that a start has entered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedStart:
    """The expected start.

    `served_name` is the launch's --served-model-name: an answer with another name comes from a stranger. `entered`
    hears the name of each phase that begins. A server of one role does not `generate` by itself.
    """

    served_name: str
    phases: tuple[Phase, ...] = PHASES
    smoke: Smoke | None = None
    entered: Callable[[str], None] = unheard
    generates: bool = True


def wait_until_ready(process: ServerProcess, port: int, expected: ExpectedStart) -> Ready:
    """Wait until the server has generated tokens. Raises LaunchFailed with class and evidence; the caller stops it."""
    phases = expected.phases
    size: tuple[int, ...] = ()
    log, last = "", ""
    phase, since, moved = phases[0], time.monotonic(), time.monotonic()
    while True:
        if not process.alive:
            raise died(process)
        now = time.monotonic()
        if process.log_size() != size:
            before, size, log = sum(size), process.log_size(), process.log_text()
            line = next((line for line in reversed(log.splitlines()) if OUR_LINES not in line), "")
            if line != last or abs(sum(size) - before) > FLOOD_BYTES:
                last, moved = line, now
            reached = max((p for p in phases if p.marker in log), key=phases.index)
            if reached is not phase:
                phase, since = reached, now
                expected.entered(phase.name)
            lost = PORT_LOST.search(log)
            if lost is not None:
                raise LaunchFailed(FailureKind.PORT, lost.group(0), now - process.started)
        if now - moved > phase.stall_s or now - since > phase.cap_s:
            raise _too_slow(process, phase, log)
        info = _healthy(port)
        if info is not None:
            _check_identity(process, info, expected.served_name)
            _prove(process, port, expected)
            return Ready(boot_s=time.monotonic() - process.started, server_info=info)
        time.sleep(POLL_S)


def _prove(process: ServerProcess, port: int, expected: ExpectedStart) -> None:
    """Let a healthy server generate, where it does so by itself. Raises LaunchFailed where it does not."""
    if expected.generates:
        check_output(process, port)
    if expected.smoke is not None:
        _check_answer(process, port, expected.smoke)


def died(process: ServerProcess) -> LaunchFailed:
    """Return the failure of a server that has ended."""
    failure = refusal(process.log_text()) if process.refused else None
    failure = failure or classify(process.log_text(), host_oom=process.host_oom)
    code = process.returncode
    end = f"exit code {code}" if code is not None else "its supervisor was killed"
    remedy = " or ".join(str(remedy) for remedy in failure.remedies)
    evidence = "\n".join((*failure.evidence, end, *([f"what helps: {remedy}"] if remedy else [])))
    kind = failure.kind
    if code is None and kind is FailureKind.UNKNOWN:
        kind = FailureKind.SUPERVISOR
    return LaunchFailed(kind, evidence, time.monotonic() - process.started)


def _too_slow(process: ServerProcess, phase: Phase, log: str) -> LaunchFailed:
    kind = FailureKind.NCCL if phase.name == "distributed" else FailureKind.LAUNCH_TIMEOUT
    last = "\n".join(log.splitlines()[-LAST_LINES:])
    return LaunchFailed(kind, f"no progress in phase '{phase.name}'\n{last}", time.monotonic() - process.started)


def _healthy(port: int) -> dict[str, Any] | None:
    """Return a healthy server's server_info, None while no server answers."""
    try:
        _ask(port, "GET", "/health", REQUEST_S)
        return _ask(port, "GET", "/server_info", INFO_S)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _check_identity(process: ServerProcess, info: dict[str, Any], served_name: str) -> None:
    if info.get("served_model_name") != served_name:
        raise LaunchFailed(
            FailureKind.PORT,
            f"another server answers on the port: it serves '{str(info.get('served_model_name'))[:100]}', not "
            f"'{served_name}'",
            time.monotonic() - process.started,
        )


def check_output(process: ServerProcess, port: int) -> None:
    """One real generation: health alone does not prove that tokens come."""
    sampling = {"max_new_tokens": SMOKE_TOKENS, "ignore_eos": True, "temperature": 0}
    body = {"input_ids": SMOKE_PROMPT, "sampling_params": sampling}
    spent = time.monotonic() - process.started
    try:
        answer = _ask(port, "POST", "/generate", FIRST_TOKEN_S, body)
    except TimeoutError:
        reason = f"healthy, but no token within {FIRST_TOKEN_S:.0f} s"
        raise LaunchFailed(FailureKind.STALLED, reason, spent + FIRST_TOKEN_S) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if process.dies_within(DYING_S):
            raise died(process) from error
        raise LaunchFailed(FailureKind.WRONG_OUTPUT, f"the first generation failed: {error}", spent) from error
    ids = answer.get("output_ids")
    if not isinstance(ids, list) or len(ids) != SMOKE_TOKENS:
        raise LaunchFailed(FailureKind.WRONG_OUTPUT, f"{SMOKE_TOKENS} tokens asked, got: {answer}"[:500], spent)


def _check_answer(process: ServerProcess, port: int, smoke: Smoke) -> None:
    """NaN logits and broken kernels make tokens too: only a known answer tells."""
    sampling = {"max_new_tokens": SMOKE_ANSWER_TOKENS, "temperature": 0}
    spent = time.monotonic() - process.started
    try:
        answer = _ask(port, "POST", "/generate", FIRST_TOKEN_S, {"text": smoke.prompt, "sampling_params": sampling})
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LaunchFailed(FailureKind.WRONG_OUTPUT, f"the smoke prompt failed: {error}", spent) from error
    text = str(answer.get("text", ""))
    if smoke.expected not in text:
        reason = f"the answer to '{smoke.prompt}' lacks '{smoke.expected}': {text[:200]!r}"
        raise LaunchFailed(FailureKind.WRONG_OUTPUT, reason, spent)


def _ask(port: int, method: str, path: str, timeout_s: float, body: Any = None) -> dict[str, Any]:
    """Return the JSON answer, {} for an empty one. Raises OSError, HTTPException or ValueError."""
    status, text = ask(HttpRequest(host="127.0.0.1", port=port, method=method, path=path, body=body), timeout_s)
    if status != http.client.OK:
        raise ValueError(f"HTTP {status}: {text[:300]!r}")
    answer = json_answer(text)
    return answer if isinstance(answer, dict) else {"answer": answer}
