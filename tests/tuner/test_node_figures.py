"""Nodes measured before a run: the slow one is named with its figures, equal ones are not, gaps in them are said."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe import session
from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.kernels.report import Report, Step
from hwprobe.measure import MeasureTask, TaskOutcome
from hwprobe.profile import Basis, HardwareProfile, HostProfile, Quantity, read_profile
from tests.hwprobe.fake_nvml import H200, FakeNvml
from tests.tuner.test_check_up import USUAL
from tuner.cluster import check_up
from tuner.cluster.check_up import first_look, launchable
from tuner.cluster.found_nodes import ClusterFile
from tuner.cluster.node_figures import slow_nodes
from tuner.cluster.node_probe import probe_node
from tuner.cluster.node_report import NodeReport
from tuner.cluster.pool import Node

HEALTHY = {"hbm_gb_s": 4370.0, "bf16_tflops": 790.0, "eager_launch_us": 4.0}


def figures(values: dict[str, float], spread: float = 0.01) -> dict[str, Quantity]:
    return {name: Quantity(value=value, basis=Basis.MEASURED, spread=spread) for name, value in values.items()}


def node(*, factor: float = 1.0, slow_gpu: float = 1.0, dice: random.Random | None = None) -> HardwareProfile:
    """Eight H200s at a share of what healthy ones do, one of them at a share of that; repeats differ by 1 %."""
    profile = hardware_from_catalogue("h200x8")
    gpus = []
    for place, gpu in enumerate(profile.gpus):
        share = factor * (slow_gpu if place == 5 else 1.0) * (1.0 if dice is None else dice.gauss(1.0, 0.01))
        values = {name: value / share if name.endswith("_us") else value * share for name, value in HEALTHY.items()}
        gpus.append(replace(gpu, measured=figures(values)))
    return replace(profile, gpus=tuple(gpus))


def host(copy_gb_s: float, *, spread: float = 0.01, warnings: tuple[str, ...] = ()) -> HardwareProfile:
    measured = figures({"hbm_copy_gb_s": copy_gb_s}, spread)
    machine = HostProfile(cpu="a", logical_cpus=2, memory_gib=24.0, measured=measured)
    return HardwareProfile(name="no GPU", gpus=(), host=machine, warnings=warnings)


def test_a_slow_node_is_named_with_its_figures_and_no_other() -> None:
    named = slow_nodes({"n1": node(), "n2": node(factor=0.8), "n3": node()})
    assert set(named) == {"n2"}
    assert "memory read 20% below the other nodes (3,496 against 4,370 GB/s)" in named["n2"]
    assert "eager launch 25% above the other nodes (5 against 4 us)" in named["n2"]


def test_one_slow_card_makes_its_node_slow() -> None:
    assert set(slow_nodes({"n1": node(), "n2": node(slow_gpu=0.85)})) == {"n2"}


def test_nodes_with_other_cards_and_a_head_without_any_are_not_slow() -> None:
    h100 = replace(node(factor=0.75), gpus=tuple(replace(gpu, name="NVIDIA H100") for gpu in node(factor=0.75).gpus))
    assert slow_nodes({"n1": node(), "n2": h100, "n3": node()}) == {}
    head, worker = Node(id="0", name="head", gpus=0), Node(id="1", name="n1", gpus=8)
    assert launchable([head, worker]) == [worker]
    assert launchable([head]) == [head]


@pytest.mark.parametrize("seed", range(20))
def test_equal_nodes_are_not_told_apart(seed: int) -> None:
    dice = random.Random(seed)
    assert slow_nodes({f"n{number}": node(dice=dice) for number in range(4)}) == {}


def test_a_gap_within_the_spread_and_figures_of_a_busy_host_name_nobody() -> None:
    assert set(slow_nodes({"n1": host(30.0), "n2": host(24.0)})) == {"n2"}
    assert slow_nodes({"n1": host(30.0, spread=0.15), "n2": host(24.0, spread=0.1)}) == {}
    busy = f"{session.BUSY_HOST}: 90 % of its CPU is in use"
    assert slow_nodes({"n1": host(30.0), "n2": host(10.0, warnings=(busy,))}) == {}
    assert slow_nodes({"n1": host(30.0)}) == {}


def test_a_node_without_a_gpu_is_measured_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "busy_host", lambda: None)
    monkeypatch.setattr(session, "torch_installed", lambda: True)
    monkeypatch.setattr(session, "AMD_DRIVER", Path("/nonexistent"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def runner(task: MeasureTask) -> TaskOutcome:
        if task.request.step is Step.GEMM:
            return TaskOutcome(task=task, seconds=1.0, failure="ended by SIGKILL")
        report = Report(quantities=figures({"hbm_copy_gb_s": 30.0}), missing=("FP8: only GPUs have it",))
        return TaskOutcome(task=task, seconds=1.0, report=report)

    profile = probe_node(runner=runner)
    assert profile.host is not None
    assert set(profile.host.measured) == {"hbm_copy_gb_s"}
    assert {"host: matrix rates: ended by SIGKILL", "not measured: FP8: only GPUs have it"} <= set(profile.warnings)


def test_gpus_are_measured_beside_their_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "busy_host", lambda: None)
    monkeypatch.setattr(session, "torch_installed", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def runner(task: MeasureTask) -> TaskOutcome:
        gb_s = 4300.0 if task.gpus else 30.0
        report = Report(quantities=figures({"hbm_copy_gb_s": gb_s} if len(task.gpus) < 2 else {}))
        return TaskOutcome(task=task, seconds=1.0, report=report)

    profile = probe_node(nvml=FakeNvml([H200] * 2), runner=runner)
    assert [gpu.measured["hbm_copy_gb_s"].value for gpu in profile.gpus] == [4300.0, 4300.0]
    assert profile.host is not None
    assert profile.host.measured["hbm_copy_gb_s"].value == 30.0


class FakeRay:
    """Three nodes, of which n2 is slow and n3 taken by somebody; counts what is measured."""

    def __init__(self) -> None:
        self.turns: list[list[str]] = []

    def survey(self) -> list[tuple[Node, NodeReport]]:
        names = ("n1", "n2", "n3")
        reports = (
            replace(
                USUAL,
                host=name,
                profile=replace(host(30.0), host=HostProfile(cpu="a", logical_cpus=2, memory_gib=24.0)),
            )
            for name in names
        )
        return [(Node(id=name, name=name, gpus=8), report) for name, report in zip(names, reports, strict=True)]

    def measured(self, turns: list[list[Node]]) -> Any:
        self.turns += [[item.name for item in nodes] for nodes in turns]
        for item in (item for nodes in turns for item in nodes):
            yield (
                item,
                "its GPUs are in use in the cluster"
                if item.name == "n3"
                else host({"n1": 30.0, "n2": 20.0}[item.name]),
            )


def test_a_run_keeps_the_figures_and_measures_what_is_missing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeRay()
    monkeypatch.setattr(check_up, "join", lambda address: (cluster, ClusterFile(ray="auto")))
    said: list[str] = []
    first_look("auto", tmp_path, measure=True, tell=said.append)
    slow = "node n2: it is slow: host's memory copy 33% below the other node (20 against 30 GB/s)"
    assert slow in said
    assert "node n3: not measured: its GPUs are in use in the cluster" in said
    assert not any(note.startswith("node n1: it is slow") for note in said)
    kept = read_profile(tmp_path / "nodes/n2.json")
    assert kept.host is not None
    assert kept.host.measured["hbm_copy_gb_s"].value == 20.0
    said.clear()
    first_look("auto", tmp_path, measure=True, tell=said.append)
    assert cluster.turns == [["n1"], ["n2"], ["n3"], ["n3"]], "a resumed run measures what it has no figures of"
    assert slow in said
