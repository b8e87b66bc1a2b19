"""Keeps live.json while a tune runs: stands between its loop and its reporter and engine."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import replace
from types import TracebackType
from typing import Self

import psutil

from hwprobe.errors import SgtuneError
from hwprobe.files import encode_json
from models.config import ServerConfig
from models.serving.estimate import Prediction
from models.traffic.traced_workload import TracedWorkload
from models.workload import Workload
from tuner.engines.live import LiveEngine
from tuner.evidence.live_state import LIVE_FILE, LiveState, LiveTrial, RunState
from tuner.evidence.trial import TrialRecord
from tuner.run.loop import Loop
from tuner.seam import Engine, Measurement, Server, ServerInfo

CHOOSING = "choosing the next configuration"


class LiveWriter:
    """Stands between a loop and its reporter and engine while it is entered, and keeps live.json."""

    def __init__(self, loop: Loop, ceiling_tok_s: float, command: str = "") -> None:
        self._loop, self._reporter, self._engine = loop, loop.reporter, loop.engine
        self._flying: dict[int, LiveTrial] = {}  # by number, in order of launch
        self._lock = threading.RLock()  # launches side by side report from their own threads
        self.here = threading.local()
        now, own = time.time(), psutil.Process()
        budget_s = loop.task.budget_s
        self._live = LiveState(
            state=RunState.RUNNING,
            phase=CHOOSING,
            phase_began_s=now,
            began_s=now,
            pid=os.getpid(),
            born_s=own.create_time(),
            host=socket.gethostname(),
            trials=loop.task.trials,
            confirm=loop.task.confirm,
            ceiling_tok_s=ceiling_tok_s,
            budget_s=None if budget_s == float("inf") else budget_s,
            command=command,
        )

    def __enter__(self) -> Self:
        self._loop.reporter, self._loop.engine = self, _Watched(self._engine, self)
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.reporter, self._loop.engine = self._reporter, self._engine
        state = RunState.FINISHED if error is None else RunState.FAILED if isinstance(error, SgtuneError) else None
        message = self._loop.stop_reason if error is None else str(error) if state else ""
        self._flying.clear()
        self._live = replace(self._live, state=state or RunState.INTERRUPTED, message=message)
        self.phase("ended")

    def phase(self, name: str, number: int | None = None) -> None:
        """Say what begins now: in the launch of this number, or in the run."""
        with self._lock:
            if number in self._flying:
                self._flying[number] = replace(self._flying[number], phase=name)
            oldest = next(iter(self._flying), None)
            if number is None or number == oldest:
                self._live = replace(self._live, phase=name, phase_began_s=time.time())
            self._write()

    def starting(self, name: str) -> None:
        """Say which part of a server's start begins now, in the launch of this thread."""
        self.phase(f"starting the server: {name}", getattr(self.here, "number", None))

    def launching(self, number: int, source: str, config: ServerConfig, predicted: Prediction) -> None:
        """Hear of a launch."""
        trial = LiveTrial(
            number=number,
            source=source,
            config=config,
            predicted_tok_s=predicted.output_tok_s,
            band_tok_s=predicted.band["output_tok_s"],
            asked=self._loop.task.workload.concurrency,
            began_s=time.time(),
        )
        with self._lock:
            self._flying[number] = trial
        self.phase("starting the server", number)
        self._reporter.launching(number, source, config, predicted)

    def point(self, number: int, measured: Measurement) -> None:
        """Hear of a measured point."""
        with self._lock:
            if number in self._flying:
                trial = self._flying[number]
                self._flying[number] = replace(trial, points=(*trial.points, measured))
                self._write()
            self._reporter.point(number, measured)

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Hear of a recorded trial."""
        if record.launched:  # of what is ruled out there are hundreds, and nothing to see
            with self._lock:
                self._flying.pop(record.number, None)
            oldest = next(iter(self._flying.values()), None)
            self.phase(oldest.phase if oldest else CHOOSING)
        self._reporter.finished(record, best)

    def _write(self) -> None:
        flying = tuple(self._flying.values())
        self._live = replace(self._live, trial=flying[0] if flying else None, beside=flying[1:])
        with contextlib.suppress(SgtuneError):  # a full disk is the evidence's to complain of
            self._loop.folder.write(LIVE_FILE, encode_json(self._live) + "\n", durable=False)


class _Watched:
    """An engine that says what it is about to do."""

    def __init__(self, engine: Engine, watch: LiveWriter) -> None:
        inside = replace(engine, entered=watch.starting) if isinstance(engine, LiveEngine) else engine
        self._engine, self._watch = inside, watch

    @property
    def name(self) -> str:
        return self._engine.name

    def launch(self, config: ServerConfig, number: int) -> Server:
        self._watch.here.number = number
        return _WatchedServer(self._engine.launch(config, number), self._watch, number)

    def close(self) -> None:
        self._engine.close()


class _WatchedServer:
    """A server that says what it is about to do."""

    def __init__(self, server: Server, watch: LiveWriter, number: int) -> None:
        self._server, self._watch, self._number = server, watch, number

    def info(self) -> ServerInfo:
        return self._server.info()

    def measure(self, workload: Workload) -> Measurement:
        load = str(workload.mark) if isinstance(workload, TracedWorkload) else f"{workload.concurrency:,} clients"
        self._watch.phase(f"measuring {load}", self._number)
        return self._server.measure(workload)

    def stop(self) -> None:
        self._watch.phase("stopping the server", self._number)
        self._server.stop()
