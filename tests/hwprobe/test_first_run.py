"""What a first run on real GPUs would have met, place by place: each on a scripted card, driver or torch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import MIB, FakeCuda, GraphTimer
from fake_nvml import H200, FakeNvml, fabric, link_counters

from hwprobe.inventory.looks import open_eyes
from hwprobe.inventory.nvml import read_inventory
from hwprobe.inventory.nvml_links import fabric_health
from hwprobe.kernels import collectives, pairs
from hwprobe.kernels.bandwidth import STREAM_MIB, STREAM_WIDTH, measure_stream, stream_once
from hwprobe.kernels.compute import gemm_rates, measure_sustained
from hwprobe.kernels.fits import fit_line
from hwprobe.kernels.pairs import LARGE_BYTES, measure_p2p
from hwprobe.kernels.report import Report, Step, joined
from hwprobe.kernels.timing import CpuTimer, CudaTimer, random_tensor
from hwprobe.measure import CHECKOUT, MeasureTask, run_child
from hwprobe.measure import reason as reason_of
from hwprobe.probe import probe_machine
from hwprobe.session import settled

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _every_gpu_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_rows_of_streamed_weights_are_aligned_for_tma() -> None:
    """Place 1: 292 columns are 584 bytes, aligned to 8."""
    weights = random_tensor(2 * MIB, torch.bfloat16, torch.device("cpu"))
    size, _ = stream_once(CpuTimer(), weights, 2 * MIB, 1)
    assert (size // 2 // STREAM_WIDTH) % 128 == 0
    asked, _ = stream_once(CpuTimer(), weights, 3 * MIB, 1, 1)
    assert (asked // 2 // STREAM_WIDTH) % 128 != 0  # what the ablation compares with
    for mib in STREAM_MIB:
        assert mib * MIB // 2 // STREAM_WIDTH >= 128, "the smallest size has a whole tile of columns"


def test_each_size_says_how_far_it_lies_off_the_line() -> None:
    timer = CpuTimer()
    timer.cache_bytes = MIB
    found = measure_stream(timer, quick=True, sizes_mib=(2, 8), working_set_bytes=32 * MIB)
    assert all("% off the line" in found.quantities[f"stream_{mib}mib_gb_s"].source for mib in (2, 8)) or found.missing
    line = fit_line([1e6, 2e6, 4e6], [1e-6, 2e-6, 4e-6])
    assert line.residual(4e6, 4.4e-6) == pytest.approx(0.1)


CUDA_ERROR = """Traceback (most recent call last):
  File "worker.py", line 90, in main
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
SAID = [
    (CUDA_ERROR, "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"),
    ("-- Process 3 terminated with the following error:\n" + CUDA_ERROR, "rank 3: torch.AcceleratorError: CUDA error"),
    (
        "torch.distributed.DistBackendError: NCCL error in: x.cpp\nncclUnhandledCudaError: Call to CUDA failed.\n"
        "Last error:\nCuda failure 802 'system not yet initialized'\n",
        "Call to CUDA failed. (Cuda failure 802",
    ),
    ("SgtuneError: torch 2.13 sees no GPU\n", "torch 2.13 sees no GPU"),
    ("plain words\n", "plain words"),
]


@pytest.mark.parametrize(("stderr", "reason"), SAID, ids=[reason[:30] for _, reason in SAID])
def test_the_reason_is_the_line_that_names_the_error(stderr: str, reason: str) -> None:
    """Place 2: not the advice that follows it."""
    assert reason_of(1, stderr).startswith(reason) or reason in reason_of(1, stderr)
    assert "TORCH_USE_CUDA_DSA" not in reason_of(1, stderr)


def child(program: str, **given: Any) -> Any:
    from hwprobe.choices import DeviceName
    from hwprobe.kernels.report import MeasureRequest

    task = MeasureTask(request=MeasureRequest(step=Step.GEMM, device=DeviceName.CPU, quick=True))
    return run_child(task, command=(sys.executable, "-c", program), **given)


def test_all_stderr_of_a_failed_child_is_kept_and_none_of_a_good_one() -> None:
    failed = child(f"import sys; sys.stderr.write({CUDA_ERROR!r}); sys.exit(1)")
    assert failed.stderr == CUDA_ERROR
    assert "illegal memory access" in (failed.failure or "")
    good = child("import sys; sys.stderr.write('a warning'); print('{}')")
    assert (good.failure, good.stderr) == (None, "")
    long = child("import sys; sys.stderr.write('x' * 300_000 + '\\nValueError: the end'); sys.exit(1)")
    assert len(long.stderr) < 70_000
    assert long.stderr.endswith("ValueError: the end")


PART = '{"quantities": {"bf16_tflops": {"value": 790.0, "basis": "measured"}}}'


@pytest.mark.parametrize("end", ["import time; time.sleep(60)", "import os; os.kill(os.getpid(), 9)", "1 / 0"])
def test_a_child_that_hangs_dies_or_fails_keeps_what_it_had_measured(end: str) -> None:
    """Place 12, for every step: a part is printed when it is known."""
    found = child(f"print('{PART}', flush=True); {end}", deadline_s=3.0)
    assert found.failure
    assert found.report is not None
    assert found.report.quantities["bf16_tflops"].value == 790.0


def test_words_of_a_library_between_the_parts_spoil_nothing() -> None:
    found = child(f"print('{PART}'); print('JIT: compiling'); print('{{}}')")
    assert found.failure is None
    assert found.report is not None
    assert set(found.report.quantities) == {"bf16_tflops"}


def test_parts_join_and_the_last_of_a_message_counts() -> None:
    timers = [CpuTimer(), CpuTimer(), CpuTimer()]
    parts: list[Report] = []
    whole = measure_p2p(timers, quick=True, large_bytes=MIB, emit=parts.append)
    assert len(parts) == 6 + 3
    cells = [sum(cell is not None for row in part.p2p_gb_s or () for cell in row) for part in parts[:6]]
    assert cells == [1, 2, 3, 4, 5, 6]
    assert joined([*parts, whole]) == whole


def test_a_card_that_only_seems_busy_is_looked_at_for_five_seconds() -> None:
    """Place 5: NVML calls the ECC scrub of a starting driver utilisation."""
    looks: list[float] = []
    answers = iter([97, 97, 60, 0])
    scrubbing = FakeNvml([H200], nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=next(answers)))
    assert settled(scrubbing, looks.append).gpus[0].state.utilization_percent == 0
    assert len(looks) == 3
    looks.clear()
    busy = FakeNvml([H200], nvmlDeviceGetUtilizationRates=SimpleNamespace(gpu=97))
    assert settled(busy, looks.append).gpus[0].state.utilization_percent == 97
    assert sum(looks) == pytest.approx(5.0)
    looks.clear()
    settled(FakeNvml([H200], used_mib=90_000), looks.append)
    assert looks == []  # memory in use is no scrub


def test_the_spin_is_as_long_as_asked_whatever_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Place 8: 22,500 cycles are 15 us at 1.5 GHz, and 11.4 at 1.98."""
    for hertz in (1.2e9, 1.98e9):
        cuda = FakeCuda(hertz=hertz).install(monkeypatch)
        timer = CudaTimer(0)
        assert timer.cache_bytes == 60 * MIB
        assert timer.seconds(cuda.work, 3) == pytest.approx(50e-6)
        assert timer.spin_hz() == pytest.approx(hertz)
        assert cuda.spins[-1] == pytest.approx(3 * 15e-6, rel=1e-3)
        assert cuda.log[-6:] == ["spin", "record", "work", "work", "work", "record"]


def test_work_that_queues_slower_than_it_runs_is_timed_again_behind_a_longer_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Place 8: a GEMM of 6.5 us that takes 25 us to queue read 13.7 us."""
    cuda = FakeCuda(queue_s=25e-6, run_s=6.5e-6).install(monkeypatch)
    assert CudaTimer(0).seconds(cuda.work, 100) == pytest.approx(6.5e-6)
    assert cuda.spins[-1] >= 100 * 25e-6


def test_gemms_run_in_a_graph_over_weights_that_leave_the_cache() -> None:
    """Places 8 and 9: 256 rows against 15 to 59 MB of weights would find them in 60 MB of L2."""
    timer = GraphTimer(l2_mib=1)
    drawn: list[int] = []

    def draw(count: int, dtype: torch.dtype, device: torch.device) -> Any:
        drawn.append(count)
        return random_tensor(count, dtype, device)

    found = gemm_rates(timer, torch.bfloat16, ((16, 512, 1024),), quick=True, data=draw)
    weights = [count for count in drawn if count == 512 * 1024]
    assert len(timer.graphs) == 1
    assert sum(weights) * 2 >= 10 * MIB
    assert f"{len(weights)} weights in rotation" in found["bf16_tflops"].source


def test_the_sustained_rate_is_that_of_the_second_half() -> None:
    found = measure_sustained(CpuTimer(), quick=True, shape=(64, 64, 64), hold_s=0.3)
    assert "second half" in found.quantities["bf16_sustained_tflops"].source
    assert found.quantities["bf16_sustained_tflops"].value > 0


def test_bytes_are_random_too() -> None:
    """Place 11: rounded to integers, numbers below 1 were all 0."""
    bytes_ = random_tensor(4096, torch.uint8, torch.device("cpu"))
    assert len(set(bytes_.tolist())) > 200
    assert (int(bytes_.min()), int(bytes_.max())) >= (0, 200)


def test_pairs_are_timed_with_a_gigabyte_both_ways_and_all_at_once() -> None:
    """Place 10: torch's barrier of 8 to 20 us is lost in 1 GiB (2.7 ms); the 4 KiB copy is named for what it is."""
    assert LARGE_BYTES == 2**30
    report = measure_p2p([CpuTimer()] * 3, quick=True, large_bytes=MIB)
    assert report.p2p_both_gb_s is not None
    assert report.p2p_both_gb_s[0][0] is None
    assert report.p2p_both_gb_s[0][1] == report.p2p_both_gb_s[1][0]
    assert report.all_to_all_gb_s is not None
    assert "every GPU to all 2 others at once" in report.all_to_all_gb_s.source
    assert measure_p2p([CpuTimer()] * 2, quick=True, large_bytes=MIB).all_to_all_gb_s is None


def test_all_to_all_sends_every_byte_of_its_shares_once() -> None:
    count, size = 4, 3 * MIB
    share = size // (count - 1)
    firsts = {(a, b): share * ((a - b) % count - 1) for a in range(count) for b in range(count) if a != b}
    for target in range(count):
        taken = sorted(first for (_, b), first in firsts.items() if b == target)
        assert taken == [0, share, 2 * share]


def test_ranks_name_their_device_and_have_two_minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Place 13: without device_id NCCL starts inside the first collective."""
    asked: dict[str, Any] = {}
    distributed = torch.distributed
    timer = SimpleNamespace(device=torch.device("cuda", 1), has_graphs=True)
    monkeypatch.setattr(collectives, "timer_for", lambda device, index: timer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda rank: None)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **given: asked.update(given))
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(collectives, "_plain", lambda timer, size: None)
    monkeypatch.setattr(collectives, "_samples", lambda timer, work, quick: [1e-5, 2e-5])
    task = collectives.RankTask(device="cuda", ranks=2, quick=True, symmetric=False)
    for rank in range(2):
        collectives._rank(rank, task, str(tmp_path))
        if rank == 0:  # one rank alone has measured nothing yet
            assert collectives._collected(tmp_path, 2).all_reduce == ()
    assert asked["device_id"] == torch.device("cuda", 1)
    assert asked["timeout"].total_seconds() == 120
    assert [point.message_bytes for point in collectives._collected(tmp_path, 2).all_reduce] == task.sizes


def test_a_half_written_line_of_a_rank_is_no_message_yet(tmp_path: Path) -> None:
    """Place 12: what all ranks have written counts, when one of them hangs or is killed in the middle of a line."""
    line = '{"name": "nccl 14336", "samples": [1e-05]}\n'
    (tmp_path / "rank0.jsonl").write_text(line + '{"name": "nccl 57344", "samples": [1e-05]}\n')
    (tmp_path / "rank1.jsonl").write_text(line + '{"name": "nccl 573')
    assert [point.message_bytes for point in collectives._collected(tmp_path, 2).all_reduce] == [14336]


def test_children_find_hwprobe_from_a_bare_checkout(tmp_path: Path) -> None:
    """Place 15: a safe path holds neither the working directory nor, without an installation, the checkout."""
    outcome = child("import os, sys; print('{}'); sys.stderr.write(os.environ['PYTHONPATH']); sys.exit(1)")
    assert outcome.stderr.split(os.pathsep)[0] == str(CHECKOUT)
    ran = subprocess.run(
        [sys.executable, "-S", "-c", "import hwprobe; print(hwprobe.__file__)"],
        env={"PYTHONPATH": str(CHECKOUT), "PYTHONSAFEPATH": "1"}, cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert ran.stdout.startswith(str(ROOT))


def test_nvml_starts_once_for_all_looks_and_every_look_has_clock_and_power() -> None:
    """Place 17: it was started and ended four times a second."""
    calls: list[str] = []
    nvml = FakeNvml(
        [H200], nvmlInit=lambda: calls.append("init"), nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetHandleByUUID=lambda uuid: calls.append("handle") or 0,
    )  # fmt: skip
    with open_eyes(nvml) as look:
        for _ in range(5):
            seen = look(["GPU-0"])["GPU-0"]
    assert calls == ["init", "handle", "shutdown"]
    assert (seen.sm_clock_mhz, seen.power_w, seen.temperature_c) == (345.0, 120.0, 41.0)


def test_the_fabrics_health_and_nvlink_errors_are_said() -> None:
    assert fabric_health(0) == fabric_health(0b10_10_10_10) == ()
    assert fabric_health(0b1_00_00_00_01 | 5 << 8) == ("degraded bandwidth", "too few NVLinks")
    warnings = probe_machine(FakeNvml([H200] * 8, c_nvmlGpuFabricInfo_v2_t=fabric(3, 0, 1))).warnings
    assert warnings == ("GPUs 0-7: NVSwitch fabric: degraded bandwidth",)
    counted = FakeNvml([H200], nvmlDeviceGetFieldValues=link_counters(f161=0, f163=12, f211=1))
    assert probe_machine(counted).warnings == ("GPU 0: NVLink errors: 12 CRC errors, 1 link integrity errors",)
    silent = read_inventory(FakeNvml([H200], nvmlDeviceGetFieldValues=link_counters())).gpus[0]
    assert silent.state.nvlink_errors is None  # unknown is not 0


def script(tmp_path: Path, exits: int, **settings: str) -> tuple[int, list[str]]:
    """Run measure.sh with an interpreter that notes its arguments."""
    log = tmp_path / "asked"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *--compare*) exit 0;; *probe*) exit {exits};; esac\n')
    fake.chmod(0o755)
    ran = subprocess.run(
        [ROOT / "examples" / "hardware" / "measure.sh", "box"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": str(fake), "OUT": str(tmp_path), **settings},
    )  # fmt: skip
    return ran.returncode, log.read_text().splitlines()


def test_one_refused_gpu_does_not_end_the_script_and_python_is_the_users(tmp_path: Path) -> None:
    """Place 14: no network, no newest torch; both probes and the comparison run, and the failure is the exit code."""
    code, asked = script(tmp_path, 1)
    assert code == 1
    assert sum("--out" in line for line in asked) == 2
    assert "--compare" in asked[-1]
    assert not any("pip" in line for line in asked)
    assert script(tmp_path, 0)[0] == 0


def test_what_all_ranks_had_measured_is_told_before_one_that_fails_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Place 12: the messages of a step whose later message fails are not lost with it."""

    def spawn(rank: object, args: tuple[Any, str], nprocs: int, join: bool) -> Any:
        for number in range(nprocs):
            (Path(args[1]) / f"rank{number}.jsonl").write_text('{"name": "nccl 14336", "samples": [1e-05]}\n')

        def fail(timeout: float) -> bool:
            raise RuntimeError("-- Process 1 terminated with the following error")

        return SimpleNamespace(join=fail)

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    parts: list[Report] = []
    with pytest.raises(RuntimeError, match="Process 1 terminated"):
        collectives.measure_all_reduce("cuda", ranks=2, quick=True, emit=parts.append)
    assert [point.message_bytes for point in joined(parts).all_reduce] == [14336]


def test_each_direction_has_streams_of_its_own_on_both_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """On common streams torch's barriers make two directions wait for each other: no figure of both at once."""
    made: list[tuple[int, Any]] = []
    entered: list[tuple[int, Any]] = []

    def stream(device: Any) -> tuple[int, Any]:
        made.append((len(made), device))
        return made[-1]

    def enter(which: tuple[int, Any]) -> Any:
        entered.append(which)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    timers: list[Any] = [SimpleNamespace(device=torch.device("cuda", index)) for index in range(2)]
    there, back = pairs._lane(timers[0], timers[1]), pairs._lane(timers[1], timers[0])
    for lane in (there, back):
        with lane():
            pass
    assert len({number for number, _ in entered}) == 4
    assert [device.index for _, device in entered] == [0, 1, 1, 0]


def test_a_tasks_settings_reach_its_child() -> None:
    from hwprobe.choices import DeviceName
    from hwprobe.kernels.report import MeasureRequest

    request = MeasureRequest(step=Step.ALL_REDUCE, device=DeviceName.CUDA, quick=True)
    task = MeasureTask(request=request, gpus=(0, 1), visible=("GPU-a", "GPU-b"), settings=(("NCCL_NVLS_ENABLE", "0"),))
    program = (
        "import os, sys; sys.exit(f\"Error: {os.environ['NCCL_NVLS_ENABLE']} {os.environ['CUDA_VISIBLE_DEVICES']}\")"
    )
    assert run_child(task, command=(sys.executable, "-c", program)).failure == "Error: 0 GPU-a,GPU-b"
    assert task.title == "2 GPUs: all-reduce NCCL_NVLS_ENABLE=0"
