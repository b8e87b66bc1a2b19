"""The worker processes of one point: started together, heard, stopped, and their outcomes read."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import ExitStack, suppress

import msgspec

from hwprobe.errors import SgtuneError
from hwprobe.holds import scratch_folder
from tuner.bench.requests import RequestOutcome, Share, StreamProgress

STOP_S = 30.0


class WorkerPool:
    """Worker processes; leaving the context ends them however it is left."""

    def __init__(self, shares: list[Share], module: str = "tuner.bench.worker") -> None:
        """`module`: what each process runs."""
        self._stack = ExitStack()
        try:
            self._folder = self._stack.enter_context(scratch_folder("load"))
        except OSError as error:
            raise SgtuneError(
                f"cannot write temporary files: {error.strerror or error}; make room or set TMPDIR"
            ) from error
        self._workers: list[subprocess.Popen[bytes]] = []
        self._results = [self._folder / f"{number}.msgpack" for number in range(len(shares))]
        self._heard = [StreamProgress(done=0, errors=0, in_flight=0, tokens=0, silent_s=0.0) for _ in shares]
        self._pending = [b"" for _ in shares]
        self._shares, self._module = shares, module

    def __enter__(self) -> WorkerPool:
        try:
            self._start()
        except BaseException:  # interrupted or not: the workers go, the error stays
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}
        for share, result in zip(self._shares, self._results, strict=True):
            worker = subprocess.Popen(
                [sys.executable, "-m", self._module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=environment, start_new_session=True,
            )  # fmt: skip
            self._stack.callback(worker.wait)
            self._stack.callback(worker.kill)
            self._workers.append(worker)
            self._tell(worker, msgspec.json.encode(msgspec.structs.replace(share, result=str(result))) + b"\n")

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for worker in self._workers:
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what was still to be said to it
                        pipe.close()

    def listen(self, seconds: float) -> StreamProgress:
        """Wait this long for news; return the sum of what the workers last said.

        Raises SgtuneError when a worker has ended or cannot go on.
        """
        pipes = {worker.stdout.fileno(): n for n, worker in enumerate(self._workers) if worker.stdout is not None}
        ready, _, _ = select.select(list(pipes), [], [], seconds)
        for descriptor in ready:
            number = pipes[descriptor]
            data = os.read(descriptor, 65536)
            if not data:
                raise _lost(self._workers[number])
            *lines, self._pending[number] = (self._pending[number] + data).split(b"\n")
            if lines:
                try:
                    self._heard[number] = msgspec.json.decode(lines[-1], type=StreamProgress)
                except msgspec.DecodeError as error:
                    raise SgtuneError(f"a load generator process said nonsense: {error}") from error
        broken = next((word.broken for word in self._heard if word.broken), "")
        if broken:
            raise SgtuneError(broken)
        return StreamProgress(
            done=sum(word.done for word in self._heard),
            errors=sum(word.errors for word in self._heard),
            in_flight=sum(word.in_flight for word in self._heard),
            tokens=sum(word.tokens for word in self._heard),
            silent_s=min(word.silent_s for word in self._heard),
            exhausted=all(word.exhausted for word in self._heard),
        )

    def stop(self) -> list[RequestOutcome]:
        """End the traffic and return what each worker has seen. Raises SgtuneError when one does not answer."""
        for worker in self._workers:
            self._tell(worker, b"stop\n")
        outcomes = []
        for worker, result in zip(self._workers, self._results, strict=True):
            try:
                worker.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                raise SgtuneError("a load generator process did not stop: this machine is overloaded") from None
            try:
                outcomes.append(msgspec.msgpack.decode(result.read_bytes(), type=RequestOutcome))
            except (OSError, msgspec.DecodeError) as error:
                raise _lost(worker) from error
        return outcomes

    def _tell(self, worker: subprocess.Popen[bytes], line: bytes) -> None:
        """Write to a worker. Raises SgtuneError when it has ended."""
        assert worker.stdin is not None
        try:
            worker.stdin.write(line)
            worker.stdin.flush()
        except OSError as error:
            raise _lost(worker) from error


def _lost(worker: subprocess.Popen[bytes]) -> SgtuneError:
    """Return the error of a worker that has ended before its time; SIGKILL is what the kernel's OOM killer sends."""
    try:
        code = worker.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        return SgtuneError("a load generator process stopped listening")
    why = " (SIGKILL: out of memory?)" if code == -9 else ""
    return SgtuneError(f"a load generator process ended with exit code {code}{why}")
