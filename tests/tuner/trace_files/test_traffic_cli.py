"""`sgtune traffic`: files as they are published, files that are broken, and traces to hand over."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hwprobe.errors import InputError
from tests.documents import document_of
from tuner.cli.main import app
from tuner.trace_files.read import read_trace

MOONCAKE = [
    {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": list(range(14))},
    {"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, *range(14, 28)]},
    {"timestamp": 3000, "input_length": 2290, "output_length": 316, "hash_ids": [0, 42, 43, 44, 45]},
    {"timestamp": 60000, "input_length": 655, "output_length": 52, "hash_ids": [46, 47]},
    {"timestamp": 60000, "input_length": 672, "output_length": 52, "hash_ids": [46, 47]},
]
AIPERF = [
    {"session_id": "a", "timestamp": 0, "input_length": 1000, "output_length": 100, "hash_ids": [1, 2]},
    {"session_id": "a", "delay": 2000, "input_length": 50, "output_length": 100},
    {"session_id": "b", "timestamp": 500, "input_length": 1000, "output_length": 20, "hash_ids": [1, 3]},
    {"session_id": "b", "delay": 2000, "input_length": 70, "output_length": 30},
]
SHAREGPT = [
    {
        "id": "x",
        "conversations": [
            {"from": "human", "value": "Hello there, how are you today?"},
            {"from": "gpt", "value": "I am fine, thank you, and you?"},
            {"from": "human", "value": "Fine too."},
            {"from": "gpt", "value": "Good to hear. What can I do?"},
        ],
    }
]
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n118,GPT-4,417,0,417,Conversation log\n"
)
BENCHMARK = [{"backend": "sglang", "duration": 12.5, "input_lens": [10, 20, 30], "output_lens": [5, 6, 7]}]
SYSTEM = "Answer in verse, and never in prose. " * 20
LOG = [
    {
        "timestamp": f"2026-01-01T00:00:0{number}Z",
        "request": {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]},
        "response": {"usage": {"prompt_tokens": 200 + number, "completion_tokens": 20}},
    }
    for number, question in enumerate(("hi", "what is love"))
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FORMS = {
    "mooncake.jsonl": lines(MOONCAKE),
    "aiperf.jsonl": lines(AIPERF),
    "sharegpt.json": json.dumps(SHAREGPT),
    "azure.csv": AZURE,
    "burstgpt.csv": BURSTGPT,
    "benchmark.jsonl": lines(BENCHMARK),
    "log.jsonl": lines(LOG),
}


def asked(path: Path, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["traffic", str(path), "--json", *options], catch_exceptions=False)
    return document_of("traffic", done.stdout)


@pytest.mark.parametrize("name", FORMS)
def test_every_published_form_is_read_and_written_again_with_the_same_statistics(name: str, tmp_path: Path) -> None:
    path, copy = tmp_path / name, tmp_path / "copy.jsonl"
    path.write_text(FORMS[name])
    before = asked(path, "--synthesize", str(copy))
    after = asked(copy)
    for field in ("requests", "sessions", "input_tokens", "output_tokens", "turns", "think_s"):
        assert after[field] == before[field], field
    assert after["duration_s"] == pytest.approx(before["duration_s"], abs=1e-3)
    # blocks of 16 tokens are what is kept of texts
    assert after["prefix_hit_rate"] == pytest.approx(before["prefix_hit_rate"], abs=16 / before["input_tokens"]["mean"])


def test_what_mooncake_prompts_share_is_counted_in_tokens(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(lines(MOONCAKE))
    answer = asked(path)
    shared = 512 + 512 + 672
    assert answer["prefix_hit_rate"] == pytest.approx(shared / sum(row["input_length"] for row in MOONCAKE))
    assert (answer["requests"], answer["duration_s"], answer["sessions"]) == (5, 60.0, 5)


def test_later_turns_of_an_aiperf_session_hold_the_history_and_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(lines(AIPERF))
    trace = read_trace(path)
    assert trace.isl.tolist() == [1000, 1000, 1150, 1090]
    assert trace.sent_s.tolist() == [0.0, 0.5, 2.0, 2.5]
    assert asked(path)["prefix_hit_rate"] == pytest.approx((512 + 1100 + 1020) / 4240)


def test_columns_of_any_other_file_are_named_by_map(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("ts,pin,pout,who\n1000,100,5,x\n2500,200,6,y\n")
    answer = asked(path, "--map", "time=ts:ms", "--map", "input=pin", "--map", "output=pout", "--map", "session=who")
    assert (answer["requests"], answer["duration_s"], answer["sessions"]) == (2, 1.5, 2)


BROKEN = {
    "cut off": (lines(MOONCAKE)[:-30], "line 5", "cut off"),
    "unsorted": (lines([MOONCAKE[3], MOONCAKE[0]]), "line 2", "sort the file"),
    "negative length": (lines([MOONCAKE[0], MOONCAKE[1] | {"input_length": -5}]), "line 2", "input_length"),
    "negative time": (lines([MOONCAKE[0] | {"timestamp": -1}]), "line 1", "timestamp"),
    "no length": (lines([MOONCAKE[0], {"timestamp": 3, "output_length": 3}]), "line 2", "input_length"),
    "not a number": (lines([MOONCAKE[0], MOONCAKE[1] | {"timestamp": "soon"}]), "line 2", "timestamp"),
    "infinite": ('{"timestamp": 1e999, "input_length": 5, "output_length": 5}\n', "line 1", ""),
    "missing column": ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,374\n", "line 1", "GeneratedTokens"),
    "short row": (AZURE + "2023-11-16 18:16:00,3\n", "line 4", "cut off"),
    "no date": (AZURE + "yesterday,3,4\n", "line 4", "TIMESTAMP"),
    "unknown form": ("a,b\n1,2\n", "line 1", "--map"),
    "benchmark without details": (
        lines([{"backend": "sglang", "request_throughput": 1.0}]),
        "line 1",
        "--output-details",
    ),
    "log without a time": (lines([{"messages": [], "usage": {"prompt_tokens": 3}}]), "line 1", "time"),
    "empty": ("", "", "no requests"),
    "half a list": ('[{"conversations": [', "", "cut off"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_line_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    text, *parts = BROKEN[name]
    path, copy = tmp_path / "trace", tmp_path / "copy.jsonl"
    path.write_text(text)
    done = CliRunner().invoke(app, ["traffic", str(path), "--synthesize", str(copy)])
    assert isinstance(done.exception, InputError)
    for part in parts:
        assert part in str(done.exception)
    assert not copy.exists()


def test_packed_and_oversized_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    packed, large = tmp_path / "trace.jsonl.gz", tmp_path / "large.jsonl"
    packed.write_bytes(gzip.compress(lines(MOONCAKE).encode()))
    with pytest.raises(InputError, match="gunzip"):
        read_trace(packed)
    with large.open("wb") as stream:
        stream.truncate(2 << 30)
    with pytest.raises(InputError, match=r"2\.0 GiB.*cut it"):
        read_trace(large)


def test_an_anonymous_trace_holds_no_name_of_the_old_one(tmp_path: Path) -> None:
    path, copy = tmp_path / "trace.jsonl", tmp_path / "copy.jsonl"
    rows = [row | {"session_id": f"secret-{row['session_id']}"} for row in AIPERF]
    path.write_text(
        lines(
            [row | ({"hash_ids": [h + 987_654 for h in row["hash_ids"]]} if "hash_ids" in row else {}) for row in rows]
        )
    )
    asked(path, "--synthesize", str(copy))
    assert "secret" not in copy.read_text()
    assert "9876" not in copy.read_text()


def test_the_page_and_the_table_show_what_a_cache_would_hit(tmp_path: Path) -> None:
    path, page = tmp_path / "trace.jsonl", tmp_path / "page.html"
    path.write_text(lines(MOONCAKE))
    done = CliRunner().invoke(app, ["traffic", str(path), "--html", str(page)], catch_exceptions=False)
    assert "9.6% of the prompt tokens" in done.stdout
    assert "9.6%" in page.read_text()
