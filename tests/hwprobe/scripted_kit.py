"""A half hour on scripted cards: healthy H200s that measure in no time, and failures where a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fake_nvml import H200, FakeNvml

from hwprobe.first_gpu.folder import Folder
from hwprobe.first_gpu.items import KitPart, half_hour
from hwprobe.first_gpu.kit import Kit, KitLimits
from hwprobe.first_gpu.words import write_report
from hwprobe.inventory.looks import Look, LookAt
from hwprobe.kernels.report import Report, Step
from hwprobe.measure import MeasureTask, TaskOutcome
from hwprobe.profile import AllReduce, Basis, Quantity
from hwprobe.session import settled

ROOT = Path(__file__).parents[2]
FIGURES: dict[Step, dict[str, float]] = {
    Step.MEMORY: {
        "hbm_gb_s": 4280.0, "hbm_copy_gb_s": 4300.0, "hbm_triad_gb_s": 4310.0,
        "hbm_read_sum_gb_s": 4150.0, "hbm_read_mv_gb_s": 4200.0, "hbm_read_amax_gb_s": 4280.0,
    },
    Step.STREAM: {"stream_gb_s": 3800.0, "stream_fixed_us": 2.6, "stream_256mib_gb_s": 4200.0},
    Step.LAUNCH: {"graph_node_us": 1.4, "eager_launch_us": 4.0},
    Step.GEMM: {"bf16_tflops": 790.0, "fp8_tflops": 1350.0},
    Step.SUSTAINED: {"bf16_sustained_tflops": 740.0, "fp8_sustained_tflops": 1250.0},
    Step.ABLATION: {
        "ablation_spin_mhz": 1980.0, "ablation_queue_mm_us": 6.0, "ablation_queue_scaled_mm_us": 22.0,
        "ablation_queue_replay_us": 7.0, "ablation_bf16_zeros_tflops": 860.0,
        **{f"ablation_stream_{mib}mib_as_asked_gb_s": 3200.0 for mib in (4, 16, 64, 256)},
        **{f"ablation_stream_{mib}mib_aligned_gb_s": 3900.0 for mib in (4, 16, 64, 256)},
        "ablation_gemm_256x4096x7168_eager_warm_us": 24.0, "ablation_gemm_256x4096x7168_eager_cold_us": 40.0,
        "ablation_gemm_256x4096x7168_graph_warm_us": 20.0, "ablation_gemm_256x4096x7168_graph_cold_us": 34.0,
    },
    Step.DEEP_GEMM: {"fp8_block_tflops": 1120.0},
    Step.FLASH_MLA: {"flash_mla_16_heads_128x4096_us": 190.0},
}  # fmt: skip


def quantity(value: float) -> Quantity:
    return Quantity(value=value, basis=Basis.MEASURED, source="script", spread=0.01)


def report_of(task: MeasureTask) -> Report:
    """Return what healthy H200s measure."""
    step, count = task.request.step, len(task.gpus)
    if step is Step.DEVICES:
        return Report(software={"torch": "2.11.0", "torch_cuda": "13.0"})
    if step is Step.P2P:

        def square(value: float) -> tuple[tuple[float | None, ...], ...]:
            return tuple(tuple(None if row == column else value for column in range(count)) for row in range(count))

        return Report(
            p2p_gb_s=square(380.0), p2p_latency_us=square(14.0), p2p_both_gb_s=square(740.0),
            all_to_all_gb_s=quantity(350.0),
        )  # fmt: skip
    if step in (Step.ALL_REDUCE, Step.SYMMETRIC):
        backend = "nccl" if step is Step.ALL_REDUCE else "symm_mem multimem"
        sizes = (14336, 229376)
        points = [AllReduce(ranks=count, message_bytes=size, backend=backend, time_us=quantity(12.0)) for size in sizes]
        return Report(all_reduce=tuple(points))
    return Report(quantities={name: quantity(value) for name, value in FIGURES[step].items()})


Injected = Callable[[MeasureTask], TaskOutcome | None]


@dataclass
class ScriptedDoing:
    """Runs everything in no time; `inject` may answer in the script's place, `ran` keeps what was asked."""

    inject: Injected = lambda task: None
    recipes: str = ""
    ran: list[str] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    def measure(self, task: MeasureTask, limit_s: float, *, served: bool) -> TaskOutcome:
        self.ran.append(task.title)
        self.limits.append(limit_s)
        done = TaskOutcome(task=task, seconds=1.0, report=report_of(task))
        return self.inject(task) or done

    def recipe(self, depths: str, limit_s: float) -> TaskOutcome | str:
        self.ran.append(f"recipe {depths}")
        task = MeasureTask(request=_request())
        return TaskOutcome(task=task, seconds=1.0, failure=self.recipes or None, stderr=f"depths {depths}")


def _request() -> Any:
    from hwprobe.choices import DeviceName
    from hwprobe.kernels.report import MeasureRequest

    return MeasureRequest(step=Step.DEVICES, device=DeviceName.CUDA, quick=False)


def busy_look(uuids: Sequence[str]) -> dict[str, Look]:
    return {uuid: Look(sm_clock_mhz=1755.0, power_w=695.0, temperature_c=60.0) for uuid in uuids}


def kit_in(folder: Path, doing: Any, *, gpus: int = 8, nvml: FakeNvml | None = None) -> Kit:
    inventory = settled(nvml or FakeNvml([H200] * gpus), lambda seconds: None)
    kept = Folder(folder)
    return Kit(kept, kept.begin(inventory), half_hour(gpus), doing)


def run_all(kit: Kit, asked: KitLimits | None = None, look: LookAt = busy_look) -> bool:
    """Run every part once; return whether all are complete."""
    complete = [kit.run(part, asked or KitLimits(), look, lambda text: None) for part in KitPart]
    return all(complete)


def told(kit: Kit) -> dict[str, bytes]:
    """Write the report and return the files a person carries home."""
    write_report(kit, "scripted", ROOT)
    return {name: (kit.folder.path / name).read_bytes() for name in ("report.md", "constants.patch", "checks.json")}


def failing(step: Step, failure: str, *, quick: bool | None = None, **more: Any) -> Injected:
    """Return an injection: this step fails so, on GPU `gpu` where one is named; a `report` is what it had measured."""
    gpu = more.pop("gpu", None)

    def inject(task: MeasureTask) -> TaskOutcome | None:
        if task.request.step is not step or (quick is not None and task.request.quick is not quick):
            return None
        if gpu is not None and gpu not in task.gpus:
            return None
        return TaskOutcome(task=task, seconds=1.0, failure=failure, **more)

    return inject


@contextmanager
def as_started(kit: Kit, when: str) -> Iterator[None]:
    """Have a kit believe it was begun at another's time, so that two of them write the same files."""
    kit.started = replace(kit.started, when=when)
    yield
