"""Before the first launch: what would make all of them fail alike is named with its remedy, and nothing is started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from hwprobe.errors import InputError
from hwprobe.inventory.nvml import Inventory
from tuner.evidence.trial import TrialOutcome
from tuner.run.stop import AlikeFailures, stop_where_alike
from tuner.seam import FailureKind
from tuner.server.preflight import Preflight, ask_python

Sgtune = Callable[..., Any]


def none() -> Inventory:
    return Inventory(software={})


def asked(weights: Path, **changes: Any) -> Preflight:
    (weights / "config.json").write_text("{}")
    (weights / "model-1.safetensors").write_text("")
    sound = Preflight(
        python="python3", version=Version("0.5.12"), gpus=8, model_path=str(weights), ask=lambda _: (0, "0.5.12"),
        inventory=lambda: Inventory(gpus=(object(),) * 8, software={}), shm=weights / "nowhere",  # type: ignore[arg-type]
    )  # fmt: skip
    return replace(sound, **changes)


def test_a_sound_machine_passes(tmp_path: Path) -> None:
    asked(tmp_path).check()


@pytest.mark.parametrize(
    ("changes", "said", "remedy"),
    [
        ({"ask": lambda _: (1, "No module named 'sglang'")}, "cannot import sglang (No module", "--python"),
        ({"ask": lambda _: (0, "0.5.9")}, "has SGLang 0.5.9", "--sglang-version 0.5.9"),
        (
            {"inventory": lambda: Inventory(absent="no driver", software={})},
            "0 GPUs are seen here (no driver)",
            "--hardware",
        ),
        ({"model_path": "/no/such/folder"}, "holds no config.json", "--model-path"),
    ],
)
def test_each_fault_is_named_with_its_remedy(tmp_path: Path, changes: dict[str, Any], said: str, remedy: str) -> None:
    with pytest.raises(InputError) as refused:
        asked(tmp_path, **changes).check()
    assert said in str(refused.value)
    assert remedy in str(refused.value)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        asked(tmp_path, ask=lambda _: (1, "x"), inventory=none, model_path="/nowhere").check()
    assert str(refused.value).count("\n  - ") == 3


def test_weights_without_tensors_are_an_unfinished_download_unless_they_are_made_up(tmp_path: Path) -> None:
    flight = asked(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(InputError, match="not complete"):
        flight.check()
    replace(flight, flags=("--load-format", "dummy")).check()


def test_a_cpu_needs_no_gpu_and_a_container_no_python_here(tmp_path: Path) -> None:
    asked(tmp_path, inventory=none, flags=("--device", "cpu")).check()
    asked(tmp_path, python=None, ask=lambda _: (1, "x")).check()


def test_an_interpreter_without_sglang_is_asked_for_real() -> None:
    code, said = ask_python(sys.executable)
    assert code != 0
    assert "sglang" in said


def test_tune_with_a_python_without_sglang_starts_and_writes_nothing(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(
        "tune", "--hardware", "h200x8", "--isl", "100", "--osl", "50", "--concurrency", "8", "--engine", "local",
        "--python", sys.executable, "--runs", str(tmp_path / "runs"),
    )  # fmt: skip
    assert ran.code == 2
    assert "cannot import sglang" in ran.err
    assert "--python" in ran.err
    assert not (tmp_path / "runs").exists()


def test_two_launches_that_fail_alike_stop_the_run_and_two_that_differ_do_not() -> None:
    from tests.tuner.test_confirm import trial

    failed = [
        replace(
            trial(n, 1.0), points=(), outcome=TrialOutcome.FAILED, failure=FailureKind.UNKNOWN,
            reason=f"[12:0{n}:31] ImportError: libcuda.so.1, pid {4000 + n}",
        )
        for n in (1, 2)
    ]  # fmt: skip
    with pytest.raises(AlikeFailures, match=r"libcuda\.so\.1"):
        stop_where_alike(failed[0], failed[1])
    stop_where_alike(None, failed[0])
    stop_where_alike(failed[0], replace(failed[1], reason="Address already in use"))
    stop_where_alike(failed[0], replace(failed[1], outcome=TrialOutcome.INFEASIBLE))
    stop_where_alike(failed[0], replace(failed[1], points=trial(3, 1.0).points))
