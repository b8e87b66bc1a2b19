"""A server's process tree as the tuner holds it: started under the shim, read, stopped, and surely gone."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tuner.server.host_memory import oom_kills
from tuner.server.shim import descendants, older_of, run_after, tail_of
from tuner.server.strays import MARK, end_marked, mark_of

LOG_CAP_BYTES = 50 << 20
READ_BYTES = 2 << 20
DRAIN_S = 20.0
KILL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a process is started for and how it ends.

    `name` of the launch, `run` it belongs to, whose next session looks for what is left; `after` is a command that
    runs at the end in any case; `client_exits` are exit codes of what runs the server, no word of the server's.
    """

    name: str = ""
    run: str = ""
    after: tuple[str, ...] = ()
    client_exits: frozenset[int] = frozenset()


class ServerProcess:
    """A command running under the lifeline: it cannot outlive this process, whatever happens to either."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], *, drain_s: float = DRAIN_S,
        launch: Launch = Launch(),
    ) -> None:  # fmt: skip
        """Start the command; its output goes to `folder`/server.log.

        Raises OSError when the shim cannot start.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self._record = folder / "server.log", folder / "exit.json"
        for stale in (self.log, tail_of(self.log), older_of(self.log), self._record):
            stale.unlink(missing_ok=True)
        self._drain_s = drain_s
        self.launch = launch
        self._mark = mark_of(launch.run, secrets.token_hex(8))
        self._oom_kills = oom_kills()
        self.started = time.monotonic()
        ours, self._lifeline = os.pipe()
        with ExitStack() as undo:
            undo.callback(os.close, ours)
            failed = undo.enter_context(ExitStack())
            failed.callback(self._close)
            words = [sys.executable, "-m", "tuner.server.shim", "--lifeline", str(ours), "--log", str(self.log),
                     "--record", str(self._record), "--cap-bytes", str(LOG_CAP_BYTES), "--drain-s", str(drain_s),
                     "--after", json.dumps(list(launch.after)), "--", *command]  # fmt: skip
            self._shim = subprocess.Popen(
                words, env={**os.environ, "PYTHONSAFEPATH": "1", **environment, MARK: self._mark},
                pass_fds=(ours,), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            failed.pop_all()

    @property
    def alive(self) -> bool:
        return self._shim.poll() is None

    def dies_within(self, seconds: float) -> bool:
        """Wait for the server's end; return whether it came."""
        try:
            self._shim.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def returncode(self) -> int | None:
        """The server's exit code (negative: the signal), None while it runs or when the shim itself was killed."""
        try:
            return int(json.loads(self._record.read_text())["returncode"])
        except FileNotFoundError:
            return None

    @property
    def ended_ago_s(self) -> float:
        """Seconds since the server ended; 0 where its shim left no record of it."""
        try:
            return max(0.0, time.time() - self._record.stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    @property
    def refused(self) -> bool:
        """Whether what runs the server ended with a code of its own, which is no word of the server's."""
        return self.returncode in self.launch.client_exits

    @property
    def host_oom(self) -> str | None:
        """The kernel's OOM-kill message since the start, or None."""
        now, then = oom_kills(), self._oom_kills
        if now is None or then is None or now <= then:
            return None
        return f"the kernel killed {now - then} process(es) for memory since the server started"

    def pids(self) -> list[int]:
        """Return the living processes of the server, the shim not among them."""
        return descendants(self._shim.pid)

    def log_size(self) -> tuple[int, ...]:
        """Return the bytes of the log's parts: equal while nothing was written."""
        sizes = []
        for part in self._log_parts():
            with contextlib.suppress(FileNotFoundError):  # the shim turns the tail over while we look
                sizes.append(part.stat().st_size)
        return tuple(sizes)

    def log_text(self) -> str:
        """Return the log, of bounded size: of each part the beginning and the end."""
        texts = []
        for part in self._log_parts():
            with contextlib.suppress(FileNotFoundError):
                texts.append(_read_bounded(part))
        return "".join(texts)

    def _log_parts(self) -> tuple[Path, ...]:
        return self.log, older_of(self.log), tail_of(self.log)

    def terminate(self) -> None:
        """Ask the server to end, and leave waiting for it to whoever started it; safe from any thread."""
        if self.alive:
            self._shim.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, a bounded wait, then SIGKILL to all of it. Never raises for one that is gone."""
        if self.alive:
            self._shim.send_signal(signal.SIGTERM)
            try:
                self._shim.wait(timeout=self._drain_s + KILL_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()
        self._clean_up()

    def kill(self) -> None:
        """End the whole tree now: closing the lifeline is what the shim takes for the tuner's death."""
        self._close()
        try:
            self._shim.wait(timeout=KILL_S)
        except subprocess.TimeoutExpired:
            self._shim.kill()  # its server dies with it, and SGLang's workers with the server
            self._shim.wait()
        self._clean_up()

    def _clean_up(self) -> None:
        """Do what the shim did not live to do: whoever is left cleans up."""
        end_marked(self._mark)
        if not self._record.exists():
            run_after(self.launch.after)

    def _close(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def _read_bounded(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(READ_BYTES)
        size = stream.seek(0, os.SEEK_END)
        if size > READ_BYTES:
            stream.seek(max(READ_BYTES, size - READ_BYTES))
            data += stream.read(READ_BYTES)
    return data.decode(errors="replace")
