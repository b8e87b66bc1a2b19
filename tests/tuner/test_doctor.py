"""`sgtune doctor`: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from hwprobe.inventory.nvml import Inventory, NvmlGpu
from hwprobe.profile import GpuState
from tuner.doctor import PartReport, PartState, examine

STATE = GpuState(memory_used_mib=700.0, memory_reserved_mib=600.0, holders=())
GPU = NvmlGpu(
    index=0, name="NVIDIA H200", uuid="GPU-1", memory_mib=143771.0, sm_count=132, compute_capability="9.0", state=STATE
)


def answers(code: int, text: str) -> Callable[[list[str], float], tuple[int, str]]:
    return lambda command, limit_s: (code, text)


def look(code: int = 0, text: str = "0.5.23", inventory: Inventory | None = None) -> dict[str, PartReport]:
    read = inventory or Inventory(absent="no NVIDIA driver answers", software={})
    return {finding.part: finding for finding in examine("python9", run=answers(code, text), inventory=lambda: read)}


def test_an_interpreter_with_sglang_is_named_with_its_release() -> None:
    assert look()["engine local"].state is PartState.OK
    assert look()["engine local"].found == "python9 has SGLang 0.5.23"
    without = look(1, "Traceback\nPackageNotFoundError: sglang")["engine local"]
    assert (without.state, without.found) == (PartState.MISSING, "python9: PackageNotFoundError: sglang")
    assert "--python" in without.fix


def test_gpus_are_counted_and_a_lost_one_is_broken() -> None:
    assert look(inventory=Inventory(gpus=(GPU, GPU), software={}))["GPUs"].found == "2 x NVIDIA H200"
    lost = look(inventory=Inventory(gpus=(GPU,), lost=("GPU 1: GPU is lost",), software={}))["GPUs"]
    assert (lost.state, "GPU 1" in lost.found) == (PartState.BROKEN, True)
    assert look()["GPUs"].state is PartState.MISSING


def test_a_missing_extra_says_how_to_add_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.doctor.EXTRAS", {"tune": ("the sampler", ("no-such-package",))})
    finding = look()["extra [tune]"]
    assert (finding.state, finding.found) == (PartState.MISSING, "no no-such-package")
    assert "pip install -e '.[tune]'" in finding.fix


def test_the_command_prints_a_row_for_everything_and_breaks_only_for_what_is_broken(
    sgtune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = sgtune("doctor", "--json", "--python", "no-such-python")
    findings = {finding["part"]: finding for finding in json.loads(ran.out)["findings"]}
    assert ran.code == 0
    assert findings["engine local"]["state"] == "missing"
    assert "no-such-python" in findings["engine local"]["found"]
    shown = sgtune("doctor", "--python", "no-such-python").out
    assert all(part in shown for part in findings)
    monkeypatch.setenv("SGTUNE_PORTS", "80")
    broken = sgtune("doctor", "--python", "no-such-python")
    assert broken.code == 1
    assert "SGTUNE_PORTS=21000-22000" in broken.out


def test_measuring_is_for_the_nodes_of_a_cluster(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("doctor", "--measure")
    assert ran.code == 2
    assert "--measure is for the nodes of a cluster: add --cluster auto" in ran.err
