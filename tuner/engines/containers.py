"""Containers on a daemon: those a run started and nobody removed, and those of others; asked of docker's own client."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hwprobe.plain_text import one_line
from tuner.seam import FailureKind, LaunchFailed

# Every container of any sgtune carries the first, and the run that started it in the second.
LABEL, RUN_LABEL = "sgtune", "sgtune.run"
ASK_S = 30.0
POLL_S = 1.0
# docker's and podman's own: the daemon refused (125), the container's program cannot be started (126, 127).
REFUSED = 125
CLIENT_EXITS = frozenset({REFUSED, 126, 127})


def run_client(words: Sequence[str], limit_s: float = ASK_S) -> tuple[int, str, str]:
    """Run docker's client and return exit code, output and complaint; 127 where it cannot be started, 124 too late."""
    try:
        process = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except OSError as error:
        return 127, "", str(error)
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer within {limit_s:.0f} s"
    return process.returncode, process.stdout.strip(), process.stderr.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Containers:
    """What runs on the daemon that `docker` speaks to; `run` is the label of ours, `held` the names in use now."""

    docker: str = "docker"
    run: str = field(default_factory=lambda: secrets.token_hex(6))
    held: set[str] = field(default_factory=set)

    @property
    def labels(self) -> tuple[str, ...]:
        """The words that mark a container as this run's."""
        return "--label", f"{LABEL}=1", "--label", f"{RUN_LABEL}={self.run}"

    def sweep(self) -> None:
        """Remove the containers of this run but those held: tuner and shim may have been killed together.

        Raises LaunchFailed (container_runtime) when the daemon does not answer or one cannot be removed.
        """
        unheld = self._ours() - self.held
        if unheld:
            self._ask("rm", "--force", *sorted(unheld))
            if still := self._ours() & unheld:
                raise _failed(f"cannot remove this run's containers {', '.join(sorted(still))}")

    def wait_alone(self, wait_s: float) -> None:
        """Wait until no container of another run of sgtune is left running: each takes all GPUs.

        Raises LaunchFailed (gpu_busy), naming them.
        """
        started = time.monotonic()
        while strangers := self._names("ps", "--filter", f"label={LABEL}=1") - self._ours():
            waited = time.monotonic() - started
            if waited >= wait_s:
                named = ", ".join(sorted(strangers))
                raise LaunchFailed(
                    FailureKind.GPU_BUSY,
                    f"waited {waited:.0f} s for containers of another run of sgtune: {named}; wait for that run, or "
                    f"remove what it left: docker rm --force {' '.join(sorted(strangers))}",
                    waited,
                )
            time.sleep(min(POLL_S, max(0.05, wait_s / 4)))

    def sweep_if_possible(self) -> None:
        """Remove what is left as far as the daemon lets us: the end of a run waits for nobody."""
        with suppress(LaunchFailed):
            self.sweep()

    @property
    def daemon(self) -> str:
        """A name for the daemon, the same for all who speak to it from here."""
        return "docker-" + hashlib.sha256(os.environ.get("DOCKER_HOST", "").encode()).hexdigest()[:12]

    def _ours(self) -> set[str]:
        return self._names("ps", "--all", "--filter", f"label={RUN_LABEL}={self.run}")

    def _names(self, *words: str) -> set[str]:
        return set(self._ask(*words, "--format", "{{.Names}}").split())

    def _ask(self, *words: str) -> str:
        code, output, complaint = run_client((self.docker, *words))
        if code:
            raise _failed(f"'{self.docker} {words[0]}' says: {one_line(complaint)} (exit code {code})")
        return output


def _failed(text: str) -> LaunchFailed:
    return LaunchFailed(FailureKind.CONTAINER_RUNTIME, text, 0.0)
