"""Machine, model and question from what a user typed, read alike by command line, dashboard and emulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwprobe.profile import HardwareProfile
    from models.architecture import ModelArchitecture
    from planner.plans.make import PlanQuestion


def read_hardware(name: str) -> HardwareProfile:
    """Return the machine behind --hardware: a file if it looks like one, else the catalogue."""
    from hwprobe.catalogue import hardware_from_catalogue
    from hwprobe.profile import load_profile

    path = Path(name)
    if name.endswith(".json") or "/" in name or path.is_file():
        return load_profile(path)
    return hardware_from_catalogue(name)


def read_model(path: Path | None) -> ModelArchitecture:
    """Return the model behind --model, DeepSeek-R1 by default. Raises UnsupportedModel where no speed is known."""
    from hwprobe.errors import UnsupportedModel
    from models.architecture import deepseek_r1

    arch = deepseek_r1() if path is None else read_any_model(path)
    if arch.weights == "INT8":
        raise UnsupportedModel(
            f"'{path}': the speed of INT8 weights is not modelled; `sgtune check --model {path}` weighs their memory, "
            "and a config.json with FP8 or BF16 weights is planned for"
        )
    return arch


def read_any_model(path: Path) -> ModelArchitecture:
    """Return the model of a config.json, also one whose memory alone is modelled."""
    from models.architecture import load_architecture

    return load_architecture(path)


def read_question(
    *,
    hardware: str,
    model: Path | None,
    sglang_version: str,
    slo: list[str] | None,
    profile: Path | None,
    **rest: Any,
) -> PlanQuestion:
    """Build the question that plan and tune share; `rest` are fields of PlanQuestion as they are.

    An `acceptance` among them that is None is the profile's, where measurements told it, else the prior.
    """
    from models.engine.profile import load_engine_profile
    from models.serving.estimate import acceptance_of
    from models.version import parse_version
    from models.workload import Slo
    from planner.plans.make import PlanQuestion

    engine = load_engine_profile(profile) if profile else None
    acceptance = rest.pop("acceptance", None)
    return PlanQuestion(
        hardware=read_hardware(hardware),
        arch=read_model(model),
        version=parse_version(sglang_version),
        slos=tuple(Slo.parse(text) for text in slo or []),
        engine=engine,
        acceptance=acceptance_of(engine) if acceptance is None else acceptance,
        **rest,
    )
