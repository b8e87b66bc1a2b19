"""The run folder loses nothing and belongs to one question and one tuner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.errors import InputError, SgtuneError
from hwprobe.files import encode_json
from models.config import ServerConfig, Speculative
from tuner.choices import Objective
from tuner.evidence.chain import sealed, start_of
from tuner.evidence.run_folder import RunFolder, read_manifest
from tuner.evidence.trial import Manifest, TrialOutcome, TrialRecord
from tuner.evidence.trial_lines import cut_torn_line, read_trials
from tuner.seam import FailureKind, Measurement

HARDWARE = hardware_from_catalogue("h200x8")
MANIFEST = Manifest(
    hardware="h200x8", hardware_hash="0", model="m", sglang_version="0.5.12", isl=100, osl=100, range_ratio=1.0,
    concurrency=4, slo=("ttft:p99<2s",), objective=Objective.OUTPUT_TOK_S, engine="simulated", world="default",
    world_hash="1", belief_hash="2", seed=0, sampler="tpe", mtp=True,
)  # fmt: skip
POINT = Measurement(
    concurrency=4, achieved_in_flight=4.0, output_tok_s=99.5, output_tok_s_interval=(98.0, 101.0),
    ttft_ms={"mean": 100.0}, tpot_ms={"mean": 20.0}, e2e_ms={"mean": 2000.0}, duration_s=3.0,
)  # fmt: skip


def record(number: int) -> TrialRecord:
    return TrialRecord(
        number=number,
        source="seed",
        params={"layout": "TP8", "mem_fraction_static": 0.9, "mtp_steps": 1},
        config=ServerConfig(tp_size=8, speculative=Speculative.chain(1)),
        outcome=TrialOutcome.MEASURED if number % 2 else TrialOutcome.INFEASIBLE,
        failure=None if number % 2 else FailureKind.OOM_KV,
        predicted={"output_tok_s": 100.0},
        objective=4.6,
        constraints={"memory": -1.0},
        points=(POINT,) if number % 2 else (),
    )


def test_records_come_back_as_they_went(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", MANIFEST, HARDWARE)
    for number in range(5):
        folder.append(record(number))
    folder.release()
    assert read_manifest(folder.path) == MANIFEST
    assert read_trials(folder.trials_file) == [record(number) for number in range(5)]


def lines_of(*records: TrialRecord) -> list[str]:
    lines, chain = [], start_of(Path("nowhere"))
    for one in records:
        line, chain = sealed(encode_json(one, indent=0).encode(), chain)
        lines.append(line.decode() + "\n")
    return lines


def test_a_line_torn_at_any_byte_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    first, second = lines_of(record(0), record(1))
    for length in range(len(second) + 1):
        file.write_text(first + second[:length])
        torn = cut_torn_line(file)
        assert torn == (0 < length < len(second))
        assert [r.number for r in read_trials(file)] == ([0, 1] if length == len(second) else [0])
        if length < len(second):
            with file.open("a") as stream:
                stream.write(second)
        assert read_trials(file)[-1] == record(1)


def test_a_spoiled_line_in_the_middle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    file.write_text(lines_of(record(0))[0] + "nonsense\n")
    with pytest.raises(InputError, match=r"line 2.*sgtune runs repair"):
        read_trials(file)


def test_another_question_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder.create(path, MANIFEST, HARDWARE).release()
    with pytest.raises(InputError, match=r"created with different settings: isl 100 -> 200; seed 0 -> 7"):
        RunFolder.resume(path, replace(MANIFEST, isl=200, seed=7))

    with pytest.raises(InputError, match=r"created with different settings: isl 100 -> 200"):
        RunFolder.create(path, replace(MANIFEST, isl=200), HARDWARE)


def test_create_needs_a_free_place_and_resume_a_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(InputError, match="no run"):
        RunFolder.resume(path, MANIFEST)
    assert not path.exists()
    RunFolder.create(path, MANIFEST, HARDWARE).release()
    with pytest.raises(InputError, match="--resume"):
        RunFolder.create(path, MANIFEST, HARDWARE)


def test_one_tuner_at_a_time(tmp_path: Path) -> None:
    holder = RunFolder.create(tmp_path / "run", MANIFEST, HARDWARE)
    with pytest.raises(InputError, match=r"in use by process \d+"):
        RunFolder.resume(tmp_path / "run", MANIFEST)
    holder.release()
    folder, records, torn = RunFolder.resume(tmp_path / "run", MANIFEST)
    assert (records, torn) == ([], False)
    folder.release()


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        RunFolder.create(file / "run", MANIFEST, HARDWARE)
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_an_error_with_a_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run", MANIFEST, HARDWARE)
    folder.append(record(0))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hwprobe.files.os.fsync", full)
    with pytest.raises(SgtuneError, match=r"No space left.*--resume"):
        folder.append(record(1))
    monkeypatch.undo()
    folder.release()


def test_a_spoiled_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("isl = 'many'")
    with pytest.raises(InputError, match=r"run.toml: not a run manifest"):
        read_manifest(tmp_path)
