"""What a launch line serves: read from --model, --quantization, --dtype and the path's name, in this order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwprobe.errors import UnsupportedModel
from models.architecture import ModelArchitecture, deepseek_r1
from models.architecture.shipped import base_model, checkpoint_named
from planner.launch_lines.model_names import NamedCheckpoint, named_checkpoint
from planner.violation import Severity, Violation

# What --quantization may say of a checkpoint whose own method is this (model_config.py); the first is its name.
SAME_WEIGHTS = {
    "fp8": ("fp8",),
    "blockwise_int8": ("blockwise_int8",),
    "w8a8_int8": ("w8a8_int8", "compressed-tensors"),
    "awq": ("awq", "awq_marlin", "moe_wna16"),
    "gptq": ("gptq", "gptq_marlin", "moe_wna16", "marlin"),
    "auto-round": ("auto-round", "gptq", "gptq_marlin"),
    "compressed-tensors": ("compressed-tensors",),
    "w4afp8": ("w4afp8",),
    "modelopt_fp4": ("modelopt_fp4", "modelopt", "petit_nvfp4"),
    "quark": ("quark", "quark_mxfp4", "mxfp4"),
    "mxfp4": ("mxfp4",),
    "modelopt_fp8": ("modelopt_fp8", "modelopt"),
}
# What a checkpoint without a config.json at hand is, by --quantization alone: a preset of models/quantization.
BY_FLAG = {
    "fp8": "fp8", "w8a8_int8": "w8a8_int8", "blockwise_int8": "blockwise_int8", "awq": "awq", "awq_marlin": "awq",
    "moe_wna16": "awq", "gptq": "gptq", "gptq_marlin": "gptq", "auto-round": "auto-round", "w4afp8": "w4afp8",
    "compressed-tensors": "compressed-tensors", "modelopt": "modelopt_fp4", "modelopt_fp4": "modelopt_fp4",
    "petit_nvfp4": "modelopt_fp4", "quark": "quark", "quark_mxfp4": "quark", "mxfp4": "quark",
}  # fmt: skip
# Kinds of weights that a name can say and nothing here can weigh.
UNWEIGHED = ("gguf", "low-bit", "bitsandbytes")
NAME = "the path's name"
FIX = "give the checkpoint's config.json with --model; `sgtune models` lists the checkpoints that are known by name"
FOREIGN = (
    "names no DeepSeek-R1, V3, V3.1 or V3.2 and no Kimi K2, and is not modelled: no verdict on memory or speed; if it "
    "is one of these under another name, give its config.json with --model"
)
DISTILLED = (
    "is a model of another architecture (Qwen, Llama) that was distilled from R1, and is not modelled: no verdict on "
    "memory or speed; if it is R1 itself, give its config.json with --model"
)
_PUPIL = re.compile(r"r1[-_.0-9a-z]*(?:distill|qwen|llama)|distill[-_.0-9a-z]*r1", re.IGNORECASE)
# Overrides of config.json that change neither shapes nor bytes.
SAME_SHAPES = ("rope_scaling", "rope_theta", "torch_dtype", "dtype", "num_nextn_predict_layers", "eos_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The model behind a launch line, the source of that, and what was assumed."""

    arch: ModelArchitecture
    basis: str
    assumed: str | None = None
    violations: tuple[Violation, ...] = ()


def served_model(values: Mapping[str, Any], own_model: ModelArchitecture | None) -> ServedModel:
    """Return what a line with these flags (by SGLang's field names) serves; `own_model` is that of --model.

    Raises UnsupportedModel for a checkpoint that is not modelled: its memory and speed are unknown.
    """
    path = str(values.get("model_path") or "")
    for flag, name in (("load_format", "--load-format"), ("torchao_config", "--torchao-config")):
        if values.get(flag) in ("gguf", "bitsandbytes") or (flag == "torchao_config" and values.get(flag)):
            raise _not_modelled(path, f"{name} {values[flag]} gives weights of another kind")
    if values.get("dtype") in ("float", "float32"):
        raise _not_modelled(path, f"--dtype {values['dtype']} computes and stores in 32 bits")
    served = _by_config(own_model, values) if own_model is not None else _by_line(path, values)
    arch = _overridden(served.arch, values.get("json_model_override_args"), path)
    if arch.num_hidden_layers != served.arch.num_hidden_layers:
        served = replace(served, basis=f"{served.basis}; {arch.num_hidden_layers} layers by --json-model-override-args")
    return replace(served, arch=arch)


def _by_config(own_model: ModelArchitecture, values: Mapping[str, Any]) -> ServedModel:
    """Return the model of --model; a --quantization that says otherwise is refused by SGLang."""
    method = own_model.weight_formats.method
    quantization = values.get("quantization")
    basis = f"{own_model.weights} weights, from --model"
    if quantization in (None, "unquant") or (
        method is not None and quantization in SAME_WEIGHTS.get(method, (method,))
    ):
        return ServedModel(arch=own_model, basis=basis)
    if method is None and quantization in ("w8a8_int8", "blockwise_int8"):
        return ServedModel(
            arch=own_model.quantised(quantization),
            basis=f"shapes from --model, INT8 weights from --quantization {quantization}",
        )
    if method is None:
        raise _not_modelled(
            own_model.name, f"its config.json has no quantization_config, and --quantization is {quantization}"
        )
    return ServedModel(
        arch=own_model, basis=basis, violations=(_mismatch(str(quantization), f"config.json says ({method})"),)
    )


def _mismatch(quantization: str, says: str) -> Violation:
    return Violation(
        rule="quantization-mismatch",
        severity=Severity.ERROR,
        message=f"--quantization {quantization} is not what the checkpoint's {says}",
        fix="leave --quantization out: SGLang reads it from the checkpoint",
        refused=True,
    )


def _by_line(path: str, values: Mapping[str, Any]) -> ServedModel:
    """Return the model that the path names, or --served-model-name where the path names none."""
    shown, named, flag = path, named_checkpoint(path), NAME
    served = str(values.get("served_model_name") or "")
    if named.model is None and served:
        other = named_checkpoint(served)
        if other.model is not None:
            kinds = other if named.label is None else named
            shown, flag = served, "--served-model-name"
            named = replace(other, label=kinds.label, method=kinds.method)
    if named.is_other:
        raise UnsupportedModel(f"'{shown[:100]}' {DISTILLED if _PUPIL.search(shown) else FOREIGN}")
    quantization = values.get("quantization")
    quantization = None if quantization == "unquant" else quantization
    shipped = checkpoint_named(shown)
    own = base_model(named.base) if shipped is None else shipped.arch
    arch, basis, faults = _weighed(shown, named, own, quantization)
    basis = f"{arch.weights} weights, {basis.replace(NAME, flag)}"
    if named.model is not None:
        return ServedModel(arch=replace(arch, name=shown), basis=basis, violations=faults)
    assumed = f"DeepSeek-R1 with {arch.weights} weights"
    return ServedModel(arch=replace(arch, name=deepseek_r1().name), basis=basis, assumed=assumed, violations=faults)


def _weighed(
    path: str, named: NamedCheckpoint, own: ModelArchitecture, quantization: str | None
) -> tuple[ModelArchitecture, str, tuple[Violation, ...]]:
    """Return the model with its weights, how they are known, and whether --quantization contradicts the name."""
    if named.label is not None and named.method in UNWEIGHED:
        raise _not_modelled(path, f"its weights are {named.label}, by its name")
    if quantization is not None and quantization not in BY_FLAG:
        raise _not_modelled(path, f"its weights are '{quantization}', by --quantization {quantization}")
    if named.label is None:
        if quantization is None or quantization in SAME_WEIGHTS.get(own.weight_formats.method or "", ()):
            return own, f"from --quantization {quantization}" if quantization else _published(named.base), ()
        return own.quantised(BY_FLAG[quantization]), f"from --quantization {quantization}", ()
    arch = own
    if checkpoint_named(path) is None:
        arch = own.quantised(named.method)
    method = arch.weight_formats.method
    if quantization is None or (method is not None and quantization in SAME_WEIGHTS.get(method, (method,))):
        return arch, f"from --quantization {quantization}" if quantization else f"from {NAME}", ()
    if method is None and quantization in ("w8a8_int8", "blockwise_int8"):
        raise _not_modelled(path, f"its name says BF16 and --quantization {quantization} INT8")
    if method is None:
        raise _not_modelled(path, f"its name says BF16 and --quantization {quantization} converts it while loading")
    if {method, quantization} == {"blockwise_int8", "w8a8_int8"}:
        raise _not_modelled(path, f"its name says {named.label} and --quantization {quantization} reads other scales")
    return arch, f"from {NAME}", (_mismatch(quantization, f"name says ({named.label})"),)


def _published(base: str) -> str:
    return f"as {'Moonshot' if base.startswith('kimi') else 'DeepSeek'} publishes it"


def _overridden(arch: ModelArchitecture, text: Any, path: str) -> ModelArchitecture:
    """Apply --json-model-override-args where it changes shapes. Raises UnsupportedModel for the rest."""
    if not text:
        return arch
    try:
        overrides = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        overrides = None
    if not isinstance(overrides, dict):
        return arch  # a violation of its own: SGLang stops at the text
    changed = arch
    for key, value in overrides.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if key == "num_hidden_layers" and whole and value <= arch.num_hidden_layers:
            changed = changed.sliced(value)
        elif key == "max_position_embeddings" and whole:
            changed = replace(changed, max_position_embeddings=value)
        elif key not in SAME_SHAPES and getattr(arch, key, None) != value:
            raise _not_modelled(path, f"--json-model-override-args changes '{str(key)[:40]}'")
    return changed


def _not_modelled(path: str, why: str) -> UnsupportedModel:
    shown = f"'{path[:100]}'" if path else "this checkpoint"
    return UnsupportedModel(f"{shown} is not modelled: no verdict on memory or speed; {why}; {FIX}")
