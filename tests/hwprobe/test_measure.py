"""Children with a deadline, and real measurements of this machine's processor: the code a GPU runs too."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwprobe.choices import DeviceName
from hwprobe.files import decode_json, encode_json
from hwprobe.kernels.bandwidth import measure_memory, measure_stream
from hwprobe.kernels.collectives import measure_all_reduce
from hwprobe.kernels.compute import fp8_missing, gemm_rates, measure_gemm, measure_launch
from hwprobe.kernels.fits import fit_line, timing_of
from hwprobe.kernels.pairs import measure_p2p
from hwprobe.kernels.report import MeasureRequest, Report, Step
from hwprobe.kernels.timing import CpuTimer, random_tensor, time_work
from hwprobe.measure import MeasureTask, gpu_tasks, host_tasks, run_child
from hwprobe.profile import Basis

MIB = 2**20
TASK = MeasureTask(request=MeasureRequest(step=Step.LAUNCH, device=DeviceName.CPU, quick=True))


class SmallCacheTimer(CpuTimer):
    """The CPU's timer with a small cache: buffers are ten times that, and a test is soon over."""

    def __init__(self) -> None:
        super().__init__()
        self.cache_bytes = MIB


def test_copy_read_and_triad_count_what_they_move() -> None:
    found = measure_memory(CpuTimer(), quick=True, buffer_bytes=64 * MIB).quantities
    reads = {f"hbm_read_{name}_gb_s" for name in ("sum", "mv", "amax")}
    assert set(found) == {"hbm_gb_s", "hbm_copy_gb_s", "hbm_triad_gb_s"} | reads
    assert found["hbm_gb_s"].value == max(found[name].value for name in reads)
    best = max(reads, key=lambda name: found[name].value)
    assert found["hbm_gb_s"].source.startswith(f"read by {best.split('_')[2]}, the fastest of sum, mv, amax")
    for quantity in found.values():
        assert 0.5 < quantity.value < 5000  # GB/s of any processor, this side of a wrong unit
        assert quantity.basis is Basis.MEASURED
        assert quantity.spread is not None
    assert "MiB" in found["hbm_gb_s"].source


def test_a_copy_through_the_probe_is_a_copy_timed_by_hand() -> None:
    """Half or twice the bytes, or the wrong clock, would show; other work on the machine may not."""
    count = 64 * MIB // 4
    a = random_tensor(count, torch.float32, torch.device("cpu"))
    b = torch.empty_like(a)

    def by_hand() -> float:
        return 2 * 4 * count / median(_seconds(lambda: b.copy_(a)) for _ in range(7)) / 1e9

    rates = [
        (by_hand(), measure_memory(CpuTimer(), quick=True, buffer_bytes=64 * MIB).quantities["hbm_copy_gb_s"].value)
        for _ in range(3)
    ]
    assert any(0.6 < probe / hand < 1.4 for hand, probe in rates), rates


def _seconds(work: object) -> float:
    begin = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - begin


def test_weight_streaming_has_a_rate_per_size_and_a_line() -> None:
    found = measure_stream(SmallCacheTimer(), quick=True, sizes_mib=(1, 4), working_set_bytes=32 * MIB).quantities
    assert {"stream_1mib_gb_s", "stream_4mib_gb_s"} <= set(found)
    assert all(quantity.value > 0 for quantity in found.values())


def test_gemm_rates_name_their_shapes_and_the_first_is_the_headline() -> None:
    report = measure_gemm(CpuTimer(), quick=False, shapes=((256, 256, 256), (64, 128, 256)))
    found = report.quantities
    assert set(found) == {"bf16_tflops", "bf16_64x128x256_tflops", "fp32_tflops", "fp32_64x128x256_tflops"}
    assert "256x256x256" in found["bf16_tflops"].source
    assert any("FP8" in what for what in report.missing)


def test_the_fp8_path_runs_where_torch_has_it() -> None:
    (name, quantity), *_ = gemm_rates(CpuTimer(), torch.float8_e4m3fn, ((32, 32, 32),), quick=True).items()
    assert name == "fp8_tflops"
    assert quantity.value > 0


@pytest.mark.parametrize(
    ("capability", "rocm", "missing"),
    [((8, 0), False, True), ((8, 9), False, False), ((9, 0), False, False), ((6, 0), True, False)],
)
def test_fp8_needs_ada_or_newer(capability: tuple[int, int], rocm: bool, missing: bool) -> None:
    assert (fp8_missing(capability, rocm) is not None) == missing


def test_launch_cost_without_graphs_says_so() -> None:
    report = measure_launch(CpuTimer(), quick=True)
    assert 0.05 < report.quantities["eager_launch_us"].value < 1000
    assert "graph_node_us" not in report.quantities
    assert any("CUDA graphs" in what for what in report.missing)


def test_pairs_fill_a_matrix_with_an_empty_diagonal() -> None:
    report = measure_p2p([CpuTimer(), CpuTimer()], quick=True, large_bytes=4 * MIB)
    for matrix in (report.p2p_gb_s, report.p2p_latency_us):
        assert matrix is not None
        assert matrix[0][0] is matrix[1][1] is None
        assert (matrix[0][1] or 0) > 0
        assert (matrix[1][0] or 0) > 0


@pytest.mark.slow
def test_two_processes_all_reduce() -> None:
    points = measure_all_reduce("cpu", ranks=2, quick=True).all_reduce
    assert [point.message_bytes for point in points] == [14336, 16 * 14336, 256 * 14336]
    assert {point.backend for point in points} == {"gloo"}
    assert points[0].time_us.value < points[-1].time_us.value
    assert points[0].bus_gb_s == pytest.approx(14336 / points[0].time_us.value / 1e3)


def test_random_data_is_random_everywhere() -> None:
    tensor = random_tensor(9 * MIB, torch.bfloat16, torch.device("cpu"))
    assert tensor.numel() == 9 * MIB
    assert float(tensor[-1000:].float().std()) > 0.2
    assert int((tensor == 0).sum()) < tensor.numel() // 100


def test_short_work_is_repeated_and_warmed() -> None:
    calls = []
    timing = time_work(CpuTimer(), lambda: calls.append(1), samples=3, warm_s=0.0)
    assert timing.samples == 3
    assert len(calls) > 300


def test_a_line_through_times_finds_latency_and_rate() -> None:
    sizes = [4e6, 16e6, 64e6, 256e6]
    line = fit_line(sizes, [3e-6 + size / 4e12 for size in sizes])
    assert line.latency_s == pytest.approx(3e-6)
    assert line.bytes_per_s == pytest.approx(4e12)
    with pytest.raises(ValueError, match="do not grow"):
        fit_line([1e6, 2e6, 4e6], [4.0, 2.0, 1.0])


@given(st.floats(-1e-5, 1e-4), st.floats(1e9, 1e13))
def test_a_fitted_latency_is_never_negative(latency: float, rate: float) -> None:
    sizes = [4e6, 16e6, 64e6]
    line = fit_line(sizes, [max(latency + size / rate, 1e-9 * size**0.5) for size in sizes])
    assert line.latency_s >= 0
    assert line.bytes_per_s > 0


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30))
def test_the_median_lies_within_its_samples(samples: list[float]) -> None:
    timing = timing_of(samples)
    assert min(samples) * (1 - 1e-9) <= timing.seconds <= max(samples) * (1 + 1e-9)
    assert timing.spread >= 0


def test_every_task_of_a_gpu_sees_that_gpu_alone() -> None:
    tasks = gpu_tasks([(0, "GPU-a"), (2, "GPU-c")], quick=True)
    assert [task.visible for task in tasks if len(task.gpus) == 1] == [("GPU-a",)] * 4 + [("GPU-c",)] * 4
    assert [task.request.step for task in tasks[-3:]] == [Step.P2P, Step.ALL_REDUCE, Step.SYMMETRIC]
    assert tasks[-1].visible == ("GPU-a", "GPU-c")
    assert tasks[-1].request.ranks == 2
    assert all(len(task.gpus) == 1 for task in gpu_tasks([(0, "GPU-a")], quick=True))
    assert Step.ALL_REDUCE in {task.request.step for task in host_tasks(quick=False)}


def test_requests_and_reports_travel_as_json() -> None:
    request = gpu_tasks([(0, "GPU-a")], quick=False)[0].request
    assert decode_json(encode_json(request), MeasureRequest, "it") == request
    report = measure_p2p([CpuTimer(), CpuTimer()], quick=True, large_bytes=MIB)
    assert decode_json(encode_json(report), Report, "it") == report


def test_a_child_measures() -> None:
    outcome = run_child(TASK)
    assert outcome.failure is None
    assert outcome.report is not None
    assert outcome.report.software["torch"] == torch.__version__
    assert outcome.report.quantities["eager_launch_us"].value > 0


def test_a_child_without_cuda_says_why() -> None:
    if torch.cuda.is_available():
        assert run_child(gpu_tasks([(0, "0")], quick=True)[2]).failure is None
        return
    failure = run_child(gpu_tasks([(0, "0")], quick=True)[2]).failure or ""
    assert "torch" in failure
    assert "Traceback" not in failure


CHILDREN = {
    "import os; os.kill(os.getpid(), 9)": "ended by SIGKILL; out of memory",
    "raise RuntimeError('CUDA error: an illegal memory access')": "RuntimeError: CUDA error: an illegal memory access",
    "print('no json')": "unreadable",
    "pass": "exit code 0 and no answer",
    "import sys; sys.exit(3)": "exit code 3 and no answer",
}


@pytest.mark.parametrize(("program", "reason"), CHILDREN.items(), ids=list(CHILDREN.values()))
def test_a_broken_child_is_a_sentence(program: str, reason: str) -> None:
    outcome = run_child(TASK, command=(sys.executable, "-c", program))
    assert outcome.report is None
    assert reason in (outcome.failure or "")


def test_a_hanging_child_and_what_it_started_end_at_the_deadline(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    program = (
        "import subprocess, sys, time\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(mark)!r}, 'w').write(str(grandchild.pid))\n"
        "time.sleep(60)"
    )
    begin = time.monotonic()
    outcome = run_child(TASK, command=(sys.executable, "-c", program), deadline_s=1.5)
    assert "not done within" in (outcome.failure or "")
    assert time.monotonic() - begin < 20
    assert not _running(int(mark.read_text()))


def _running(pid: int) -> bool:
    """Say whether a process computes; one that was killed may wait for its parent as a zombie."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    os.kill(pid, 9)
    return True
