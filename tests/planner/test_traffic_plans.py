"""Plans and predictions for a trace: the fewest servers, minutes, and what the cache is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.documents import document_of

Sgtune = Callable[..., Any]
EXAMPLES = Path(__file__).parents[2] / "examples" / "traffic"
SLOS = ("--slo", "ttft:p99<2s", "--slo", "tpot:mean<50ms")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long prompts with one long system prompt, ten a second."""
    path = tmp_path_factory.mktemp("traffic") / "crowd.jsonl"
    rows = [
        {"timestamp": number * 100, "input_length": 6144, "output_length": 150, "hash_ids": [*range(11), 100 + number]}
        for number in range(400)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def planned(sgtune: Sgtune, path: Path, *options: str) -> Any:
    done = sgtune("plan", "--hardware", "h200x8", "--traffic", str(path), "--json", *options)
    assert done.code in (0, 3), done.err
    return document_of("plan", done.out)


def test_the_fewest_servers_are_found_and_one_less_does_not_keep_the_slos(
    sgtune: Sgtune, crowd: Path, tmp_path: Path
) -> None:
    answer = planned(sgtune, crowd, "--slo", "ttft:p99<1s", "--rate-scale", "2")
    servers = answer["answer"]["servers"]
    assert servers > 1
    assert answer["answer"]["ttft_ms"]["p99"] < 1000
    argv = " ".join(answer["candidates"][0]["argv"]).partition("--tp")
    launch = (argv[1] + argv[2]).replace("--host 0.0.0.0 --port 30000", "")
    out = tmp_path / "one_less.jsonl"
    done = sgtune("predict", "--hardware", "h200x8", "--traffic", str(crowd), "--rate-scale", "2", "--launch-args",
                  launch, "--replicas", str(servers - 1), "--out", str(out))  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(out.read_text())["ttft_p99_ms"] > 1000


def test_without_its_cache_a_shared_prompt_takes_more_servers(sgtune: Sgtune, crowd: Path) -> None:
    answer = planned(sgtune, crowd, "--slo", "ttft:p99<2s", "--rate-scale", "2")
    without = answer["traffic"]["without_cache"]
    assert answer["answer"]["hit_rate"] > 0.8
    assert without["hit_rate"] == 0.0
    assert without["fewest_servers"] > answer["answer"]["servers"]
    routing = answer["traffic"]["routing"]
    assert routing["cache_aware"]["hit_rate"] >= routing["round_robin"]["hit_rate"]


def test_the_minutes_cover_the_trace_and_the_busy_ones_wait(sgtune: Sgtune) -> None:
    answer = planned(sgtune, EXAMPLES / "chat.jsonl", "--rate-scale", "5", *SLOS)
    minutes = answer["traffic"]["minutes"]
    assert sum(minute["requests"] for minute in minutes) == answer["traffic"]["requests"] == 1689
    busiest = max(minutes, key=lambda minute: minute["requests"])
    assert busiest["waiting"] > minutes[-1]["waiting"]


def test_a_target_that_no_number_of_servers_keeps_is_answered_with_exit_3(sgtune: Sgtune, crowd: Path) -> None:
    done = sgtune("plan", "--hardware", "h200x8", "--traffic", str(crowd), "--slo", "ttft:p99<1ms", "--json")
    assert done.code == 3
    assert document_of("plan", done.out)["meets_target"] is False


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("plan", "--isl", "1000"), "--isl"),
        (("plan", "--servers", "pd"), "--servers pd"),
        (("plan", "--rate-scale", "0"), "--rate-scale"),
        (("predict", "--launch-args", "--tp 7"), "--launch-args"),
        (("predict", "--launch-args", "--tp 8 --disaggregation-mode prefill"), "--launch-args"),
    ],
)
def test_what_a_trace_does_not_go_with_is_named(sgtune: Sgtune, options: tuple[str, ...], named: str) -> None:
    command, *rest = options
    done = sgtune(command, "--hardware", "h200x8", "--traffic", str(EXAMPLES / "chat.jsonl"), *rest)
    assert done.code == 2
    assert named in done.err


def test_a_request_beyond_the_models_context_is_named_as_the_traces(sgtune: Sgtune, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 5000000, "output_length": 10}\n')
    done = sgtune("plan", "--hardware", "h200x8", "--traffic", str(path))
    assert done.code == 2
    assert "long.jsonl" in done.err
    assert "5,000,010" in done.err
