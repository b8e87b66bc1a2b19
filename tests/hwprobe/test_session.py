"""A probe from start to end on scripted machines: who is measured, what replaces what, what is said."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from fake_nvml import H200, FakeNvml, fabric

from hwprobe import session
from hwprobe.choices import DeviceName
from hwprobe.errors import InputError
from hwprobe.findings import compare, findings
from hwprobe.kernels.report import Report, Step, TorchDevice
from hwprobe.measure import MeasureTask, TaskOutcome
from hwprobe.profile import AllReduce, Basis, HardwareProfile, Quantity, load_profile, read_profile, save_profile
from hwprobe.session import Probed, Telling, run_probe

HEALTHY = {
    Step.MEMORY: {"hbm_gb_s": 4370.0, "hbm_copy_gb_s": 4300.0, "hbm_triad_gb_s": 4310.0},
    Step.STREAM: {"stream_gb_s": 4150.0, "stream_fixed_us": 2.6},
    Step.LAUNCH: {"graph_node_us": 1.4, "eager_launch_us": 4.0},
    Step.GEMM: {"bf16_tflops": 790.0, "fp8_tflops": 1350.0, "bf16_8192x2112x7168_tflops": 700.0},
}


def quantity(value: float) -> Quantity:
    return Quantity(value=value, basis=Basis.MEASURED, source="script", spread=0.01)


class Script:
    """Stands in for child processes: healthy H200s, `slow` GPUs by a factor, `fail` steps with a reason."""

    def __init__(self, slow: dict[int, float] | None = None, fail: dict[Step, str] | None = None) -> None:
        self.slow, self.fail = slow or {}, fail or {}
        self.ran: list[MeasureTask] = []

    def __call__(self, task: MeasureTask) -> TaskOutcome:
        self.ran.append(task)
        step = task.request.step
        if step in self.fail:
            return TaskOutcome(task=task, seconds=1.0, failure=self.fail[step])
        return TaskOutcome(task=task, seconds=1.0, report=self.report(step, task))

    def report(self, step: Step, task: MeasureTask) -> Report:
        if step is Step.DEVICES:
            return Report(software={"torch": "2.13.0"})
        if step is Step.P2P:
            count = len(task.gpus)
            rows = tuple(tuple(None if r == c else 380.0 - r for c in range(count)) for r in range(count))
            return Report(p2p_gb_s=rows, p2p_latency_us=rows)
        if step is Step.SYMMETRIC:
            return Report(missing=("symmetric memory: not here",))
        if step is Step.ALL_REDUCE:
            point = AllReduce(ranks=task.request.ranks, message_bytes=14336, backend="nccl", time_us=quantity(12.0))
            return Report(all_reduce=(point,))
        factor = self.slow.get(task.gpus[0] if task.gpus else -1, 1.0)
        return Report(quantities={name: quantity(value * factor) for name, value in HEALTHY[step].items()})


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(session, "AMD_DRIVER", Path("/nonexistent"))
    monkeypatch.setattr(session, "busy_host", lambda: None)
    monkeypatch.setattr(session, "torch_installed", lambda: True)
    monkeypatch.setattr(session, "SETTLE_S", 0.0)


def run(nvml: FakeNvml, script: Script, device: DeviceName = DeviceName.AUTO) -> Probed:
    return run_probe(device, quick=True, nvml=nvml, runner=script)


def test_eight_healthy_gpus_are_measured_and_replace_the_data_sheet(tmp_path: Path) -> None:
    script = Script()
    probed = run(FakeNvml([H200] * 8), script)
    profile = probed.profile
    assert probed.failures == ()
    assert len(script.ran) == 1 + 8 * 4 + 3
    gpu = profile.gpus[5]
    assert gpu.hbm_gb_s == Quantity(value=4370, basis=Basis.MEASURED, source="script", spread=0.01, sheet=4800)
    assert gpu.hbm_gb_s.fraction == pytest.approx(0.910, abs=0.001)
    assert gpu.nvlink_gb_s is not None
    assert (gpu.nvlink_gb_s.value, gpu.nvlink_gb_s.sheet) == (373.0, 450.0)
    assert profile.p2p_gb_s is not None
    assert profile.p2p_gb_s[2][3] == 378.0
    assert profile.software == {"driver": "580.1", "cuda": "13.0", "torch": "2.13.0"}
    assert profile.warnings == ("not measured: symmetric memory: not here",)
    verdicts = {found.quantity: found.verdict for found in findings(profile)}
    assert {verdicts[name] for name in ("hbm_gb_s", "bf16_tflops", "fp8_tflops", "nvlink_gb_s")} == {"normal"}
    path = tmp_path / "hardware.json"
    save_profile(profile, path)
    assert load_profile(path) == profile


def test_a_slow_gpu_is_named_and_a_slow_machine_is_low() -> None:
    warnings = run(FakeNvml([H200] * 8), Script(slow={3: 0.86})).profile.warnings
    assert "GPU 3: memory read is 14% below its siblings" in warnings
    warnings = run(FakeNvml([H200]), Script(slow={0: 0.7})).profile.warnings
    assert any("memory read 3,059.0 of 4,800 GB/s, 64%: low" in warning for warning in warnings)
    warnings = run(FakeNvml([H200]), Script(slow={0: 1.3})).profile.warnings
    assert any("is it the card its name says" in warning for warning in warnings)


def test_a_busy_gpu_is_refused_and_the_others_are_measured() -> None:
    process = SimpleNamespace(pid=os.getpid(), usedGpuMemory=90_000 * 2**20)
    nvml = FakeNvml([H200] * 4, nvmlDeviceGetComputeRunningProcesses=lambda handle: [process] if handle == 1 else [])
    script = Script()
    probed = run(nvml, script)
    assert len(probed.failures) == 1
    assert f"GPU 1 is busy: {psutil.Process().name()} (pid {os.getpid()})" in probed.failures[0]
    assert probed.failures[0] in probed.profile.warnings
    assert not any("GPU-1" in task.visible for task in script.ran)
    basis = [gpu.hbm_gb_s.basis for gpu in probed.profile.gpus]
    assert basis == [Basis.MEASURED, Basis.CATALOGUE, Basis.MEASURED, Basis.MEASURED]
    assert probed.profile.p2p_gb_s is not None
    assert probed.profile.p2p_gb_s[1] == (None,) * 4
    assert probed.profile.p2p_gb_s[2][3] == 379.0


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"nvmlDeviceGetMigMode": [1, 1]}, "MIG is on"),
        ({"nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97)}, "97 % utilization"),
    ],
)
def test_a_machine_that_must_not_be_measured_starts_no_child(answers: dict[str, Any], why: str) -> None:
    script = Script()
    probed = run(FakeNvml([H200] * 8, **answers), script)
    assert script.ran == []
    assert len(probed.failures) == 8
    assert all(why in failure for failure in probed.failures)
    assert probed.profile.gpu_count == 8


def test_one_failed_measurement_costs_only_its_own_figures() -> None:
    probed = run(FakeNvml([H200]), Script(fail={Step.GEMM: "not done within 180 s; stopped"}))
    assert probed.failures == ("GPU 0: matrix rates: not done within 180 s; stopped",)
    gpu = probed.profile.gpus[0]
    assert (gpu.hbm_gb_s.basis, gpu.bf16_tflops.basis) == (Basis.MEASURED, Basis.CATALOGUE)


def test_torch_without_cuda_ends_it_before_every_gpu_fails_alone() -> None:
    script = Script(fail={Step.DEVICES: "torch 2.13.0+cpu is a CPU build; install a CUDA (or ROCm) build of torch"})
    probed = run(FakeNvml([H200] * 8), script)
    assert len(script.ran) == 1
    assert "CPU build" in probed.failures[0]
    assert probed.profile.gpu_count == 8


def test_without_torch_the_inventory_stands_and_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "torch_installed", lambda: False)
    script = Script()
    probed = run(FakeNvml([H200] * 8), script)
    assert script.ran == []
    assert probed.failures == ()
    assert any("pip install -e '.[gpu]'" in warning for warning in probed.profile.warnings)
    assert ".[gpu]" in run(FakeNvml([H200]), script, DeviceName.CUDA).failures[0]
    assert run(FakeNvml([H200]), script, DeviceName.CPU).profile.gpu_count == 1


def test_no_gpu_means_no_measurement_unless_the_host_is_asked_for() -> None:
    absent, script = FakeNvml([], refuse=("nvmlInit",)), Script()
    probed = run(absent, script)
    assert (script.ran, probed.failures) == ([], ())
    assert any("--device cpu" in warning for warning in probed.profile.warnings)
    host = run(absent, script, DeviceName.CPU).profile.host
    assert host is not None
    assert host.measured["hbm_gb_s"].value == 4370
    assert all(task.visible == () for task in script.ran)


def test_a_card_nobody_lists_can_be_planned_with_once_measured() -> None:
    profile = run(FakeNvml([("NVIDIA Mystery", 96000)]), Script()).profile
    assert profile.gpus[0].hbm_gb_s.value == 4370
    assert profile.gpus[0].hbm_gb_s.sheet is None
    assert not any("not in the catalogue" in warning for warning in profile.warnings)


def test_amd_gpus_are_what_torch_sees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "AMD_DRIVER", tmp_path)

    class Rocm(Script):
        def report(self, step: Step, task: MeasureTask) -> Report:
            if step is Step.DEVICES:
                card = TorchDevice(name="AMD Instinct MI300X", memory_mib=196592.0, sm_count=304)
                return Report(devices=(card, card), software={"torch_hip": "6.4"})
            return super().report(step, task)

    script = Rocm()
    profile = run(FakeNvml([], refuse=("nvmlInit",)), script).profile
    assert [gpu.name for gpu in profile.gpus] == ["AMD Instinct MI300X"] * 2
    assert profile.gpus[0].hbm_gb_s.basis is Basis.MEASURED
    assert script.ran[1].visible == ("0",)
    assert any("there is none" in warning for warning in profile.warnings)


def test_progress_tells_every_task_before_and_after() -> None:
    told: list[tuple[int, int, bool]] = []

    def progress(number: int, total: int, task: MeasureTask, outcome: TaskOutcome | None) -> None:
        told.append((number, total, outcome is not None))

    run_probe(DeviceName.CPU, quick=True, nvml=FakeNvml([H200]), runner=Script(), telling=Telling(progress=progress))
    assert told == [(n, 4, done) for n in range(1, 5) for done in (False, True)]


def test_clocks_held_down_under_load_are_noted_with_the_measurement() -> None:
    working = {"now": False}

    class Hot(Script):
        def __call__(self, task: MeasureTask) -> TaskOutcome:
            working["now"] = task.request.step is Step.GEMM
            time.sleep(0.3 if working["now"] else 0.0)
            outcome = super().__call__(task)
            working["now"] = False
            return outcome

    nvml = FakeNvml([H200] * 2, nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 0x4 if working["now"] else 0x1)
    warnings = run(nvml, Hot()).profile.warnings
    assert "clocks were held down by power cap while measuring matrix rates: GPU 0, GPU 1" in warnings
    assert not any("held down" in warning and "matrix rates" not in warning for warning in warnings)


def probed_profile(**slow: float) -> HardwareProfile:
    return run(FakeNvml([H200] * 2), Script(slow=dict.fromkeys((0, 1), slow.get("factor", 1.0)))).profile


def test_comparison_tells_change_from_noise_and_better_from_worse() -> None:
    a, b = probed_profile(), probed_profile(factor=0.9)
    rows = {change.quantity: change for change in compare(a, b)}
    assert rows["hbm_gb_s"].change == pytest.approx(-0.1)
    assert rows["hbm_gb_s"].verdict == "worse"
    assert rows["graph_node_us"].verdict == "better"  # a time: less of it
    assert {change.verdict for change in compare(a, a)} == {"same within noise"}
    without = replace(b, all_reduce=())
    assert compare(a, without)[-1].verdict == "only in the first"
    assert compare(without, a)[-1].verdict == "only in the second"


SPOILERS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda d: d["gpus"][1]["measured"]["hbm_gb_s"].update(value=0), r"gpus\[1\].measured"),
    (lambda d: d["gpus"][0]["hbm_gb_s"].update(spread=-0.1), r"at gpus\[0\].hbm_gb_s.spread"),
    (lambda d: d["p2p_gb_s"].pop(), "p2p_gb_s is not a square over the 2 GPUs"),
    (lambda d: d["p2p_gb_s"][0].__setitem__(1, "fast"), r"at p2p_gb_s\[0\]"),
    (lambda d: d["all_reduce"][0].update(ranks=1), r"at all_reduce\[0\].ranks"),
    (lambda d: d["gpus"][0]["state"].update(ecc="yes"), r"at gpus\[0\].state.ecc"),
]


@pytest.mark.parametrize(("spoil", "complaint"), SPOILERS)
def test_a_spoiled_measurement_is_named(tmp_path: Path, spoil: Callable[..., Any], complaint: str) -> None:
    path = tmp_path / "hardware.json"
    save_profile(probed_profile(), path)
    assert read_profile(path) == load_profile(path)
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=complaint):
        load_profile(path)


def test_a_fabric_that_is_not_ready_is_for_cuda_to_judge() -> None:
    """A single GPU passed through to a virtual machine may say so for ever while CUDA works."""
    for state in (1, 2):
        probed = run(FakeNvml([H200], c_nvmlGpuFabricInfo_v2_t=fabric(state)), Script())
        assert probed.failures == ()
        assert probed.profile.gpus[0].hbm_gb_s.basis is Basis.MEASURED
    script = Script(fail={Step.DEVICES: "torch cannot start CUDA: system not yet initialized"})
    probed = run(FakeNvml([H200], c_nvmlGpuFabricInfo_v2_t=fabric(2)), script)
    assert "system not yet initialized (the NVSwitch fabric is in progress" in probed.failures[0]


class BadCard(Script):
    """Whatever sees GPU `bad` fails."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.bad = bad

    def __call__(self, task: MeasureTask) -> TaskOutcome:
        if self.bad not in task.gpus:
            return super().__call__(task)
        self.ran.append(task)
        said = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
        return TaskOutcome(task=task, seconds=1.0, failure=said, stderr=f"Traceback\n{said}\nCompile with")


def test_one_bad_gpu_of_eight_is_named_and_seven_are_measured() -> None:
    script = BadCard(5)
    probed = run(FakeNvml([H200] * 8), script)
    assert len(probed.failures) == 1
    assert probed.failures[0].startswith("GPU 5: what torch sees: RuntimeError: CUDA error: uncorrectable ECC")
    assert probed.said == {"GPU 5: what torch sees": script(script.ran[0]).stderr}
    basis = [gpu.hbm_gb_s.basis for gpu in probed.profile.gpus]
    assert basis == [Basis.MEASURED] * 5 + [Basis.CATALOGUE] + [Basis.MEASURED] * 2
    assert script.ran[-2].request.ranks == 7


class NoNvls(Script):
    """NCCL fails while it may use NVLink SHARP."""

    def __call__(self, task: MeasureTask) -> TaskOutcome:
        if task.request.step is Step.ALL_REDUCE and not task.settings:
            self.ran.append(task)
            return TaskOutcome(task=task, seconds=1.0, failure="not done within 300 s; stopped")
        return super().__call__(task)


def test_an_all_reduce_that_fails_is_tried_without_nvls() -> None:
    script = NoNvls()
    probed = run(FakeNvml([H200] * 8), script)
    assert [task.settings for task in script.ran if task.request.step is Step.ALL_REDUCE] == [
        (),
        (("NCCL_NVLS_ENABLE", "0"),),
    ]
    assert probed.profile.all_reduce
    assert probed.failures == ("8 GPUs: all-reduce: not done within 300 s; stopped",)
    assert any("these figures are without NVLS" in warning for warning in probed.profile.warnings)


def test_what_is_known_is_kept_after_every_measurement() -> None:
    kept: list[Probed] = []
    script = Script()
    last = run_probe(
        DeviceName.AUTO, quick=True, nvml=FakeNvml([H200]), runner=script, telling=Telling(keep=kept.append)
    )
    assert len(kept) == len(script.ran) == 5
    known = [len(each.profile.gpus[0].measured) for each in kept]
    assert known == sorted(known)
    assert (known[0], known[-1]) == (0, len(last.profile.gpus[0].measured))


def test_a_part_of_a_measurement_that_failed_is_in_the_profile() -> None:
    class Cut(Script):
        def __call__(self, task: MeasureTask) -> TaskOutcome:
            outcome = super().__call__(task)
            late = task.request.step is Step.GEMM
            return replace(outcome, failure="not done within 180 s; stopped") if late else outcome

    probed = run(FakeNvml([H200]), Cut())
    assert probed.failures == ("GPU 0: matrix rates: not done within 180 s; stopped",)
    assert probed.profile.gpus[0].bf16_tflops.basis is Basis.MEASURED


def test_clock_and_power_of_each_measurement_are_medians_of_the_working_card() -> None:
    working = {"now": False}

    class Slow(Script):
        def __call__(self, task: MeasureTask) -> TaskOutcome:
            working["now"] = task.request.step is Step.GEMM
            time.sleep(0.6 if working["now"] else 0.0)
            return super().__call__(task)

    def at(idle: int, busy: int) -> Callable[..., int]:
        return lambda *asked: busy if working["now"] else idle

    nvml = FakeNvml(
        [H200], nvmlDeviceGetPowerUsage=at(75_000, 695_000), nvmlDeviceGetClockInfo=at(345, 1755),
        nvmlDeviceGetTemperature=at(30, 62),
    )  # fmt: skip
    state = run(nvml, Slow()).profile.gpus[0].working[str(Step.GEMM)]
    assert (state.sm_clock_mhz, state.power_w, state.temperature_c) == (1755.0, 695.0, 62.0)
    assert state.looks >= 1
