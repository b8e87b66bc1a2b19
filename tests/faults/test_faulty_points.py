"""Faults 10, 12, 13, 16 and 17 on a running server: what it does wrong is in the verdict."""

from __future__ import annotations

import pytest

from models.config import ServerConfig
from models.workload import Workload
from tests.faults.conftest import Launcher
from tests.patience import in_one_of_three
from tuner.bench.point import MeasuredPoint, Settings, measure_point
from tuner.engines.faults import Fault, FaultKind
from tuner.seam import FailureKind, LaunchFailed, Verdict

pytestmark = pytest.mark.alone
SETTINGS = Settings(least_s=1.0, waves=20.0, most_s=20.0, vocabulary=1000)


def measured(engine: Launcher, config: ServerConfig, *faults: Fault, settings: Settings = SETTINGS) -> MeasuredPoint:
    server = engine(*faults).launch(config, 0)
    try:
        return measure_point(server.url, Workload.checked(128, 16, 2), settings=settings)
    finally:
        server.stop()


def test_fault_12_every_tenth_request_fails(engine: Launcher, config: ServerConfig) -> None:
    point = measured(engine, config, Fault(kind=FaultKind.ERRORS, count=10))
    assert point.verdict is Verdict.ERRORS
    assert "HTTP 500" in point.why


def test_fault_13_every_answer_is_a_token_short(engine: Launcher, config: ServerConfig) -> None:
    # the server's first four tokens are its proof of life and must be whole
    point = measured(engine, config, Fault(kind=FaultKind.SHORT, requests=2))
    assert point.verdict is Verdict.LENGTHS_OFF


def test_fault_16_a_server_that_slows_down_is_unsteady(engine: Launcher, config: ServerConfig) -> None:
    def attempt() -> None:
        point = measured(engine, config, Fault(kind=FaultKind.SLOW, requests=24, factor=1.6))
        assert point.verdict is Verdict.UNSTEADY
        assert "slower" in point.why

    in_one_of_three(attempt)


def test_fault_17_a_prompt_seen_before_is_noticed_unless_the_cache_was_flushed(
    engine: Launcher, config: ServerConfig
) -> None:
    def attempt() -> None:
        server = engine().launch(config, 0)
        try:
            workload = Workload.checked(128, 4, 2)
            first = measure_point(server.url, workload, settings=SETTINGS, seed=7)
            again = measure_point(
                server.url, workload, settings=Settings(**{**_fields(SETTINGS), "flush": False}), seed=7
            )
            flushed = measure_point(server.url, workload, settings=SETTINGS, seed=7)
        finally:
            server.stop()
        assert first.verdict is Verdict.OK, first.why
        assert again.verdict is Verdict.CACHE_POLLUTED
        assert flushed.verdict is Verdict.OK, flushed.why

    in_one_of_three(attempt)


def _fields(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in Settings.__slots__}


def test_fault_10_tokens_that_stop_coming_end_the_point(
    engine: Launcher, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.bench.point.STALLED_S", 1.5)
    with pytest.raises(LaunchFailed) as failed:
        measured(engine, config, Fault(kind=FaultKind.MUTE, requests=10))
    assert failed.value.kind is FailureKind.STALLED
    assert "no token for" in failed.value.evidence
