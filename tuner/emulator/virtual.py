"""The emulated server without a process and without waiting: clients and scheduler in virtual time, and its scrapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from packaging.version import Version

from tuner.emulator.api_server import habits_of
from tuner.emulator.boot import EmulatedMachine, api_server
from tuner.emulator.driver import Driver, ServedRequest
from tuner.emulator.metrics import Exposition
from tuner.emulator.recorder import Recorder
from tuner.emulator.state import loads_document, server_document

# Clients that start together still send one after the other.
APART_S = 0.002

Prompts = Callable[[int], tuple[tuple[int, ...] | int, int]]


class VirtualServer:
    """A server that is ready, and a closed loop of clients."""

    def __init__(self, machine: EmulatedMachine) -> None:
        self._api = api_server(machine)
        self._shown = Exposition(Version(self._api.version), model_name=self._name(), pid=1)
        self.now_s = 0.0
        self._sent = 0
        self.driver = Driver(
            self._api.times,
            self._api.limits,
            habits_of(self._api),
            recorder=Recorder(self._shown, self._api.observed, self._api.times),
            clock=lambda: self.now_s,
        )
        self._clients: list[ServedRequest] = []

    def _name(self) -> str:
        return str(self._api.arguments.get("served_model_name") or self._api.arguments.get("model_path"))

    def play(self, prompts: Prompts, clients: int, seconds: float) -> None:
        """Let `clients` send requests for so long, each its next when it has its answer.

        `prompts` gives the n-th request: its prompt, as token ids or their number, and its output length.
        """
        until = self.now_s + seconds
        while len(self._clients) < clients:
            self._clients.append(self._send(prompts, APART_S * len(self._clients)))
        while self.now_s < until:
            self.now_s = self.driver.step()
            self.driver.tell()
            for client, live in enumerate(self._clients):
                if live.done:
                    self._clients[client] = self._send(prompts)

    def _send(self, prompts: Prompts, later_s: float = 0.0) -> ServedRequest:
        prompt, osl = prompts(self._sent)
        self._sent += 1
        return self.driver.submit(prompt, osl, self.now_s + later_s, streaming=True)

    def metrics(self) -> str:
        """Return /metrics."""
        return self._shown.text().decode()

    def server_info(self) -> dict[str, Any]:
        """Return /server_info."""
        return server_document(self._api, self._name())

    def loads(self) -> dict[str, Any]:
        """Return /v1/loads."""
        return loads_document(self._api, self.driver.server)
