"""`sgtune probe` as a user meets it: a real host, comparison, refusals, one line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe import session
from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.kernels.report import Report
from hwprobe.measure import MeasureTask, TaskOutcome
from hwprobe.profile import Basis, Quantity, read_profile, save_profile

Sgtune = Callable[..., Any]


@pytest.mark.slow
def test_the_host_is_measured_with_a_line_of_progress_each(sgtune: Sgtune, tmp_path: Path) -> None:
    out = tmp_path / "hardware.json"
    ran = sgtune("probe", "--device", "cpu", "--quick", "--out", str(out), "--json")
    assert ran.code == 0, ran.err
    assert ran.out.count("\n") == 1
    assert json.loads(ran.out) == json.loads(out.read_text())
    progress = [line for line in ran.err.splitlines() if line.startswith("[")]
    assert [line[:5] for line in progress] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert "memory read" in progress[0]
    assert "GB/s" in progress[0]
    host = read_profile(out).host
    assert host is not None
    for name in ("hbm_gb_s", "hbm_copy_gb_s", "hbm_triad_gb_s", "bf16_tflops", "fp32_tflops", "eager_launch_us"):
        assert host.measured[name].basis is Basis.MEASURED
    same = sgtune("probe", "--compare", str(out), str(out))
    assert same.code == 0
    assert "same within noise" in same.out
    assert "memory triad" in same.out


def measured(path: Path, hbm_gb_s: float) -> Path:
    sheet = hardware_from_catalogue("h200x8")

    def quantity(name: str, value: float) -> Quantity:
        return Quantity(value=value, basis=Basis.MEASURED, spread=0.01, sheet=getattr(sheet.gpus[0], name).value)

    values = {"hbm_gb_s": quantity("hbm_gb_s", hbm_gb_s), "bf16_tflops": quantity("bf16_tflops", 790.0)}
    gpus = tuple(replace(gpu, **values, measured=values) for gpu in sheet.gpus)
    save_profile(replace(sheet, gpus=gpus), path)
    return path


def test_compare_shows_what_changed(sgtune: Sgtune, tmp_path: Path) -> None:
    files = [str(measured(tmp_path / name, rate)) for name, rate in (("a.json", 4370.0), ("b.json", 3900.0))]
    ran = sgtune("probe", "--compare", *files)
    assert ran.code == 0
    assert "-10.8%" in ran.out
    assert "worse" in ran.out
    document = json.loads(sgtune("probe", "--compare", *files, "--json").out)
    assert {"quantity": "hbm_gb_s", "verdict": "worse"}.items() <= document["changes"][0].items()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--compare", "{a}", "missing.json"), "cannot read hardware profile 'missing.json'"),
        (("--compare", "{sheet}", "{sheet}"), "holds a measurement"),
        (("--compare", "{a}", "{a}", "--quick"), "leave the other options out"),
        (("--inventory", "--quick"), "--inventory measures nothing"),
        (("--inventory", "--device", "cpu"), "--inventory measures nothing"),
    ],
)
def test_mistakes_are_named(sgtune: Sgtune, tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    sheet = tmp_path / "sheet.json"
    save_profile(hardware_from_catalogue("h200x8"), sheet)
    a = measured(tmp_path / "a.json", 4370.0)
    ran = sgtune("probe", *(part.format(a=a, sheet=sheet) for part in arguments))
    assert ran.code == 2
    assert complaint in ran.err


def test_without_torch_the_inventory_is_written_and_the_exit_tells(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "torch_installed", lambda: False)
    out = tmp_path / "hardware.json"
    ran = sgtune("probe", "--device", "cpu", "--out", str(out))
    assert ran.code == 1
    assert "pip install -e '.[gpu]'" in ran.err
    assert read_profile(out).host is not None


def test_a_failed_measurement_is_told_and_the_rest_is_kept(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner(task: MeasureTask) -> TaskOutcome:
        if "matrix" in task.title:
            return TaskOutcome(task=task, seconds=0.1, failure="ended by SIGKILL; out of memory?")
        rate = Quantity(value=20.0, basis=Basis.MEASURED, source="script", spread=0.01)
        return TaskOutcome(task=task, seconds=0.1, report=Report(quantities={"hbm_gb_s": rate}))

    monkeypatch.setitem(session.run_probe.__kwdefaults__, "runner", runner)
    out = tmp_path / "hardware.json"
    ran = sgtune("probe", "--device", "cpu", "--out", str(out))
    assert ran.code == 1
    assert "error: host: matrix rates: ended by SIGKILL" in ran.err
    assert "20 GB/s" in ran.out
    host = read_profile(out).host
    assert host is not None
    assert host.measured["hbm_gb_s"].value == 20.0


def plan(sgtune: Sgtune, profile: Path) -> dict[str, Any]:
    ran = sgtune(
        "plan", "--hardware", str(profile), "--isl", "1000", "--osl", "200", "--concurrency", "16",
        "--sglang-version", "0.5.12", "--no-mtp", "--json",
    )  # fmt: skip
    document: dict[str, Any] = json.loads(ran.out)
    return document


def test_measured_memory_moves_the_plan_and_its_basis_says_so(sgtune: Sgtune, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.json"
    save_profile(hardware_from_catalogue("h200x8"), sheet)
    catalogue = plan(sgtune, sheet)
    healthy = plan(sgtune, measured(tmp_path / "healthy.json", 4370.0))
    slow = plan(sgtune, measured(tmp_path / "slow.json", 3400.0))
    assert catalogue["basis"]["hbm"] == "catalogue"
    assert healthy["basis"]["hbm"] == slow["basis"]["hbm"] == "measured"
    assert healthy["answer"]["output_tok_s"] == pytest.approx(catalogue["answer"]["output_tok_s"], rel=1e-6)
    assert slow["answer"]["output_tok_s"] < 0.98 * healthy["answer"]["output_tok_s"]


def test_asking_for_the_probe_loads_no_torch() -> None:
    """The parent only starts children: a CUDA context of its own would count as a busy GPU."""
    program = (
        "import sys, tuner.cli.commands.probe, hwprobe.session, hwprobe.findings; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
