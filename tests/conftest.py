"""Shared by all tests: the command line in-process, and the machines and contexts tests speak of."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.estimate import Context
from models.machine import machine_of
from models.versions_between import profile_for

# The same examples on every run: a red build is the change's fault, not the day's.
settings.register_profile("sgtune", derandomize=True, deadline=None)
settings.load_profile("sgtune")


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
