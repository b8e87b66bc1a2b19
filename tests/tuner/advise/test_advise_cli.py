"""`sgtune advise` from the command line: one document, keys that are shown nowhere, other engines, wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.advise_worlds import CASES, scraped
from tests.documents import document_of
from tests.tuner.advise.saved_server import served

CASE = next(case for case in CASES if case.kind == "max_running_too_low")


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    before, after, info, loads = scraped(CASE)
    return {"before": before, "/metrics": after, "/server_info": json.dumps(info), "/v1/loads": json.dumps(loads)}


@pytest.fixture
def url(texts: dict[str, str]) -> Iterator[str]:
    with served(texts) as address:
        yield address


def test_one_scrape_is_enough_to_find_it(sgtune: Callable[..., Any], url: str) -> None:
    asked = sgtune("advise", "--url", url, "--watch", "0s", "--json")
    assert asked.code == 0, asked.err
    document = document_of("advise", asked.out)
    first = document["findings"][0]
    assert set(first) >= {"kind", "severity", "evidence", "change", "gain_percent"}
    assert first["kind"] == "max_running_too_low"
    assert document["servers"][0]["hardware"] == "h200x8"
    assert document["simulated"] is True


def test_two_saved_scrapes_are_a_window(sgtune: Callable[..., Any], texts: dict[str, str], tmp_path: Path) -> None:
    for name, path in (("a.txt", "before"), ("b.txt", "/metrics"), ("info.json", "/server_info")):
        (tmp_path / name).write_text(texts[path])
    files = ("--metrics", str(tmp_path / "a.txt"), "--metrics", str(tmp_path / "b.txt"))
    asked = sgtune("advise", *files, "--apart", "60s", "--server-info", str(tmp_path / "info.json"), "--json")
    assert asked.code == 0, asked.err
    document = json.loads(asked.out)
    assert document["observed"]["seconds"] == 60.0
    assert document["findings"][0]["kind"] == "max_running_too_low"
    words = ("--", "--model-path", "deepseek-ai/DeepSeek-R1", "--tp", "8", "--max-running-requests", "16")
    told = sgtune("advise", *files, "--apart", "60s", "--json", *words)
    assert json.loads(told.out)["findings"][0]["kind"] == "max_running_too_low"


def test_a_key_opens_the_server_and_is_shown_nowhere(
    sgtune: Callable[..., Any], texts: dict[str, str], tmp_path: Path
) -> None:
    key = "k3y-that-nobody-may-see"
    (tmp_path / "key").write_text(key + "\n")
    with served(texts, key=key) as url:
        shut = sgtune("advise", "--url", url, "--watch", "0s")
        opened = sgtune("advise", "--url", url, "--watch", "0s", "--api-key-file", str(tmp_path / "key"))
    assert "wants a key" in shut.out
    assert "max_running_too_low" in opened.out
    assert key not in shut.out + shut.err + opened.out + opened.err


def test_another_engine_is_named_as_such(sgtune: Callable[..., Any]) -> None:
    with served({"/metrics": "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3\n"}) as url:
        asked = sgtune("advise", "--url", url, "--watch", "0s", "--json")
    assert asked.code == 0, asked.err
    (server,) = json.loads(asked.out)["servers"]
    assert server["engine"] == "vLLM"
    assert json.loads(asked.out)["findings"] == []


def test_steady_servers_teach_a_profile(sgtune: Callable[..., Any], texts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(texts["before"])
    (tmp_path / "b.txt").write_text(texts["/metrics"])
    (tmp_path / "info.json").write_text(texts["/server_info"])
    asked = sgtune(
        "advise", "--metrics", str(tmp_path / "a.txt"), "--metrics", str(tmp_path / "b.txt"), "--apart", "60s",
        "--server-info", str(tmp_path / "info.json"), "--calibrate", str(tmp_path / "here.json"), "--json",
    )  # fmt: skip
    assert asked.code == 0, asked.err
    assert json.loads(asked.out)["calibrated"]["points"] == 1
    profile = str(tmp_path / "here.json")
    load = ("--hardware", "h200x8", "--isl", "1000", "--osl", "200", "--concurrency", "8")
    planned = sgtune("plan", *load, "--profile", profile, "--json")
    assert planned.code == 0, planned.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--url"),
        (("--url", "http://127.0.0.1:1"), "no server answers"),
        (("--url", "ftp://x"), "--url"),
        (("--metrics", "nowhere.txt"), "nowhere.txt"),
        (("--url", "http://127.0.0.1:1", "--serve", "x"), "--serve"),
        (("--url", "http://127.0.0.1:1", "--watch", "soon"), "--watch"),
        (("--prometheus", "http://127.0.0.1:1"), "--prometheus"),
    ],
)
def test_wrong_input_names_the_flag(sgtune: Callable[..., Any], words: tuple[str, ...], named: str) -> None:
    asked = sgtune("advise", *words)
    assert asked.code == 2
    assert named in asked.err
