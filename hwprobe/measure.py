"""Running measurements: each in a child process of its own, with a deadline, so that none can hang or
crash the probe, and a CUDA context never outlives its measurement. No torch in this process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hwprobe.choices import DeviceName
from hwprobe.errors import InputError
from hwprobe.files import decode_json, encode_json
from hwprobe.kernels.report import MeasureRequest, Report, Step

# Seconds a child may take, start of torch (and of a cold CUDA) included.
DEADLINE_S = {
    Step.DEVICES: 90.0,
    Step.MEMORY: 120.0,
    Step.STREAM: 120.0,
    Step.LAUNCH: 90.0,
    Step.GEMM: 180.0,
    Step.P2P: 240.0,
    Step.ALL_REDUCE: 300.0,
}
PER_GPU = (Step.MEMORY, Step.STREAM, Step.LAUNCH, Step.GEMM)
TORCH_MISSING = (
    "torch is not installed, so nothing was measured: in the checkout, pip install '.[gpu]' (or the torch build of "
    "your CUDA or ROCm, from pytorch.org) and probe again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureTask:
    """One measurement: what to do and on which of the machine's GPUs (positions; () is the host).

    `visible` are the GPUs' uuids (or ordinals): the child sees only them.
    """

    request: MeasureRequest
    gpus: tuple[int, ...] = ()
    visible: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name the task for a progress line."""
        where = f"GPU {self.gpus[0]}" if len(self.gpus) == 1 else f"{len(self.gpus)} GPUs" if self.gpus else "host"
        return f"{where}: {self.request.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """What became of a task: a report, or why there is none."""

    task: MeasureTask
    seconds: float
    report: Report | None = None
    failure: str | None = None


Runner = Callable[[MeasureTask], TaskOutcome]
Progress = Callable[[int, int, MeasureTask, TaskOutcome | None], None]


def torch_installed() -> bool:
    """Say whether torch could be imported, without importing it."""
    return importlib.util.find_spec("torch") is not None


def host_tasks(*, quick: bool) -> tuple[MeasureTask, ...]:
    """Return the measurements of a host: those of a GPU, and in full also an all-reduce of two processes."""
    steps = PER_GPU if quick else (*PER_GPU, Step.ALL_REDUCE)
    return tuple(MeasureTask(request=MeasureRequest(step=step, device=DeviceName.CPU, quick=quick)) for step in steps)


def gpu_tasks(gpus: Sequence[tuple[int, str]], *, quick: bool) -> tuple[MeasureTask, ...]:
    """Return the measurements of (position, uuid) GPUs: each alone, then what they do together."""

    def task(step: Step, chosen: Sequence[tuple[int, str]]) -> MeasureTask:
        return MeasureTask(
            request=MeasureRequest(step=step, device=DeviceName.CUDA, quick=quick, ranks=max(2, len(chosen))),
            gpus=tuple(position for position, _ in chosen),
            visible=tuple(uuid for _, uuid in chosen),
        )

    alone = [task(step, [gpu]) for gpu in gpus for step in PER_GPU]
    together = [task(step, gpus) for step in (Step.P2P, Step.ALL_REDUCE)] if len(gpus) > 1 else []
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
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return TaskOutcome(
            task=task, seconds=time.monotonic() - begin, failure=f"not done within {limit:.0f} s; stopped"
        )
    finally:  # nor may an interrupt leave a child computing on the GPU
        _end(child)
    seconds = time.monotonic() - begin
    lines = out.strip().splitlines()
    if child.returncode or not lines:
        return TaskOutcome(task=task, seconds=seconds, failure=_reason(child.returncode, err))
    try:
        report = decode_json(lines[-1], Report, "its answer")
    except InputError as error:
        return TaskOutcome(task=task, seconds=seconds, failure=f"unreadable: {error}")
    return TaskOutcome(task=task, seconds=seconds, report=report)


def _end(child: subprocess.Popen[str]) -> None:
    """Kill the child's session (which holds nothing but what it started) and collect the child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def _environment(task: MeasureTask) -> dict[str, str]:
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}
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


def _reason(code: int, err: str) -> str:
    """Return the last thing a failed child said, or what ended it."""
    said = [line.strip() for line in err.splitlines() if line.strip()]
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"ended by {name}" + (f" ({said[-1]})" if said else "; out of memory?")
    return said[-1] if said else f"ended with exit code {code} and no answer"
