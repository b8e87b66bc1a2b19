"""Evidence that was corrupted is found, and what is sound of it is kept."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError, SgtuneError
from hwprobe.files import encode_json
from tests.tuner.test_store import HARDWARE, MANIFEST, record
from tuner.evidence.repair import repair
from tuner.evidence.run_folder import RunFolder
from tuner.evidence.standings import winner_of
from tuner.evidence.trial_lines import EvidenceSpoiled, read_trials, sound_trials, write_trials

Sgtune = Callable[..., Any]
EXAMPLE = Path(__file__).parents[2] / "examples" / "runs" / "h200x8-64-clients"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with six sound records and the trials' own files."""
    folder = RunFolder.create(tmp_path / "run", MANIFEST, HARDWARE)
    for number in range(6):
        folder.append(record(number))
        folder.write_trial(number, "result.json", encode_json(record(number)))
    folder.release()
    return folder.path


def spoil(lines: list[bytes], deed: int, dice: random.Random) -> list[bytes]:
    """Return lines with one thing wrong: flipped, doubled, moved, taken out, cut, joined, swapped digits."""
    place = dice.randrange(len(lines))
    line = lines[place]
    at = dice.randrange(len(line) - 1)
    flipped = bytes([line[at] ^ (1 << dice.randrange(7))])
    changed = {
        0: [*lines[:place], line[:at] + flipped + line[at + 1 :], *lines[place + 1 :]],
        1: [*lines[: place + 1], line, *lines[place + 1 :]],
        2: lines[::-1],
        3: lines[:place] + lines[place + 1 :],
        4: [*lines[:place], line[:at] + b"\n", *lines[place + 1 :]],
        5: [*lines[:place], line.replace(b"1", b"9", 1), *lines[place + 1 :]],
    }  # fmt: skip
    return changed[deed]


@pytest.mark.parametrize("number", range(60))
def test_of_sixty_corruptions_none_is_accepted_with_another_answer(tmp_path: Path, number: int) -> None:
    run = shutil.copytree(EXAMPLE, tmp_path / "run")
    file, dice = run / "trials.jsonl", random.Random(number)
    true = read_trials(file)
    lines = spoil(file.read_bytes().splitlines(keepends=True), number % 6, dice)
    if b"".join(lines) == file.read_bytes():
        return
    file.write_bytes(b"".join(lines))
    with suppress(EvidenceSpoiled):
        assert read_trials(file) == true, "accepted, with another answer"
    done = repair(run)
    kept = read_trials(file)
    assert all(one in true for one in kept) or len(kept) < len(true)
    assert len(kept) == len(done.kept)
    originals = [(one.params, one.points) for one in true]
    assert all((one.params, one.points) in originals for one in kept), "nothing was made up"


@pytest.mark.parametrize("name", ["run.toml", "hardware.json"])
def test_a_changed_question_or_machine_is_found(tmp_path: Path, name: str) -> None:
    run = shutil.copytree(EXAMPLE, tmp_path / "run")
    (run / name).write_text((run / name).read_text().replace("1", "2", 1))
    with pytest.raises(EvidenceSpoiled, match=r"line 1: .*run.toml or hardware.json"):
        read_trials(run / "trials.jsonl")


def test_the_last_lines_are_missed_too(run: Path) -> None:
    file = run / "trials.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]))
    with pytest.raises(EvidenceSpoiled, match="ends after 4 records, 6 were written"):
        read_trials(file)
    file.unlink()
    with pytest.raises(EvidenceSpoiled, match="ends after 0 records"):
        read_trials(file)


@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_lost_line_is_recovered_from_its_trials_folder_and_all_is_as_before(run: Path, place: int) -> None:
    file = run / "trials.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    done = repair(run)
    assert done.recovered == [place]
    assert file.read_bytes() == whole
    assert repair(run).aside is None, "a second repair has nothing to do"


def test_what_nothing_vouches_for_is_left_out_and_the_rest_renumbered(run: Path) -> None:
    file = run / "trials.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    (run / "trials" / "2" / "result.json").write_text("{}")
    file.write_bytes(b"".join([*lines[:2], b"nonsense\n", *lines[3:]]))
    done = repair(run)
    assert any(text.startswith("trial 2:") for text in done.left_out)
    kept = read_trials(file)
    assert [one.number for one in kept] == list(range(len(kept)))
    assert [one.params for one in kept] == [record(n).params for n in (0, 1, 3, 4, 5)]
    assert (run / "trials" / "left-out-2").is_dir()
    assert done.aside is not None
    assert b"nonsense" in done.aside.read_bytes()


def test_two_starts_at_once_never_mix_a_question_with_anothers_trials(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tuner.cli.main", "tune", "--engine", "simulated", "--hardware", "h200x8",
             "--osl", "50", "--concurrency", "4", "--sampler", "random", "--trials", "1", "--confirm", "0",
             "--runs", str(tmp_path),
             "--run", "a"]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([*words, "--isl", str(isl)], text=True, **pipes) for isl in (50, 60, 70)]
    ended = [(process.communicate()[1], process.returncode) for process in started]
    assert sorted(code for _, code in ended) == [0, 2, 2], ended
    winner = next(isl for isl, (_, code) in zip((50, 60, 70), ended, strict=True) if code == 0)
    assert f"isl = {winner}" in (tmp_path / "a" / "run.toml").read_text()
    assert winner_of(read_trials(tmp_path / "a" / "trials.jsonl")) is not None


def test_a_folder_that_vanishes_is_not_made_anew(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", MANIFEST, HARDWARE)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(SgtuneError, match="is gone") as failed:
        folder.append(record(0))
    assert not isinstance(failed.value, InputError)
    assert not (tmp_path / "run").exists()
    folder.release()


def test_the_onlooker_sees_what_is_sound_and_hears_of_the_rest(run: Path) -> None:
    file = run / "trials.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines, lines[1]]))
    records, notes = sound_trials(file)
    assert len(records) == 6
    assert "line 7 is left out: trial 1 stands where trial 6 should" in notes[0]


def test_a_measured_trial_without_a_measurement_is_no_record_and_reads_as_none(run: Path) -> None:
    file = run / "trials.jsonl"
    write_trials(file, [replace(each, points=()) if each.number == 1 else each for each in read_trials(file)])
    with pytest.raises(EvidenceSpoiled, match="measured, without a measurement"):
        read_trials(file)
    records, notes = sound_trials(file)
    assert 1 not in [each.number for each in records]
    assert "line 2 is left out" in notes[0]


def test_settings_no_server_has_are_no_record(run: Path) -> None:
    file = run / "trials.jsonl"
    odd = [replace(each, config=replace(each.config, pp_size=0)) for each in read_trials(file)]
    write_trials(file, odd)
    with pytest.raises(EvidenceSpoiled, match="pp_size is 0; it must be from 1 to 4,096 stages"):
        read_trials(file)


def test_the_command_says_what_it_kept(sgtune: Sgtune, run: Path) -> None:
    file = run / "trials.jsonl"
    file.write_bytes(file.read_bytes() + b'{"number": 6, "torn')
    file.write_bytes(file.read_bytes() + b"\n")
    ran = sgtune("runs", "repair", "run", "--runs", str(run.parent))
    assert ran.code == 0, ran.err
    assert "kept 6 records" in ran.out
    assert "left out: 1 line(s) that are not records any more" in ran.out
    assert sgtune("runs", "repair", "run", "--runs", str(run.parent)).out.startswith("the evidence of 'run' is sound")
    assert sgtune("runs", "repair", "none", "--runs", str(run.parent)).code == 2
