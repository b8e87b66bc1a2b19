"""Seats as Ray actors: one a node, each with all GPUs of its node. The only module that imports ray.

Ray's own retries stay off: a lost seat is a lost launch, and the tuner decides what follows. A thread beats for every
seat; a beat that is not answered within the lease counts as a loss, and the seat ends itself by its own lease.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._private.state import available_resources_per_node
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hwprobe.errors import InputError
from hwprobe.profile import HardwareProfile
from models.workload import Workload
from tuner.cluster.ledger import NodeLedger
from tuner.cluster.node_probe import probe_node
from tuner.cluster.node_report import NodeReport, report
from tuner.cluster.pool import Node, NodeLost
from tuner.cluster.seat import Build, Ended, Failed, Seat, Stand
from tuner.seam import Death, LaunchOrder, Measurement, ServerInfo

BEATS_A_LEASE = 5
START_S = 60.0
CONNECT_S = 5.0
STOP_S = 120.0
# While nodes are measured one of them answers within this: eight cards take some four minutes.
PROBE_S = 1200.0
WAIT_S = 1.0
# Beats are answered while a launch or a measurement is under way.
CALLS_AT_ONCE = 4


def connect(address: str) -> None:
    """Join a running Ray cluster: `auto`, or HOST:PORT of its head. Raises InputError where no cluster answers."""
    if ray.is_initialized():
        return
    # Ray prints what it notices of lost workers to our stdout, where a JSON document is to stand, and has no switch.
    ray_worker.print_to_stdstream = lambda data, ignore_prefix: None
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # Ray itself waits minutes for a head that is not there
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (RayError, OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--cluster {address}: no Ray cluster answers ({first}); start one with `ray start --head`, on every other "
            "node `ray start --address HEAD:6379`, and run sgtune on one of its nodes"
        ) from error


def disconnect() -> None:
    """Leave the cluster."""
    ray.shutdown()


def nodes_of(gpus: int) -> list[Node]:
    """Return the living nodes of the cluster that have so many GPUs, by name."""
    living = [
        Node(
            id=item["NodeID"],
            name=item["NodeName"],
            gpus=int(item["Resources"].get("GPU", 0)),
            address=item["NodeManagerAddress"],
        )
        for item in ray.nodes()  # type: ignore[no-untyped-call]  # as ray ships it
        if item["Alive"]
    ]
    return sorted((node for node in living if node.gpus >= gpus), key=lambda node: node.name)


def survey() -> list[tuple[Node, NodeReport | str]]:
    """Ask every node what it is: a report, or why it gave no report."""
    pending = [(node, _on(node.id, ray.remote(report)).remote()) for node in nodes_of(0)]
    reports: list[tuple[Node, NodeReport | str]] = []
    for node, answer in pending:
        try:
            reports.append((node, ray.get(answer, timeout=START_S)))
        except RayError as error:
            reports.append((node, str(error).strip().splitlines()[0]))
    return reports


def measured(turns: Sequence[Sequence[Node]]) -> Iterator[tuple[Node, HardwareProfile | str]]:
    """Measure nodes with all their GPUs, those of one turn one by one; yield figures, or why there are none.

    A node whose GPUs somebody holds in the cluster is not measured.
    """
    available = available_resources_per_node()  # type: ignore[no-untyped-call]  # as ray ships it
    queues = [[node for node in nodes if _is_free(node, available)] for nodes in turns]
    for node in (node for nodes in turns for node in nodes if not _is_free(node, available)):
        yield node, "its GPUs are in use in the cluster"
    running = {_probing(queue[0]): queue for queue in queues if queue}
    while running:
        answered, _ = ray.wait(list(running), timeout=PROBE_S)
        if not answered:
            for call, queue in running.items():
                ray.cancel(call, force=True)
                yield from ((node, f"not done within {PROBE_S:.0f} s") for node in queue)
            return
        node, *rest = running.pop(answered[0])
        if rest:
            running[_probing(rest[0])] = rest
        try:
            yield node, ray.get(answered[0])
        except RayError as error:
            yield node, _words(error)


def _is_free(node: Node, available: Mapping[str, Mapping[str, float]]) -> bool:
    return available.get(node.id, {}).get("GPU", 0) >= node.gpus


def _probing(node: Node) -> Any:
    return _on(node.id, ray.remote(probe_node), num_gpus=node.gpus, num_cpus=0, max_retries=0).remote()


def _on(node: str, remote: Any, **options: Any) -> Any:
    return remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False), **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What servers need: GPUs of a node, nodes each; `only` nodes of these names or addresses, if there are any."""

    gpus: int
    at_once: int = 1
    only: frozenset[str] = frozenset()

    def nodes(self) -> list[Node]:
        """Return the living nodes that have it."""
        return [node for node in nodes_of(self.gpus) if not self.only or {node.name, node.address} & self.only]


class RayPool:
    """One seat a node, for servers that need `room`."""

    def __init__(self, *, room: Room, ledger: NodeLedger, lease_s: float) -> None:
        """Raises InputError where too few nodes have the room."""
        self._room, self._ledger, self._lease_s = room, ledger, lease_s
        self._free = threading.Condition()
        self._taken: dict[str, RaySeat] = {}
        available, at_once, gpus = len(room.nodes()), room.at_once, room.gpus
        if available < at_once:
            cluster = "the cluster file's nodes" if room.only else "the Ray cluster"
            shortage = f"no node of {cluster} has" if at_once == 1 else f"{available} of {at_once} nodes asked for have"
            raise InputError(f"{shortage} {gpus} GPUs; start its nodes with `ray start --num-gpus {gpus}`")

    @property
    def nodes(self) -> Sequence[Node]:
        return [node for node in self._room.nodes() if node.name not in self._ledger.left_out]

    def reserve(
        self, count: int, build: Build, avoid: Collection[str] = (), lost: Collection[str] = ()
    ) -> list[RaySeat]:
        """Wait for so many free nodes and take seats there, all or none.

        Raises NodeLost where too few are left, or a seat does not come.
        """
        with self._free:
            while True:
                nodes = self.nodes
                if len(nodes) < count:
                    nodes_left = (
                        f"{len(nodes) or 'no'} node{'s' if len(nodes) > 1 else ''} of the cluster left for a launch"
                    )
                    raise NodeLost(Node(id="", name="none", gpus=0), f"{nodes_left} that takes {count}")
                sound = [node for node in nodes if node.name not in lost]
                free = [node for node in (sound if len(sound) >= count else nodes) if node.id not in self._taken]
                if len(free) >= count:
                    break
                self._free.wait(WAIT_S)
            free.sort(key=lambda node: node.name in avoid)
            seats = [RaySeat(node, self) for node in free[:count]]
            self._taken |= {seat.node.id: seat for seat in seats}
        with ThreadPoolExecutor(count) as threads:
            starting = [threads.submit(seat.start, build, self._room.gpus, self._lease_s) for seat in seats]
        failed = [error for future in starting if (error := future.exception()) is not None]
        if failed:
            for seat in seats:
                seat.release()
            raise failed[0]
        return seats

    def given_back(self, node: Node) -> None:
        """Take a node back."""
        with self._free:
            self._taken.pop(node.id, None)
            self._free.notify_all()

    def abort(self) -> None:
        for seat in list(self._taken.values()):
            seat.end("the run ends")

    def close(self) -> None:
        self.abort()
        disconnect()


class RaySeat:
    """A seat on a node, and the thread that beats for it."""

    def __init__(self, node: Node, pool: RayPool) -> None:
        self.node, self._pool = node, pool
        self._actor: Any = None
        self._why_lost = ""
        self._over = threading.Event()

    def start(self, build: Build, gpus: int, lease_s: float) -> None:
        """Start the actor and wait until it answers. Raises NodeLost."""
        actor_class = _on(
            self.node.id,
            ray.remote(Seat),
            num_gpus=gpus,
            num_cpus=0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=CALLS_AT_ONCE,
        )
        stand = Stand(node=self.node.name, address=self.node.address, gpus=tuple(range(gpus)))
        self._actor = actor_class.remote(build, stand, lease_s)
        try:
            ray.get(self._actor.beat.remote(), timeout=START_S)
        except RayError as error:
            self.end(_words(error))
            raise NodeLost(self.node, self._why_lost) from error
        threading.Thread(target=self._beat, args=(lease_s,), name="beat", daemon=True).start()

    def meeting_point(self) -> str:
        return str(self._ask("meeting_point"))

    def launch(self, order: LaunchOrder) -> ServerInfo:
        answer: ServerInfo = self._ask("launch", order)
        return answer

    def info(self) -> ServerInfo:
        answer: ServerInfo = self._ask("info")
        return answer

    def death(self) -> Death | None:
        answer: Death | None = self._ask("death")
        return answer

    def halt(self) -> None:
        self._ask("halt")

    def measure(self, workload: Workload) -> Measurement:
        answer: Measurement = self._ask("measure", workload)
        return answer

    def stop(self, number: int) -> Ended:
        answer: Ended = self._ask("stop", number)
        return answer

    def release(self) -> None:
        if not self._over.is_set():
            try:
                ray.get(self._actor.close.remote(), timeout=STOP_S)
            except RayError as error:
                self._why_lost = self._why_lost or _words(error)
            self.end("given back")
        self._pool.given_back(self.node)

    def end(self, why: str) -> None:
        """End the seat's process, and its server with it."""
        self._why_lost = self._why_lost or why
        self._over.set()
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the seat; return its answer. Raises NodeLost, or the LaunchFailed it answers with."""
        call = getattr(self._actor, method).remote(*arguments)
        try:
            while not ray.wait([call], timeout=WAIT_S)[0]:
                if self._over.is_set():
                    raise NodeLost(self.node, self._why_lost)
            answer = ray.get(call)
        except RayError as error:
            why = self._why_lost or _words(error)
            self.end(why)
            raise NodeLost(self.node, why) from error
        if isinstance(answer, Failed):
            raise answer.failure
        return answer

    def _beat(self, lease_s: float) -> None:
        while not self._over.wait(lease_s / BEATS_A_LEASE):
            try:
                ray.get(self._actor.beat.remote(), timeout=lease_s)
            except GetTimeoutError:
                self.end(f"no answer for {lease_s:.0f} s")
            except RayError as error:
                self.end(_words(error))


def _words(error: RayError) -> str:
    """Return an error of Ray in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
