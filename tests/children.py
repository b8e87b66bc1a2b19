"""Processes that tests start. They listen to Ctrl-C even where the tests ignore it, as in `nohup dev.py test &`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any


def start_sgtune(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, with SIGINT at its default, its output in pipes."""
    command = [sys.executable, "-m", "tuner.cli.main", *arguments]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=_listen_to_control_c, **more,
    )  # fmt: skip


def _listen_to_control_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
