"""Runs the half hour on a real machine: measuring children, the slice recipe, nvidia-smi in the background."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hwprobe.choices import DeviceName
from hwprobe.kernels.report import MeasureRequest, Step
from hwprobe.measure import MeasureTask, TaskOutcome, reason, run_child

NO_SGLANG = "no SGLang: name its interpreter with --sglang-python, or a folder of wheels with --wheels"
_RECIPE = MeasureTask(request=MeasureRequest(step=Step.DEVICES, device=DeviceName.CUDA, quick=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class RealDoing:
    """Runs things in `folder`. `python` has torch; `wheels` is a folder to install SGLang from."""

    checkout: Path
    folder: Path
    python: str = sys.executable
    sglang_python: str = ""
    wheels: str = ""
    hardware: str = "h200x1"

    def measure(self, task: MeasureTask, limit_s: float, *, served: bool) -> TaskOutcome:
        """Run a measuring child for at most `limit_s`."""
        python = self._served_python() if served else self.python
        return run_child(task, command=(python, "-m", "hwprobe.kernels.worker"), deadline_s=limit_s)

    def _served_python(self) -> str:
        wrapper = self.folder / "slices" / "python"
        return str(wrapper) if wrapper.exists() else self.sglang_python or self.python

    def recipe(self, depths: str, limit_s: float) -> TaskOutcome | str:
        """Run tools/slice_on_gpu.sh for these depths ('' installs only), keeping its output."""
        if not self.sglang_python and not self.wheels:
            return NO_SGLANG
        settings = {
            "PYTHON": self.sglang_python or self.python,
            "SGTUNE": sys.executable,
            "WHEELS": self.wheels,
            "HARDWARE": self.hardware,
            "OUT": str(self.folder / "slices"),
            "LIMIT_S": f"{limit_s:.0f}",
            "DEPTHS": depths,
            "PYTHONPATH": str(self.checkout),
        }
        return run_program([str(self.checkout / "tools" / "slice_on_gpu.sh")], settings, limit_s)


def run_program(words: list[str], settings: dict[str, str], limit_s: float) -> TaskOutcome:
    """Run a program for at most `limit_s`; kill its whole session at the end."""
    begin = time.monotonic()
    child = subprocess.Popen(
        words,
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = ""
    try:
        out, _ = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        late = f"not done within {limit_s:.0f} s; stopped"
        _kill(child)
        out, _ = child.communicate()
    finally:
        _kill(child)
    failure = late or (reason(child.returncode, out) if child.returncode else "") or None
    return TaskOutcome(task=_RECIPE, seconds=time.monotonic() - begin, failure=failure, stderr=out)


def _kill(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def nvidia_smi(folder: Path) -> Iterator[str]:
    """Keep `nvidia-smi -q` and, while it lasts, `nvidia-smi dmon` in the folder; yield what could not be kept."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield "no nvidia-smi on the path: neither -q nor dmon is kept"
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=60, check=False)
        (folder / "nvidia-smi-q.txt").write_text(query.stdout + query.stderr, encoding="utf-8")
    with (folder / "nvidia-smi-dmon.txt").open("a", encoding="utf-8") as stream:
        monitor = subprocess.Popen([program, "dmon", "-s", "pucvmet", "-o", "DT"], stdout=stream, stderr=stream)
        try:
            yield ""
        finally:
            monitor.terminate()
            monitor.wait()
