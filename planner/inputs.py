"""Machine, model and question from what a user typed, read alike by command line, dashboard and emulator."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprobe.errors import InputError

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


def read_model(model: str | Path | None) -> ModelArchitecture:
    """Return the model behind --model: a config.json, its folder, or a shipped checkpoint's name; R1 by default."""
    from models.architecture import deepseek_r1, load_architecture

    if model is None:
        return deepseek_r1()
    path = Path(model)
    if path.exists():
        return load_architecture(path)
    from models.architecture.shipped import checkpoint_named

    shipped = checkpoint_named(str(model))
    if shipped is not None:
        return shipped.arch
    _refuse_other(str(model))
    raise InputError(f"--model {str(model)[:120]}: neither a file nor a checkpoint known by name; {_near(str(model))}")


def _refuse_other(model: str) -> None:
    """Raise UnsupportedModel where the name is that of a model or of weights that are not modelled."""
    from planner.launch_lines.checkpoint import served_model

    served_model({"model_path": model}, None)


def path_to_serve(model: str | Path | None, model_path: str | None) -> str:
    """Return the model path of launch commands: --model-path, else what --model names, else DeepSeek-R1's hub name.

    A folder is its own path, a file stands for the folder it lies in, and a name for the hub's spelling of it.
    """
    from models.architecture.shipped import checkpoint_named, deepseek_r1

    if model_path is not None:
        return model_path
    if model is None:
        return deepseek_r1().name
    path = Path(model)
    if path.exists():
        return str((path if path.is_dir() else path.parent).resolve())
    shipped = checkpoint_named(str(model))
    return str(model) if shipped is None else shipped.name


def _near(model: str) -> str:
    from models.architecture.shipped import checkpoints

    names = [each.name for each in checkpoints()]
    short = {name.rpartition("/")[2].lower(): name for name in names}
    near = difflib.get_close_matches(model.rpartition("/")[2].lower(), short, n=2, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(short[each] for each in near) + "? `sgtune models` lists them all"
    return "give its config.json; `sgtune models` lists the names"


def read_question(
    *,
    hardware: str,
    model: str | Path | None,
    sglang_version: str,
    slo: list[str] | None,
    profile: Path | None,
    **rest: Any,
) -> PlanQuestion:
    """Build the question that plan and tune share; `rest` are fields of PlanQuestion, unchanged.

    An `acceptance` of None becomes the profile's, if measured, else the prior; a `model_path` of None what `model` is.
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
        model_path=path_to_serve(model, rest.pop("model_path", None)),
        version=parse_version(sglang_version),
        slos=tuple(Slo.parse(text) for text in slo or []),
        engine=engine,
        acceptance=acceptance_of(engine) if acceptance is None else acceptance,
        **rest,
    )
