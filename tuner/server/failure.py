"""Why a server failed, from its log and exit code: a table of rules, each tested against a log it was written for.

The exit code decides little: SGLang kills its own tree when a scheduler fails, so 137 says "look at the log", not "out
of host memory". Texts: SGLang 0.4.3 to 0.5.23 and recorded runs (tests/data/logs). Unknown stays unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from tuner.seam import FailureKind

LAST_LINES = 40
EVIDENCE_LINES = 6


class Policy(StrEnum):
    """What the tuner does about a failure."""

    CONFIGURATION = "configuration"  # a completed trial with a violated constraint; never repeated
    RETRY = "retry"  # the machine's or the moment's fault
    STOP = "stop"  # for the operator: nothing else would fare better


CONFIGURATION = frozenset(
    {
        FailureKind.OOM_WEIGHTS,
        FailureKind.OOM_KV,
        FailureKind.OOM_GRAPHS,
        FailureKind.OOM_LOAD,
        FailureKind.UNSUPPORTED,
        FailureKind.WRONG_OUTPUT,
    }
)
STOP = frozenset(
    {
        FailureKind.BAD_FLAG,
        FailureKind.WEIGHTS_MISSING,
        FailureKind.GPU_BUSY,
        FailureKind.GPU_LOST,
        FailureKind.SHM_FULL,
        FailureKind.CONTAINER_RUNTIME,
    }
)


def policy_of(kind: FailureKind) -> Policy:
    """Return what to do about a failure of this kind."""
    if kind in CONFIGURATION:
        return Policy.CONFIGURATION
    return Policy.STOP if kind in STOP else Policy.RETRY


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A knob and the direction that helps; `beyond` is the value SGLang named, where it named one."""

    knob: str
    direction: str
    beyond: float | None = None

    def __str__(self) -> str:
        flag = "--" + self.knob.replace("_", "-")
        return f"{self.direction} {flag}" + ("" if self.beyond is None else f" above {self.beyond:g}")


REMEDIES: dict[FailureKind, tuple[Remedy, ...]] = {
    FailureKind.OOM_WEIGHTS: (Remedy(knob="tp_size", direction="raise"),),
    FailureKind.OOM_KV: (Remedy(knob="mem_fraction_static", direction="raise"),),
    FailureKind.OOM_GRAPHS: (
        Remedy(knob="mem_fraction_static", direction="lower"),
        Remedy(knob="cuda_graph_max_bs_decode", direction="lower"),
    ),
    FailureKind.OOM_LOAD: (
        Remedy(knob="mem_fraction_static", direction="lower"),
        Remedy(knob="chunked_prefill_size", direction="lower"),
    ),
}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text that only this kind of failure prints; `log` is the recorded log that shows it, if there is one."""

    kind: FailureKind
    pattern: str
    log: str | None = None


# The first rule that matches decides: causes before their consequences.
RULES = (
    Pattern(
        FailureKind.BAD_FLAG, r"error: (unrecognized arguments|ambiguous option|argument .*invalid)", "unknown_flag"
    ),
    Pattern(FailureKind.GPU_LOST, r"GPU is lost|fallen off the bus|uncorrectable ECC error"),
    Pattern(
        FailureKind.SHM_FULL, r"No space left on device.*/dev/shm|unable to (open|mmap) shared memory|\bBus error\b"
    ),
    Pattern(FailureKind.GPU_BUSY, r"The memory capacity is unbalanced"),
    Pattern(FailureKind.OOM_GRAPHS, r"Capture (prefill )?cuda graph failed"),
    Pattern(FailureKind.OOM_KV, r"Loaded weights leave no GPU memory for the KV cache", "kv_pool_too_small"),
    Pattern(FailureKind.OOM_KV, r"Not enough memory\. Please try to increase --mem-fraction-static"),
    Pattern(FailureKind.WEIGHTS_MISSING, r"Cannot find any model weights with", "weights_missing"),
    Pattern(
        FailureKind.WEIGHTS_MISSING,
        r"Repo id must be in the form|is not a valid model identifier",
        "model_path_missing",
    ),
    Pattern(
        FailureKind.PORT, r"address already in use|Port is already in use|is not available in \d+ seconds", "port_taken"
    ),
    Pattern(
        FailureKind.NCCL, r"Watchdog caught collective operation timeout|NCCL error|ncclSystemError|ncclRemoteError"
    ),
    Pattern(FailureKind.NCCL, r"gloo/transport/.*(reset|closed) by peer", "rank_lost"),
    Pattern(FailureKind.WATCHDOG, r"watchdog timeout \(self\.watchdog_timeout"),
    Pattern(
        FailureKind.KILLED, r"(crashed with exit code|died during initialization \(exit code:) -9", "scheduler_killed"
    ),
    Pattern(FailureKind.KILLED, r"Scheduler or DataParallelController \d+ terminated with -9", "rank_scheduler_killed"),
    Pattern(FailureKind.UNSUPPORTED, r"minimum required version .* is not installed", "package_missing"),
)
OOM = re.compile(r"torch\.(cuda\.)?OutOfMemoryError|CUDA out of memory", re.IGNORECASE)
REFUSAL = re.compile(
    r"^(AssertionError|ValueError|NotImplementedError|KeyError|TypeError|RuntimeError)\b.*", re.MULTILINE
)
# SGLang says so and then waits for ever: its ranks live on behind a web server that has no port.
PORT_LOST = re.compile(r"error while attempting to bind on address .*address already in use", re.IGNORECASE)
RAISE_ABOVE = re.compile(r"Raise --mem-fraction-static above (\d*\.\d+)")
# How docker's and podman's clients begin when they speak for themselves, and what they add that helps nobody.
CLIENT = re.compile(
    r"^(docker: |Error: |Error response from daemon|error during connect|unknown flag|invalid argument|flag needs|"
    r"Cannot connect to |permission denied while|time=\S+ level=(error|fatal) msg=|Unable to find image)",
    re.IGNORECASE,
)
HELP = re.compile(r"^(See|Run) '(docker|podman) run --help'")
READY = "The server is fired up and ready to roll!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong, the lines that say so, and which way out."""

    kind: FailureKind
    evidence: tuple[str, ...]
    remedies: tuple[Remedy, ...] = ()

    @property
    def policy(self) -> Policy:
        return policy_of(self.kind)


def classify(log: str, *, host_oom: str | None = None) -> Failure:
    """Return the class of a dead server by its log; `host_oom` is the kernel's OOM-kill message, if any.

    A worker killed by SIGKILL is a host OOM only where the kernel says so.
    """
    for rule in RULES:
        match = re.search(rule.pattern, log, re.IGNORECASE)
        if match is None:
            continue
        if rule.kind is FailureKind.KILLED and host_oom:
            return Failure(kind=FailureKind.HOST_OOM, evidence=(*_around(log, match.start()), host_oom))
        return Failure(kind=rule.kind, evidence=_around(log, match.start()), remedies=_remedies(rule.kind, log))
    oom = OOM.search(log)
    if oom is not None:
        kind = _oom_by_phase(log[: oom.start()])
        return Failure(kind=kind, evidence=_around(log, oom.start()), remedies=REMEDIES.get(kind, ()))
    if host_oom:
        return Failure(kind=FailureKind.HOST_OOM, evidence=(host_oom,))
    refusals = list(REFUSAL.finditer(log))
    if refusals and READY not in log:
        return Failure(kind=FailureKind.UNSUPPORTED, evidence=_around(log, refusals[-1].start()))
    return Failure(kind=FailureKind.UNKNOWN, evidence=tuple(log.splitlines()[-LAST_LINES:]))


def refusal(log: str) -> Failure | None:
    """Return what kept a container from running, by the last words of docker's client; None where it said nothing.

    That includes a daemon that goes away while the server runs: what becomes of the container nobody knows.
    """
    lines = [line[:500] for line in log.splitlines() if line.strip() and not HELP.match(line)]
    if not any(CLIENT.search(line) for line in lines[-EVIDENCE_LINES:]):
        return None
    return Failure(kind=FailureKind.CONTAINER_RUNTIME, evidence=tuple(lines[-EVIDENCE_LINES:]))


def _oom_by_phase(before: str) -> FailureKind:
    """A bare out-of-memory error belongs to the phase the log had reached."""
    if READY in before:
        return FailureKind.OOM_LOAD
    if "Memory pool end" in before:
        return FailureKind.OOM_GRAPHS
    return FailureKind.OOM_KV if "Load weight end" in before else FailureKind.OOM_WEIGHTS


def _remedies(kind: FailureKind, log: str) -> tuple[Remedy, ...]:
    named = RAISE_ABOVE.search(log)
    if kind is FailureKind.OOM_KV and named:
        return (Remedy(knob="mem_fraction_static", direction="raise", beyond=float(named.group(1))),)
    return REMEDIES.get(kind, ())


def _around(log: str, position: int) -> tuple[str, ...]:
    """Return the line at `position` and the few that follow."""
    start = log.rfind("\n", 0, position) + 1
    return tuple(line[:500] for line in log[start : start + 8000].splitlines()[:EVIDENCE_LINES])
