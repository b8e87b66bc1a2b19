"""Shared by all tests: the command line in-process, and the machines and contexts tests speak of."""

from __future__ import annotations

import fcntl
import io
import os
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.engine.versions import profile_for
from models.machine import machine_of
from models.serving.estimate import Context
from tests.left import WORKER

# The same examples on every run: a red build is the change's fault, not the day's.
settings.register_profile("sgtune", derandomize=True, deadline=None)
settings.load_profile("sgtune")


ROOT = Path(__file__).parent.parent
# Tests that run side by side (`dev.py test`) start servers on ports of their own.
PORTS_A_WORKER = 1_500


# Markers; a new line in pyproject.toml would have every environment made again.
MARKERS = (
    "deep: takes a minute or more: left out of CI and `dev.py test`, run by `dev.py test --deep`",
    "real: brings up dockerd, Slurm, systemd or Prometheus from packages, as root; skips with the reason if it cannot",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    os.environ[WORKER] = str(os.getpid())
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.removeprefix("gw").isdecimal():
        first = 20_000 + PORTS_A_WORKER * (int(worker.removeprefix("gw")) % 8)
        os.environ["SGTUNE_PORTS"] = f"{first}-{first + PORTS_A_WORKER - 300}"


# Tests that start servers, draw pages or run whole tunes: left out by `dev.py test --quick`.
WHOLE = (
    "tests/faults",
    "tests/reliability",
    "tests/dashboard/test_pages.py",
    "tests/tuner/server",
    "tests/tuner/load/test_point.py",
    "tests/tuner/test_confirm.py",
    "tests/tuner/test_documents.py",
    "tests/tuner/test_emulated_fleets.py",
    "tests/tuner/test_fidelity.py",
    "tests/tuner/test_live.py",
    "tests/tuner/test_live_fleets.py",
    "tests/tuner/test_fleet_tune.py",
    "tests/tuner/test_load_ladder.py",
    "tests/tuner/test_objectives.py",
    "tests/tuner/test_sampler.py",
    "tests/tuner/test_slices_cli.py",
    "tests/tuner/test_store.py",
    "tests/tuner/test_tune.py",
    "tests/tuner/test_unmodelled_knobs.py",
    "tests/tuner/test_verify.py",
    "tests/tuner/test_when_nothing_works.py",
    "tests/tuner/test_export_cli.py",
    "tests/tuner/test_recalibrate.py",
    "tests/test_packaging.py",
    "tests/test_examples.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that must be alone come first: later they would wait for long ones, and others for them.

    The rest keep their order: those of the real SGLang follow one another in one worker, so that one runs at a time.
    """
    items.sort(key=lambda item: item.get_closest_marker("alone") is None)
    for item in items:
        if item.path.relative_to(ROOT).as_posix().startswith(WHOLE):
            item.add_marker("whole")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run tests marked `alone` while no other worker runs any: they time things. Their fixtures are set up alone too.

    Who waits to be alone closes the gate that all others pass through, so that it is soon its turn.
    """
    shared = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if shared is None:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with ExitStack() as held:
        gate, running = (
            held.enter_context((Path(tempfile.gettempdir()) / f"sgtune-tests-{shared}.{name}").open("w"))
            for name in ("gate", "running")
        )
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        return (yield)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def run_sgtune(*arguments: str) -> Ran:
    """Run the real entry point and return its exit code and output."""
    from tuner.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["sgtune", *arguments]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.argv = before
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture
def sgtune() -> Callable[..., Ran]:
    return run_sgtune


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of the simulated engine; copy it before changing anything."""
    from dashboard_scenes import make_run

    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def context() -> Callable[..., Context]:
    """Return a maker of prediction contexts by hardware name and SGLang version."""

    def make(hardware: str = "h200x8", version: str = "0.5.12", **changes: float) -> Context:
        parsed = Version(version)
        return Context(
            arch=deepseek_r1(),
            machine=machine_of(hardware_from_catalogue(hardware)),
            engine=profile_for(parsed),
            version=parsed,
            **changes,
        )

    return make
