"""What of a machine each server of a deployment gets, and what is missing before any starts."""

from __future__ import annotations

import os

import pytest

from hwprobe.errors import InputError
from tuner.fleet_engines.local_fleet import on_cpu
from tuner.fleet_engines.machine_parts import cores_divided, gpus_divided, undivided
from tuner.fleet_run.preflight import check_transfer


def test_every_server_sees_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    parts = gpus_divided([4, 2, 2])
    assert [part.environment["CUDA_VISIBLE_DEVICES"] for part in parts] == ["0,1,2,3", "4,5", "6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [part.gpus for part in gpus_divided([2, 2])] == [("4", "5"), ("6", "7")]


def test_cores_are_divided_by_what_a_server_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [part.cores for part in cores_divided([1, 1], 2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert len(cores_divided([1], 2)[0].cores) == 4, "alone as beside the other"
    small, large = cores_divided([1, 3], 4)
    assert len(small.cores) < len(large.cores)
    assert not {*small.cores} & {*large.cores}


def test_fewer_cores_than_servers_bind_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert cores_divided([1, 1, 1], 3) == undivided([1, 1, 1])


@pytest.mark.parametrize(
    ("flags", "without"),
    [(("--device", "cpu"), True), (("--device=cpu",), True), (("--device", "cuda"), False), (("cpu",), False)],
)
def test_flags_say_whether_gpus_are_used(flags: tuple[str, ...], *, without: bool) -> None:
    assert on_cpu(flags) is without


def test_a_missing_transfer_library_is_named_with_what_installs_it() -> None:
    with pytest.raises(InputError, match=r"cannot import nixl\._api \(No module\): pip install nixl"):
        check_transfer("python3", "nixl", lambda _: "No module")
    check_transfer("python3", "fake", lambda _: "No module")
    check_transfer("python3", "mooncake", lambda _: "")
