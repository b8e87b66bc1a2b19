"""Of the ranks of a server the first that died decides, and what follows from a death is not taken for its cause."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tuner.cluster.first_death import RankWatch
from tuner.cluster.pool import Node, NodeLost
from tuner.seam import Death, FailureKind, LaunchFailed

BROKEN_OFF = LaunchFailed(FailureKind.NCCL, "Connection reset by peer", 1.0)
KILLED = LaunchFailed(FailureKind.KILLED, "terminated with -9", 1.0)


@dataclass
class Standing:
    """A seat that says how its server ended, or is gone."""

    name: str
    ended: Death | None = None
    gone: bool = False
    halted: list[str] = field(default_factory=list)

    @property
    def node(self) -> Node:
        return Node(id=self.name, name=self.name, gpus=8)

    def death(self) -> Death | None:
        if self.gone:
            raise NodeLost(self.node, "the node died")
        return self.ended

    def halt(self) -> None:
        self.halted.append(self.name)


def watch(*seats: Any) -> RankWatch:
    return RankWatch(seats)


def test_the_cause_decides_though_its_consequence_was_heard_first() -> None:
    seen = watch(Standing("n1"), Standing("n2", ended=Death(KILLED, 0.0)))
    decided = seen.decided(BROKEN_OFF)
    seen.close()
    assert decided.kind is FailureKind.KILLED
    assert decided.evidence == "rank 1 on node n2 was the first to end: terminated with -9"


def test_the_first_rank_says_for_itself_what_the_others_died_of() -> None:
    seen = watch(Standing("n1"), Standing("n2", ended=Death(BROKEN_OFF, 0.0)))
    assert seen.decided(KILLED) is KILLED
    seen.close()


def test_of_two_causes_the_earlier_decides() -> None:
    late, early = Death(KILLED, 1.0), Death(LaunchFailed(FailureKind.OOM_KV, "no room", 1.0), 5.0)
    seen = watch(Standing("n1"), Standing("n2", ended=late), Standing("n3", ended=early))
    assert seen.decided(BROKEN_OFF).kind is FailureKind.OOM_KV
    seen.close()


def test_a_node_that_is_gone_is_no_ones_configuration() -> None:
    seen = watch(Standing("n1"), Standing("n2", gone=True))
    with pytest.raises(NodeLost, match="node n2 is lost"):
        seen.decided(BROKEN_OFF)
    seen.close()


def test_the_first_rank_is_ended_when_another_died_of_something() -> None:
    first = Standing("n1")
    seen = watch(first, Standing("n2", ended=Death(KILLED, 0.0)))
    seen._thread.join(timeout=10.0)
    assert first.halted == ["n1"]
    seen.close()
