"""The real SGLang that moves KV caches on a CPU: installed, or the test skips with the reason."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sglang_cpu"))

from run import Installed, install


def sglang_with_transfer() -> Installed:
    """Return SGLang with Mooncake over TCP, beside which SGLang's router is installed."""
    if find_spec("sglang_router") is None:
        pytest.skip("pip install -e '.[dev]' brings SGLang's router")
    try:
        return install(transfer=True)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"Mooncake over TCP cannot be installed here: {error}")
