"""A golden launch file of each kind of checkpoint: the export that serves it, and that nothing objects to."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture.shipped import checkpoint_named
from models.config import ServerConfig
from models.costs.memory import memory
from models.layout import table_of
from models.machine import machine_of
from planner.check.judge import check_arguments
from planner.launch import launch_spec
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.render import render
from planner.launch_files.targets import Target
from planner.launch_lines.checkpoint import served_model
from planner.launch_lines.read import launch_of_file
from planner.plans.space import checkpoint_flags
from planner.rules import Severity
from planner.sglang.arguments import read_arguments
from planner.sglang.resolver import resolve

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoints"
PROVENANCE = Provenance(lines=(("made by", "a test"),))
REQUESTS, CHUNK = 64, 8192


@dataclass(frozen=True, slots=True)
class Launch:
    """One entry of launches.toml."""

    name: str
    model: str
    hardware: str
    sglang_version: str

    @property
    def version(self) -> Version:
        return Version(self.sglang_version)

    @property
    def file(self) -> Path:
        return GOLDEN / f"{self.name}.sh"

    def text(self) -> str:
        """Return the bash file of a plain TP launch with the flags that the checkpoint needs."""
        checkpoint = checkpoint_named(self.model)
        assert checkpoint is not None
        machine = machine_of(hardware_from_catalogue(self.hardware))
        typed = ServerConfig(
            tp_size=machine.gpu_count,
            nnodes=machine.nodes,
            max_running_requests=REQUESTS,
            chunked_prefill_size=CHUNK,
        ).with_flags(**checkpoint_flags(checkpoint.arch, self.version))
        config = resolve(typed, checkpoint.arch, machine, self.version).config
        parameters = Parameters(model_path=checkpoint.name)
        spec = launch_spec(config, self.version, model_path=parameters.model_path)
        spec = spec.with_words(parameters.production.words(self.version, checkpoint.name))
        return render(Target.BASH, spec, parameters, PROVENANCE)


LAUNCHES = [Launch(**entry) for entry in tomllib.loads((GOLDEN / "launches.toml").read_text())["launch"]]


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda each: each.name)
def test_each_kind_has_a_golden_export(launch: Launch) -> None:
    text = launch.text()
    if os.environ.get("SGTUNE_WRITE_GOLDEN"):
        launch.file.write_text(text, encoding="utf-8")
    assert text == launch.file.read_text(encoding="utf-8")


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda each: each.name)
def test_nothing_objects_to_it_and_it_has_room_for_its_kv_cache(launch: Launch) -> None:
    words = list(launch_of_file(launch.file).words)
    served = served_model(read_arguments(words, launch.version).values, None)
    assert served.assumed is None
    assert served.arch.name == launch.model
    machine = machine_of(hardware_from_catalogue(launch.hardware))
    checked = check_arguments(words, served.arch, machine, launch.version)
    assert [each.message for each in checked.violations if each.severity is Severity.ERROR] == []
    filled = memory(served.arch, machine, table_of([checked.resolved.config]), launch.version)
    assert float(filled.kv_tokens[0]) > 10_000


def test_every_kind_is_there() -> None:
    kinds = {checkpoint.arch.weights for each in LAUNCHES if (checkpoint := checkpoint_named(each.model))}
    assert {"4-bit AWQ", "INT8", "W4AFP8", "NVFP4", "MXFP4", "FP8", "4-bit compressed-tensors"} <= kinds
