"""What the benchmarks read out of their peers' answers, and how they judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cold_start, first_hour, load_peers, peers, plan_peer
from benchmarks.load import CASES
from benchmarks.load_peers import Claim, Load, Sample

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def samples(*rows: tuple[float, float, float, float]) -> list[Sample]:
    return [Sample(time_s=t, stream_s=s, tokens=k, cpu_s=c) for t, s, k, c in rows]


def test_the_middle_of_a_run_leaves_out_start_up_and_drain() -> None:
    run = samples(
        (0, 0, 0, 5), (10, 0, 0, 50), (11, 4, 25, 51), (12, 14, 50, 52), (13, 24, 75, 53), (20, 30, 100, 60),
    )  # fmt: skip
    in_flight, tok_s, cpu = load_peers.middle(run)
    assert in_flight == pytest.approx(10.0)
    assert tok_s == pytest.approx(25.0)
    assert cpu == pytest.approx(1000 * 2 / 50)


@pytest.mark.parametrize("run", [[], samples((0, 0, 0, 0)), samples((0, 0, 0, 0), (1, 0, 100, 0))])
def test_a_run_without_a_middle_is_refused(run: list[Sample]) -> None:
    with pytest.raises(ValueError, match="too short"):
        load_peers.middle(run)


def test_warnings_of_a_peer_are_told_once_with_how_often_they_came() -> None:
    text = (
        "11:25:26.581 WARNING  Event loop of worker_795a36ba lags 65.61ms\n"
        "all is well\n"
        "11:25:28.100 WARNING  Event loop of worker_795a36ba lags 1,002.01ms\n"
        "\x1b[31m2026-11-28 11:25:29 - ERROR - no room\x1b[0m\n"
    )
    assert load_peers.complaints(text) == [
        "WARNING  Event loop of worker_795a36ba lags 65.61ms (2 times)",
        "ERROR - no room",
    ]


def test_what_sgtune_bench_says_is_read_with_its_verdict() -> None:
    point = {"ttft_ms": {"mean": 202.0}, "tpot_ms": {"mean": 20.0}, "verdict": "unsteady", "why": "it drifts"}
    claim = load_peers.read_own(Path(), "progress\n" + json.dumps({"points": [point]}))
    assert claim == Claim(ttft_ms=202.0, tpot_ms=20.0, remarks=("verdict: unsteady it drifts",))


def test_aiperf_is_read_from_its_report_and_its_log(tmp_path: Path) -> None:
    report = {"time_to_first_token": {"avg": 237.5}, "inter_token_latency": {"avg": 20.4},
              "effective_concurrency": {"avg": 59.2}}  # fmt: skip
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(report))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "aiperf.log").write_text("12:00:00 WARNING the loop lags\n")
    claim = load_peers.read_aiperf(tmp_path, "fine\n")
    assert (claim.ttft_ms, claim.tpot_ms) == (237.5, 20.4)
    assert claim.remarks == ("its own mean in flight: 59", "WARNING the loop lags")


def test_guidellm_is_read_from_its_report(tmp_path: Path) -> None:
    means = {"time_to_first_token_ms": 206.0, "inter_token_latency_ms": 20.0, "time_per_output_token_ms": 21.9,
             "request_concurrency": 62.4}  # fmt: skip
    metrics = {name: {"successful": {"mean": mean}} for name, mean in means.items()}
    (tmp_path / "report.json").write_text(
        json.dumps({"benchmarks": [{"metrics": metrics, "warnings": [{"message": "late"}]}]})
    )
    claim = load_peers.read_guidellm(tmp_path, "")
    assert claim == Claim(ttft_ms=206.0, tpot_ms=20.0, remarks=("its own mean in flight: 62", "late"))


def test_a_row_says_how_far_off_a_generator_is() -> None:
    case = CASES[0]
    load = Load(
        in_flight=63.2, tok_s=3000.0, cpu_s_per_1000_tokens=0.2, wall_s=51.0, cpu_s=20.0, server_late_ms=1.0,
        claim=Claim(ttft_ms=2 * case.true_ttft_ms, tpot_ms=1.02 * case.tpot_ms),
    )  # fmt: skip
    cells = [cell.strip() for cell in load_peers.row(load_peers.own("openai"), case, load).strip("|").split("|")]
    assert len(cells) == len(load_peers.HEAD)
    assert cells[:3] == ["sgtune bench (openai)", "64", "63"]
    assert (cells[4], cells[6]) == ("403 (+100 %)", "20.40 (+2.0 %)")


@pytest.mark.parametrize("make", [load_peers.aiperf, load_peers.guidellm])
def test_peers_are_asked_for_the_case_and_need_no_hub(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_peers, "HOME", tmp_path)
    assert callable(make)
    words = make("/peer").command(CASES[1], "http://127.0.0.1:1", tmp_path)
    text = " ".join(words)
    assert "http://127.0.0.1:1" in text
    assert "1024" in text
    assert str(tmp_path / "tokenizer") in text
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()


FRONTIER = """concurrency,tokens/s,tokens/s/user,ttft,tpot,parallel,kvcache
2304,22445.3,10.0,3639.1,99.9,tp1pp1dp8etp1ep8,fp8
1024,16230.8,16.2,1747.5,61.7,tp1pp1dp8etp1ep8,fp8
512,9000.0,20.0,1000.0,50.0,tp2pp1dp4etp1ep8,fp8
"""


def test_aiconfigurator_is_asked_for_no_more_clients_than_there_are() -> None:
    answer = plan_peer.peer_answer(FRONTIER, 1024)
    assert (answer.tok_s, answer.user_tok_s, answer.ttft_ms, answer.tpot_ms) == (16230.8, 16.2, 1747.5, 61.7)
    assert answer.layout == "tp1pp1dp8etp1ep8, 1,024 at once, KV fp8"
    with pytest.raises(ValueError, match="empty"):
        plan_peer.peer_answer(FRONTIER, 1)


def test_only_what_takes_longer_than_promised_fails() -> None:
    assert cold_start.too_slow({"--help": 0.39, "plan": 0.99, "tune": 60.0}) == []
    assert cold_start.too_slow({"--help": 0.41, "plan": 0.99}) == ["sgtune --help takes 0.41 s, 0.4 s are promised"]
    assert set(cold_start.LIMITS_S) <= set(cold_start.COMMANDS)


def test_the_first_hour_runs_what_readme_shows() -> None:
    words = first_hour.first_command(README)
    assert words[1:4] == ["dev.py", "sgtune", "plan"]
    with pytest.raises(ValueError, match="README"):
        first_hour.first_command("# nothing\n")


def test_an_environment_is_counted_without_the_tools_that_made_it(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("pip", "setuptools", "pip-23.2.1.dist-info", "numpy", "pipeline"):
        (site / name).mkdir(parents=True)
        (site / name / "data").write_bytes(b"x" * 1_000_000)
    assert peers.disk_mb(tmp_path) == pytest.approx(5.0, rel=0.02)
    assert first_hour.without_tools_mb(tmp_path) == pytest.approx(2.0, rel=0.02)
