"""Ports of a server: one for HTTP and the few SGLang derives from it, all free, another set for every launch."""

from __future__ import annotations

import os
import socket

from tuner.engines.seam import FailureKind, LaunchFailed

# With attention DP SGLang takes the HTTP port + 233 and the next few (server_args.py, PortArgs).
DERIVED = range(233, 241)
FIRST, LAST, STRIDE = 20_000, 32_500, 10  # below the ports the kernel gives to clients (32768)


class Ports:
    """Hands out ports in turn: what a server leaves behind in TIME_WAIT never meets the next one."""

    def __init__(self, first: int | None = None) -> None:
        span = (LAST - FIRST) // STRIDE
        # two tuners on one machine start far from each other
        self._turn = (os.getpid() * 37) % span if first is None else (first - FIRST) // STRIDE

    def next(self) -> int:
        """Return the next port that is free together with its derived ones. Raises LaunchFailed if none is."""
        span = (LAST - FIRST) // STRIDE
        for _ in range(span):
            port = FIRST + STRIDE * (self._turn % span)
            self._turn += 1
            if all(is_free(candidate) for candidate in (port, *(port + offset for offset in DERIVED))):
                return port
        raise LaunchFailed(FailureKind.PORT, f"no free port between {FIRST} and {LAST}", 0.0)


def is_free(port: int) -> bool:
    """Say whether a server could listen on this port of this machine now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
