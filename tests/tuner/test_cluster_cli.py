"""`sgtune cluster`: what sinfo and ssh answer, read; options that do not go together; the file that --cluster takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError
from tuner.cluster.found_nodes import FoundNode, read_cluster
from tuner.cluster.from_hosts import hosts_of

Sgtune = Callable[..., Any]
SINFO = """\
node1|10.0.0.1|gpu:h200:8(S:0-1)|192|2000000|idle
node1|10.0.0.1|gpu:h200:8(S:0-1)|192|2000000|idle
node2|10.0.0.2|gpu:h200:8(S:0-1)|192|2000000|mixed
node3|10.0.0.3|gpu:h200:8|192|2000000|down*
login|10.0.0.9|(null)|16|64000|idle
"""


def program(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of this name first on the path."""
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")


def test_slurm_says_what_nodes_there_are_and_the_file_holds_those_that_are_ready(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "sinfo", f"cat <<'END'\n{SINFO}END", monkeypatch)
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    ran = sgtune("cluster", "--from", "slurm", "--json", "--out", str(tmp_path / "c.toml"))
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["hardware"] == "2xh200x8"
    assert [(node["name"], node["gpus"], node["state"]) for node in document["nodes"]] == [
        ("login", 0, "ready"), ("node1", 8, "ready"), ("node2", 8, "ready"), ("node3", 8, "down*"),
    ]  # fmt: skip
    known = read_cluster(str(tmp_path / "c.toml"))
    assert known.ray == "auto"
    assert known.only == {"node1", "10.0.0.1", "node2", "10.0.0.2"}
    assert "node3" in sgtune("cluster", "--from", "slurm").out


def test_inside_an_allocation_only_its_nodes_count(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "sinfo", f"cat <<'END'\n{SINFO}END", monkeypatch)
    program(tmp_path, "scontrol", 'test "$3" = "node[2]" && echo node2', monkeypatch)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[2]")
    ran = sgtune("cluster", "--from", "slurm", "--json")
    assert [node["name"] for node in json.loads(ran.out)["nodes"]] == ["node2"]


def test_hosts_are_asked_over_ssh_and_one_that_does_not_answer_says_so(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = r"NVIDIA H200, 143771\nNVIDIA H200, 143771\n==\nalpha\n64\nMemTotal:  2113000000 kB\n"
    body = f"case \"$*\" in *node0*) printf '{answer}';; *) echo 'ssh: connect: refused' >&2; exit 255;; esac"
    program(tmp_path, "ssh", body, monkeypatch)
    ran = sgtune("cluster", "--from", "hosts", "--hosts", "node0,node1", "--json")
    assert ran.code == 0, ran.err
    alpha, refused = json.loads(ran.out)["nodes"]
    assert (alpha["name"], alpha["address"], alpha["hardware"], alpha["cpus"]) == ("alpha", "node0", "h200x2", 64)
    assert refused["state"] == "ssh: connect: refused"
    none = sgtune("cluster", "--from", "hosts", "--hosts", "node1")
    assert none.code == 1
    assert "no node is ready" in none.out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--from", "hosts"), "--hosts"),
        (("--from", "slurm", "--hosts", "a"), "--from hosts"),
        (("--from", "hosts", "--hosts", "-oProxyCommand=x"), "is no host"),
        (("--from", "hosts", "--hosts", "a;b"), "is no host"),
        (("--from", "hosts", "--hosts", ","), "no host is named"),
    ],
)
def test_what_has_no_meaning_is_refused(sgtune: Sgtune, options: tuple[str, ...], named: str) -> None:
    ran = sgtune("cluster", *options)
    assert ran.code == 2
    assert named in ran.err


def test_a_file_of_hosts_may_be_one_of_mpi(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("node0 slots=8\n# not node9\n\nuser@node1 slots=8\nnode0\n")
    assert hosts_of(str(file)) == ["node0", "user@node1"]


def test_a_cluster_file_that_is_wrong_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("nodes = 3\n")
    with pytest.raises(InputError, match=r"c\.toml: Expected `array`"):
        read_cluster(str(file))
    assert read_cluster("10.0.0.1:6379").ray == "10.0.0.1:6379"


def test_cards_that_share_a_name_are_told_apart_by_their_memory() -> None:
    def named(mib: float) -> str | None:
        return FoundNode(name="a", address="a", gpus=8, gpu="NVIDIA H20", gpu_memory_mib=mib).hardware

    assert (named(97871.0), named(143771.0)) == ("h20x8", "h20-3ex8")
