"""`sgtune dashboard`: what it starts, and what it says when it cannot."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.cli.commands import dashboard

Sgtune = Callable[..., Any]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    calls: list[tuple[list[str], Path]] = []

    def serve(words: list[str], runs: Path) -> int:
        calls.append((words, runs))
        return 0

    monkeypatch.setattr(dashboard, "_serve", serve)
    return calls


def settings(words: list[str]) -> dict[str, str]:
    return dict(zip(words[3::2], words[4::2], strict=True))


def test_it_serves_this_machine_only_and_reports_to_nobody(sgtune: Sgtune, served: Any, tmp_path: Path) -> None:
    ran = sgtune("dashboard", "--runs", str(tmp_path), "--no-browser")
    assert ran.code == 0
    words, runs = served[0]
    assert runs == tmp_path
    chosen = settings(words)
    assert chosen["--server.address"] == "127.0.0.1"
    assert chosen["--browser.gatherUsageStats"] == "false"
    assert chosen["--server.headless"] == "true"
    assert f"http://127.0.0.1:{chosen['--server.port']}" in ran.err


def test_a_taken_port_is_passed_over_or_named(
    sgtune: Sgtune, served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        taken = rival.getsockname()[1]
        ran = sgtune("dashboard", "--port", str(taken))
        assert ran.code == 2
        assert f"port {taken} is taken on 127.0.0.1; name another with --port" in ran.err
        monkeypatch.setattr(dashboard, "FIRST_PORT", taken)
        assert sgtune("dashboard", "--runs", str(tmp_path)).code == 0
    assert settings(served[0][0])["--server.port"] != str(taken)
    assert settings(served[0][0])["--server.headless"] == "false"


def test_what_cannot_be_served_is_said(sgtune: Sgtune, served: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, why in (
        (("--port", "70000"), "--port is 70000; it must be between 1 and 65535"),
        (("--runs", str(tmp_path / "file")), "it must be a folder of run folders"),
    ):
        ran = sgtune("dashboard", *arguments)
        assert ran.code == 2
        assert why in ran.err
    assert served == []


def test_without_streamlit_it_says_how_to_get_it(sgtune: Sgtune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None if name == "streamlit" else object())
    ran = sgtune("dashboard")
    assert ran.code == 2
    assert "the dashboard needs streamlit: in the checkout, pip install -e '.[dashboard]'" in ran.err
