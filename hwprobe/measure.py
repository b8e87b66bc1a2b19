"""Running measurements: each in a child process of its own, with a deadline, so that none can hang or
crash the probe, and a CUDA context never outlives its measurement. No torch in this process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hwprobe.choices import DeviceName
from hwprobe.errors import InputError
from hwprobe.files import decode_json, encode_json
from hwprobe.kernels.report import MeasureRequest, Report, Step, joined

# Seconds a child may take, start of torch (and of a cold CUDA) included.
DEADLINE_S = {
    Step.DEVICES: 90.0,
    Step.MEMORY: 120.0,
    Step.STREAM: 120.0,
    Step.LAUNCH: 90.0,
    Step.GEMM: 180.0,
    Step.SUSTAINED: 120.0,
    Step.P2P: 240.0,
    Step.ALL_REDUCE: 300.0,
    Step.SYMMETRIC: 300.0,
    Step.DEEP_GEMM: 400.0,  # its kernels are compiled when first used
    Step.FLASH_MLA: 240.0,
    Step.ABLATION: 300.0,
}
# Bytes kept of a child's stderr: half from its beginning, half from its end.
KEPT_STDERR = 65_536
CHECKOUT = Path(__file__).resolve().parents[1]
PER_GPU = (Step.MEMORY, Step.STREAM, Step.LAUNCH, Step.GEMM)
TORCH_MISSING = (
    "torch is not installed, so nothing was measured: in the checkout, pip install -e '.[gpu]' (or the torch build of "
    "your CUDA or ROCm, from pytorch.org) and probe again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureTask:
    """One measurement: what to do and on which of the machine's GPUs (positions; () is the host).

    `visible` are the GPUs' uuids (or ordinals): the child sees only them; `settings` are environment variables of it.
    """

    request: MeasureRequest
    gpus: tuple[int, ...] = ()
    visible: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """Name the task for a progress line."""
        where = f"GPU {self.gpus[0]}" if len(self.gpus) == 1 else f"{len(self.gpus)} GPUs" if self.gpus else "host"
        return " ".join([f"{where}: {self.request.step}", *(f"{name}={value}" for name, value in self.settings)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """How a task ended: its report, whole or in part, and the reason of a failure. `stderr` is the child's."""

    task: MeasureTask
    seconds: float
    report: Report | None = None
    failure: str | None = None
    stderr: str = ""


Runner = Callable[[MeasureTask], TaskOutcome]
Progress = Callable[[int, int, MeasureTask, TaskOutcome | None], None]


def torch_installed() -> bool:
    """Say whether torch could be imported, without importing it."""
    return importlib.util.find_spec("torch") is not None


def host_tasks(*, quick: bool) -> tuple[MeasureTask, ...]:
    """Return the measurements of a host: those of a GPU, and in full also an all-reduce of two processes."""
    steps = PER_GPU if quick else (*PER_GPU, Step.SUSTAINED, Step.ALL_REDUCE)
    return tuple(MeasureTask(request=MeasureRequest(step=step, device=DeviceName.CPU, quick=quick)) for step in steps)


def gpu_tasks(gpus: Sequence[tuple[int, str]], *, quick: bool) -> tuple[MeasureTask, ...]:
    """Return the measurements of (position, uuid) GPUs: each alone, then what they do together."""

    def task(step: Step, on_gpus: Sequence[tuple[int, str]]) -> MeasureTask:
        return MeasureTask(
            request=MeasureRequest(step=step, device=DeviceName.CUDA, quick=quick, ranks=max(2, len(on_gpus))),
            gpus=tuple(position for position, _ in on_gpus),
            visible=tuple(uuid for _, uuid in on_gpus),
        )

    steps = PER_GPU if quick else (*PER_GPU, Step.SUSTAINED)
    alone = [task(step, [gpu]) for gpu in gpus for step in steps]
    together = [task(step, gpus) for step in (Step.P2P, Step.ALL_REDUCE, Step.SYMMETRIC)] if len(gpus) > 1 else []
    return (*alone, *together)


def run_tasks(
    tasks: Sequence[MeasureTask], runner: Runner, progress: Progress | None = None
) -> tuple[TaskOutcome, ...]:
    """Run tasks one after the other (they would disturb each other), telling `progress` before and after."""
    outcomes = []
    for number, task in enumerate(tasks, start=1):
        if progress:
            progress(number, len(tasks), task, None)
        outcome = runner(task)
        outcomes.append(outcome)
        if progress:
            progress(number, len(tasks), task, outcome)
    return tuple(outcomes)


def run_child(
    task: MeasureTask, *, command: Sequence[str] | None = None, deadline_s: float | None = None
) -> TaskOutcome:
    """Run one task in a child process and return its outcome; the child and all it started end with it.

    `command` and `deadline_s` replace the child's command line and its time limit, for tests.
    """
    limit = DEADLINE_S[task.request.step] if deadline_s is None else deadline_s
    arguments = [*(command or (sys.executable, "-m", "hwprobe.kernels.worker")), encode_json(task.request, indent=0)]
    begin = time.monotonic()
    # A session of its own, so that the ranks an all-reduce spawns are ended together with it.
    child = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_environment(task),
        start_new_session=True,
    )
    late = f"not done within {limit:.0f} s; stopped"
    try:
        out, err = child.communicate(timeout=limit)
        late = ""
    except subprocess.TimeoutExpired:
        out, err = _end(child)
    finally:  # nor may an interrupt leave a child computing on the GPU
        _end(child)
    outcome = _outcome(task, (child.returncode, out, err), late)
    return replace(outcome, seconds=time.monotonic() - begin)


def _outcome(task: MeasureTask, ended: tuple[int, str, str], late: str) -> TaskOutcome:
    """Read a child's exit code, stdout and stderr; reports it printed before it failed are kept."""
    code, out, err = ended
    parts: list[Report] = []
    wrong = ""
    for line in out.strip().splitlines():
        try:
            parts.append(decode_json(line, Report, "its answer"))
            wrong = ""
        except InputError as error:  # a library's own words, unless they are the last
            wrong = f"unreadable: {error}"
    failure = late or (reason(code, err) if code or not out.strip() else wrong) or None
    excerpt = err if len(err) <= KEPT_STDERR else f"{err[: KEPT_STDERR // 2]}\n[...]\n{err[-KEPT_STDERR // 2 :]}"
    return TaskOutcome(
        task=task,
        seconds=0.0,
        report=joined(parts) if parts else None,
        failure=failure,
        stderr=excerpt if failure else "",
    )


def _end(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill the child's session (only its own processes), collect the child and its output."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.communicate() if child.stdout and not child.stdout.closed else ("", "")


def _environment(task: MeasureTask) -> dict[str, str]:
    # With PYTHONSAFEPATH a bare checkout is not importable by itself.
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    environment |= dict(task.settings)
    if task.request.device is DeviceName.CPU:
        # Waiting threads sleep instead of spinning: next to other work spinning costs whole time slices.
        environment |= {"OMP_WAIT_POLICY": "PASSIVE"}
    if task.visible:
        # Ours are NVML's uuids, so the order torch would choose does not matter.
        name = "CUDA_VISIBLE_DEVICES" if task.visible[0].startswith("GPU-") else visible_variable()
        environment[name] = ",".join(task.visible)
    return environment


def visible_variable() -> str:
    """Return the variable that limits what torch sees: HIP's when the user set that one."""
    return "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in os.environ else "CUDA_VISIBLE_DEVICES"


# A line that names an error; torch follows it with advice ("Compile with TORCH_USE_CUDA_DSA ...").
_NAMED = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")
_RANK = re.compile(r"-- Process (\d+) terminated with the following error")


def reason(code: int, err: str) -> str:
    """Return what a failed child died of: the last line that names an error, with its rank; or what ended it."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    named = [line for line in lines if _NAMED.match(line)] or [line for line in lines if "Error" in line]
    last = (named or lines or [""])[-1].removeprefix("SgtuneError: ")
    driver = next((line for line in reversed(lines) if line.startswith("Cuda failure")), "")
    last = f"{last} ({driver})" if driver and driver not in last else last
    ranks = _RANK.findall(err)
    last = f"rank {ranks[-1]}: {last}" if ranks and last else last
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"ended by {name}" + (f" ({last})" if last else "; out of memory?")
    return last or f"ended with exit code {code} and no answer"
