"""One finished run for all tests of the dashboard."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboard_scenes import make_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))
