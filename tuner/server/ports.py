"""Ports of a server: one for HTTP and the few SGLang derives from it, all free, another set for every launch."""

from __future__ import annotations

import os
import socket
import threading

from hwprobe.errors import InputError
from tuner.seam import FailureKind, LaunchFailed

# With attention DP SGLang takes the HTTP port + 233 and the next few (server_args.py, PortArgs).
DERIVED = range(233, 241)
# From --dist-init-addr on SGLang counts further: one port a rank of attention DP and some of its own.
MEETING = range(0, 48)
FIRST, LAST, STRIDE = 20_000, 32_500, 10  # below the ports the kernel gives to clients (32768)
VARIABLE = "SGTUNE_PORTS"  # FIRST-LAST, for machines whose ports are not all ours


def candidates() -> range:
    """Return the HTTP ports servers may be given. Raises InputError for an SGTUNE_PORTS that is no range of ports."""
    port_range = os.environ.get(VARIABLE)
    if not port_range:
        return range(FIRST, LAST, STRIDE)
    first, _, last = port_range.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) < int(last) <= 65_535 - DERIVED.stop):
        raise InputError(f"{VARIABLE} is '{port_range}'; write two ports as in {VARIABLE}=21000-22000")
    return range(int(first), int(last), STRIDE)


class Ports:
    """Hands out ports in turn: what a server leaves behind in TIME_WAIT never meets the next one."""

    def __init__(self, all_of: range | None = None, turn: int | None = None) -> None:
        """Take turns through `all_of` (`candidates()` by default), from place `turn` of it (by default any)."""
        self._ports = candidates() if all_of is None else all_of
        # two tuners on one machine start far from each other
        self._turn = os.getpid() * 37 if turn is None else turn
        self._lock = threading.Lock()  # launches side by side ask for ports too

    def next(self) -> int:
        """Return the next port that is free together with its derived ones. Raises LaunchFailed if none is."""
        return self._next((0, *DERIVED), turns=1)

    def meeting(self) -> int:
        """Return the next port at which ranks of one server may meet. Raises LaunchFailed if none is free."""
        return self._next(tuple(MEETING), turns=-(-len(MEETING) // self._ports.step))

    def _next(self, offsets: tuple[int, ...], *, turns: int) -> int:
        for _ in self._ports:
            with self._lock:
                port = self._ports[self._turn % len(self._ports)]
                self._turn += turns
            if all(is_free(port + offset) for offset in offsets):
                return port
        between = f"between {self._ports.start} and {self._ports.stop}"
        raise LaunchFailed(FailureKind.PORT, f"no free port {between}; {VARIABLE} sets others", 0.0)


def is_free(port: int) -> bool:
    """Say whether a server could listen on this port of this machine now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
