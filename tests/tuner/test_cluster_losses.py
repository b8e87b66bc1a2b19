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

    def reserve(self, count: int, build: object, elsewhere: object) -> Sequence[Any]:
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
    """A pool without nodes that remembers where it was told not to go."""

    avoided: frozenset[str] = frozenset()

    def reserve(self, count: int, build: object, avoid: frozenset[str]) -> Sequence[Any]:
        self.avoided = avoid
        raise NodeLost(Node(id="", name="none", gpus=0), "no node left")


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
