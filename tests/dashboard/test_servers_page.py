"""The page Servers: only servers named at the start, and what is to be said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.advise_worlds import CASES, scraped
from tests.dashboard.test_pages import open_page, said
from tests.tuner.advise.saved_server import served


def test_no_server_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGTUNE_ADVISE_URLS", raising=False)
    assert "No server was named" in said(open_page("running_servers", tmp_path, monkeypatch))


def test_a_named_server_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.kind == "max_running_too_low")
    _, after, info, loads = scraped(case)
    texts = {"/metrics": after, "/server_info": json.dumps(info), "/v1/loads": json.dumps(loads)}
    with served(texts) as url:
        monkeypatch.setenv("SGTUNE_ADVISE_URLS", url)
        app = open_page("running_servers", tmp_path, monkeypatch)
    assert "1 thing to change" in said(app)
    assert "--max-running-requests" in app.code[0].value
