"""The real components as fixtures: each is brought up from packages, or its tests skip and say why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from models.version import NEWEST
from tests.real.dockerd import Dockerd, import_image
from tests.real.packages import install, lacks

# "install" where packages may be installed: .ci/run, dev.py test --real.
REAL = "SGTUNE_REAL"


def need(*parts: str) -> None:
    """Skip the test where a part is not there and may not, or cannot, be installed."""
    if os.environ.get(REAL) == "install":
        why = install(*parts)
    else:
        missing = [what for part in parts if (what := lacks(part))]
        why = f"no {', '.join(missing)} here: python3 tests/real/packages.py installs it" if missing else ""
    if why:
        pytest.skip(why)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/real/" in item.path.as_posix():
            item.add_marker("real")


@pytest.fixture(scope="session")
def daemons() -> Iterator[Callable[..., Dockerd]]:
    """Return a maker of docker daemons; where none starts here, its tests skip."""
    made: list[Dockerd] = []

    def make(*, gpus: bool = True) -> Dockerd:
        need("docker", "rootfs")
        if os.geteuid():
            pytest.skip("dockerd needs root")
        daemon = Dockerd(gpus=gpus)
        made.append(daemon)
        try:
            daemon.start()
        except RuntimeError as error:
            pytest.skip(f"no docker daemon starts here: {error}")
        return daemon

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture(scope="session")
def shared_daemon(daemons: Callable[..., Dockerd]) -> Dockerd:
    daemon = daemons()
    import_image(daemon, str(NEWEST))
    return daemon


@pytest.fixture
def daemon(shared_daemon: Dockerd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dockerd]:
    """Return a daemon that has SGLang's image and nothing else, which this test's docker speaks to."""
    for name, value in shared_daemon.environment.items():
        monkeypatch.setenv(name, value)
    yield shared_daemon
    left = shared_daemon.containers()
    if left:
        shared_daemon.ask("rm", "--force", *left)
    assert left == [], "the test left containers"
