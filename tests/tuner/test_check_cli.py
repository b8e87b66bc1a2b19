"""`sgtune check` as its user meets it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from planner.sglang.flags import flags_of
from tests.conftest import run_sgtune

LINE = [
    "python", "-m", "sglang.launch_server", "--model-path", "deepseek-ai/DeepSeek-R1", "--tp", "8", "--dp", "8",
    "--enable-dp-attention",
]  # fmt: skip
LIBRARIES = "import numpy, msgspec, typer, rich.table, packaging.version"
TIMES_ITS_LIBRARIES = 4.0


def test_a_line_is_explained(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("check", "--hardware", "h200x8", "--", *LINE)
    assert ran.code == 0
    for words in (
        "It runs",
        "0.758",
        "attention-DP padding",
        "KV pool",
        "tok/s",
        "--cuda-graph-max-bs-decode 64: ",
    ):
        assert words in ran.out
    assert "[/]" not in ran.out, "styles take effect, they are not shown"


def test_a_misfit_exits_3_and_json_is_one_line(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("check", "--hardware", "h20x8", "--json", "--", *LINE)
    document = json.loads(ran.out)
    assert ran.code == 3
    assert ran.out.count("\n") == 1
    assert document["accepted"] is True
    assert document["prediction"] is None
    assert document["fits"] is False


def test_an_unknown_flag_suggests_the_nearest(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("check", "--", *LINE, "--attn-dp-sise", "8")
    assert ran.code == 3
    assert "did you mean --attn-dp-size?" in ran.out


@pytest.mark.parametrize("name", ["python", "docker", "sglang"])
def test_a_model_that_is_called_like_a_program_starts_no_launch_line(sgtune: Callable[..., Any], name: str) -> None:
    ran = sgtune("check", "--hardware", "h200x8", "--", "--tp", "8", "--model-path", f"/m/{name}")
    assert ran.code == 0
    assert "It runs" in ran.out


def test_what_was_assumed_is_said(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("check", "--", *LINE, "--nnodes", "2", "--tp", "16", "--node-rank", "0")
    assert "no --hardware given: checked for 2xh200x8" in ran.out
    assert "no --sglang-version given: checked for the newest known, 0.5.23" in ran.out


def test_the_release_of_the_image_is_taken(sgtune: Callable[..., Any]) -> None:
    ran = sgtune(
        "check", "--json", "--", "docker", "run", "lmsysorg/sglang:v0.5.12", *LINE, "--cuda-graph-max-bs", "64"
    )
    document = json.loads(ran.out)
    assert document["question"]["sglang_version"] == "0.5.12"
    assert document["accepted"] is True


def test_an_old_line_is_told_which_release_knows_it(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("check", "--", *LINE, "--cuda-graph-max-bs", "64")
    assert "0.5.19 is the newest that knows all flags of this line" in ran.out


def test_a_file_and_one_quoted_line_do_as_well(sgtune: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "launch.sh"
    file.write_text(" ".join(LINE) + "\n")
    answers = [json.loads(sgtune("check", "--json", *words).out) for words in ([str(file)], [" ".join(LINE)])]
    assert answers[0]["resolved"] == answers[1]["resolved"]
    assert answers[0]["resolved"]["attn_dp_size"] == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a launch line after `--`"),
        (["--", "vllm", "serve"], "no SGLang server"),
        (["no/such/file.sh"], "there is no file"),
        (["--hardware", "h2000x8", "--", *LINE], "unknown hardware"),
        (["--sglang-version", "new", "--", *LINE], "not an SGLang version"),
        (["--isl", "0", "--", *LINE], "--isl is 0"),
        (["--free-before-load-gib", "-3", "--", *LINE], "--free-before-load-gib is -3"),
        (["--request-rate", "5", "--", *LINE], "check has no option --request-rate: it judges --concurrency N"),
        (["--hardwre", "h200x8", "--", *LINE], "check has no option --hardwre; did you mean --hardware?"),
        (["--verbose", *LINE], "check has no option --verbose; flags of SGLang come after"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_2(sgtune: Callable[..., Any], arguments: list[str], said: str) -> None:
    ran = sgtune("check", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert ran.out == ""


NAMES = sorted(flags_of(Version("0.5.23")).by_name)
number = st.integers(-(10**30), 10**30).map(str) | st.sampled_from(
    ["0", "-1", "8", "1e9", "nan", "inf", "-inf", "1e400"]
)
value = (
    number
    | st.sampled_from(["", "8", "fp8_e4m3", "{}", '{"decode": {"bs": [1]}}', "[1]", "'", '"', "16k"])
    | st.text(max_size=8)
)
known = st.sampled_from(NAMES)
word = st.one_of(
    known, st.tuples(known, value).map("=".join), value, st.text(max_size=12), known.map(lambda name: name[:7]),
    st.sampled_from(["--tp", "--dp", "--ep", "--attn-dp-size", "--chunked-prefill-size", "--cuda-graph-max-bs-decode",
                     "--max-running-requests", "--context-length", "--page-size", "--nnodes", "--kv-cache-dtype"]),
)  # fmt: skip


lines = given(
    st.lists(word, max_size=12),
    st.sampled_from(["0.4.3", "0.4.6", "0.5.5", "0.5.12", "0.5.14", "0.5.23"]),
    st.sampled_from(["h200x8", "h20x8", "b200x8", "a100x8"]),
)


@lines
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_no_line_ever_ends_in_a_traceback(words: list[str], version: str, hardware: str) -> None:
    judge(words, version, hardware)


@pytest.mark.deep
@pytest.mark.timeout(1800)
@lines
@settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
def test_no_line_of_thousands_ends_in_a_traceback(words: list[str], version: str, hardware: str) -> None:
    judge(words, version, hardware)


def judge(words: list[str], version: str, hardware: str) -> None:
    """Demand an answer, or a refusal that says why, and never a traceback."""
    ran = run_sgtune(
        "check", "--json", "--hardware", hardware, "--sglang-version", version, "--",
        "python", "-m", "sglang.launch_server", "--model-path", "r1", "--tp", "8", *words,
    )  # fmt: skip
    assert ran.code in (0, 2, 3), ran.err
    document = json.loads(ran.out)
    if ran.code == 2:
        assert "not modelled" in document["error"] or "no verdict" in document["error"]
    else:
        assert document["question"]["sglang_version"] == version


@pytest.mark.slow
@pytest.mark.alone
def test_check_answers_before_a_user_looks_up() -> None:
    """0.7 s of a core, where importing its libraries alone takes 0.17 s; slower machines take more for both."""
    check = cpu_seconds([sys.executable, "-m", "tuner.cli.main", "check", "--json", "--", *LINE])
    bare = cpu_seconds([sys.executable, "-c", LIBRARIES])
    assert check < TIMES_ITS_LIBRARIES * bare


def cpu_seconds(command: list[str]) -> float:
    """Return what the best of five fresh processes takes of a core: the others of this machine may be busy."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(seconds)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["--dp-size", "1"], ["attn_dp_size"]),
        (["--disable-cuda-graph"], ["decode_cuda_graph", "prefill_cuda_graph"]),
        (["--disable-decode-cuda-graph"], ["decode_cuda_graph"]),
        (["--schedule-policy", "fcfs", "--page-size", "1"], ["schedule_policy", "page_size"]),
        (["--ep-size", "1", "--kv-cache-dtype", "auto"], ["ep_size", "kv_cache_dtype"]),
    ],
)
def test_what_was_typed_is_never_called_a_default(
    sgtune: Callable[..., Any], words: list[str], fields: list[str]
) -> None:
    ran = sgtune("check", "--hardware", "h200x8", "--", "--model-path", "r1", "--tp", "8", *words)
    for field in fields:
        line = next(line for line in ran.out.splitlines() if f" {field} " in line)
        assert "typed" in line
        assert "default" not in line


def test_what_was_typed_by_an_older_name_is_not_called_sglangs_default(sgtune: Callable[..., Any]) -> None:
    ran = sgtune(
        "check", "--hardware", "h200x8", "--sglang-version", "0.4.9", "--", "python", "-m", "sglang.launch_server",
        "--model-path", "r1", "--tp", "8", "--dp", "8", "--enable-dp-attention", "--cuda-graph-max-bs", "64",
    )  # fmt: skip
    rows = [line for line in ran.out.splitlines() if "attn_dp_size " in line or "cuda_graph_max_bs_decode " in line]
    assert len(rows) == 2
    assert not [row for row in rows if "default" in row]


def test_nodes_that_cannot_find_each_other_are_in_the_first_line(sgtune: Callable[..., Any]) -> None:
    line = ("python", "-m", "sglang.launch_server", "--model-path", "r1", "--tp", "16", "--nnodes", "2")
    ran = sgtune("check", "--hardware", "2xh200x8", "--", *line)
    assert ran.out.startswith("It runs, once its nodes find each other")
