"""The command line as a user meets it: answers, exit codes, and one clear sentence for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.profile import save_profile

Sgtune = Callable[..., Any]
PLAN = ("plan", "--hardware", "nf5688g7", "--isl", "1000", "--osl", "1000", "--concurrency", "64")


def test_plan_says_what_was_asked(sgtune: Sgtune) -> None:
    ran = sgtune("plan", "--hardware", "nf5688g7", "--isl", "1000", "--osl", "1000", "--concurrency", "1024")
    assert ran.code == 0
    assert "It fits" in ran.out
    assert "KV cache: " in ran.out
    assert "1,024 of 1,024 run concurrently" in ran.out
    assert "--mem-fraction-static" in ran.out
    assert "why the others rank lower" in ran.out


def test_plan_json_is_one_line_and_nothing_else(sgtune: Sgtune) -> None:
    ran = sgtune(*PLAN, "--json")
    assert ran.code == 0
    assert ran.out.count("\n") == 1
    document = json.loads(ran.out)
    assert document["fits"] is True
    assert document["answer"]["running_requests"] == 64


def test_plan_explains(sgtune: Sgtune) -> None:
    ran = sgtune(*PLAN, "--explain")
    assert "KV pool" in ran.out
    assert "kernel launch latency" in ran.out
    assert "pipeline parallelism and MTP do not go together" in ran.out


@pytest.mark.parametrize("clients", ["1", "16", "64"])
def test_the_founding_case_shows_how_far_it_is_from_the_prediction(sgtune: Sgtune, clients: str) -> None:
    ran = sgtune(
        "plan", "--hardware", "nf5688g7", "--isl", "100", "--osl", "1000", "--concurrency", clients,
        "--sglang-version", "0.4.3",
    )  # fmt: skip
    assert ran.code == 0
    assert "published" in ran.out
    published, predicted, percent = (
        float(re.search(pattern, ran.out)[1].replace(",", ""))  # type: ignore[index]
        for pattern in (r"published ([\d.,]+) ", r"predicted ([\d.,]+);", r"published over predicted ([-+][\d.]+) %")
    )
    assert percent == pytest.approx(100 * (published / predicted - 1), abs=0.1)


def test_what_does_not_fit_says_by_how_much_and_what_would(sgtune: Sgtune) -> None:
    ran = sgtune("plan", "--hardware", "h100x8", "--isl", "1000", "--osl", "1000", "--concurrency", "64")
    assert ran.code == 3
    assert "does not fit" in ran.out
    assert "GiB per GPU" in ran.out
    assert "It fits on 2 nodes" in ran.out
    ran = sgtune("plan", "--hardware", "h100x8", "--isl", "9", "--osl", "9", "--concurrency", "1", "--json")
    assert ran.code == 3
    assert json.loads(ran.out)["fits"] is False


def test_a_missed_limit_is_an_answer_with_exit_3(sgtune: Sgtune) -> None:
    ran = sgtune(*PLAN, "--slo", "tpot:mean<1ms")
    assert ran.code == 3
    assert "Target unreachable" in ran.out


def test_plan_reads_a_probed_machine_and_writes_its_document(sgtune: Sgtune, tmp_path: Path) -> None:
    hardware, out = tmp_path / "hardware.json", tmp_path / "plan.json"
    save_profile(hardware_from_catalogue("h200x8"), hardware)
    arguments = ("plan", "--hardware", str(hardware), "--isl", "10", "--osl", "10", "--concurrency", "1")
    assert sgtune(*arguments, "--out", str(out)).code == 0
    assert json.loads(out.read_text())["fits"] is True


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"--hardware": "h2000x8"}, "did you mean 'h200x8'"),
        ({"--hardware": "/nonexistent.json"}, "cannot read hardware profile"),
        ({"--isl": "0"}, "--isl is 0"),
        ({"--isl": "-3"}, "--isl is -3"),
        ({"--concurrency": "0"}, "--concurrency is 0"),
        ({"--slo": "ttft is fine"}, "does not parse"),
        ({"--sglang-version": "latest"}, "is not an SGLang version"),
        ({"--sglang-version": "0.2.0"}, "older than"),
        ({"--model": "/nonexistent/config.json"}, "neither a file nor a checkpoint known by name"),
        ({"--profile": "/nonexistent.json"}, "cannot read engine profile"),
        ({"--range-ratio": "1.5"}, "--range-ratio"),
        ({"--expert-skew": "9"}, "--expert-skew"),
        ({"--out": "/proc/plan.json"}, "cannot write"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(sgtune: Sgtune, changes: dict[str, str], complaint: str) -> None:
    options = {"--hardware": "h200x8", "--isl": "100", "--osl": "100", "--concurrency": "4"} | changes
    ran = sgtune("plan", *(word for pair in options.items() for word in pair))
    assert ran.code == 2
    assert complaint in ran.err
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("arguments", [("plan",), ("plan", "--isl", "x"), ("nonsense",), ("tune", "--engine", "cloud")])
def test_bad_usage_exits_2(sgtune: Sgtune, arguments: tuple[str, ...]) -> None:
    ran = sgtune(*arguments)
    assert ran.code == 2
    assert "Traceback" not in ran.err + ran.out


def test_another_models_config_is_refused(sgtune: Sgtune, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen2"}))
    ran = sgtune(*PLAN, "--model", str(path))
    assert ran.code == 2
    assert "'qwen2' is not supported" in ran.err


def test_a_hardware_file_with_a_negative_field_is_refused(sgtune: Sgtune, tmp_path: Path) -> None:
    path = tmp_path / "hardware.json"
    save_profile(hardware_from_catalogue("h200x8"), path)
    path.write_text(path.read_text().replace("4800.0", "-4800.0"))
    ran = sgtune("plan", "--hardware", str(path), "--isl", "10", "--osl", "10", "--concurrency", "1")
    assert ran.code == 2
    assert "hbm_gb_s" in ran.err


def test_probe_works_without_a_gpu(sgtune: Sgtune, tmp_path: Path) -> None:
    out = tmp_path / "hardware.json"
    ran = sgtune("probe", "--out", str(out), "--json")
    assert ran.code == 0
    profile = json.loads(ran.out)
    assert profile["host"]["memory_gib"] > 0
    assert json.loads(out.read_text()) == profile
    if not profile["gpus"]:
        assert any("no GPU" in warning for warning in profile["warnings"])
        refused = sgtune("plan", "--hardware", str(out), "--isl", "10", "--osl", "10", "--concurrency", "1")
        assert refused.code == 2
        assert "lists no GPU" in refused.err
        assert "No GPU here" in sgtune("probe").out


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "tuner.cli.main", "--debug", *PLAN, "--slo", "bad"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


def test_version_and_help(sgtune: Sgtune) -> None:
    assert sgtune("--version").out.startswith("sgtune ")
    for command in ("probe", "plan", "tune", "export"):
        ran = sgtune(command, "--help")
        assert ran.code == 0
        assert "Example: sgtune" in ran.out


def test_what_help_repeats_is_what_the_model_means() -> None:
    """The options module repeats two constants so that --help need not load the models."""
    from models.serving.estimate import DEFAULT_ACCEPTANCE
    from models.version import NEWEST, parse_version
    from planner.launch_files.targets import Target
    from tuner.cli.commands.export import TargetName
    from tuner.cli.common import options

    assert str(parse_version(options.NEWEST_VERSION)) == NEWEST
    assert options.ACCEPTANCE == DEFAULT_ACCEPTANCE
    assert {*Target, "all"} == set(TargetName)


def test_usage_errors_speak_of_sgtune() -> None:
    done = subprocess.run([sys.executable, "-m", "tuner.cli.main", "tune"], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("Usage: sgtune tune")


def test_without_aiohttp_the_emulated_engine_names_the_extra_and_writes_nothing(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.engines.build.find_spec", lambda name: None)
    question = ("--hardware", "h200x8", "--isl", "10", "--osl", "10", "--concurrency", "1")
    ran = sgtune("tune", *question, "--engine", "emulated", "--runs", str(tmp_path / "runs"))
    assert (ran.code, "pip install -e '.[tune]'" in ran.err) == (2, True)
    assert not (tmp_path / "runs").exists()
