"""Ranks of an emulated server over several nodes: they meet at --dist-init-addr, and each dies when another is gone.

A connection a rank stands for the collectives. Rank 0 waits for all others, as `torch.distributed` does; a connection
that breaks off ends whoever held it, in Gloo's words; a word of rank 0 ends the others in peace.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tuner.emulator import family
from tuner.emulator.log import say

RETRY_S = 0.1
GOODBYE = b"shutdown\n"
CRASHED = 137


@dataclass(slots=True)
class Ranks:
    """This process among the ranks of its server: which, of how many, and its connections to the others."""

    index: int
    count: int
    host: str
    port: int
    links: list[socket.socket] = field(default_factory=list)
    leaving: bool = False

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Ranks | None:
        """Read SGLang's arguments; None for a server of one node."""
        count = int(arguments.get("nnodes") or 1)
        if count == 1:
            return None
        host, _, port = str(arguments.get("dist_init_addr")).rpartition(":")
        return cls(index=int(arguments.get("node_rank") or 0), count=count, host=host, port=int(port))

    def meet(self) -> None:
        """Wait until all ranks are connected; from then on watch them."""
        if self.index == 0:
            with socket.create_server((self.host, self.port)) as door:
                while len(self.links) < self.count - 1:
                    self.links.append(door.accept()[0])
            for link in self.links:
                link.sendall(b"all here\n")
        else:
            self.links.append(self._connected())
            self.links[0].recv(64)
        for link in self.links:
            threading.Thread(target=self._watch, args=(link,), name="rank", daemon=True).start()

    def _connected(self) -> socket.socket:
        while True:
            try:
                return socket.create_connection((self.host, self.port))
            except OSError:
                time.sleep(RETRY_S)

    def _watch(self, link: socket.socket) -> None:
        try:
            heard = link.recv(64)
        except OSError:
            heard = b""
        if self.leaving:
            return
        if heard == GOODBYE:
            say("Received ShutdownReq of rank 0.")
            os._exit(0)
        family.die_of_scheduler(
            f"RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error [{self.host}]:{self.port}: Connection reset by "
            "peer. This is typically caused by a remote worker hanging or bugs in the application."
        )

    def leave(self) -> None:
        """End the other ranks in peace."""
        self.leaving = True
        for link in self.links:
            try:
                link.sendall(GOODBYE)
            except OSError:
                continue


def follow(ranks: Ranks, address: tuple[str, int], scheduler: int) -> int:
    """Serve the health that a rank beyond the first has, until rank 0 or the death of the scheduler ends it."""
    server = ThreadingHTTPServer(address, _Health)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    say(f"Dummy health check server started in background thread at {address[0]}:{address[1]}")
    signal.signal(signal.SIGTERM, lambda *_: say(f"SIGTERM received on node_rank {ranks.index}; waiting for rank 0."))
    while True:
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(scheduler, 0)[1])
        except InterruptedError:
            continue
        say(f"Scheduler or DataParallelController {scheduler} terminated with {code}")
        os._exit(CRASHED)


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/health", "/health_generate", "/ping") else 404)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
