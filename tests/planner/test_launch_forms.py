"""Two hundred launch files in all forms read back to the one configuration they were written from."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version

from models.config import ServerConfig
from planner.launch_lines.launch_line import LaunchLine
from planner.launch_lines.read import launches_of_file
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values
from tests.planner.launch_forms import FORMS, plain_words

SEEDS = range(12)
VERSION = Version("0.5.23")
# What differs between nodes and platforms, not between servers.
OF_ONE_NODE = ("node_rank", "dist_init_addr", "port")
FAKE = '#!/bin/bash\nprintf "%s\\0" "$@" > "$RECORD"\n'
PASS_ON = '#!/bin/bash\n{skip}exec "$@"\n'


def config_of(words: list[str]) -> ServerConfig:
    found = read_arguments(words, VERSION)
    assert not [fault for fault in found.faults if fault.refused], found.faults
    typed = from_values(found.values, VERSION)
    return replace(typed, extra=tuple(sorted((n, v) for n, v in typed.extra if n not in OF_ONE_NODE)))


WANTED = config_of(plain_words())


def read_back(form: str, seed: int, folder: Path) -> list[LaunchLine]:
    name, write, _ = FORMS[form]
    file = folder / name
    file.write_text(write(seed), encoding="utf-8")
    return launches_of_file(file)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_back_to_the_same_configuration(form: str, tmp_path: Path) -> None:
    assert len(FORMS) * len(SEEDS) >= 200
    for seed in SEEDS:
        found = read_back(form, seed, tmp_path)
        text = (tmp_path / FORMS[form][0]).read_text()
        assert len(found) == 1, text
        assert found[0].unknown == (), text
        assert config_of(list(found[0].words)) == WANTED, text


@pytest.mark.skipif(shutil.which("bash") is None, reason="compares with the shell itself")
@pytest.mark.parametrize("form", [form for form, (_, _, runs) in FORMS.items() if runs])
@pytest.mark.parametrize("seed", range(100, 104))
def test_a_shell_gives_the_server_the_same_words(form: str, seed: int, tmp_path: Path) -> None:
    """The script runs with a python3 that writes its arguments down, and srun and docker that only pass them on."""
    found = read_back(form, seed, tmp_path)
    skip = 'while [ "$1" != python3 ] && [ "$1" != bash ]; do shift; done\n'
    for name, text in {"python3": FAKE, "srun": PASS_ON.format(skip=""), "docker": PASS_ON.format(skip=skip)}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    record = tmp_path / "record"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RECORD": str(record), "SLURM_PROCID": "0"}
    subprocess.run(
        ["bash", str(tmp_path / FORMS[form][0])],
        env=environment,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=20,
    )
    words = record.read_bytes().decode().split("\0")[:-1]
    assert list(found[0].words) == words[2:], (tmp_path / FORMS[form][0]).read_text()
