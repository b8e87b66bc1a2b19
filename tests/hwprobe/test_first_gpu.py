"""The half hour's kit on scripted cards: what it runs, keeps, resumes, names and proposes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import H20, H200, FakeNvml
from scripted_kit import (
    FIGURES,
    ROOT,
    ScriptedDoing,
    busy_look,
    failing,
    kit_in,
    quantity,
    run_all,
    told,
)

from hwprobe.errors import InputError
from hwprobe.first_gpu.doing import nvidia_smi, run_program
from hwprobe.first_gpu.folder import ItemEnd
from hwprobe.first_gpu.items import KitPart, half_hour
from hwprobe.first_gpu.judge import SeenItems, checks
from hwprobe.first_gpu.kit import KitLimits
from hwprobe.first_gpu.words import FULL
from hwprobe.kernels.report import Report, Step
from hwprobe.measure import MeasureTask, TaskOutcome, run_child
from hwprobe.profile import load_profile

CUDA_ERROR = """Traceback (most recent call last):
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


@pytest.fixture(autouse=True)
def _every_gpu_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_healthy_machine_is_as_expected_in_every_check(tmp_path: Path, gpus: int) -> None:
    kit = kit_in(tmp_path, ScriptedDoing(), gpus=gpus)
    assert run_all(kit)
    assert kit.went_well()
    otherwise = [check for check in checks(SeenItems(kit.started.inventory, kit.records())) if check.holds is not True]
    assert otherwise == []
    assert all((tmp_path / f"{item.name}.json").exists() for item in kit.items)
    names = told(kit)
    assert b"| 17 | clock and power beside the sustained rate | both noted | 1,755 MHz at 695 W" in names["report.md"]
    profile = load_profile(tmp_path / "hardware.json")
    assert profile.gpu_count == gpus
    assert profile.gpus[0].measured["bf16_sustained_tflops"].value == 740.0
    assert profile.gpus[0].measured["fp8_block_tflops"].sheet == 1979.0


def test_every_place_of_the_reading_has_a_check_of_its_own() -> None:
    """Those without one of a GPU's are tests: 2 and 11 are told as such."""
    from fake_nvml import FakeNvml

    from hwprobe.inventory.nvml import read_inventory

    found = checks(SeenItems(read_inventory(FakeNvml([H200] * 2)), []))
    places = {place for check in found for place in check.place.split(", ") if place}
    assert places == {str(number) for number in range(1, 18)}


def test_parts_take_ten_minutes_at_most_for_one_gpu() -> None:
    for item in half_hour(8):
        assert item.limit_s < 600
    names = [item.name for item in half_hour(8)]
    assert len(set(names)) == len(names)


def test_the_limit_is_a_parts_and_what_is_cut_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])

    class Slow(ScriptedDoing):
        def measure(self, task: MeasureTask, limit_s: float, *, served: bool) -> TaskOutcome:
            took = 70.0
            clock["now"] += min(took, limit_s)
            outcome = super().measure(task, limit_s, served=served)
            return outcome if took <= limit_s else replace(outcome, failure=f"not done within {limit_s:.0f} s; stopped")

    doing = Slow()
    kit = kit_in(tmp_path, doing, gpus=1)
    assert not kit.run(KitPart.A, KitLimits(limit_s=200.0), busy_look, lambda text: None)
    assert max(doing.limits) <= 200.0
    last = kit.records()[-1]
    assert (last.ended, last.stands) == (ItemEnd.CUT, False)
    runs = 1
    while not kit.run(KitPart.A, KitLimits(limit_s=200.0), busy_look, lambda text: None):
        runs += 1
        assert runs < 20
    assert {record.ended for record in kit.records()} == {ItemEnd.DONE}


def test_an_item_longer_than_a_whole_part_is_late_and_does_not_block_it(tmp_path: Path) -> None:
    doing = ScriptedDoing(inject=failing(Step.SUSTAINED, "not done within 100 s; stopped"))
    kit = kit_in(tmp_path, doing, gpus=1)
    for _ in range(3):
        kit.run(KitPart.A, KitLimits(limit_s=100.0), busy_look, lambda text: None)
    record = kit.folder.read("A-full-sustained-gpu0")
    assert record is not None
    assert record.ended is ItemEnd.LATE


class Killed(BaseException):
    """The kit is killed: nothing of it runs on."""


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_kit_killed_anywhere_goes_on_and_ends_with_the_same_report(tmp_path: Path, gpus: int) -> None:
    whole = kit_in(tmp_path / "whole", ScriptedDoing(), gpus=gpus)
    run_all(whole)
    wanted = told(whole)
    count = len(whole.items)
    for at in range(0, count, 1 if gpus == 1 else 3):
        doing = ScriptedDoing()

        def kill(task: MeasureTask, doing: ScriptedDoing = doing, at: int = at) -> TaskOutcome | None:
            if len(doing.ran) == at + 1:
                raise Killed
            return None

        doing.inject = kill
        folder = tmp_path / f"killed{at}"
        kit = kit_in(folder, doing, gpus=gpus)
        try:
            run_all(kit)
        except Killed:
            assert len(kit.records()) == at
        again = kit_in(folder, ScriptedDoing(), gpus=gpus)
        again.started = replace(again.started, when=whole.started.when)
        assert run_all(again)
        assert told(again) == wanted


PROGRAM = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from scripted_kit import ScriptedDoing, kit_in, run_all, told
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
at = int(sys.argv[2])
doing = ScriptedDoing()
doing.inject = lambda task: os.kill(os.getpid(), 9) if len(doing.ran) == at else None
kit = kit_in(Path(sys.argv[1]), doing, gpus=2)
run_all(kit)
told(kit)
"""


def test_a_kit_killed_by_the_system_goes_on(tmp_path: Path) -> None:
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    words = [sys.executable, "-c", program, str(tmp_path)]
    first = subprocess.run([*words, "7"], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert first.returncode == -signal.SIGKILL
    kept = sorted(path.name for path in tmp_path.glob("A-*.json"))
    assert len(kept) == 6
    before = {name: (tmp_path / name).read_bytes() for name in kept}
    second = subprocess.run([*words, "-1"], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert second.returncode == 0
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    assert f"{len(half_hour(2))} items: {len(half_hour(2))} done." in (tmp_path / "report.md").read_text()
    assert not list(tmp_path.glob(".*.part"))


def child_of(program: str, limit_s: float = 60.0) -> Any:
    """Return an injection of a real child that runs this program in a step's place."""

    def run(task: MeasureTask) -> TaskOutcome:
        return run_child(task, command=(sys.executable, "-c", program), deadline_s=limit_s)

    return run


def real(step: Step, program: str, limit_s: float = 60.0, gpu: int | None = None) -> Any:
    run = child_of(program, limit_s)

    def inject(task: MeasureTask) -> TaskOutcome | None:
        return run(task) if task.request.step is step and gpu in (None, *task.gpus) else None

    return inject


HALF = Report(p2p_gb_s=tuple(tuple(380.0 if (r, c) == (0, 1) else None for c in range(8)) for r in range(8)))
PART = '{"quantities": {"bf16_tflops": {"value": 790.0, "basis": "measured"}}}'
SAY = "import sys; sys.stderr.write({!r}); sys.exit(1)"
# Twenty failures: what is injected, the item that must name it, and the words it must be named with.
INJECTED: list[tuple[str, Any, str, str]] = [
    ("CUDA error", real(Step.GEMM, SAY.format(CUDA_ERROR), gpu=0), "A-full-gemm-gpu0", "illegal memory access"),
    ("hang", real(Step.SUSTAINED, "import time; time.sleep(60)", 0.5, 0), "A-full-sustained-gpu0", "not done within"),
    (
        "timeout in the middle",
        real(Step.ABLATION, f"print('{PART}', flush=True); import time; time.sleep(60)", 0.7),
        "B-ablation-ablation", "not done within",
    ),
    ("one GPU of eight bad", failing(Step.DEVICES, "RuntimeError: CUDA error: uncorrectable ECC error", gpu=5),
     "A-look-devices-gpu5", "uncorrectable ECC"),
    ("killed for memory", real(Step.STREAM, "import os; os.kill(os.getpid(), 9)", gpu=0), "A-full-stream-gpu0",
     "ended by SIGKILL; out of memory?"),
    ("segmentation fault", real(Step.LAUNCH, "import os; os.kill(os.getpid(), 11)", gpu=0), "A-full-launch-gpu0",
     "ended by SIGSEGV"),
    ("no answer", real(Step.ABLATION, "pass"), "B-ablation-ablation", "no answer"),
    ("unreadable answer", real(Step.ABLATION, "print('<html>')"), "B-ablation-ablation", "unreadable"),
    ("torch without CUDA", failing(Step.DEVICES, "torch 2.13 is a CPU build; install a CUDA build", gpu=0),
     "A-look-devices-gpu0", "CPU build"),
    ("out of GPU memory", failing(Step.MEMORY, "torch.OutOfMemoryError: CUDA out of memory", quick=False, gpu=0),
     "A-full-memory-gpu0", "CUDA out of memory"),
    ("a rank dies", failing(Step.ALL_REDUCE, "rank 3: torch.AcceleratorError: CUDA error: peer"),
     "B-together-all-reduce", "rank 3: torch.AcceleratorError"),
    ("NCCL hangs", failing(Step.ALL_REDUCE, "not done within 300 s; stopped"), "B-together-all-reduce",
     "with NCCL_NVLS_ENABLE=0 it fails too"),
    ("fabric fault in symmetric memory", failing(Step.SYMMETRIC, "not done within 300 s; stopped"),
     "B-together-symmetric", "not done within 300 s"),
    ("pairs hang half way", failing(Step.P2P, "not done within 240 s; stopped", report=HALF),
     "B-together-p2p", "not done within 240 s"),
    ("DeepGEMM does not compile", failing(Step.DEEP_GEMM, "RuntimeError: nvcc not found"), "C-served-deep-gemm",
     "nvcc not found"),
    ("FlashMLA does not import", failing(Step.FLASH_MLA, "ImportError: libcudart.so.12"), "C-served-flash-mla",
     "libcudart.so.12"),
    ("a driver too old", failing(Step.DEVICES, "torch 2.13 cannot start CUDA: driver too old (found 12040)", gpu=1),
     "A-look-devices-gpu1", "driver too old"),
    ("ECC error in the middle", failing(Step.GEMM, "RuntimeError: CUDA error: ECC", quick=False, gpu=2),
     "A-full-gemm-gpu2", "CUDA error: ECC"),
    ("an Xid", failing(Step.SUSTAINED, "RuntimeError: CUDA error: unspecified launch failure", gpu=7),
     "A-full-sustained-gpu7", "unspecified launch failure"),
    ("no stream order", failing(Step.STREAM, "ValueError: the times do not grow with the sizes", quick=False, gpu=3),
     "A-full-stream-gpu3", "do not grow"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "inject", "name", "words"), INJECTED, ids=[row[0] for row in INJECTED])
def test_an_injected_failure_is_named_and_nothing_else_is_lost(
    tmp_path: Path, what: str, inject: Any, name: str, words: str
) -> None:
    doing = ScriptedDoing(inject=inject)
    kit = kit_in(tmp_path, doing)
    assert run_all(kit)
    found = {record.name: record for record in kit.records()}
    assert len(found) == len(kit.items)  # every item has a file
    record = found[name]
    assert record.ended in (ItemEnd.FAILED, ItemEnd.LATE), what
    assert words in record.reason
    assert "TORCH_USE_CUDA_DSA" not in record.reason
    text = told(kit)["report.md"].decode()
    assert f"- {record.title}: {record.ended}: {record.reason}" in text
    bad = [each for each in found.values() if each.ended not in (ItemEnd.DONE, ItemEnd.SKIPPED)]
    steps = {each.name.split("-gpu")[0].split("-", 2)[2] for each in bad}
    assert len(steps) == 1, f"only what was injected failed: {steps}"
    skipped = [each for each in found.values() if each.ended is ItemEnd.SKIPPED]
    assert all(record.reason in each.reason for each in skipped), "what was left out says why"
    profile = load_profile(tmp_path / "hardware.json")
    assert profile.gpu_count == 8
    in_file = name.startswith(FULL)  # the ablation is about measuring, and no part of the machine's file
    assert any(words in warning for warning in profile.warnings) is in_file
    # Once mended, --again measures only what is lacking.
    mended = ScriptedDoing()
    again = kit_in(tmp_path, mended)
    assert run_all(again, KitLimits(again=True))
    assert len(mended.ran) == len(bad) + len(skipped)
    assert again.went_well()


def test_what_was_measured_before_a_failure_is_in_the_report(tmp_path: Path) -> None:
    program = f"print('{PART}', flush=True); import time; time.sleep(60)"
    kit = kit_in(tmp_path, ScriptedDoing(inject=real(Step.ABLATION, program, 0.7)))
    run_all(kit)
    assert b"measured before: bf16_tflops" in told(kit)["report.md"]


def test_all_that_a_failed_child_said_is_a_file(tmp_path: Path) -> None:
    kit = kit_in(tmp_path, ScriptedDoing(inject=real(Step.ABLATION, SAY.format(CUDA_ERROR))), gpus=1)
    run_all(kit)
    assert (tmp_path / "B-ablation-ablation.stderr.txt").read_text() == CUDA_ERROR
    assert b"all it said: B-ablation-ablation.stderr.txt" in told(kit)["report.md"]


def test_a_card_far_below_its_sheet_stops_the_half_hour_unless_told_to_go_on(tmp_path: Path) -> None:
    slow = {name: quantity(0.7 * value) for name, value in FIGURES[Step.MEMORY].items()}

    def inject(task: MeasureTask) -> TaskOutcome | None:
        if task.request.step is not Step.MEMORY:
            return None
        return TaskOutcome(task=task, seconds=1.0, report=Report(quantities=slow))

    kit = kit_in(tmp_path, ScriptedDoing(inject=inject), gpus=1)
    run_all(kit)
    ended = {record.name: record for record in kit.records()}
    assert ended["A-quick-gemm-gpu0"].ended is ItemEnd.DONE
    assert ended["A-full-memory-gpu0"].ended is ItemEnd.SKIPPED
    assert "hbm_copy_gb_s is 3,010, low: a healthy card reaches 83% or more" in ended["A-full-memory-gpu0"].reason
    doing = ScriptedDoing(inject=inject)
    again = kit_in(tmp_path, doing, gpus=1)
    assert run_all(again, KitLimits(go_on=True, again=True))
    assert again.went_well()


def test_another_machine_is_not_mixed_into_a_folder(tmp_path: Path) -> None:
    kit_in(tmp_path, ScriptedDoing(), gpus=2)
    with pytest.raises(InputError, match="other GPUs"):
        kit_in(tmp_path, ScriptedDoing(), gpus=3)


def test_the_patch_applies_and_the_constants_are_then_what_was_seen(tmp_path: Path) -> None:
    kit = kit_in(tmp_path / "out", ScriptedDoing(), gpus=2)
    run_all(kit)
    report = told(kit)["report.md"].decode()
    assert "| hwprobe/expected.py | hbm_gb_s | 0.91 +- 0.02 | 0.892 | change, within its error |" in report
    assert "| models/engine/transfer.py | REFERENCE_STREAM_OVER_READ | 0.95 +- 0.06 | 0.888 | CHANGE" in report
    copy = tmp_path / "checkout"
    for file in ("hwprobe/expected.py", "models/engine/transfer.py"):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_text((ROOT / file).read_text())
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    subprocess.run(["git", "apply", str(tmp_path / "out" / "constants.patch")], cwd=copy, check=True)
    assert "REFERENCE_STREAM_OVER_READ = 0.89\n" in (copy / "models/engine/transfer.py").read_text()
    assert '"hbm_gb_s": DataSheetShare(fraction=0.89, error=0.02' in (copy / "hwprobe/expected.py").read_text()
    assert load_profile(copy / "examples/hardware/scripted.json").gpu_count == 2


def test_another_card_changes_no_constant(tmp_path: Path) -> None:
    kit = kit_in(tmp_path, ScriptedDoing(), gpus=2, nvml=FakeNvml([H20] * 2))
    run_all(kit, KitLimits(go_on=True))
    files = told(kit)
    assert b"None: constants are those of an H200" in files["report.md"]
    assert b"expected.py" not in files["constants.patch"]


def test_a_program_that_hangs_or_fails_is_named_and_its_words_kept() -> None:
    late = run_program(["/bin/sh", "-c", "echo begun; sleep 60"], {}, 0.5)
    assert "not done within" in (late.failure or "")
    assert late.stderr == "begun\n"
    failed = run_program(["/bin/sh", "-c", "echo 'x: Error: no wheels'; exit 3"], {}, 60.0)
    assert failed.failure == "x: Error: no wheels"
    assert run_program(["true"], {}, 60.0).failure is None


def tool(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "tools" / "first_gpu.py"), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_the_tool_lists_its_needs_and_refuses_a_machine_without_a_gpu(tmp_path: Path) -> None:
    needs = tool("--needs")
    assert needs.returncode == 0
    assert "slice_wheels.txt" in needs.stdout
    none = tool("--out", str(tmp_path / "x"), CUDA_VISIBLE_DEVICES="")
    assert (none.returncode, "--dry-run" in none.stderr) == (2, True)
    assert not (tmp_path / "x").exists()
    assert tool("--limit-s", "0").returncode == 2


@pytest.mark.slow
def test_a_dry_run_prints_the_steps_and_measures_this_processor(tmp_path: Path) -> None:
    """Part C, the shortest; by hand all of it: `python tools/first_gpu.py --dry-run`."""
    ran = tool("--dry-run", "--part", "C", "--out", str(tmp_path / "x"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "B-ablation-ablation: first GPU: what the measuring itself does" in ran.stdout
    report = (tmp_path / "x-dry-run" / "report.md").read_text()
    assert "10 items: 2 done, 8 still to run" in report
    assert (tmp_path / "x-dry-run" / "C-cpu-flash-mla.json").exists()


CHILD = (
    "from hwprobe.holds import end_with_parent; end_with_parent(); print('up', flush=True); import time; time.sleep(60)"
)
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_measuring_child_ends_with_a_kit_that_is_killed() -> None:
    """Otherwise it computes on, and the kit that goes on finds its own GPU busy."""
    words = [sys.executable, "-c", PARENT.format(child=CHILD)]
    ran = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert ran.returncode == -signal.SIGKILL
    stat = Path(f"/proc/{int(ran.stdout)}/stat")
    for _ in range(100):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(int(ran.stdout), signal.SIGKILL)
    pytest.fail("the child runs on")


def test_what_nvidia_smi_says_is_kept_and_ended_with_the_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "nvidia-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nif [ $1 = -q ]; then echo Driver 580; exit; fi\necho '# gpu pwr'; exec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    begin = time.monotonic()
    with nvidia_smi(tmp_path / "out") as unkept:
        assert unkept == ""
        for _ in range(100):
            if (tmp_path / "out" / "nvidia-smi-dmon.txt").read_text():
                break
            time.sleep(0.05)
    assert time.monotonic() - begin < 30
    assert (tmp_path / "out" / "nvidia-smi-q.txt").read_text() == "Driver 580\n"
    assert (tmp_path / "out" / "nvidia-smi-dmon.txt").read_text() == "# gpu pwr\n"
    monkeypatch.setenv("PATH", str(tmp_path))
    with nvidia_smi(tmp_path / "none") as unkept:
        assert "no nvidia-smi" in unkept
