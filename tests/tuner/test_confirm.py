"""The end of a run: the best launched again, ties, drift, and what single knobs taught."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.files import encode_json
from models.config import ServerConfig
from tuner.evidence.knob_effects import knob_effects, residuals
from tuner.evidence.standings import BASELINE, RECIPE, decide, standings, to_confirm, winner_of
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.run.result import written_parts
from tuner.seam import Measurement

Sgtune = Callable[..., Any]
DEFAULTS = {"layout": "tp8", "mtp_steps": 0, "chunked_prefill_size": "default"}
SMALL = (
    "tune", "--hardware", "h200x8", "--isl", "200", "--osl", "200", "--concurrency", "16", "--engine", "simulated",
    "--sglang-version", "0.5.12",
)  # fmt: skip


def point(rate: float, concurrency: int = 64) -> Measurement:
    latency = {"mean": 1.0, "p50": 1.0, "p90": 1.0, "p95": 1.0, "p99": 1.0}
    return Measurement(
        concurrency=concurrency, achieved_in_flight=float(concurrency), output_tok_s=rate,
        output_tok_s_interval=(0.999 * rate, 1.001 * rate), ttft_ms=latency, tpot_ms=latency, e2e_ms=latency,
        duration_s=1.0, retractions=0,
    )  # fmt: skip


def trial(number: int, rate: float, *, repeats: int | None = None, slo: float = -1.0, **params: Any) -> TrialRecord:
    return TrialRecord(
        number=number,
        source=BASELINE if number == 0 else "sampler",
        params={**DEFAULTS, **params},
        config=ServerConfig(tp_size=8),
        outcome=TrialOutcome.MEASURED,
        predicted={"output_tok_s": 1000.0},
        objective=math.log(rate),
        constraints={"memory": -1.0, "slo": slo},
        points=(point(rate / 4, 8), point(rate)),
        repeats=repeats,
    )


def test_a_lucky_first_launch_does_not_win() -> None:
    records = [
        trial(0, 900.0), trial(1, 1080.0, mtp_steps=1), trial(2, 1050.0, mtp_steps=2),
        trial(3, 1000.0, repeats=1, mtp_steps=1), trial(4, 1052.0, repeats=2, mtp_steps=2), trial(5, 901.0, repeats=0),
    ]  # fmt: skip
    winner = winner_of(records)
    assert winner is not None
    assert winner.first.number == 2
    assert winner.interval[0] < winner.output_tok_s < winner.interval[1]
    drift = standings(records)[0].drift
    assert drift == pytest.approx(1 / 900)


def test_a_tie_goes_to_the_configuration_nearest_the_default() -> None:
    records = [
        trial(0, 900.0), trial(1, 1010.0, mtp_steps=1, chunked_prefill_size=4096), trial(2, 1008.0, mtp_steps=1),
        trial(3, 990.0, repeats=1, mtp_steps=1, chunked_prefill_size=4096), trial(4, 985.0, repeats=2, mtp_steps=1),
    ]  # fmt: skip
    winner = winner_of(records)
    assert winner is not None
    assert winner.first.number == 2
    steady = [*records[:3], replace(records[3], points=(point(1010.0),), objective=math.log(1010.0)),
              replace(records[4], points=(point(1008.0),), objective=math.log(1008.0))]  # fmt: skip
    winner = winner_of(steady)
    assert winner is not None
    assert winner.first.number == 1, "launches that agree to the digit leave no room for a tie"


def faster(record: TrialRecord, factor: float) -> TrialRecord:
    """Return the trial with every latency divided by a factor."""
    points = tuple(
        replace(p, tpot_ms={name: value / factor for name, value in p.tpot_ms.items()}) for p in record.points
    )
    return replace(record, points=points)


def test_a_tie_goes_to_the_configuration_that_is_faster_per_user() -> None:
    slow = [trial(1, 1008.0, mtp_steps=1), trial(4, 1000.0, repeats=1, mtp_steps=1)]
    fast = [
        faster(trial(2, 1003.0, mtp_steps=2, chunked_prefill_size=4096), 1.17),
        faster(trial(5, 998.0, repeats=2, mtp_steps=2, chunked_prefill_size=4096), 1.17),
    ]
    decided = decide([trial(0, 900.0), *slow, *fast])
    assert decided is not None
    assert decided.winner.first.number == 2, "0.4 % behind within noise, 17 % faster per user"
    assert [standing.first.number for standing in decided.tied] == [1]
    alone = decide([trial(0, 900.0), trial(1, 1100.0), trial(4, 1101.0, repeats=1), *fast])
    assert alone is not None
    assert (alone.winner.first.number, alone.tied) == (1, ()), "10 % ahead is no tie, however slow per user"


def test_measurements_that_say_they_are_coarse_tie_though_two_launches_agree_by_chance() -> None:
    coarse = {"output_tok_s_interval": (950.0, 1050.0)}
    records = [trial(0, 900.0), trial(1, 1004.0, mtp_steps=1, chunked_prefill_size=4096), trial(2, 1000.0, mtp_steps=1)]
    records += [trial(3, 1004.0, repeats=1), trial(4, 1000.0, repeats=2)]
    records = [replace(r, points=tuple(replace(p, **coarse) for p in r.points)) for r in records]
    decided = decide(records)
    assert decided is not None
    assert (decided.winner.first.number, [s.first.number for s in decided.tied]) == (2, [1])


def test_the_gain_is_quoted_over_the_defaults_and_over_the_recipe(sgtune: Sgtune, tmp_path: Path) -> None:
    question = ("--isl", "1000", "--osl", "200", "--concurrency", "128")  # where attention DP may win
    ran = sgtune(*SMALL, *question, "--trials", "3", "--confirm", "0", "--runs", str(tmp_path), "--run", "a")
    assert ran.code == 0, ran.err
    document = json.loads((tmp_path / "a" / "result.json").read_text())
    rates = {trial["source"]: trial["measured_output_tok_s"] for trial in document["trials"]}
    best = document["best"]["output_tok_s"]
    assert document["gain"]["over_defaults"] == pytest.approx(best / rates[BASELINE] - 1)
    assert document["gain"]["over_recipe"] == pytest.approx(best / rates[RECIPE] - 1)
    for words, gain in (("SGLang's defaults", "over_defaults"), ("the recipe, attention DP", "over_recipe")):
        line = next(line for line in ran.out.splitlines() if line.startswith(words))
        assert f"gain {100 * document['gain'][gain]:+.0f} %" in line
    assert document["tied"] == []


def test_a_limit_missed_on_average_disqualifies() -> None:
    records = [trial(0, 900.0), trial(1, 1100.0, slo=-0.01, mtp_steps=1), trial(2, 1099.0, repeats=1, slo=0.2)]
    records += [trial(3, 900.0, repeats=0)]
    winner = winner_of(records)
    assert winner is not None
    assert winner.first.number == 0


def test_what_was_launched_again_is_not_launched_a_third_time() -> None:
    records = [trial(0, 900.0), trial(1, 1000.0, mtp_steps=1), trial(2, 950.0, mtp_steps=2)]
    assert [record.number for record in to_confirm(records, 1)] == [1, 0]
    assert [record.number for record in to_confirm([*records, trial(3, 1000.0, repeats=1)], 1)] == [0]
    assert to_confirm(records, 0) == []


def test_a_knob_is_judged_by_trials_that_differ_in_nothing_else() -> None:
    records = [trial(0, 1000.0), trial(1, 1380.0, mtp_steps=1), trial(2, 500.0, mtp_steps=1, chunked_prefill_size=4096)]
    first, second = knob_effects(records)
    assert (first.knob, first.trials) == ("chunked_prefill_size", (1, 2))
    assert second.sentence == "mtp_steps 0 -> 1: +38 % at c=64, +38 % at c=8 (trials 0 and 1)"
    assert residuals(records)[0].trials == 3


def test_knobs_are_found_as_by_comparing_every_pair() -> None:
    dice = random.Random(5)
    records = [
        trial(
            number, dice.uniform(500.0, 900.0), mtp_steps=dice.randrange(3), chunked_prefill_size=chunk, page_size=page
        )
        for number, (chunk, page) in enumerate(itertools.product((1024, 2048, 4096, 8192), (1, 16, 64)))
    ]
    pairs = [
        (a.number, b.number)
        for a, b in itertools.combinations(records, 2)
        if sum(a.params[knob] != b.params[knob] for knob in a.params) == 1
    ]
    assert sorted(effect.trials for effect in knob_effects(records)) == sorted(pairs)
    assert pairs


def test_thousands_of_launches_are_not_compared_two_by_two() -> None:
    records = [trial(number, 900.0, mtp_steps=number, chunked_prefill_size=number) for number in range(5000)]
    began = time.process_time()
    assert knob_effects(records) == []
    assert time.process_time() - began < 3.0  # 12 million pairs take a minute


def test_a_run_ends_with_the_best_and_the_baseline_launched_again(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(*SMALL, "--trials", "5", "--confirm", "2", "--runs", str(tmp_path), "--run", "a", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["launches"] == 5
    again = [summary for summary in document["trials"] if summary["repeats"] is not None]
    assert document["confirmations"] == len(again)
    assert 2 <= len(again) <= 3
    assert 0 in [summary["repeats"] for summary in again], "the baseline is launched again for drift"
    assert document["best"]["launches"] == 2
    low, high = document["best"]["interval"]
    assert low < document["best"]["output_tok_s"] < high
    before = (tmp_path / "a" / "trials.jsonl").read_bytes()
    resumed = sgtune(*SMALL, "--trials", "5", "--confirm", "2", "--runs", str(tmp_path), "--run", "a", "--resume")
    assert resumed.code == 0
    assert (tmp_path / "a" / "trials.jsonl").read_bytes() == before


def space(tmp_path: Path, text: str) -> str:
    file = tmp_path / "space.toml"
    file.write_text(text)
    return str(file)


def test_a_space_file_is_kept_to_and_belongs_to_the_question(sgtune: Sgtune, tmp_path: Path) -> None:
    narrow = '[space]\nmtp_steps = 0\nchunked_prefill_size = [4096, 12288]\nmem_fraction_static = ["default", 0.81]\n'
    arguments = (*SMALL, "--trials", "5", "--confirm", "0", "--runs", str(tmp_path), "--run", "a")
    ran = sgtune(*arguments, "--space", space(tmp_path, narrow), "--json")
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "a" / "trials.jsonl").read_text().splitlines()]
    assert lines[0]["source"] == BASELINE
    assert len(lines) > 1
    for line in lines[1:]:
        assert line["params"]["mtp_steps"] == 0
        assert line["params"]["chunked_prefill_size"] in (4096, 12288)
        assert line["params"]["mem_fraction_static"] in ("default", 0.81)
    other = sgtune(*arguments, "--space", space(tmp_path, "[space]\nmtp_steps = 1\n"), "--resume")
    assert other.code == 2
    assert "space_hash" in other.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[space]\nmtp_step = 1\n", "mtp_steps"),
        ("[space]\nmem_fraction_static = 1.5\n", "between 0.05 and 0.99"),
        ("[space]\nlayout = 'tp16'\n", "not possible here"),
        ("[space]\nmtp_steps = []\n", "at least one value"),
        ("flags = ['--enable-two-batch-overlap']\n", "need a server"),
        ("spaces = 1\n", "did you mean"),
        ("[space\n", "not valid TOML"),
    ],
)
def test_a_wrong_space_file_is_refused_by_name(sgtune: Sgtune, tmp_path: Path, text: str, said: str) -> None:
    ran = sgtune(*SMALL, "--runs", str(tmp_path), "--space", space(tmp_path, text))
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "h200x8-200-200-c16").exists()


def test_a_grid_measures_every_configuration_once_even_after_a_resume(sgtune: Sgtune, tmp_path: Path) -> None:
    four = (
        "[space]\nlayout = 'TP8'\nmtp_steps = 0\nmem_fraction_static = 'default'\ncuda_graph = 'default'\n"
        "chunked_prefill_size = ['default', 2048, 4096]\nmax_running = 'default'\n"
    )
    arguments = (
        *SMALL, "--sampler", "grid", "--confirm", "0", "--runs", str(tmp_path), "--run", "a", "--json",
        "--space", space(tmp_path, four),
    )  # fmt: skip
    assert sgtune(*arguments, "--trials", "2").code == 0
    ran = sgtune(*arguments, "--trials", "9", "--resume")
    document = json.loads(ran.out)
    assert document["stopped"] == "every configuration of the space was tried"
    lines = [json.loads(line) for line in (tmp_path / "a" / "trials.jsonl").read_text().splitlines()]
    assert sorted(str(line["params"]["chunked_prefill_size"]) for line in lines) == ["2048", "4096", "default"]


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_a_long_result_is_written_in_parts_as_it_would_be_whole(count: int) -> None:
    trials = [{"number": number, "reason": 'a\n  "trials": []'} for number in range(count)]
    document = {"run": '\n  "trials": []', "best": {"trials": []}, "trials": trials, "pareto": [1, {"a": None}]}
    assert b"".join(written_parts(document)).decode() == encode_json(document) + "\n"
