"""What runs on a node: one engine, one server at a time, and a lease that ends both when no beat arrives.

No cluster library here: a pool calls these methods in a process of their own on the node. However that process ends,
its servers end with it, through its lifeline.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hwprobe.holds import scratch_folder
from models.workload import Workload
from tuner.seam import (
    NODE_VARIABLE,
    Death,
    LaunchFailed,
    LaunchOrder,
    Measurement,
    MortalServer,
    NodeEngine,
    Place,
    ServerInfo,
)

# Files of a trial that are carried home, and of each file so much, of its end.
CARRIED_BYTES = 4 << 20
# Cluster frameworks set these for their own workers; servers must not inherit them.
FOREIGN = ("OMP_NUM_THREADS",)

Build = Callable[[Path], NodeEngine]


@dataclass(frozen=True, slots=True)
class Failed:
    """A launch or measurement that failed, as a value: exceptions lose their type on the way between processes."""

    failure: LaunchFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a stopped server leaves: the files of its trial by name."""

    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where a seat stands: the node's name and its address inside the cluster, and the ids of the GPUs it may use."""

    node: str
    address: str
    gpus: tuple[int, ...]


class Seat:
    """Launches one server, or one rank of a server, with the engine that `build` makes in a scratch folder of the node.

    Ends its process `lease_s` seconds after the last beat: whoever asked for it is gone, or cannot be heard.
    """

    def __init__(self, build: Build, stand: Stand, lease_s: float) -> None:
        for name in FOREIGN:
            os.environ.pop(name, None)
        os.environ[NODE_VARIABLE] = stand.node
        self._held = ExitStack()
        self._scratch = self._held.enter_context(scratch_folder("seat"))
        self._stand = stand
        self._engine = build(self._scratch)
        self._server: MortalServer | None = None
        self._lease_s, self._beaten_s = lease_s, time.monotonic()
        threading.Thread(target=self._watch, name="lease", daemon=True).start()

    def beat(self) -> float:
        """Renew the lease; return the node's clock."""
        self._beaten_s = time.monotonic()
        return time.time()

    def meeting_point(self) -> str | Failed:
        """Return HOST:PORT of this node where the ranks of a server may meet."""
        try:
            return f"{self._stand.address}:{self._engine.meeting_port()}"
        except LaunchFailed as failure:
            return Failed(failure)

    def launch(self, order: LaunchOrder) -> ServerInfo | Failed:
        """Start what is ordered and wait until it is ready; a rank beyond the first is only started."""
        try:
            self._server = self._engine.launch_order(order)
        except LaunchFailed as failure:
            return Failed(failure)
        if order.rank is not None and order.rank.index > 0:
            return ServerInfo(kv_tokens=0, boot_s=0.0)
        return self.info()

    def info(self) -> ServerInfo | Failed:
        """Return what the server here says of itself, and where it is."""
        if self._server is None:
            raise RuntimeError("info before launch")
        info, stand = self._server.info(), self._stand
        place = Place(node=stand.node, host=socket.gethostname(), gpus=stand.gpus)
        return ServerInfo(kv_tokens=info.kv_tokens, boot_s=info.boot_s, place=place)

    def death(self) -> Death | None:
        """Return how the server here ended, None while it runs or before it was launched."""
        return None if self._server is None else self._server.death()

    def halt(self) -> None:
        """End the server here, whoever waits for it, and start none any more."""
        self._engine.abort()

    def measure(self, workload: Workload) -> Measurement | Failed:
        """Measure one load with a generator on this node."""
        if self._server is None:
            raise RuntimeError("measure before launch")
        try:
            return self._server.measure(workload)
        except LaunchFailed as failure:
            return Failed(failure)

    def stop(self, number: int) -> Ended:
        """Stop the server, if one runs; return the files of the trial, each with its last CARRIED_BYTES."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        folder = self._scratch / "trials" / str(number)
        files = {file.name: _end_of(file) for file in sorted(folder.glob("*")) if file.is_file()}
        shutil.rmtree(folder, ignore_errors=True)
        return Ended(files=files)

    def close(self) -> None:
        """Stop what runs and leave nothing on the node."""
        if self._server is not None:
            self._server.stop()
        self._engine.close()
        self._held.close()

    def _watch(self) -> None:
        while time.monotonic() - self._beaten_s < self._lease_s:
            time.sleep(min(0.5, self._lease_s / 10))
        self._held.close()
        os._exit(1)  # servers hang on this process's lifeline


def _end_of(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - CARRIED_BYTES))
        return stream.read()
