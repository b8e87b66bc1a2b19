"""A node that is lost is counted once a launch, however often its loss is met; twice lost, it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from models.config import ServerConfig
from tuner.cluster.engine import ClusterEngine
from tuner.cluster.ledger import NodeLedger
from tuner.cluster.pool import Node, NodeLost, SeatPool
from tuner.cluster.seat import Build
from tuner.engines.on_nodes import on_every_node
from tuner.seam import FailureKind, LaunchFailed


@dataclass
class GoneSeat:
    """A seat whose node is gone: it is met when the launch is asked for, and again when its files are."""

    node: Node

    def launch(self, order: object) -> object:
        raise NodeLost(self.node, "the actor died")

    def stop(self, number: int) -> object:
        raise NodeLost(self.node, "the actor died")

    def death(self) -> None:
        raise NodeLost(self.node, "the actor died")

    def halt(self) -> None:
        return

    def release(self) -> None:
        return


@dataclass
class OneNode:
    """A pool of one node, which is always gone."""

    def reserve(self, count: int, build: object, elsewhere: object, lost: object) -> Sequence[Any]:
        return [GoneSeat(Node(id="1", name="n1", gpus=8))]


def test_one_loss_is_counted_once_and_the_second_leaves_the_node_out(tmp_path: Path) -> None:
    ledger = NodeLedger(tmp_path)
    engine = ClusterEngine(
        name="emulated", pool=cast("SeatPool", OneNode()), build=cast("Build", None), ledger=ledger, trials=tmp_path
    )
    for count in (1, 2):
        with pytest.raises(LaunchFailed) as failure:
            engine.launch(ServerConfig(tp_size=8), 0)
        assert failure.value.kind is FailureKind.NODE_LOST
        assert [loss.node for loss in ledger.losses] == ["n1"] * count
        assert ledger.left_out == ({"n1"} if count == 2 else set())


@dataclass
class FullPool:
    """A pool that loses a node and remembers where it was told not to go."""

    avoided: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()

    def reserve(self, count: int, build: object, avoid: frozenset[str], lost: frozenset[str]) -> Sequence[Any]:
        self.avoided, self.lost = avoid, lost
        raise NodeLost(Node(id="3", name="n3", gpus=8), "the actor died")


def test_a_resumed_run_launches_a_configuration_again_where_it_has_not_been(tmp_path: Path) -> None:
    pool, again, other = FullPool(), ServerConfig(tp_size=8), ServerConfig(tp_size=4)
    engine = ClusterEngine(
        name="emulated", pool=cast("SeatPool", pool), build=cast("Build", None), ledger=NodeLedger(tmp_path),
        trials=tmp_path,
    )  # fmt: skip
    engine.remember([(again, ["n1"]), (again, ["n2", "n3"]), (other, ["n4"])])
    with pytest.raises(LaunchFailed):
        engine.launch(again, 5)
    assert pool.avoided == {"n1", "n2", "n3"}


def test_the_second_try_of_a_launch_is_told_which_node_was_lost_under_the_first(tmp_path: Path) -> None:
    """A cluster counts a dead node as living for a while, and it is free."""
    pool = FullPool()
    engine = ClusterEngine(
        name="emulated", pool=cast("SeatPool", pool), build=cast("Build", None), ledger=NodeLedger(tmp_path),
        trials=tmp_path,
    )  # fmt: skip
    lost = []
    for number in (7, 7, 8):
        with pytest.raises(LaunchFailed):
            engine.launch(ServerConfig(tp_size=8), number)
        lost.append(pool.lost)
    assert lost == [set(), {"n3"}, set()]


def test_a_relative_interpreter_is_one_of_the_folder_it_was_named_in() -> None:
    assert on_every_node("venv/bin/python") == str(Path.cwd() / "venv/bin/python")
    assert on_every_node("/opt/sglang/bin/python") == "/opt/sglang/bin/python"
    assert on_every_node("python3") == "python3"
