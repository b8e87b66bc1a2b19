"""Knobs that no equation prices: which are offered, how they are launched, and that a run finds what they are worth."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.serving.estimate import Context
from models.workload import Workload
from planner.launch import launch_spec
from planner.plans.alternatives import DEFAULT, UNMODELLED, alternatives
from planner.plans.space import as_launched, default_space
from planner.sglang.resolver import resolve
from tuner.search.configurations import allowed, candidates_of
from tuner.search.space import CORE, TuningSpace, tuning_space
from tuner.search.unmodelled_knobs import UnmodelledKnobs

Sgtune = Callable[..., Any]
MakeContext = Callable[..., Context]
SMALL = (
    "tune", "--hardware", "h200x8", "--isl", "200", "--osl", "200", "--concurrency", "32", "--engine", "simulated",
    "--sglang-version", "0.5.12",
)  # fmt: skip


def space_of(where: Context) -> TuningSpace:
    space = default_space(where.machine, where.version, arch=where.arch, mtp=False)
    layouts = {layout.layout: layout for layout in space.layouts if layout.pp_size == 1}
    return tuning_space(space, layouts, where, Workload.checked(200, 200, 64))


@pytest.mark.parametrize("version", ["0.4.3", "0.4.6", "0.5.12", "0.5.23"])
@pytest.mark.parametrize("hardware", ["h200x8", "b200x8"])
def test_every_move_is_a_command_that_resolves_to_itself(context: MakeContext, hardware: str, version: str) -> None:
    if hardware == "b200x8" and version < "0.5":
        pytest.skip("no release before 0.5 knows this GPU")
    where = context(hardware, version)
    space = space_of(where)
    base = candidates_of(space).params[0]
    rows = UnmodelledKnobs(space).around([base])
    moved = {name for params in rows.params for name in UNMODELLED if params[name] != DEFAULT}
    assert {"stream_interval", "disable_radix_cache", "attention_backend"} <= moved
    for params, config in zip(rows.params, rows.configs, strict=True):
        typed = as_launched(config, where.version)
        assert resolve(typed, where.arch, where.machine, where.version).config == config
        line = shlex.join(launch_spec(config, where.version).argv())
        for name in UNMODELLED:
            value = params[name]
            if value != DEFAULT and name != "page_size":
                shown = value in line if isinstance(value, str) else "--" + name.replace("_", "-") in line
                assert shown or str(value) in line, (name, value, line)


def test_the_candidates_are_the_priced_combinations_only(context: MakeContext) -> None:
    space = space_of(context())
    rows = candidates_of(space)
    assert all(params[name] == DEFAULT for params in rows.params[:200] for name in UNMODELLED)
    combinations = 1
    for name in CORE:
        combinations *= len(space.choices[name])
    assert len(rows.configs) <= combinations


def test_an_fp8_cache_comes_with_a_backend_that_reads_it(context: MakeContext) -> None:
    space = space_of(context("h200x8", "0.5.23"))
    base = candidates_of(space).params[0]
    rows = UnmodelledKnobs(space).around([base])
    fp8 = [params for params in rows.params if params["kv_cache_dtype"] == "fp8_e4m3"]
    assert fp8
    assert all(allowed(space, space.config(params)) for params in fp8)


def test_only_what_can_matter_is_offered(context: MakeContext) -> None:
    where = context()
    quiet = alternatives(where.machine, where.version, 1)
    assert quiet["stream_interval"] == (DEFAULT,)
    assert alternatives(where.machine, where.version, 64)["stream_interval"] == (DEFAULT, 10)
    assert alternatives(where.machine, where.version, 64, shared_prefix=True)["disable_radix_cache"] == (DEFAULT,)
    assert alternatives(where.machine, Version("0.4.3"), 64)["moe_runner_backend"] == (DEFAULT,)
    assert hardware_from_catalogue("h200x8").name == "h200x8"


def test_a_run_finds_what_a_stream_interval_is_worth(sgtune: Sgtune, tmp_path: Path) -> None:
    world, space = tmp_path / "world.toml", tmp_path / "space.toml"
    world.write_text(
        'name = "chatty"\nnoise = 0.01\n[[effects]]\nwhen = { stream_interval = 10 }\ntime_factor = 0.85\n'
    )
    space.write_text('[space]\nlayout = ["TP8", "TP8 DP8"]\nmtp_steps = 0\nchunked_prefill_size = "default"\n')
    ran = sgtune(
        *SMALL, "--trials", "8", "--confirm", "1", "--world", str(world), "--space", str(space), "--runs",
        str(tmp_path), "--run", "a", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    best = json.loads(ran.out)["best"]
    assert best["config"]["stream_interval"] == 10
    assert "--stream-interval 10" in shlex.join(best["argv"])


def test_a_space_file_narrows_fixes_and_extends_them(sgtune: Sgtune, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    fixed = "".join(
        f'{name} = "default"\n' for name in UNMODELLED if name not in ("attention_backend", "stream_interval")
    )
    file.write_text(
        '[space]\nlayout = "TP8"\nmtp_steps = 0\nchunked_prefill_size = "default"\nattention_backend = "triton"\n'
        f'stream_interval = ["default", 7]\n{fixed}'
    )
    ran = sgtune(
        *SMALL, "--trials", "5", "--confirm", "0", "--space", str(file), "--runs", str(tmp_path), "--run", "a", "--json"
    )
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "a" / "trials.jsonl").read_text().splitlines()]
    assert lines[0]["params"]["attention_backend"] == DEFAULT, "the baseline is SGLang's own in any case"
    later = [line for line in lines if line["source"] == "sampler"]
    assert later
    assert {line["params"]["attention_backend"] for line in later} == {"triton"}
    assert 7 in {line["params"]["stream_interval"] for line in later}
    for line in later:
        command = (tmp_path / "a" / "trials" / str(line["number"]) / "command.sh").read_text()
        assert "--attention-backend triton" in command
    assert all(line["params"][name] == DEFAULT for line in later for name in UNMODELLED[:1])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('attention_backend = "fa33"', "does not know"),
        ("stream_interval = 0", "from 1"),
        ("enable_mixed_chunk = 1", "or true"),
        ("schedule_conservativeness = 99.0", "from 0.01 to 10"),
        ("scheduler_recv_intervall = 10", "scheduler_recv_interval"),
    ],
)
def test_a_wrong_value_is_refused_by_name(sgtune: Sgtune, tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "space.toml"
    file.write_text(f"[space]\n{line}\n")
    ran = sgtune(*SMALL, "--space", str(file), "--runs", str(tmp_path / "runs"))
    assert ran.code == 2
    assert said in ran.err
