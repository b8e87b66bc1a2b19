"""What sets a node apart from the others of its cluster is said of that node alone."""

from __future__ import annotations

from dataclasses import replace

from hwprobe.catalogue import hardware_from_catalogue
from tuner.cluster.check_up import set_apart
from tuner.cluster.node_report import NodeReport

USUAL = NodeReport(
    host="a", python="3.11.7", sgtune="1", ray="2.60.0", gpus=("NVIDIA H200",) * 8, gpu_memory_mib=143771.0, cpus=192,
    memory_gib=2000.0, niceness=0, oom_score_adj=0, open_files=65536, clock_s=0.0,
    profile=replace(hardware_from_catalogue("h200x8"), software={"driver": "570.86"}),
)  # fmt: skip


def test_one_driver_among_three_is_said_of_its_node() -> None:
    other = replace(USUAL, profile=replace(USUAL.profile, software={"driver": "550.54"}))
    assert set_apart({"n1": USUAL, "n2": other, "n3": USUAL}) == {
        "n2": ["its driver is 550.54, most nodes have 570.86"]
    }


def test_a_card_that_is_missing_is_said() -> None:
    short = replace(USUAL, gpus=("NVIDIA H200",) * 7)
    assert set_apart({"n1": USUAL, "n2": short, "n3": USUAL})["n2"] == [
        "its set of GPUs is 7 x NVIDIA H200, most nodes have 8 x NVIDIA H200"
    ]


def test_two_that_differ_are_both_named_and_one_alone_is_not() -> None:
    other = replace(USUAL, python="3.12.1")
    assert set_apart({"n1": USUAL, "n2": other}) == {
        "n1": ["its Python is 3.11.7, every node has another"],
        "n2": ["its Python is 3.12.1, every node has another"],
    }
    assert set_apart({"n1": USUAL}) == {}
    assert set_apart({"n1": USUAL, "n2": USUAL}) == {}
