"""What nodes there are, as a cluster's own tools say: the same record whoever was asked, and the file made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tomli_w
from msgspec import Meta

from hwprobe.catalogue import hardware_from_catalogue, match_gpu
from hwprobe.errors import InputError
from hwprobe.files import LAUNCH_FILE_BYTES, read_bytes
from hwprobe.parsing import load_toml

READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundNode:
    """A node: GPUs counted there, what the card calls itself, MiB of a card, CPUs, GiB of memory (None: not said).

    `state` is `ready`, or why no server can be started there, in the words of whoever was asked.
    """

    name: str
    address: str
    gpus: int
    gpu: str = ""
    gpu_memory_mib: float | None = None
    cpus: int | None = None
    memory_gib: float | None = None
    state: str = READY

    @property
    def hardware(self) -> str | None:
        """Return the node's name for --hardware, None where the catalogue does not know its cards."""
        if not self.gpus or not self.gpu:
            return None
        key: str | None = self.gpu.lower()
        if self.gpu_memory_mib is not None:
            key = match_gpu(self.gpu, self.gpu_memory_mib)
        try:
            return None if key is None else hardware_from_catalogue(f"{key}x{self.gpus}").name
        except InputError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCluster:
    """All nodes that were found, and who was asked. `ray` is where the head of a Ray cluster answers, if one was."""

    source: str
    nodes: tuple[FoundNode, ...]
    ray: str | None = None

    @property
    def ready(self) -> list[FoundNode]:
        """Return the nodes with GPUs on which servers can be started."""
        return [node for node in self.nodes if node.state == READY and node.gpus]

    @property
    def hardware(self) -> str | None:
        """Return the name of all ready nodes together for --hardware, None where they differ or are not known."""
        names = Counter(node.hardware for node in self.ready)
        if len(names) != 1:
            return None
        name = next(iter(names))
        if name is None or len(self.ready) == 1:
            return name
        return f"{len(self.ready)}x{name}"

    def document(self) -> dict[str, Any]:
        """Return the document of `sgtune cluster --json`."""
        nodes = [{**msgspec.to_builtins(node), "hardware": node.hardware} for node in self.nodes]
        return {"from": self.source, "ray": self.ray, "hardware": self.hardware, "nodes": nodes}

    def toml(self) -> str:
        """Return the cluster file: the ready nodes, for --cluster FILE."""
        nodes = [
            {
                "name": node.name, "address": node.address, "gpus": node.gpus,
                **({"hardware": node.hardware} if node.hardware else {}),
            }
            for node in self.ready
        ]  # fmt: skip
        return f"# made by `sgtune cluster --from {self.source}`\n" + tomli_w.dumps(
            {**({"ray": self.ray} if self.ray else {}), "nodes": nodes}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNode:
    """A node that may be launched on, by the name or address that Ray knows it by."""

    name: str
    address: str = ""
    gpus: Annotated[int, Meta(ge=0)] = 0
    hardware: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """A file for --cluster: where Ray's head answers, and the nodes of it that are ours; none means all."""

    ray: str = "auto"
    nodes: tuple[FileNode, ...] = ()

    @property
    def only(self) -> frozenset[str]:
        """Return names and addresses of the nodes that are ours."""
        return frozenset(word for node in self.nodes for word in (node.name, node.address) if word)


def read_cluster(text: str) -> ClusterFile:
    """Read what --cluster names: auto, HOST:PORT, or a file. Raises InputError naming what is wrong in a file."""
    path = Path(text)
    if not text.endswith(".toml") and not path.is_file():
        return ClusterFile(ray=text)
    data = read_bytes(path, "cluster file", most_bytes=LAUNCH_FILE_BYTES)
    try:
        return msgspec.convert(load_toml(data, text), ClusterFile, strict=True)
    except msgspec.ValidationError as error:
        raise InputError(f"--cluster {text}: {error}; `sgtune cluster --from ray --out FILE` writes one") from error


def by_name(nodes: Sequence[FoundNode]) -> tuple[FoundNode, ...]:
    """Return nodes by name, each once: a node may stand in several partitions or lines."""
    return tuple(sorted({node.name: node for node in nodes}.values(), key=lambda node: node.name))
