"""Launch files: valid, complete, and safe to run whatever the names in them."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from hwprobe.errors import InputError
from models.config import ServerConfig, Speculative
from planner.export.files import Provenance, Target, export_files, possible_targets, render_bash, render_yaml
from planner.launch import launch_spec

GOLDEN = Path(__file__).parent.parent / "golden" / "export"
NEWEST = Version("0.5.23")
PROVENANCE = Provenance(lines=(("made by", "a test"), ("predicted", "1.0 tok/s")))
CONFIGS = {
    "tp8": ServerConfig(tp_size=8, mem_fraction_static=0.88, max_running_requests=64, chunked_prefill_size=8192),
    "dp8-ep8-mtp": ServerConfig(
        tp_size=8, attn_dp_size=8, ep_size=8, moe_a2a_backend="deepep", speculative=Speculative.chain(1),
        mem_fraction_static=0.86, max_running_requests=1024, schedule_conservativeness=0.3,
    ),
    "two-nodes-tp16": ServerConfig(tp_size=16, nnodes=2, mem_fraction_static=0.85, max_running_requests=64),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("target", list(Target))
def test_golden_files(name: str, target: Target) -> None:
    spec = launch_spec(CONFIGS[name], NEWEST)
    text = render_bash(spec, PROVENANCE) if target is Target.BASH else render_yaml(spec, PROVENANCE)
    golden = GOLDEN / f"{name}.{'sh' if target is Target.BASH else 'yaml'}"
    if os.environ.get("SGTUNE_WRITE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def argv_of_script(script: str, tmp_path: Path, **environment: str) -> list[str]:
    """Run a launch script with a stand-in for python that prints its arguments, one per NUL."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    path = tmp_path / "launch.sh"
    path.write_bytes(script.encode())
    done = subprocess.run(
        ["bash", str(path)],
        env={"PATH": os.environ["PATH"], "PYTHON": str(stand_in), **environment},
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", ["tp8", "dp8-ep8-mtp"])
def test_the_script_runs_exactly_the_planned_command(name: str, tmp_path: Path) -> None:
    spec = launch_spec(CONFIGS[name], NEWEST)
    assert argv_of_script(render_bash(spec, PROVENANCE), tmp_path) == spec.argv()[1:]


def test_several_nodes_ask_for_rank_and_address(tmp_path: Path) -> None:
    script = render_bash(launch_spec(CONFIGS["two-nodes-tp16"], NEWEST), PROVENANCE)
    argv = argv_of_script(script, tmp_path, NODE_RANK="1", RANK0_HOST="node0")
    assert argv[argv.index("--node-rank") + 1] == "1"
    assert argv[argv.index("--dist-init-addr") + 1] == "node0:20000"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        argv_of_script(script, tmp_path)
    assert b"set NODE_RANK" in failed.value.stderr


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30))
def test_any_model_path_reaches_the_server_unchanged(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    spec = launch_spec(CONFIGS["tp8"], NEWEST, model_path=path)
    argv = argv_of_script(render_bash(spec, PROVENANCE), tmp_path_factory.mktemp("run"))
    assert argv[argv.index("--model-path") + 1] == path
    assert yaml.safe_load(render_yaml(spec, PROVENANCE))["model-path"] == path
    assert shlex.split(spec.shell_line()) == spec.argv()


@given(st.text(max_size=40))
def test_provenance_cannot_break_out_of_its_comment(text: str) -> None:
    provenance = Provenance(lines=(("note", text),))
    spec = launch_spec(CONFIGS["tp8"], NEWEST)
    plain = Provenance(lines=())
    body = render_bash(spec, plain).splitlines()[1:]
    lines = render_bash(spec, provenance).splitlines()
    assert lines[1].startswith("# note:")
    assert lines[2:] == body


def test_yaml_holds_every_flag() -> None:
    spec = launch_spec(CONFIGS["dp8-ep8-mtp"], NEWEST)
    loaded = yaml.safe_load(render_yaml(spec, PROVENANCE))
    assert loaded["attn-dp-size"] == 8
    assert loaded["moe-a2a-backend"] == "deepep"
    assert loaded["trust-remote-code"] is True
    assert len(loaded) == len(spec.flags)


def test_old_versions_have_no_yaml(tmp_path: Path) -> None:
    spec = launch_spec(CONFIGS["tp8"], Version("0.4.3"))
    assert possible_targets(spec) == [Target.BASH]
    with pytest.raises(InputError, match=r"no --config file.*--target bash"):
        export_files(spec, PROVENANCE, tmp_path, [Target.YAML])


def test_deepep_gets_the_buffer_it_needs() -> None:
    spec = launch_spec(CONFIGS["dp8-ep8-mtp"], NEWEST)
    assert spec.environment == {"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK": "256"}
    assert launch_spec(CONFIGS["tp8"], NEWEST).environment == {}
