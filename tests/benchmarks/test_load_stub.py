"""The server of a known schedule: what it serves, and what it says of its clients."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest

from benchmarks.load import Case, known_server

CASE = Case(streams=1, ttft_ms=5.0, tpot_ms=1.0, jitter_ms=0.0, osl=5)


@pytest.fixture
def stub() -> Iterator[http.client.HTTPConnection]:
    with known_server(CASE) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        yield connection
        connection.close()


def post(stub: http.client.HTTPConnection, path: str, body: object) -> list[str]:
    stub.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = stub.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/event-stream"
    events = answer.read().decode().split("\n\n")
    assert all(event.startswith("data: ") for event in events if event)
    return [event.removeprefix("data: ") for event in events if event]


@pytest.mark.parametrize("prompt", ["ninebytes", [7] * 9, [[7] * 9]])
def test_completions_come_as_openai_streams_them_with_usage_last(
    stub: http.client.HTTPConnection, prompt: object
) -> None:
    asked = {"prompt": prompt, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    *tokens, usage, done = post(stub, "/v1/completions", asked)
    assert done == "[DONE]"
    choices = [json.loads(token)["choices"][0] for token in tokens]
    assert "".join(choice["text"] for choice in choices) == "aaaaa"
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"] == {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def test_usage_is_only_sent_to_those_who_ask(stub: http.client.HTTPConnection) -> None:
    events = post(stub, "/v1/completions", {"prompt": "a", "max_completion_tokens": 3, "stream": True})
    assert len(events) == 4
    assert not any("usage" in event for event in events)


def test_generate_counts_its_tokens(stub: http.client.HTTPConnection) -> None:
    *tokens, done = post(stub, "/generate", {"input_ids": [7, 8], "sampling_params": {"max_new_tokens": 3}})
    assert done == "[DONE]"
    seen = [json.loads(token)["meta_info"] for token in tokens]
    assert [(meta["prompt_tokens"], meta["completion_tokens"]) for meta in seen] == [(2, 1), (2, 2), (2, 3)]


def test_the_stub_says_what_it_saw(stub: http.client.HTTPConnection) -> None:
    post(stub, "/v1/completions", {"prompt": "a", "max_tokens": 5})
    stub.request("GET", "/stats")
    seen = json.loads(stub.getresponse().read())
    assert (seen["in_flight"], seen["requests"], seen["tokens"], seen["firsts"]) == (0, 1, 5, 1)
    # one stream for at least TTFT and four tokens
    assert seen["stream_s"] >= 0.009
