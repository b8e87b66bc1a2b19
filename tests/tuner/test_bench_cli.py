"""`sgtune bench` as a user meets it, against a server of a known schedule."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.records.points import parse_point
from tests.documents import document_of
from tests.patience import in_one_of_three

pytestmark = pytest.mark.alone
Sgtune = Callable[..., Any]
STUB = Path(__file__).parents[2] / "benchmarks" / "load_stub.py"
QUICK = ("--isl", "20", "--osl", "10", "--point-time", "0.5s", "--waves", "2")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, str(STUB), "--port", str(port), "--ttft-ms", "300", "--tpot-ms", "20"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as stub:
        assert stub.stdout is not None
        stub.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        stub.kill()


def test_points_come_back_as_one_json_line_and_in_every_file_asked_for(
    sgtune: Sgtune, url: str, tmp_path: Path
) -> None:
    def attempt() -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))  # records are appended
        ours, theirs, every, plot = (folder / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.html"))
        ran = sgtune(
            "bench", "--url", url, *QUICK, "--concurrency", "1,4", "--out", str(ours), "--sglang-jsonl", str(theirs),
            "--requests", str(every), "--plot", str(plot), "--slo", "tpot:p99<50ms", "--json",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        points = document_of("bench", ran.out)["points"]
        assert [point["concurrency"] for point in points] == [1, 4]
        for point in points:
            assert point["verdict"] == "ok", point["why"]
            assert point["tpot_ms"]["mean"] == pytest.approx(20.0, rel=0.1)
            assert set(point["ttft_ms"]) >= {"mean", "p50", "p99"}
            assert point["goodput_rps"] == pytest.approx(point["completed_per_s"])
        read = [parse_point(line, 1) for line in ours.read_text().splitlines()]
        assert [point.concurrency for point in read] == [1, 4]
        assert read[0].tpot_mean_ms == pytest.approx(points[0]["tpot_ms"]["mean"])
        benchmark = [parse_point(line, 1) for line in theirs.read_text().splitlines()]
        assert benchmark[1].output_tok_s == pytest.approx(points[1]["output_tok_s"])
        assert (benchmark[1].isl, benchmark[1].osl) == (20, 10)
        requests = [json.loads(line) for line in every.read_text().splitlines()]
        assert sum(request["in_window"] for request in requests) == sum(point["requests"] for point in points)
        page = plot.read_text()
        assert page.count("<circle") == 2
        assert "http://" not in page.replace(url, ""), "the page loads nothing"

    in_one_of_three(attempt)


def test_an_open_loop_sends_at_its_rate(sgtune: Sgtune, url: str) -> None:
    def attempt() -> None:
        ran = sgtune("bench", "--url", url, "--isl", "20", "--osl", "10", "--point-time", "4s", "--request-rate", "20",
                     "--arrival", "constant", "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        point = json.loads(ran.out)["points"][0]
        assert point["concurrency"] is None
        assert point["completed_per_s"] == pytest.approx(20.0, rel=0.1)

    in_one_of_three(attempt)


def test_the_rate_of_an_open_loop_is_that_of_a_steady_stretch_however_long_its_requests_are(
    sgtune: Sgtune, url: str
) -> None:
    def attempt() -> None:
        ran = sgtune("bench", "--url", url, "--isl", "20", "--osl", "100", "--point-time", "8s", "--request-rate", "10",
                     "--arrival", "constant", "--json")  # fmt: skip
        assert ran.code in (0, 1), ran.err
        point = json.loads(ran.out)["points"][0]
        assert point["output_tok_s"] == pytest.approx(1000.0, rel=0.15), "2.28 s of ramp and of drain are not in it"
        assert point["achieved_in_flight"] == pytest.approx(22.8, rel=0.15)

    in_one_of_three(attempt)


def test_the_knee_is_named(sgtune: Sgtune, url: str) -> None:
    def attempt() -> None:
        ran = sgtune(
            "bench", "--url", url, *QUICK, "--concurrency", "1,2", "--until-knee", "--slo", "tpot:p50<1s", "--json"
        )
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["knee"] == {"best": 2, "broken": None, "misses": []}

    in_one_of_three(attempt)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--concurrency", "0"), "--concurrency is '0'"),
        (("--concurrency", "two"), "1,16,64"),
        (("--concurrency", "1,nan"), "--concurrency is '1,nan'"),
        (("--request-rate", "inf"), "--request-rate is 'inf'"),
        (("--request-rate", "-1"), "--request-rate is '-1'"),
        (("--until-knee",), "--until-knee looks for"),
        (("--shared-prefix", "2000"), "leaves nothing of --isl"),
        (("--lognormal", "0.5", "--lengths", "x.jsonl"), "exclude each other"),
        (("--lengths", "missing.jsonl"), "missing.jsonl"),
        (("--point-time", "soon"), "--point-time is 'soon'"),
        (("--request-rate", "1", "--arrival", "closed"), "--arrival closed"),
        (("--request-rate", "0.01", "--duration", "60s"), "fewer than 20 requests within --duration"),
        (("--cross-check", "python3", "--lognormal", "0.5"), "compares like with like"),
        (("--cross-check", "/no/python", *QUICK, "--concurrency", "1"), "no program '/no/python'"),
    ],
)
def test_a_question_without_a_meaning_is_refused_with_its_flag(
    sgtune: Sgtune, url: str, arguments: tuple[str, ...], said: str
) -> None:
    ran = sgtune("bench", "--url", url, *arguments)
    assert ran.code == 2
    assert said in ran.err


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "ftp://x", "http://127.0.0.1:99999", "http://a/b/c"])
def test_an_address_where_nobody_answers_is_named(sgtune: Sgtune, address: str) -> None:
    ran = sgtune("bench", "--url", address)
    assert ran.code == 2
    assert "--url" in ran.err
